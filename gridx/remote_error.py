"""Exceptions as data: taken apart in the container, built again on the user's machine.

Never a pickled exception. The class is found among builtins, the user's own exceptions and those
of well-known libraries that are loaded already; the traceback is made of frames that stand on the
lines of the visible cell.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import itertools
import linecache
import re
import sys
import textwrap
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from . import remote_frames
from .ship.analysis import transform

_Data = dict[str, Any]

_MAX_DEPTH: Final = 20
_FIRST_FRAMES: Final = 20
_LAST_FRAMES: Final = 40
_MAX_MEMBERS: Final = 100
_MAX_NOTES: Final = 20
_MAX_ARGS: Final = 100
_MAX_FIELDS: Final = 100
# Of one whole report, so that it fits into one message however long the chain is.
_BUDGET_CHARS: Final = 200_000
_MESSAGE_CHARS: Final = 100_000
_MAX_LINE: Final = 10_000_000
# A function of a library comes with its text: all of it up to this length, else a part.
_MAX_BLOCK_LINES: Final = 200
_BLOCK_CHARS: Final = 10_000
# A run of equal frames is sent once; so many are shown in all, as many as recursion may have.
_MAX_TIMES: Final = 3_000
_AROUND: Final = 2
_SIMPLE: Final = (type(None), bool, int, float, str)
_INT64: Final = 1 << 63
_OS_FIELDS: Final = ("errno", "strerror", "filename")
# In a notebook these would end the kernel, or a loop of the user.
_DEMOTED: Final = frozenset(
    {"SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration", "StopAsyncIteration"}
)
_BUILTIN: Final = {
    f"builtins.{name}": cls
    for name, cls in vars(builtins).items()
    if isinstance(cls, type) and issubclass(cls, Exception) and name not in _DEMOTED
}
# Only modules of these, and only once they are loaded: nothing is imported for an error.
_LIBRARIES: Final = frozenset(
    [
        "asyncio",
        "concurrent",
        "configparser",
        "csv",
        "decimal",
        "json",
        "matplotlib",
        "networkx",
        "numpy",
        "pandas",
        "polars",
        "pyarrow",
        "scipy",
        "shutil",
        "sklearn",
        "sqlite3",
        "statistics",
        "subprocess",
        "sympy",
        "torch",
        "xml",
        "zipfile",
        "zoneinfo",
    ]
)
# Controls, and marks that would change the direction of the text around them.
_UNPRINTABLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_ON_LINE: Final = re.compile(r" on line (\d{1,6})\b")
_CELL_FILE: Final = re.compile(r"<ipython-input-|<gridx cell |.*ipykernel_\d+[/\\]")


class RemoteError(Exception):
    """Base of every exception that a cell raised on a worker.

    Such an exception is also of the class that it had there, so ``except ValueError`` works.
    """

    remote_type: str = ""
    """Module and name of the class as the worker told them."""
    _remote_text: str | None = None

    def __str__(self) -> str:
        return super().__str__() if self._remote_text is None else self._remote_text

    def __reduce__(self) -> Any:
        # Sent on to another cell it is what it was: an exception of the class that is known there.
        known = [cls for cls in type(self).__mro__ if not issubclass(cls, RemoteError)]
        plain = next((cls for cls in known if issubclass(cls, Exception)), Exception)
        return _plain_again, (plain, self.args, str(self))


def _plain_again(cls: type[Exception], args: tuple[Any, ...], text: str) -> Exception:
    try:
        return cls(*args)
    except TypeError:
        return Exception(text)


# ---------------------------------------------------------------- in the container


class _Budget:
    def __init__(self) -> None:
        self._left_chars = _BUDGET_CHARS

    def has(self, chars: int) -> bool:
        return chars <= self._left_chars

    def text(self, value: object, longest: int = 2_000) -> str:
        text = str(value) if isinstance(value, str) else ""
        text = text[: max(0, min(longest, self._left_chars))]
        self._left_chars -= len(text)
        return text.encode("utf-8", "replace").decode()


def exception_to_data(exc: BaseException, cell_files: Collection[str]) -> _Data:
    """Return ``exc`` as plain data that MessagePack can hold, bounded in size.

    Args:
        exc: what the cell raised; its causes, contexts and members are taken too.
        cell_files: file names in this process that are the cell.
    """
    return _to_data(exc, cell_files, _Budget(), 0, set())


def _to_data(
    exc: BaseException, cell_files: Collection[str], budget: _Budget, depth: int, seen: set[int]
) -> _Data:
    cls = type(exc)
    data: _Data = {
        "type": budget.text(cls.__qualname__, 300),
        "module": budget.text(cls.__module__, 300),
    }
    if id(exc) in seen or depth > _MAX_DEPTH:
        return {**data, "message": "(shown above)"}
    seen.add(id(exc))
    data["mro"] = [
        budget.text(f"{base.__module__}.{base.__qualname__}", 300)
        for base in cls.__mro__[:-1]
        if base is not BaseException
    ][:_MAX_DEPTH]
    data["message"] = budget.text(_text_of(exc), _MESSAGE_CHARS)
    data["frames"] = list(_frames(exc.__traceback__, cell_files, budget))
    _add_details(data, exc, cell_files, budget)
    cause, context = exc.__cause__, exc.__context__
    if cause is not None:
        data["cause"] = _to_data(cause, cell_files, budget, depth + 1, seen)
    elif context is not None and not exc.__suppress_context__:
        data["context"] = _to_data(context, cell_files, budget, depth + 1, seen)
    if isinstance(exc, BaseExceptionGroup):
        members = exc.exceptions[:_MAX_MEMBERS]
        data["members"] = [_to_data(m, cell_files, budget, depth + 1, seen) for m in members]
        data["message"] = budget.text(exc.message, _MESSAGE_CHARS)
    return data


def _text_of(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception as error:
        return f"<its text could not be made: {type(error).__name__}>"


def _add_details(
    data: _Data, exc: BaseException, cell_files: Collection[str], budget: _Budget
) -> None:
    notes = getattr(exc, "__notes__", None)
    if isinstance(notes, (list, tuple)):
        data["notes"] = [budget.text(note, 5_000) for note in notes[:_MAX_NOTES]]
    if len(exc.args) <= _MAX_ARGS and all(_is_simple(value) for value in exc.args):
        data["args"] = [_simple(value, budget) for value in exc.args]
    fields = {
        budget.text(name, 200): _simple(value, budget)
        for name, value in list(vars(exc).items())[:_MAX_FIELDS]
        if _is_simple(value) and not name.startswith("_")
    }
    if fields:
        data["fields"] = fields
    if isinstance(exc, OSError) and isinstance(exc.errno, int):
        data["os"] = [_simple(getattr(exc, name, None), budget) for name in _OS_FIELDS]
    if isinstance(exc, SyntaxError):
        data["syntax"] = {
            "is_cell": exc.filename in cell_files,
            "file": budget.text(exc.filename, 500) if _is_made_of_text(exc.filename) else "",
            "line": exc.lineno,
            "column": exc.offset,
            "end_line": exc.end_lineno,
            "end_column": exc.end_offset,
            "source": budget.text(exc.text),
            "message": budget.text(exc.msg),
        }


def _is_made_of_text(file: object) -> bool:
    return isinstance(file, str) and file.startswith("<") and file.endswith(">")


def _is_simple(value: object) -> bool:
    if type(value) is int:
        return -_INT64 <= value < _INT64
    return type(value) in _SIMPLE


def _simple(value: Any, budget: _Budget) -> Any:
    if type(value) is str:
        return budget.text(value, 10_000)
    return value if _is_simple(value) else None


def _frames(
    traceback: types.TracebackType | None, cell_files: Collection[str], budget: _Budget
) -> Iterator[_Data]:
    chain = [link for link in _chain(traceback) if not _is_of_ipython(link)]
    # Frames above the first of the cell are the runner's.
    first = next((i for i, t in enumerate(chain) if _file_of(t) in cell_files), 0)
    runs = [
        list(run)
        for _, run in itertools.groupby(
            chain[first:], key=lambda link: (link.tb_frame.f_code, link.tb_lasti)
        )
    ]
    if len(runs) > _FIRST_FRAMES + _LAST_FRAMES:
        runs = runs[:_FIRST_FRAMES] + runs[-_LAST_FRAMES:]
    for run in runs:
        frame = _frame(run[0], cell_files, budget)
        if len(run) > 1:
            frame["times"] = len(run)
        yield frame


def _is_of_ipython(link: types.TracebackType) -> bool:
    # A notebook does not show these of its own either.
    module = link.tb_frame.f_globals.get("__name__")
    return isinstance(module, str) and module.partition(".")[0] == "IPython"


def _chain(traceback: types.TracebackType | None) -> Iterator[types.TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _file_of(link: types.TracebackType) -> str:
    return link.tb_frame.f_code.co_filename


def _frame(link: types.TracebackType, cell_files: Collection[str], budget: _Budget) -> _Data:
    code, line = link.tb_frame.f_code, link.tb_lineno or 1
    positions = next(itertools.islice(code.co_positions(), link.tb_lasti // 2, None), None)
    start, end, column, end_column = positions or (line, line, None, None)
    frame: _Data = {
        "file": budget.text(code.co_filename, 500),
        "is_cell": code.co_filename in cell_files,
        "name": budget.text(code.co_name, 200),
        "qualname": budget.text(code.co_qualname, 300),
        "first_line": code.co_firstlineno,
        "line": line,
        "end_line": end if start == line else line,
        "column": column if start == line else None,
        "end_column": end_column if start == line else None,
        "source": budget.text(
            linecache.getline(code.co_filename, line, link.tb_frame.f_globals).rstrip("\n")
        ),
    }
    if not frame["is_cell"]:
        frame["arguments"] = [budget.text(name, 100) for name in _arguments(code)]
        first, lines = _block(link)
        if not budget.has(sum(map(len, lines)) + _MESSAGE_CHARS // 2):
            first, lines = line, lines[line - first : line - first + 1]
        frame["start"] = first
        frame["lines"] = [budget.text(text.rstrip("\n"), 500) for text in lines]
    return frame


def _arguments(code: types.CodeType) -> list[str]:
    """Return the names of the arguments of ``code`` as a signature has them."""
    names, count, keywords = code.co_varnames, code.co_argcount, code.co_kwonlyargcount
    found = list(names[:count])
    after = count + keywords
    has_star = bool(code.co_flags & inspect.CO_VARARGS)
    if has_star:
        found.append(f"*{names[after]}")
    elif keywords:
        found.append("*")
    found += names[count:after]
    if code.co_flags & inspect.CO_VARKEYWORDS:
        found.append(f"**{names[after + has_star]}")
    return found[:_MAX_ARGS]


def _block(link: types.TracebackType) -> tuple[int, list[str]]:
    """Return lines of source around a frame that can be read by themselves, and their number."""
    code, line = link.tb_frame.f_code, link.tb_lineno or 1
    lines = linecache.getlines(code.co_filename, link.tb_frame.f_globals)
    first = code.co_firstlineno
    if code.co_name == "<module>":
        start = max(1, line - _AROUND)
        return start, lines[start - 1 : line + _AROUND]
    try:
        block = inspect.getblock(lines[first - 1 :])
        if len(block) > _MAX_BLOCK_LINES or sum(map(len, block)) > _BLOCK_CHARS:
            start, end = _statements_around(block, line - first + 1)
            return first + start - 1, block[start - 1 : end]
    except Exception:  # a file that has changed, or none that Python can read
        return line, lines[line - 1 : line]
    return first, block


def _statements_around(block: list[str], line: int) -> tuple[int, int]:
    """Return first and last line of the statements around ``line`` of a function's source."""
    tree = ast.parse(textwrap.dedent("".join(block)))
    best: list[ast.stmt] = []
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody", "handlers"):
            body = getattr(node, field, None)
            if isinstance(body, list) and any(_spans(part, line) for part in body):
                best = [part for part in body if isinstance(part, ast.stmt)] or best
    at = next(i for i, part in enumerate(best) if _spans(part, line))
    near = best[max(at - _AROUND, 0) : at + _AROUND + 1]
    while len(near) > 1 and (near[-1].end_lineno or 0) - near[0].lineno > _MAX_BLOCK_LINES // 2:
        near = near[1:-1] if len(near) > 2 else [best[at]]
    return near[0].lineno, near[-1].end_lineno or near[-1].lineno


