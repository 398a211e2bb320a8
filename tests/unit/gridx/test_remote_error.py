"""Each error is raised in a "container" (exec under another file name), sent as MessagePack, and
built again here."""

from __future__ import annotations

import asyncio
import builtins
import inspect
import json
import linecache
import pickle
import subprocess
import sys
import traceback
from typing import Any

import msgspec
import numpy as np
import pytest
from IPython.core.ultratb import FormattedTB

from gridx.remote_error import (
    RemoteError,
    clean,
    exception_to_data,
    format_plain,
    rebuild,
    user_exceptions,
)

_THERE = "/tmp/in-the-container/cell.py"
_HERE = "<ipython-input-7-visible>"


def _raise_there(body: str, namespace: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the error of the cell ``body`` as it crosses the wire."""
    namespace = {"__name__": "__main__"} if namespace is None else namespace
    linecache.cache[_THERE] = (len(body), None, body.splitlines(keepends=True), _THERE)
    try:
        exec(compile(body, _THERE, "exec", dont_inherit=True), namespace)
    except BaseException as exc:
        data = exception_to_data(exc, {_THERE})
        sent: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(data))
        return sent
    raise AssertionError("the cell did not raise")


def _rebuilt(body: str, user_classes: tuple[type, ...] = ()) -> BaseException:
    visible = "%%gridx\n" + body
    linecache.cache[_HERE] = (len(visible), None, visible.splitlines(keepends=True), _HERE)
    return rebuild(_raise_there(body), cell_file=_HERE, user_classes=user_classes, line_offset=1)


def _lines_in_cell(exc: BaseException) -> list[tuple[int, str]]:
    frames = traceback.extract_tb(exc.__traceback__)
    return [(frame.lineno or 0, frame.name) for frame in frames if frame.filename == _HERE]


class Mine(KeyError):
    """The user's own exception, as the notebook defines it."""

    def __init__(self, first: str, second: int) -> None:
        super().__init__(first)
        self.second = second


@pytest.mark.parametrize(
    ("body", "cls", "text"),
    [
        ("1/0", ZeroDivisionError, "division by zero"),
        ("{}['k']", KeyError, "'k'"),
        ("open('/nope')", FileNotFoundError, "No such file"),
        ("import nope_module", ModuleNotFoundError, "nope_module"),
        ("b'\\xff'.decode()", UnicodeDecodeError, "invalid start byte"),
        ("import json\njson.loads('{bad')", json.JSONDecodeError, "Expecting property name"),
        ("import numpy as np\nnp.linalg.inv(np.zeros((2, 2)))", np.linalg.LinAlgError, "Singular"),
        ("def f(): f()\nf()", RecursionError, "recursion"),
        ("[][3]", IndexError, "out of range"),
        ("None.x", AttributeError, "NoneType"),
        ("undefined_name", NameError, "undefined_name"),
        ("int('x')", ValueError, "invalid literal"),
        ("raise TimeoutError('late')", TimeoutError, "late"),
        ("assert False, 'no'", AssertionError, "no"),
        ("raise Warning('w')", Warning, "w"),
        ("import asyncio\nraise asyncio.QueueFull()", asyncio.QueueFull, ""),
        (
            "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'exit(3)'], check=True)",
            subprocess.CalledProcessError,
            "exit status 3",
        ),
        ("class My(KeyError): pass\nraise My('q')", KeyError, "q"),
    ],
)
def test_an_error_has_its_class_and_its_text(body: str, cls: type[Exception], text: str) -> None:
    with pytest.raises(cls) as caught:
        raise _rebuilt(body)
    assert isinstance(caught.value, RemoteError)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "body",
    ["import sys\nsys.exit(1)", "raise KeyboardInterrupt", "next(iter([]))", "raise GeneratorExit"],
)
def test_what_would_end_the_kernel_or_a_loop_arrives_as_a_plain_remote_error(body: str) -> None:
    exc = _rebuilt(body)
    assert isinstance(exc, RemoteError)
    assert not isinstance(exc, (SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit))


