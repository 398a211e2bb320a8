"""Frames of a traceback that was raised elsewhere, standing on the lines of this notebook.

A frame of the user's own code is made from the user's own source: the code object is compiled
here, found by its name and first line, and given a first instruction that raises at once, so that
nothing of it runs. Its tables stay, so whoever formats the traceback finds context lines, columns
and arguments as if it had been raised here. A frame of a library stands in a text of its own,
made of the lines that the worker told.
"""

from __future__ import annotations

import ast
import dis
import inspect
import keyword
import linecache
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_MAX_LINE: Final = 50_000
_MAX_LIBRARY_FILES: Final = 200
_MAX_FRAGMENT_LINES: Final = 200
_PLAIN_FLAGS: Final = ~(
    inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
    | inspect.CO_ITERABLE_COROUTINE
)
_NO_COLUMN: Final = 13  # a kind of entry in a table of positions
_NAME_OF_CELL_CODE: Final = "<module>"
_QUALNAME: Final = re.compile(r"[\w<>.]{1,300}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a frame stands. Every number was checked; every text is for people only."""

    file: str
    name: str
    qualname: str
    line: int
    end_line: int
    column: int | None
    end_column: int | None
    first_line: int
    arguments: tuple[str, ...] = ()
    """Names of the arguments, with their stars."""

    @property
    def position(self) -> tuple[int, int, int | None, int | None]:
        """The place as tables of positions have it."""
        return self.line, self.end_line, self.column, self.end_column


def link(place: Place, following: types.TracebackType | None) -> types.TracebackType:
    """Return a traceback whose first frame stands at ``place`` in a text that is not parsed."""
    return _chained(_probe(place), following)


def link_into_source(
    place: Place, source: str, line_offset: int, following: types.TracebackType | None
) -> types.TracebackType:
    """Return a traceback whose first frame is one of the user's own code.

    Args:
        place: where, in lines of the visible text.
        source: the user's text as IPython runs it.
        line_offset: lines of the visible text above ``source``.
        following: the frames that this one called.
    """
    try:
        found = _instruction(place, source, line_offset)
        if found is not None:
            code, offset = found
            own = _raised_at_once(code, place.line)
            shift = len(own.tb_frame.f_code.co_code) - len(code.co_code)
            return types.TracebackType(following, own.tb_frame, offset + shift, place.line)
    except Exception:  # noqa: S110  # another Python's tables, or a text that has changed
        pass
    return link(place, following)


def link_into_library(
    place: Place, fragment: Sequence[str], start: int, following: types.TracebackType | None
) -> types.TracebackType:
    """Return a traceback whose first frame stands in a text made of ``fragment``.

    Args:
        place: where; its file is the worker's own name for it.
        fragment: lines of the source as the worker tells them.
        start: the number of the first of them.
        following: the frames that this one called.
    """
    _remember(place, list(fragment[:_MAX_FRAGMENT_LINES]), start)
    return _chained(_probe(place), following)


# ---------------------------------------------------------------- the user's own code


def _instruction(place: Place, source: str, line_offset: int) -> tuple[types.CodeType, int] | None:
    """Return the code object at ``place`` and the offset of the instruction that stands there."""
    for code in _codes(source, place.file, line_offset):
        is_cell = place.name == code.co_name == _NAME_OF_CELL_CODE
        if code.co_name != place.name or not (is_cell or code.co_firstlineno == place.first_line):
            continue
        found = [i for i, there in enumerate(code.co_positions()) if there == place.position]
        if found:
            return code, 2 * _last_of_first_run(found)
    return None


def _last_of_first_run(numbers: list[int]) -> int:
    # A call is several instructions at one place, and the last of them is the one that raises.
    last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            break
        last = number
    return last


@lru_cache(maxsize=16)
def _codes(source: str, file: str, line_offset: int) -> tuple[types.CodeType, ...]:
    tree = ast.parse(source)
    ast.increment_lineno(tree, line_offset)
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    found: list[types.CodeType] = []
    for statement in tree.body:  # IPython runs them one by one
        module = ast.Module([statement], [])
        found += _inside(compile(module, file, "exec", flags=flags, dont_inherit=True))
    return tuple(found)


def _inside(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _inside(part)


def _raised_at_once(code: types.CodeType, line: int) -> types.TracebackType:
    """Return the traceback of a frame of ``code`` that raises before its first instruction."""
    head = b""
    if code.co_freevars:
        head += bytes([dis.opmap["COPY_FREE_VARS"], len(code.co_freevars)])
    # Before RESUME a frame has not begun, and stands in no traceback.
    head += bytes([dis.opmap["RESUME"], 0, dis.opmap["RAISE_VARARGS"], 0])
    # The new instructions stand on the line that raised; one more brings the table back.
    delta = line - code.co_firstlineno
    table = _entry(len(head) // 2, delta) + _entry(1, -delta)
    head += bytes([dis.opmap["NOP"], 0])
    changed = code.replace(
        co_code=head + code.co_code,
        co_linetable=table + code.co_linetable,
        co_exceptiontable=b"",
        co_flags=code.co_flags & _PLAIN_FLAGS,
        co_stacksize=max(code.co_stacksize, 1),
    )
    cells = tuple(types.CellType() for _ in code.co_freevars)
    function = types.FunctionType(changed, {"__name__": "gridx.remote"}, code.co_name, None, cells)
    function.__defaults__ = (None,) * code.co_argcount
    names = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    function.__kwdefaults__ = dict.fromkeys(names)
    return _last_link(function)


def _entry(length: int, delta: int) -> bytes:
    """Return an entry of a table of positions: ``length`` instructions, ``delta`` lines on."""
    number = (-delta << 1) | 1 if delta < 0 else delta << 1
    parts = []
    while number >= 64:
        parts.append(64 | (number & 63))
        number >>= 6
    return bytes([0x80 | (_NO_COLUMN << 3) | (length - 1), *parts, number])


# ---------------------------------------------------------------- any other code


def _probe(place: Place) -> types.TracebackType:
    code = _probe_code(place)
    if place.name == _NAME_OF_CELL_CODE:
        function = types.FunctionType(code, {"__name__": "gridx.remote"})
    else:
        (inner,) = (part for part in code.co_consts if isinstance(part, types.CodeType))
        inner = inner.replace(co_name=place.name, co_qualname=place.qualname)
        function = types.FunctionType(inner, {"__name__": "gridx.remote"})
        count = inner.co_argcount
        function.__defaults__ = (None,) * count
        names = inner.co_varnames[count : count + inner.co_kwonlyargcount]
        function.__kwdefaults__ = dict.fromkeys(names)
    return _last_link(function)


def _probe_code(place: Place) -> types.CodeType:
    """Return code that raises at ``place``: our own statement, with the report's numbers."""
    statement = ast.parse("raise").body[0]
    if place.name == _NAME_OF_CELL_CODE:
        tree = ast.Module([statement], [])
    else:
        tree = ast.parse(f"def probe({_parameters(place.arguments)}): pass")
        tree.body[0].body = [statement]  # type: ignore[attr-defined]  # a function has a body
        for node in ast.walk(tree):
            if isinstance(node, (ast.stmt, ast.expr, ast.arg)):
                node.lineno = node.end_lineno = min(place.first_line, place.line)
    statement.lineno, statement.end_lineno = place.line, place.end_line
    statement.col_offset = place.column or 0
    statement.end_col_offset = place.end_column or 0
    return compile(tree, place.file, "exec", dont_inherit=True)


def _parameters(arguments: tuple[str, ...]) -> str:
    text = ", ".join(name for name in arguments if is_parameter(name))
    try:
        compile(f"def probe({text}): pass", "<probe>", "exec", dont_inherit=True)
    except SyntaxError:  # a name twice, stars in the wrong order
        return ""
    return text


def is_parameter(name: object) -> bool:
    """Return whether ``name`` can stand in a list of parameters: an identifier, or with stars."""
    if type(name) is not str or len(name) > 100:
        return False
    bare = name.lstrip("*")
    if name == "*":
        return True
    return len(name) - len(bare) <= 2 and bare.isidentifier() and not keyword.iskeyword(bare)


def is_qualname(name: object) -> bool:
    """Return whether ``name`` can be the qualified name of code."""
    return type(name) is str and bool(_QUALNAME.match(name))


def _last_link(function: types.FunctionType) -> types.TracebackType:
    try:
        function()
    except RuntimeError as raised:  # there is no exception to raise again
        own = raised.__traceback__
        inner = own.tb_next if own is not None else None
        if inner is not None and inner.tb_next is None:
            return inner
    raise AssertionError("the first instruction always raises")


def _chained(
    own: types.TracebackType, following: types.TracebackType | None
) -> types.TracebackType:
    return types.TracebackType(following, own.tb_frame, own.tb_lasti, own.tb_lineno)


# ---------------------------------------------------------------- texts of libraries


_texts: list[str] = []


def _remember(place: Place, fragment: list[str], start: int) -> None:
    """Let ``linecache`` find ``fragment`` under the file of ``place``."""
    if not 0 < start <= place.line < start + len(fragment) or place.line > _MAX_LINE:
        return
    if not any(text.strip() for text in fragment):
        return
    entry = linecache.cache.get(place.file)
    lines = list(entry[2]) if entry is not None and len(entry) == 4 else []
    lines += ["\n"] * (start - 1 + len(fragment) - len(lines))
    lines[start - 1 : start - 1 + len(fragment)] = [f"{text}\n" for text in fragment]
    if place.name != _NAME_OF_CELL_CODE:
        _frame_in(lines, place)
        if not _is_readable(lines, place.first_line):
            # Half a statement would stop whoever formats it.
            lines[start - 1 : start - 1 + len(fragment)] = ["\n"] * len(fragment)
            lines[place.line - 1] = f"# {fragment[place.line - start].strip()}\n"
    linecache.cache[place.file] = (len(lines), None, lines, place.file)
    if place.file in _texts:
        _texts.remove(place.file)
    _texts.append(place.file)
    while len(_texts) > _MAX_LIBRARY_FILES:
        linecache.cache.pop(_texts.pop(0), None)


def _frame_in(lines: list[str], place: Place) -> None:
    """Give a function its first line and what it stands in, so that the text can be parsed."""
    owners = [part for part in place.qualname.split(".")[:-1] if part != "<locals>"]
    at = place.first_line - 2
    if place.name.isidentifier() and not lines[at + 1].strip():
        indent = "    " * len(owners)
        lines[at + 1] = f"{indent}def {place.name}({_parameters(place.arguments)}):\n"
    for depth, owner in reversed(list(enumerate(owners))):
        if at < 0 or lines[at].strip():
            return
        if owner.isidentifier() and not keyword.iskeyword(owner):
            lines[at] = f"{'    ' * depth}class {owner}:\n"
        at -= 1


def _is_readable(lines: list[str], first_line: int) -> bool:
    try:
        inspect.getblock(lines[max(first_line - 1, 0) :])
    except Exception:
        return False
    return True