def _spans(node: ast.AST, line: int) -> bool:
    return getattr(node, "lineno", line + 1) <= line <= getattr(node, "end_lineno", 0)


# ---------------------------------------------------------------- on the user's machine


def user_exceptions(namespace: Mapping[str, Any]) -> list[type]:
    """Return the exception classes that the notebook itself defines."""
    return [
        value
        for value in list(namespace.values())
        if isinstance(value, type)
        and issubclass(value, Exception)
        and value.__module__ == "__main__"
    ]


def rebuild(
    data: Mapping[str, Any],
    *,
    cell_file: str | None = None,
    user_classes: Iterable[type] = (),
    line_offset: int = 0,
    earlier: Mapping[str, tuple[str, int]] | None = None,
) -> BaseException:
    """Return the exception that ``data`` describes, ready to be raised. Never fails.

    Args:
        data: what ``exception_to_data`` made, or what somebody hostile made.
        cell_file: file name of the visible cell in this process, as its own tracebacks name it.
        user_classes: the user's own exception classes.
        line_offset: lines of the visible cell above its body; 1 below a ``%%gridx`` line.
        earlier: for each file name by which the worker knows an earlier cell, such as
            ``<cell 2>``, that cell's file name here and its line offset.
    """
    known = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in user_classes}
    return _Rebuilder(cell_file, known, line_offset, earlier or {}).exception(data, 0)