def test_the_frames_stand_on_the_lines_of_the_visible_cell() -> None:
    exc = _rebuilt(
        "import json\ndef load(s):\n    # comment\n    return json.loads(s)\n\nload('{')\n"
    )
    assert _lines_in_cell(exc) == [(7, "<module>"), (5, "load")]
    assert "json" in traceback.extract_tb(exc.__traceback__)[-1].filename


def test_the_arrow_of_the_notebook_points_at_the_line_that_failed() -> None:
    exc = _rebuilt("a = 1\nb = 0\nc = a / b\n")
    formatter = FormattedTB(mode="Context", theme_name="nocolor")
    text = "\n".join(formatter.structured_traceback(type(exc), exc, exc.__traceback__))
    (arrow,) = [line for line in text.splitlines() if line.startswith("---") and "> " in line]
    assert "4 c = a / b" in arrow
    assert "\nZeroDivisionError: division by zero" in text


def test_carets_stand_under_the_columns_that_failed() -> None:
    exc = _rebuilt("x = {'a': None}\ny = 1 + x['a'] + 2\n")
    (frame,) = traceback.extract_tb(exc.__traceback__)
    assert (frame.lineno, frame.colno, frame.end_colno) == (3, 4, 14)


def test_a_function_of_an_earlier_cell_shows_its_own_line() -> None:
    earlier = "/tmp/ipykernel_11/222.py"
    source = "def half(x):\n    return x / 0\n"
    linecache.cache[earlier] = (len(source), None, source.splitlines(keepends=True), earlier)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, earlier, "exec", dont_inherit=True), namespace)
    exc = rebuild(_raise_there("half(1)", namespace), cell_file=_HERE, line_offset=1)
    frames = traceback.extract_tb(exc.__traceback__)
    assert [(f.filename, f.lineno) for f in frames] == [(_HERE, 2), (earlier, 2)]
    assert frames[-1].line == "return x / 0"


_NOTEBOOK = """\
def outer(n):
    total = n
    def inner(k, *rest, flag=False, **kw):
        return total / k
    return inner
class Stack:
    def pop(self):
        return [].pop()
    @property
    def top(self):
        return {}["top"]
def gen(n):
    yield 1 / n
async def wait(x):
    return x["missing"]
nope = lambda q: q.nope
def multi(a):
    return (
        a
        + a["x"]
    )
"""


@pytest.mark.parametrize(
    ("call", "name", "line", "arguments"),
    [
        ("outer(3)(0)", "outer.<locals>.inner", 4, ["k", "flag", "rest", "kw"]),
        ("Stack().pop()", "Stack.pop", 8, ["self"]),
        ("Stack().top", "Stack.top", 11, ["self"]),
        ("next(gen(0))", "gen", 13, ["n"]),
        ("wait({}).send(None)", "wait", 15, ["x"]),
        ("nope(3)", "<lambda>", 16, ["q"]),
        ("multi({})", "multi", 20, ["a"]),
    ],
)
def test_a_frame_of_an_earlier_cell_is_one_of_the_users_own_code(
    call: str, name: str, line: int, arguments: list[str]
) -> None:
    earlier = "/tmp/ipykernel_11/333.py"
    linecache.cache[earlier] = (1, None, _NOTEBOOK.splitlines(keepends=True), earlier)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(_NOTEBOOK, earlier, "exec", dont_inherit=True), namespace)
    data = _raise_there(call, namespace)
    exc = rebuild(data, cell_file=_HERE, line_offset=1)
    last = exc.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    assert last is not None
    code = last.tb_frame.f_code
    assert (code.co_qualname, last.tb_lineno, last.tb_frame.f_lineno) == (name, line, line)
    assert code.co_firstlineno == data["frames"][-1]["first_line"]
    shown = inspect.getargvalues(last.tb_frame)
    names = [*shown.args, *filter(None, [shown.varargs, shown.keywords])]
    assert names == arguments
    there = data["frames"][-1]
    (frame,) = traceback.extract_tb(exc.__traceback__)[-1:]
    assert (frame.colno, frame.end_colno) == (there["column"], there["end_column"])


