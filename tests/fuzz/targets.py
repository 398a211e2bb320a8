"""What is fuzzed: values, results, errors, events and records, each with seeds of every kind."""

from __future__ import annotations

import builtins
import io
import itertools
import random
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
from IPython.utils.capture import CapturedIO
from IPython.utils.text import SList
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gridx import events
from gridx.codec import CodecError, Limits, decode, encode, user_classes
from gridx.codec.results import apply_result, result_pieces, snapshot
from gridx.errors import GridXError, ProtocolError
from gridx.protocol import from_worker
from gridx.remote_error import exception_to_data, format_plain, rebuild
from tests.unit.gridx.codec import sample_values
from worker.runtime.records import RESULT, RecordReader

from .mutations import changed_bytes, changed_message, changed_tree
from .using import use

REFUSED: Final = "refused"
ACCEPTED: Final = "accepted"
_LIMITS: Final = Limits(bytes=1 << 28)
_NOTEBOOK: Final = """
import enum, dataclasses, math
def f(x=1):
    return x + 1
def counter(n=0):
    def increment():
        nonlocal n
        n += 1
        return n
    return increment
increment = counter()
class Animal:
    count = 0
    names = []
    def method(self):
        return 1
class Mine(ValueError):
    pass
v = [1, 2, [3]]
other = v
d = {"a": 1}
secret = "mine"
"""
_CELL: Final = """
import json, os.path as osp
from math import sqrt
def g(a, b=2):
    return a + b
class C:
    tag = 1
    def __init__(self):
        self.x = [1]
increment2 = counter(5)
v.append(4)
d["b"] = {"deep": v}
made = [C(), lambda q: q + 1, g]
if True:
    def h(): return 3
increment()
Animal.count += 1
x = {"frame": None, "n": 10**30, "t": (1, 2.5, "é")}
del gone
"""
_EXPECTED: Final = frozenset(
    ["json", "osp", "sqrt", "g", "C", "increment2", "v", "d", "made", "h", "x", "gone", "y"]
)
_ERRORS: Final = (
    "1/0",
    "{}['k']",
    "import json\njson.loads('{bad')",
    "def f(n): return f(n + 1)\nf(0)",
    "x = (1,",
    "raise ExceptionGroup('g', [ValueError(1), ExceptionGroup('h', [KeyError('k')])])",
    "try:\n    open('/nope')\nexcept OSError as e:\n    e.add_note('n')\n    raise ValueError from e",
    "class My(KeyError):\n    def __init__(self, a, b): self.b = b\nraise My(1, [2])",
    "import numpy as np\nnp.linalg.inv(np.zeros((2, 2)))",
    "b'\\xff'.decode()",
)

Target = Callable[[random.Random], str]


class Broken(Exception):
    """A hostile message did what it must not do."""


def values() -> Target:
    """Return the target of single values, of every kind that the codec knows."""
    samples = [*sample_values.VALUES, *_more_values()]
    seeds = [encode(value) for value in samples] + [encode([value, value]) for value in samples]
    classes = user_classes(sample_values.NAMESPACE)

    def target(chance: random.Random) -> str:
        data = changed_message(chance, chance.choice(seeds))
        sent: bytes | bytearray = bytearray(data) if chance.random() < 0.3 else data
        value = decode(sent, classes=classes, limits=_LIMITS)
        return _used(value)

    return target


def _more_values() -> list[Any]:
    x = np.arange(24.0).reshape(8, 3) % 7
    y = x[:, 0] > 3
    return [
        make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y),
        KMeans(n_clusters=2, n_init=1, random_state=0).fit(x),
        GaussianMixture(2, random_state=0).fit(x),
        enumerate([1, 2], 3),
        zip([1, 2], "ab", strict=False),
        itertools.count(3),
        iter(range(9)),
        CapturedIO(io.StringIO("out"), io.StringIO("err"), None),
        SList(["a", "b"]),
        np.zeros(200_000),
    ]


def _used(value: Any) -> str:
    try:
        use(value)
    except Broken:
        raise
    except Exception as exc:
        # Valid but strange, as odd dates are: the library says so by an exception.
        return f"accepted, {type(exc).__name__} when used"
    return ACCEPTED


def results() -> Target:
    """Return the target of whole results, applied to a notebook."""
    seeds = _results()

    def target(chance: random.Random) -> str:
        data = changed_message(chance, chance.choice(seeds))
        names = _notebook()
        before, contents = dict(names), repr(names["v"])
        sent: bytes | bytearray = bytearray(data) if chance.random() < 0.3 else data
        out = chance.choice((None, None, None, {"x"}))
        try:
            applied = apply_result(
                sent, names, expected=_EXPECTED, cell_source=_CELL, out=out, limits=_LIMITS
            )
        except CodecError:
            if names != before or repr(names["v"]) != contents:
                raise Broken("a refused result has changed the notebook") from None
            raise
        _check(names, before)
        for path, contents_of_file in applied.files:
            parts = path.split("/")
            if ".." in parts or "" in parts or "\0" in path:
                raise Broken(f"a file wants to go to {path!r}")
            len(contents_of_file)
        return _used([*applied.values.values(), applied.last])

    return target