class _Rebuilder:
    def __init__(
        self,
        cell_file: str | None,
        known: dict[str, type],
        line_offset: int,
        earlier: Mapping[str, tuple[str, int]],
    ) -> None:
        self._cell_file = cell_file
        self._known = known
        self._line_offset = line_offset
        self._earlier = earlier

    def exception(self, data: Any, depth: int) -> BaseException:
        if not isinstance(data, dict) or depth > _MAX_DEPTH:
            return RemoteError("The worker's report of an error is malformed.")
        made = self._made(data, depth)
        made.remote_type = clean(f"{data.get('module')}.{data.get('type')}", 600)
        for note in _list(data.get("notes"))[:_MAX_NOTES]:
            made.add_note(clean(note, 5_000))
        if isinstance(data.get("cause"), dict):
            made.__cause__ = self.exception(data["cause"], depth + 1)
        elif isinstance(data.get("context"), dict):
            made.__context__ = self.exception(data["context"], depth + 1)
        frames = [frame for frame in _list(data.get("frames")) if isinstance(frame, dict)]
        return made.with_traceback(self._traceback(frames))

    def _made(self, data: _Data, depth: int) -> RemoteError:
        name = clean(data.get("type"), 300)
        text = clean(data.get("message"))
        module = _module_name(data.get("module"))
        members = _list(data.get("members"))
        if members:
            parts = [self.exception(m, depth + 1) for m in members[:_MAX_MEMBERS]]
            group = _remote_class(ExceptionGroup, name, module)
            made: Any = group(text, [p for p in parts if isinstance(p, Exception)])
            return _as_remote(made)
        cls = _remote_class(self._base(data), name, module)
        made = _bare(cls)
        args = _list(data.get("args"))
        is_plain = bool(args) and all(_is_simple(a) for a in args[: _MAX_ARGS + 1])
        made.args = tuple(_cleaned(a) for a in args) if is_plain else (text,)
        if isinstance(made, SyntaxError):
            self._fill_syntax(made, data.get("syntax"), text)
        else:
            made._remote_text = text
        if isinstance(made, OSError):
            _fill_os(made, _list(data.get("os")))
        _fill_fields(made, data.get("fields"))
        return _as_remote(made)

    def _base(self, data: _Data) -> type[Exception]:
        names = [f"{data.get('module')}.{data.get('type')}", *_list(data.get("mro"))]
        for name in names:
            if type(name) is not str or len(name) > 600:
                continue
            found = self._known.get(name) or _BUILTIN.get(name) or _of_loaded_library(name)
            if found is None or issubclass(found, BaseExceptionGroup):
                continue
            if issubclass(found, Exception):
                return found
        return Exception

    def _fill_syntax(self, made: SyntaxError, data: Any, text: str) -> None:
        syntax = data if isinstance(data, dict) else {}
        is_cell = syntax.get("is_cell") is True and self._cell_file is not None
        offset = self._line_offset if is_cell else 0
        made.msg = clean(syntax.get("message"), 2_000) or text
        file = clean(syntax.get("file"), 500)
        made.filename = self._cell_file if is_cell else file or "<remote>"
        if syntax.get("line") is None:
            return
        if offset:  # "expected an indented block after 'if' statement on line 1"
            made.msg = _ON_LINE.sub(lambda found: f" on line {int(found[1]) + offset}", made.msg)
        made.lineno = _bounded(syntax.get("line"), 1) + offset
        made.end_lineno = _bounded(syntax.get("end_line"), made.lineno - offset) + offset
        made.offset = _bounded(syntax.get("column"), 1)
        made.end_offset = _bounded(syntax.get("end_column"), made.offset)
        made.text = clean(syntax.get("source"), 2_000)

    def _traceback(self, frames: list[_Data]) -> types.TracebackType | None:
        first = next((i for i, frame in enumerate(frames) if frame.get("is_cell") is True), 0)
        traceback: types.TracebackType | None = None
        left = _MAX_TIMES
        for frame in reversed(frames[first : first + _FIRST_FRAMES + _LAST_FRAMES]):
            try:
                traceback = link = self._link(frame, traceback)
            except Exception:  # noqa: S112  # a frame that cannot be shown is left out
                continue
            left -= 1
            for _ in range(min(_bounded(frame.get("times"), 1) - 1, left)):
                traceback = types.TracebackType(
                    traceback, link.tb_frame, link.tb_lasti, link.tb_lineno
                )
                left -= 1
        return traceback

    def _link(self, frame: _Data, following: types.TracebackType | None) -> types.TracebackType:
        remote_file = clean(frame.get("file"), 500)
        if frame.get("is_cell") is True and self._cell_file is not None:
            place = _place(frame, self._cell_file, self._line_offset)
            return _into_cell(place, self._line_offset, following)
        if remote_file in self._earlier:
            file, offset = self._earlier[remote_file]
            return _into_cell(_place(frame, file, offset), offset, following)
        if _CELL_FILE.match(remote_file) and remote_file in linecache.cache:
            return _into_cell(_place(frame, remote_file, 0), None, following)
        is_text = remote_file.startswith("<") and remote_file.endswith(">")
        if is_text and remote_file not in linecache.cache:
            # Code that was made from a string: nobody has its source.
            return remote_frames.link(_place(frame, remote_file, 0), following)
        place = _place(frame, f"<remote {remote_file}>", 0)
        start = _bounded(frame.get("start"), place.line)
        fragment = [clean(text, 2_000) for text in _list(frame.get("lines"))[:_MAX_BLOCK_LINES]]
        if not start <= place.line < start + len(fragment):
            start, fragment = place.line, [clean(frame.get("source"), 2_000)]
        return remote_frames.link_into_library(place, fragment, start, following)