def test_nothing_of_the_users_code_runs_to_make_a_frame() -> None:
    earlier = "/tmp/ipykernel_11/444.py"
    source = (
        "def f(log):\n    log.append('ran')\n    try:\n        1 / 0\n"
        "    finally:\n        log.append('cleaned')\n"
    )
    linecache.cache[earlier] = (1, None, source.splitlines(keepends=True), earlier)
    namespace: dict[str, Any] = {"__name__": "__main__", "log": []}
    exec(compile(source, earlier, "exec", dont_inherit=True), namespace)
    data = _raise_there("f(log)", namespace)
    log = namespace["log"]
    log.clear()
    rebuild(data, cell_file=_HERE, line_offset=1)
    assert log == []


def test_a_function_of_a_remote_cell_before_this_one_is_found_by_its_lines() -> None:
    earlier = "<gridx-visible-4>"
    text = "%%gridx\ndef half(x):\n    return x / 0\n"
    linecache.cache[earlier] = (1, None, text.splitlines(keepends=True), earlier)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    body = "\n" + text.partition("\n")[2]
    exec(compile(body.lstrip("\n"), "<cell 3>", "exec", dont_inherit=True), namespace)
    data = _raise_there("half(1)", namespace)
    exc = rebuild(data, cell_file=_HERE, line_offset=1, earlier={"<cell 3>": (earlier, 1)})
    last = traceback.extract_tb(exc.__traceback__)[-1]
    assert (last.filename, last.lineno, last.line) == (earlier, 3, "return x / 0")


def test_a_frame_of_a_library_shows_the_lines_around_it_and_its_arguments() -> None:
    exc = _rebuilt("import json\njson.loads('{bad')")
    formatter = FormattedTB(mode="Context", theme_name="nocolor")
    text = "\n".join(formatter.structured_traceback(type(exc), exc, exc.__traceback__))
    assert "in JSONDecoder.decode(self, s, _w)" in text
    assert "    obj, end = self.raw_decode(s, idx=_w(s, 0).end())" in text
    assert "Could not get source" not in text


def test_half_a_statement_of_a_library_does_not_stop_the_formatter() -> None:
    frame = {"file": "/lib/x.py", "name": "f", "line": 7, "first_line": 3, "start": 7,
             "lines": ["    raise error('unclosed',"], "source": "raise error("}  # fmt: skip
    exc = rebuild({"type": "ValueError", "module": "builtins", "message": "m", "frames": [frame]})
    formatter = FormattedTB(mode="Context", theme_name="nocolor")
    text = "\n".join(formatter.structured_traceback(type(exc), exc, exc.__traceback__))
    assert "raise error('unclosed'," in text


def test_frames_of_ipython_are_not_sent() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__", "call": None}
    ipython: dict[str, Any] = {"__name__": "IPython.core.made_up"}
    exec("def call(f): return f()", ipython)
    namespace["call"] = ipython["call"]
    data = _raise_there("call(lambda: 1 / 0)", namespace)
    assert [frame["name"] for frame in data["frames"]] == ["<module>", "<lambda>"]


def test_a_recursion_is_sent_once_and_shown_as_often_as_it_happened() -> None:
    data = _raise_there("def f(n): return f(n + 1)\nf(0)")
    assert len(data["frames"]) < 10
    shown = traceback.extract_tb(rebuild(data, cell_file=_HERE, line_offset=1).__traceback__)
    assert 500 < len(shown) < 1_100
    data["frames"][1]["times"] = 10**9
    assert len(traceback.extract_tb(rebuild(data).__traceback__)) < 4_000


def test_an_exception_reads_as_a_local_one_and_is_known_as_a_remote_one() -> None:
    exc = _rebuilt("raise ValueError('no')")
    assert isinstance(exc, RemoteError)
    assert (type(exc).__name__, type(exc).__module__) == ("ValueError", "builtins")
    assert repr(exc) == "ValueError('no')"
    assert traceback.format_exception_only(exc) == ["ValueError: no\n"]
    assert exc.remote_type == "builtins.ValueError"
    plain = _rebuilt("raise Exception('plain')")
    assert traceback.format_exception_only(plain) == ["Exception: plain\n"]
    key = _rebuilt("{}['k']")
    assert (str(key), repr(key)) == ("'k'", "KeyError('k')")