def _notebook() -> dict[str, Any]:
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    names = vars(main)
    exec(_NOTEBOOK_CODE, names)
    names["gone"] = 5
    return names


_NOTEBOOK_CODE: Final = compile(_NOTEBOOK, "<gridx cell notebook>", "exec", dont_inherit=True)


def _results() -> list[bytes]:
    found = []
    for extra in ("", "y = Mine('a')", "y = np.arange(6.0)", "y = [float(i) for i in range(99)]"):
        names = _notebook()
        before = snapshot(names, ["v", "d"])
        names["np"] = np
        exec(compile(_CELL + extra, "<cell>", "exec", dont_inherit=True), names)
        del names["np"]
        made = result_pieces(
            before,
            names,
            expected=_EXPECTED,
            cell=_CELL + extra,
            files=[("out/a.txt", b"abc"), ("b.bin", bytes(5_000))],
            last=names["x"],
        )
        found.append(made.join())
    return found


def _check(names: dict[str, Any], before: dict[str, Any]) -> None:
    for name in ("f", "counter", "increment", "Animal", "Mine", "math", "enum", "secret", "other"):
        if names.get(name) is not before[name]:
            raise Broken(f"{name} is another one now")
    added = names.keys() - before.keys() - _EXPECTED
    if added or names["__builtins__"] is not before["__builtins__"]:
        raise Broken(f"{added} came from nowhere")
    if vars(names["Animal"])["method"] is not vars(before["Animal"])["method"]:
        raise Broken("a method is another one now")
    if vars(builtins) != _BUILTINS:
        raise Broken("a builtin is another one now")


_BUILTINS: Final = dict(vars(builtins))


def errors() -> Target:
    """Return the target of reports of errors."""
    seeds = [_report(body) for body in _ERRORS]

    def target(chance: random.Random) -> str:
        data: Any = chance.choice(seeds)
        for _ in range(chance.choice((1, 1, 2, 4))):
            data = changed_tree(chance, data)
        if not isinstance(data, dict):
            data = {"cause": data}
        made = rebuild(data, cell_file="<gridx cell 1>", line_offset=1)
        if not isinstance(made, Exception) or isinstance(made, (StopIteration, SystemExit)):
            raise Broken(f"a report became {type(made)}")
        "".join(traceback.format_exception(made))
        repr(made), str(made)
        format_plain(data)
        return ACCEPTED

    return target


def _report(body: str) -> dict[str, Any]:
    try:
        exec(compile(body, "<cell>", "exec", dont_inherit=True), {"__name__": "__main__"})
    except BaseException as exc:
        data = exception_to_data(exc, {"<cell>"})
        plain: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(data))
        return plain
    raise AssertionError(body)


def streams() -> Target:
    """Return the target of event streams, of records and of messages."""
    said: list[events.Event] = [
        events.Stream(name="stdout", text="a\n" * 9),
        events.DisplayData(data={"text/plain": "x"}, binary={"image/png": b"1"}, display_id="d"),
        events.UpdateDisplayData(data={"text/html": "<b>"}, display_id="d"),
        events.ClearOutput(wait=True),
        events.ExecuteResult(data={"text/plain": "1"}),
        events.ErrorOutput(error={"type": "E", "frames": []}),
    ]
    stream = b"".join(map(events.encode_event, said))
    records = b"".join(bytes([kind]) + len(b).to_bytes(4, "big") + b for kind, b in _RECORDS)

    def target(chance: random.Random) -> str:
        which = chance.random()
        if which < 0.5:
            for event in events.decode_events(changed_bytes(chance, stream)):
                repr(event)
        elif which < 0.8:
            reader = RecordReader(max_result_bytes=1 << 20)
            data = changed_bytes(chance, records)
            at = 0
            while at < len(data):
                step = chance.randrange(1, 40)
                for _, body in reader.feed(data[at : at + step]):
                    len(body)
                at += step
        else:
            repr(from_worker.decode(changed_bytes(chance, _HEARTBEAT)))
        return ACCEPTED

    return target


_RECORDS: Final = ((1, b""), (RESULT, b"r" * 40), (4, b"\x82\xa9completed\xc3\xa9exit_code\x00"))
_HEARTBEAT: Final = msgspec.msgpack.encode({"type": "heartbeat", "free_memory_bytes": 1})

TARGETS: Final[dict[str, tuple[Callable[[], Target], int]]] = {
    "values": (values, 40),
    "results": (results, 40),
    "errors": (errors, 12),
    "streams": (streams, 8),
}
"""Each target, and how many of a hundred cases are its."""
CLEAN: Final = (CodecError, ProtocolError, GridXError)
"""What a refusal may raise."""
