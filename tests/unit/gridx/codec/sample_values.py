"""One value of each kind that the codec knows, and how two of them are compared."""

from __future__ import annotations

import array
import collections
import copy
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import io
import pathlib
import random
import re
import sys
import types
import typing
import uuid
import zoneinfo
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
from PIL import Image


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """A dataclass of the notebook."""

    x: int
    y: object = None


class Plain:
    """A plain class of the notebook, with a cycle."""

    def __init__(self) -> None:
        self.parts = [1]
        self.me = self


class Colour(enum.Enum):
    """An enum of the notebook."""

    R = 1
    G = 2


class Named(typing.NamedTuple):
    """A named tuple of the notebook."""

    a: int
    b: str = "z"


class Access(enum.Flag):
    """Flags of the notebook."""

    R = 4
    W = 2
    X = 1


class Loudness(enum.IntEnum):
    """Numbers of the notebook."""

    LOW = 1


class Shelf(list[Any]):
    """A list of the notebook, with a field; it overrides what a list does."""

    def __init__(self, *items: Any, label: str) -> None:
        super().__init__(items)
        self.label = label

    def __eq__(self, other: object) -> bool:
        return type(other) is Shelf and list(self) == list(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class Table(dict[str, Any]):
    """A dict of the notebook."""

    def __missing__(self, key: str) -> str:
        return key


class Metres(float):
    """A number of the notebook."""


class Word(str):
    """A text of the notebook, without a dict."""

    __slots__ = ()


class Refused(KeyError):
    """An exception of the notebook."""

    def __init__(self, what: str, where: int) -> None:
        super().__init__(what)
        self.where = where


_T = typing.TypeVar("_T")


class Box(typing.Generic[_T]):
    """A generic class of the notebook."""

    def __init__(self, content: _T) -> None:
        self.content = content

    def __eq__(self, other: object) -> bool:
        return type(other) is Box and self.content == other.content

    __hash__ = None  # type: ignore[assignment]


def halved(number: float) -> float:
    """Return half of ``number``: a function of the notebook."""
    return number / 2


NOTEBOOK_CLASSES = (
    Point, Plain, Colour, Named, Refused, Access, Loudness, Shelf, Table, Metres, Word, Box,
)  # fmt: skip
for _cls in NOTEBOOK_CLASSES:
    _cls.__module__ = "__main__"
halved.__module__ = "__main__"
NAMESPACE: dict[str, Any] = {cls.__name__: cls for cls in NOTEBOOK_CLASSES}
NAMESPACE["halved"] = halved


def as_main() -> types.ModuleType:
    """Return a module that holds the notebook's classes as ``__main__`` would."""
    main = types.ModuleType("__main__")
    vars(main).update(NAMESPACE)
    return main


_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)


def same(a: Any, b: Any) -> bool:
    """Return whether ``a`` and ``b`` are of one type and hold the same."""
    if type(a) is not type(b):
        return False
    if isinstance(a, _GENERATORS):
        # Copies: a comparison must not change them.
        a, b = copy.deepcopy(a), copy.deepcopy(b)
        return [a.random() for _ in range(9)] == [b.random() for _ in range(9)]
    if isinstance(a, np.ndarray):
        return _same_arrays(a, b)
    if isinstance(a, BaseException):
        if not same(a.args, b.args) or str(a) != str(b):
            return False
        return {**vars(a)} == {**vars(b)}
    if isinstance(a, np.ma.MaskedArray):
        fills = same(np.asarray(a.fill_value), np.asarray(b.fill_value))
        masks = (a.mask is np.ma.nomask) == (b.mask is np.ma.nomask)
        return fills and masks and a.dtype == b.dtype and repr(a) == repr(b)
    if isinstance(a, pd.api.extensions.ExtensionArray):
        pd.testing.assert_extension_array_equal(a, b)
        return True
    if isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b)
        return True
    if isinstance(a, pd.Series):
        pd.testing.assert_series_equal(a, b)
        return True
    if isinstance(a, pd.Index):
        pd.testing.assert_index_equal(a, b, exact=True)
        return True
    if sp.issparse(a):
        return (a != b).nnz == 0 and a.dtype == b.dtype
    if type(a).__module__.partition(".")[0] in ("polars", "pyarrow"):
        return bool(a.equals(b))
    if isinstance(a, Image.Image):
        return a.mode == b.mode and a.tobytes() == b.tobytes()
    if isinstance(a, (list, tuple, collections.deque)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, Point):
        return a.x == b.x and same(a.y, b.y)
    if isinstance(a, (set, frozenset)):
        return a == b or (len(a) == len(b) and all(any(same(x, y) for y in b) for x in a))
    if isinstance(a, (io.BytesIO, io.StringIO)):
        return a.getvalue() == b.getvalue() and a.tell() == b.tell()  # type: ignore[no-any-return]  # of one type
    if isinstance(a, np.vectorize):
        return {**vars(a), "_ufunc": {}} == {**vars(b), "_ufunc": {}}
    if a is pd.NA or a is pd.NaT:
        return a is b
    return bool(a == b or (a != a and b != b))