def test_an_exception_that_is_sent_on_is_a_plain_one_there() -> None:
    for body, cls in (("raise ValueError('no')", ValueError), ("b'\\xff'.decode()", Exception)):
        exc = _rebuilt(body)
        again = pickle.loads(pickle.dumps(exc))
        assert isinstance(again, cls)
        assert not isinstance(again, RemoteError)
        assert str(again) == str(exc)


def test_a_chain_of_causes_and_notes_arrives() -> None:
    exc = _rebuilt(
        "try:\n    1/0\nexcept ZeroDivisionError as e:\n    e.add_note('while halving')\n"
        "    raise ValueError('cannot start') from e\n"
    )
    assert isinstance(exc, ValueError)
    assert isinstance(exc.__cause__, ZeroDivisionError)
    assert exc.__cause__.__notes__ == ["while halving"]
    assert _lines_in_cell(exc.__cause__) == [(3, "<module>")]


def test_a_context_arrives_and_a_suppressed_one_does_not() -> None:
    body = "try:\n    1/0\nexcept ZeroDivisionError:\n    raise KeyError('k')"
    assert isinstance(_rebuilt(body).__context__, ZeroDivisionError)
    assert _rebuilt(body + " from None").__context__ is None


def test_a_group_can_be_taken_apart() -> None:
    caught: list[type] = []
    try:
        raise _rebuilt("raise ExceptionGroup('two', [ValueError(1), KeyError('k')])")
    except* ValueError as group:
        caught.append(type(group.exceptions[0].__class__))
    except* KeyError:
        pass
    assert caught
    exc = _rebuilt("raise ExceptionGroup('two', [ValueError(1)])")
    assert isinstance(exc, RemoteError)
    assert isinstance(exc, ExceptionGroup)
    assert exc.message == "two"


def test_a_syntax_error_points_into_the_visible_cell() -> None:
    exc = _rebuilt("x = 1\ny = (1,\n")
    assert isinstance(exc, SyntaxError)
    assert (exc.filename, exc.lineno) == (_HERE, 3)
    assert "never closed" in exc.msg


def test_the_text_of_a_syntax_error_counts_the_lines_of_the_visible_cell() -> None:
    exc = _rebuilt("if True:\nprint(1)\n")
    assert isinstance(exc, IndentationError)
    assert exc.lineno == 3
    assert exc.msg.endswith("'if' statement on line 2")


def test_a_syntax_error_without_a_place_has_none_here() -> None:
    exc = _rebuilt("raise SyntaxError('mine')")
    assert isinstance(exc, SyntaxError)
    assert (exc.msg, exc.lineno) == ("mine", None)
    inner = _rebuilt("compile('1 +', '<made>', 'eval')")
    assert isinstance(inner, SyntaxError)
    assert (inner.filename, inner.lineno) == ("<made>", 1)


def test_an_os_error_keeps_its_number_and_file() -> None:
    exc = _rebuilt("open('/nope')")
    assert isinstance(exc, OSError)
    assert (exc.errno, exc.filename) == (2, "/nope")


def test_the_users_own_class_is_used_and_its_init_is_not_run() -> None:
    namespace = {"__name__": "__main__"}
    there = "class Mine(KeyError):\n    def __init__(self, a, b):\n        super().__init__(a)\n        self.second = b\nraise Mine('x', 5)"
    data = _raise_there(there, namespace)
    mine = type("Mine", (Mine,), {"__module__": "__main__", "__qualname__": "Mine"})
    exc = rebuild(data, user_classes=user_exceptions({"Mine": mine, "other": int}))
    assert isinstance(exc, mine)
    assert exc.second == 5
    assert "never" not in str(exc)


def test_control_characters_of_a_worker_do_not_reach_the_terminal() -> None:
    exc = _rebuilt("raise ValueError('\\x1b[31mred\\x1b]0;title\\x07\\u202egnp')")
    assert not set(str(exc)) & set("\x1b\x07\u202e")
    assert "red" in str(exc)
    assert clean("a\tb\nc") == "a\tb\nc"