def _place(frame: _Data, file: str, line_offset: int) -> remote_frames.Place:
    line = _bounded(frame.get("line"), 1)
    end_line = max(line, _bounded(frame.get("end_line"), line))
    column = _bounded(frame.get("column"), -1, 0)
    end_column = _bounded(frame.get("end_column"), -1, 0)
    is_span = column >= 0 and end_column >= 0
    if line == end_line:
        end_column = max(column, end_column)
    name = clean(frame.get("name"), 200) or "<module>"
    qualname = frame.get("qualname")
    arguments = tuple(filter(remote_frames.is_parameter, _list(frame.get("arguments"))[:_MAX_ARGS]))
    return remote_frames.Place(
        file=file,
        name=name,
        qualname=str(qualname) if remote_frames.is_qualname(qualname) else name,
        line=line + line_offset,
        end_line=end_line + line_offset,
        column=column if is_span else None,
        end_column=end_column if is_span else None,
        first_line=min(line, _bounded(frame.get("first_line"), line)) + line_offset,
        arguments=arguments,
    )


def _into_cell(
    place: remote_frames.Place, line_offset: int | None, following: types.TracebackType | None
) -> types.TracebackType:
    """Return a link into a cell whose text this process knows; None finds its body there."""
    lines = linecache.getlines(place.file)
    if line_offset is None:
        line_offset = 0
        for line in lines:
            if line.strip() and not line.lstrip().startswith("#"):
                line_offset += line.startswith("%%")
                break
            line_offset += 1
        else:
            line_offset = 0
        if line_offset and not lines[line_offset - 1].startswith("%%"):
            line_offset = 0
    try:
        source = transform("".join(lines[line_offset:]))
    except SyntaxError:
        return remote_frames.link(place, following)
    return remote_frames.link_into_source(place, source, line_offset, following)