def _noted(error: Exception, *notes: str) -> Exception:
    for note in notes:
        error.add_note(note)
    return error


def _same_arrays(a: Any, b: Any) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape or a.flags.f_contiguous != b.flags.f_contiguous:
        return False
    if a.dtype.hasobject:
        return all(map(same, a.ravel(), b.ravel()))
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def _at(file: Any, position: int) -> Any:
    file.seek(position)
    return file


_random = np.random.default_rng(0)
_levels = pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["u", None])
FRAME = pd.DataFrame(
    {
        "f": _random.random(4),
        "i": range(4),
        "s": ["x", None, "é", "z"],
        "o": pd.Series([1, "a", None, (1, 2)], dtype=object),
        "c": pd.Categorical(["a", "b", None, "a"], ordered=True),
        "t": pd.date_range("2020", periods=4, tz="Europe/Berlin"),
        "n": pd.array([1, None, 3, 4], dtype="Int64"),
        "b": pd.array([True, None, False, True], dtype="boolean"),
        "d": pd.to_timedelta([1, 2, 3, 4], unit="s"),
        "sp": pd.array(["q", None, "w", "e"], dtype=pd.StringDtype("python", na_value=pd.NA)),
    }
).set_index(_levels)

PERIOD_FRAME = pd.DataFrame(
    {
        "p": pd.PeriodIndex(["2020Q1", None, "2021Q4"], freq="Q"),
        "i": pd.IntervalIndex.from_breaks([0, 1, 2, 3]),
        "z": pd.interval_range(pd.Timestamp("2020", tz="Europe/Rome"), periods=3),
        "d": pd.interval_range(pd.Timedelta(0), periods=3, freq="1h", closed="neither"),
        "cut": pd.cut(pd.Series([1, 5, 9]), 2),
        "u": [1, 2, 3],
    },
    index=pd.period_range("2020-01-01", periods=3, freq="D", name="day"),
)