def test_an_endless_recursion_and_a_giant_message_stay_small_on_the_wire() -> None:
    deep = _raise_there("def f(n): return f(n + 1)\nf(0)")
    big = _raise_there("raise ValueError('x' * 10_000_000)")
    chain = _raise_there(
        "def f(n):\n    try:\n        1/0\n    except Exception as e:\n"
        "        (f(n - 1) if n else None)\n        raise ValueError('y' * 50_000) from e\nf(200)"
    )
    for data in (deep, big, chain):
        assert len(msgspec.msgpack.encode(data)) < 512 * 1024
    assert isinstance(rebuild(deep), RecursionError)


def test_an_error_whose_text_cannot_be_made_still_arrives() -> None:
    exc = _rebuilt("class Bad(Exception):\n    def __str__(self): 1/0\nraise Bad()")
    assert "ZeroDivisionError" in str(exc)


def test_a_library_is_never_imported_for_an_error() -> None:
    assert "xml.dom.pulldom" not in sys.modules
    exc = rebuild({"type": "PullDOM", "module": "xml.dom.pulldom", "message": "m", "mro": []})
    assert "xml.dom.pulldom" not in sys.modules
    assert isinstance(exc, RemoteError)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"type": 1, "module": None, "message": [], "frames": "no", "mro": 5, "args": {}},
        {"type": "__import__", "module": "builtins", "message": "m"},
        {"type": "exit", "module": "sys", "message": "m", "mro": ["builtins.eval", "os.system"]},
        {
            "type": "ValueError",
            "module": "builtins",
            "frames": [{}, {"line": -5}, {"line": 10**12}],
        },
        {"type": "ValueError", "module": "builtins", "frames": [{"file": "x", "line": 9_999_999}]},
        {"type": "OSError", "module": "builtins", "os": ["a", "b", "c"], "args": [[]]},
        {"type": "SyntaxError", "module": "builtins", "syntax": {"line": "x", "column": -1}},
        {"type": "ExceptionGroup", "module": "builtins", "members": [1, {}, {"members": []}]},
        {"type": "E", "frames": [{"name": "f", "arguments": ["a", "a", "*b", "*c", "**d", "e"]}]},
        {"type": "E", "frames": [{"name": "f", "qualname": "a" * 300, "lines": ["(" * 500]}]},
        {"type": "E", "module": "m", "fields": {"__class__": 1, "args": 2, "ok": 3, "x y": 4}},
    ],
)
def test_a_hostile_report_becomes_an_exception_and_nothing_else(data: dict[str, Any]) -> None:
    exc = rebuild(data, cell_file=_HERE, line_offset=1)
    assert isinstance(exc, Exception)
    traceback.format_exception(exc)
    assert format_plain(data).endswith("\n")


def test_a_report_nested_without_end_is_cut() -> None:
    data: dict[str, Any] = {"type": "ValueError", "module": "builtins"}
    for _ in range(200):
        data = {"type": "ValueError", "module": "builtins", "cause": data, "members": []}
    exc: BaseException | None = rebuild(data)
    depth = 0
    while exc is not None:
        exc, depth = exc.__cause__, depth + 1
    assert depth < 30


def test_a_script_gets_its_traceback_as_text() -> None:
    text = format_plain(_raise_there("def f():\n    return 1/0\n\nf()\n"))
    assert text == (
        "Traceback (most recent call last):\n"
        '  File "<cell>", line 4, in <module>\n    f()\n'
        '  File "<cell>", line 2, in f\n    return 1/0\n'
        "ZeroDivisionError: division by zero\n"
    )


def test_every_builtin_exception_can_be_rebuilt() -> None:
    for name, cls in vars(builtins).items():
        if isinstance(cls, type) and issubclass(cls, BaseException):
            exc = rebuild({"type": name, "module": "builtins", "message": "m", "mro": []})
            assert isinstance(exc, RemoteError), name
            assert "m" in str(exc)