_classes: dict[tuple[type, str, str], type[Any]] = {}


def _remote_class(base: type[Exception], name: str, module: str) -> type[Any]:
    """Return the class that is both a RemoteError and ``base``, named as the remote class was.

    The name is the remote one to the letter, so that a traceback reads as that of a local cell.
    """
    short = name.rpartition(".")[2]
    if not short.isidentifier() or len(short) > 80:
        short = base.__name__
    key = (base, short, module)
    if key not in _classes:
        bases = (RemoteError,) if base is Exception else (RemoteError, base)
        try:
            made = type(short, bases, {"__module__": module})
        except TypeError:
            return RemoteError  # a class that cannot be derived from
        if len(_classes) >= 1_000:
            _classes.clear()
        _classes[key] = made
    return _classes[key]


def _bare(cls: type[Any]) -> Any:
    """Return an instance of ``cls`` without running an ``__init__`` or ``__new__`` of Python."""
    for base in cls.__mro__:
        if base.__module__ == "builtins":
            make: Any = base.__new__
            try:
                return make(cls)
            except TypeError:
                continue  # not the one that lays out this class
    raise AssertionError("every exception class can be made by a builtin one")


def _as_remote(made: Any) -> RemoteError:
    assert isinstance(made, RemoteError)
    return made