VALUES: list[Any] = [
    None,
    True,
    -(2**63),
    2**63,
    10**300,
    1.5,
    float("nan"),
    float("-inf"),
    "é",
    "\ud800",
    b"x" * 9000,
    bytearray(b"ab"),
    1 + 2j,
    [1, [2]],
    (1, (2,)),
    {"a": {1: 2}},
    {1, 2},
    frozenset({(1, 2)}),
    [float(i) for i in range(100)],
    list(range(-50, 50)),
    [True, False] * 50,
    ["é", "", "\ud800x"] * 20,
    [2**70] * 40,
    [1, 2.0] * 40,
    {str(i): float(i) for i in range(50)},
    dict.fromkeys(range(50), "é"),
    [{"a": i, "b": [i, 2], "c": "x"} for i in range(40)],
    [{"a": i} for i in range(40)] + [{"b": 1}],
    [Point(i, [i]) for i in range(40)],
    [(i, float(i)) for i in range(40)],
    [((i, "k"), None if i % 2 else 2.5) for i in range(40)],
    [[i, i + 1] for i in range(40)],
    {(i, str(i)): [i, 0.5] for i in range(40)},
    {str(i): {"n": i} for i in range(40)},
    tuple(range(40)),
    set(range(40)),
    frozenset(map(str, range(40))),
    [("a", 1)] * 40,
    range(1, 9, 2),
    slice(1, None),
    ...,
    NotImplemented,
    dt.datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
    dt.datetime(2020, 1, 2, tzinfo=zoneinfo.ZoneInfo("Europe/Paris"), fold=1),
    dt.date(1, 1, 1),
    dt.time(1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    dt.timedelta(-1, 2, 3),
    dt.UTC,
    zoneinfo.ZoneInfo("Europe/Paris"),
    decimal.Decimal("-1.50E+7"),
    decimal.Decimal("NaN"),
    fractions.Fraction(10**40, 3),
    uuid.UUID(int=5),
    pathlib.Path("/a/b"),
    collections.OrderedDict(a=1),
    collections.Counter("aab"),
    collections.defaultdict(list, {1: [2]}),
    collections.deque([1, 2], maxlen=3),
    np.float32(1.5),
    np.int64(-3),
    np.datetime64("2020-01-01", "ns"),
    np.bool_(True),
    np.str_("ab"),
    np.zeros((0, 3)),
    np.arange(6).reshape(2, 3).T,
    np.array(5.0),
    np.array([("a", 1, [1, 2])], dtype=[("n", "U3"), ("v", "<f4"), ("w", "i2", (2,))]),
    np.array(["a", None, [1]], dtype=object),
    np.array([True, False]),
    np.array(["é", "bb"]),
    np.array([b"a"]),
    np.arange(3, dtype=">i4"),
    np.array([1 + 2j], dtype="c8"),
    pd.Timestamp("2020-01-01", tz="UTC"),
    pd.Timestamp("2020-01-01 00:00:00.123456789"),
    pd.Timedelta("1s"),
    pd.NA,
    pd.NaT,
    FRAME,
    FRAME.reset_index(drop=True),
    pd.DataFrame(),
    pd.DataFrame({("a", 1): [1], ("b", 2): [2]}),
    pd.DataFrame({"name": ["a", "b", None]}),
    pd.Series([1, 2], name="q"),
    pd.Series(["a", "b"]),
    pd.date_range("2020", periods=3, freq="D"),
    pd.RangeIndex(5),
    _levels,
    sp.random(20, 30, density=0.1, format="csr", random_state=1),
    sp.coo_array(sp.random(5, 5, density=0.3, random_state=1)),
    sp.csc_matrix((3, 3)),
    pa.table(
        {
            "a": [1, None],
            "s": ["x", "y"],
            "l": [[1], [2, 3]],
            "st": [{"k": 1}, {"k": None}],
            "ts": pa.array([0, 1], pa.timestamp("us", "UTC")),
            "de": pa.array([decimal.Decimal("1.20"), None], pa.decimal128(10, 2)),
        }
    ),
    pa.array([1, 2, 3]).slice(1),
    Image.new("RGB", (3, 2), (1, 2, 3)),
    Image.new("1", (9, 2), 1),
    Image.new("RGB", (2, 2), (9, 9, 9)).convert("P"),
    random.Random(3),
    np.random.RandomState(4),
    *[
        np.random.Generator(bits(5))
        for bits in (
            np.random.PCG64,
            np.random.PCG64DXSM,
            np.random.MT19937,
            np.random.SFC64,
            np.random.Philox,
        )
    ],
    types.SimpleNamespace(a=1, b=[2]),
    array.array("d", [1.5, 2.5]),
    array.array("H", [1, 2]),
    re.compile(r"(?P<a>\w+)-[a-z]\n", re.IGNORECASE | re.DOTALL),
    re.compile(rb"\d+"),
    np.dtype("f4"),
    np.dtype(object),
    np.dtype([("a", "i4"), ("b", "U3")]),
    pd.StringDtype("python", na_value=pd.NA),
    pd.Int64Dtype(),
    pd.CategoricalDtype(["a", "b"], ordered=True),
    pd.DatetimeTZDtype("ns", "UTC"),
    FRAME.dtypes,
    pd.array([1, None], dtype="Int64"),
    pd.array(["a", None]),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.ma.masked_array([1, 2, 3], mask=[False, True, False], fill_value=-9),
    np.ma.masked_array([[1.5, 2.5]]),
    np.matrix([[1, 2], [3, 4]]),
    np.rec.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
    ValueError("x", 2),
    _noted(KeyError("k"), "first", "second"),
    FileNotFoundError(2, "No such file", "a.txt"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    ExceptionGroup("two", [ValueError(1), TypeError("t")]),
    StopIteration(3),
    Refused("what", 7),
    Access.R | Access.X,
    Access.W,
    Loudness.LOW,
    Shelf(1, [2], label="top"),
    Table(a=1, b=[2]),
    Box[int](3),
    [Box[int](i) for i in range(40)],
    _at(io.BytesIO(b"abc"), 2),
    io.BytesIO(b"x" * 9_000),
    _at(io.StringIO("line\né\ud800"), 6),
    np.vectorize(halved),
    np.vectorize(halved, [float], "its own", {0, "number"}, True),
    np.vectorize(halved, "d", signature="(n)->(n)"),
    pd.Period("2020-03", "M"),
    pd.Interval(0, 2.5, "left"),
    pd.Interval(pd.Timestamp("2020", tz="UTC"), pd.Timestamp("2021", tz="UTC")),
    pd.Interval(np.int64(0), np.int64(2)),
    PERIOD_FRAME,
    PERIOD_FRAME.dtypes,
    PERIOD_FRAME["p"].dt.to_timestamp(),
    PERIOD_FRAME.groupby("cut", observed=True).size(),
    PERIOD_FRAME.set_index(["p", "i"])["u"],
    pd.period_range("2020", periods=2, freq="15min"),
    pd.interval_range(0, 4, closed="both", name="r"),
    pd.array(pd.period_range("0001", periods=2, freq="W-FRI")),
    pd.arrays.IntervalArray.from_tuples([(0.5, 1), None]),
    pd.PeriodIndex([], freq="D"),
    Metres(2.5),
    Word("w"),
    {"frame": pd.DataFrame({"a": [1]}), "points": [Point(1, pd.Series([1.5]))]},
    Point(1, [2]),
    {Point(1), Point(2)},
    Colour.G,
    Named(3),
    [Point(1), Colour.R],
]
# polars and torch are no dependencies of ours: their values join where they are installed.
if find_spec("polars") is not None:
    import polars as pl

    VALUES.append(pl.DataFrame({"a": [1, 2], "s": ["x", None], "d": [dt.date(2020, 1, 1)] * 2}))
if "torch" in sys.modules:
    import torch

    VALUES.append(torch.arange(6.0).reshape(2, 3))