def _module_name(name: Any) -> str:
    text = clean(name, 300)
    parts = text.split(".")
    return text if all(part.isidentifier() for part in parts) else __name__


def _of_loaded_library(name: str) -> type[Exception] | None:
    module_name, _, attribute = name.rpartition(".")
    if module_name.partition(".")[0] not in _LIBRARIES:
        return None
    module = sys.modules.get(module_name)
    # vars(): an attribute look-up could import something.
    found = None if module is None else vars(module).get(attribute)
    if isinstance(found, type) and issubclass(found, Exception):
        return found
    return None


def _fill_os(made: OSError, values: list[Any]) -> None:
    if len(values) == 3 and type(values[0]) is int:
        made.errno, made.strerror, made.filename = values[0], *map(_cleaned, values[1:])


def _fill_fields(made: Exception, fields: Any) -> None:
    if not isinstance(fields, dict):
        return
    for name, value in list(fields.items())[:_MAX_FIELDS]:
        is_name = type(name) is str and name.isidentifier() and not name.startswith("_")
        if is_name and _is_simple(value) and not hasattr(type(made), name):
            vars(made)[name] = _cleaned(value)


def _list(value: Any) -> list[Any]:
    return value if type(value) is list else []


def _bounded(value: Any, otherwise: int, low: int = 1) -> int:
    return value if type(value) is int and low <= value <= _MAX_LINE else otherwise


def _cleaned(value: Any) -> Any:
    return clean(value) if type(value) is str else value


def clean(text: Any, longest: int = _MESSAGE_CHARS) -> str:
    """Return ``text`` without the characters that a terminal acts on; tab and newline stay."""
    return _UNPRINTABLE.sub("\ufffd", text[:longest]) if type(text) is str else ""


# ---------------------------------------------------------------- as text


def format_plain(data: Mapping[str, Any], *, line_offset: int = 0) -> str:
    """Return ``data`` as the text of a traceback, ending with a newline."""
    return "\n".join(_lines(data, line_offset, 0)) + "\n"


def _lines(data: Any, line_offset: int, depth: int) -> Iterator[str]:
    if not isinstance(data, dict) or depth > _MAX_DEPTH:
        yield "The worker's report of an error is malformed."
        return
    for key, sentence in (
        ("cause", "The above exception was the direct cause of the following exception:"),
        ("context", "During handling of the above exception, another exception occurred:"),
    ):
        if isinstance(data.get(key), dict):
            yield from _lines(data[key], line_offset, depth + 1)
            yield from ("", sentence, "")
    frames = [frame for frame in _list(data.get("frames")) if isinstance(frame, dict)]
    if frames:
        yield "Traceback (most recent call last):"
    for frame in frames:
        is_cell = frame.get("is_cell") is True
        line = _bounded(frame.get("line"), 1) + (line_offset if is_cell else 0)
        file = "<cell>" if is_cell else clean(frame.get("file"), 500)
        yield f'  File "{file}", line {line}, in {clean(frame.get("name"), 200)}'
        source = clean(frame.get("source"), 2_000).strip()
        if source:
            yield f"    {source}"
    yield from _last_lines(data, line_offset, depth)


def _last_lines(data: _Data, line_offset: int, depth: int) -> Iterator[str]:
    syntax = data.get("syntax")
    if isinstance(syntax, dict):
        line = _bounded(syntax.get("line"), 1)
        line += line_offset if syntax.get("is_cell") is True else 0
        yield f'  File "<cell>", line {line}'
        yield f"    {clean(syntax.get('source'), 2_000).strip()}"
    module, name = clean(data.get("module"), 300), clean(data.get("type"), 300)
    shown = name if module in ("builtins", "__main__", "") else f"{module}.{name}"
    message = clean((syntax or data).get("message")) if isinstance(syntax, dict) else ""
    message = message or clean(data.get("message"))
    yield f"{shown}: {message}" if message else shown
    for note in _list(data.get("notes"))[:_MAX_NOTES]:
        yield clean(note, 5_000)
    for number, member in enumerate(_list(data.get("members"))[:_MAX_MEMBERS], start=1):
        yield f"  [{number}]"
        for text in _lines(member, line_offset, depth + 1):
            yield f"  | {text}"
