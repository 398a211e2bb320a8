from __future__ import annotations

import builtins
import collections
import functools
import io
import itertools
import math
import pickle
import string
import sys
import threading
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.extra import pandas as hpd

from gridx.codec import CodecError, Opaque, decode, encode, tags, user_classes
from gridx.codec.framing import join

from .sample_values import NAMESPACE, VALUES, Box, Colour, Plain, Point, halved, same

_CLASSES = user_classes(NAMESPACE)
_SCALARS = (
    np.generic, np.dtype, pd.Timestamp, pd.Timedelta, pd.Period, pd.Interval, pd.api.extensions.ExtensionDtype, float, str
)  # fmt: skip
# Values of these have no identity that anybody could see.
_IMMUTABLE = ("builtins", "datetime", "decimal", "fractions", "uuid", "pathlib", "zoneinfo", "re")


def _back(value: Any) -> Any:
    return decode(encode(value), classes=_CLASSES)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_of_each_kind_comes_back_the_same(value: Any) -> None:
    back = _back(value)
    assert not isinstance(back, Opaque), back
    assert same(value, back)


def _scalars() -> st.SearchStrategy[Any]:
    zones = st.none() | st.timezones()
    return (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.binary()
        | st.complex_numbers()
        | st.decimals(allow_nan=False)
        | st.fractions()
        | st.datetimes(timezones=zones)
        | st.dates()
        | st.times()
        | st.timedeltas()
        | st.uuids()
    )


def _hashable() -> st.SearchStrategy[Any]:
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text()
        | st.binary()
        | st.fractions()
        | st.dates()
        | st.uuids()
    )
    return st.recursive(
        leaves, lambda part: st.tuples(part) | st.frozensets(part, max_size=3), max_leaves=4
    )


def _arrays() -> st.SearchStrategy[Any]:
    numbers = hnp.integer_dtypes() | hnp.floating_dtypes()
    dtypes = (
        hnp.scalar_dtypes()
        | hnp.unicode_string_dtypes()
        | hnp.byte_string_dtypes()
        | hnp.datetime64_dtypes()
        | hnp.array_dtypes(numbers, max_size=3)
    )
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    return hnp.arrays(dtype=dtypes, shape=shapes)


def _values() -> st.SearchStrategy[Any]:
    return st.recursive(
        _scalars() | _arrays(),
        lambda part: (
            st.lists(part, max_size=4)
            | st.lists(st.floats(), min_size=32, max_size=40)
            | st.lists(st.text(), min_size=32, max_size=34)
            | st.tuples(part, part)
            | st.dictionaries(_hashable(), part, max_size=4)
            | st.sets(_hashable(), max_size=3)
            | st.builds(Point, st.integers(), part)
        ),
        max_leaves=12,
    )


@settings(
    max_examples=300,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(_values())
def test_any_nesting_of_values_comes_back_the_same(value: Any) -> None:
    data = encode(value)
    back = decode(data, classes=_CLASSES)
    # A dtype that has no safe form travels closed; everything else is equal.
    assert "gridx.Opaque" in repr(back) or encode(back) == data or same(value, back)


def _frames() -> st.SearchStrategy[Any]:
    columns = [
        hpd.column("f", elements=st.floats(width=32)),
        hpd.column("i", dtype="int16"),
        hpd.column("b", dtype=bool),
        hpd.column("t", elements=st.text(max_size=5), dtype=object),
        hpd.column("d", elements=st.datetimes(pd.Timestamp(1700, 1, 1), pd.Timestamp(2200, 1, 1))),
        hpd.column("c", elements=st.sampled_from("abc"), dtype=object),
    ]
    indexes = st.one_of(
        hpd.range_indexes(max_size=6),
        hpd.indexes(elements=st.integers(-(2**40), 2**40), max_size=6),
        hpd.indexes(elements=st.text(max_size=3), dtype=object, max_size=6),
    )
    return hpd.data_frames(columns, index=indexes)


@settings(
    max_examples=30,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(_frames())
def test_any_frame_comes_back_the_same(frame: pd.DataFrame) -> None:
    frame["c"] = frame["c"].astype("category")
    back = _back(frame)
    assert not isinstance(back, Opaque)
    pd.testing.assert_frame_equal(back, frame)
    turned = frame.set_index(["i", "b"], append=True)
    pd.testing.assert_frame_equal(_back(turned), turned)


def test_one_object_under_two_places_stays_one_object() -> None:
    inner = [1]
    outer: list[Any] = [inner, inner, {"k": inner}]
    outer.append(outer)
    back = _back(outer)
    assert back[0] is back[1] is back[2]["k"]
    assert back[3] is back


def test_an_array_under_two_names_stays_one_array() -> None:
    array = np.arange(3)
    first, second = _back([array, array])
    assert first is second
    first[0] = 9
    assert second[0] == 9


@pytest.mark.parametrize(
    "value",
    [v for v in VALUES if type(v).__module__ not in _IMMUTABLE and not isinstance(v, _SCALARS)],
    ids=lambda value: type(value).__name__,
)
def test_a_changeable_value_under_two_places_stays_one(value: Any) -> None:
    first, between, second, last = _back([value, [1], {"again": value}, [2]])
    assert second["again"] is first
    assert (between, last) == ([1], [2])


def test_a_packed_list_that_is_shared_stays_shared() -> None:
    numbers = [float(i) for i in range(50)]
    first, second, words = _back([numbers, numbers, ["a"] * 50])
    assert first is second
    assert words == ["a"] * 50


def test_rows_and_objects_in_columns_keep_their_identity() -> None:
    rows: list[Any] = [{"n": i, "all": None} for i in range(40)]
    for row in rows:
        row["all"] = rows
    back = _back([rows, rows[7], rows])
    assert back[0] is back[2] is back[1]["all"]
    assert back[0][7] is back[1]
    points: list[Any] = [Point(i, rows) for i in range(40)]
    first, again = _back([points, points[3]])
    assert first[3] is again
    assert first[0].y is first[39].y
    twice = _back([rows[0]] * 40)
    assert all(row is twice[0] for row in twice)


def test_an_instance_with_a_cycle_comes_back_without_its_init_being_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Plain()
    data = encode(plain)
    monkeypatch.setattr(Plain, "__init__", lambda self: 1 / 0)
    back = decode(data, classes=_CLASSES)
    assert back.me is back
    assert back.parts == [1]


def test_the_lines_of_a_shell_command_come_home_as_such() -> None:
    from IPython.utils.text import SList

    back = _back(SList(["a b", "c d"]))
    assert type(back) is SList
    assert back.fields(1) == ["b", "d"]
    assert back.n == "a b\nc d"


def test_without_ipython_they_come_home_as_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    from IPython.utils.text import SList

    data = encode(SList(["a"]))
    monkeypatch.delitem(sys.modules, "IPython.utils.text")
    assert type(decode(data)) is list


def test_captured_output_comes_home_as_its_text() -> None:
    from IPython.utils.capture import CapturedIO

    back = _back(CapturedIO(io.StringIO("out"), io.StringIO("err"), [{"data": {}}]))
    assert type(back) is CapturedIO
    assert (back.stdout, back.stderr, back.outputs) == ("out", "err", [])


def test_records_of_libraries_come_home_as_such() -> None:
    import urllib.parse

    from scipy import integrate, optimize, stats
    from sklearn.datasets import load_iris

    iris = load_iris()
    back = _back([iris, iris])
    assert type(back[0]) is type(iris)
    assert back[0] is back[1]
    assert np.array_equal(back[0].data, iris.data)
    assert back[0].DESCR == iris.DESCR
    found = optimize.minimize(lambda x: (x[0] - 2) ** 2, [0.0])
    again = _back(found)
    assert (type(again), again.success, again.x[0]) == (type(found), True, found.x[0])
    test = stats.ttest_ind([1.0, 2, 3], [2.0, 3, 5])
    again = _back(test)
    assert (type(again), again.pvalue, again.df) == (type(test), test.pvalue, test.df)
    assert float(again.confidence_interval().low) == float(test.confidence_interval().low)
    line = stats.linregress([1.0, 2, 3], [2.0, 3.9, 6])
    again = _back(line)
    assert (again.slope, again.intercept_stderr) == (line.slope, line.intercept_stderr)
    ode = integrate.solve_ivp(lambda t, y: -y, (0, 1), [1.0])
    again = _back(ode)
    assert np.array_equal(again.y, ode.y)
    url = urllib.parse.urlparse("https://a.b/c?d=e")
    assert _back(url).geturl() == url.geturl()


def test_a_record_of_a_library_that_is_not_loaded_comes_as_plain_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from scipy import stats
    from sklearn.utils import Bunch

    data = encode([Bunch(a=1), stats.norm.fit([1.0, 2]), stats.skewtest(list(range(20)))])
    monkeypatch.delitem(sys.modules, "sklearn.utils")
    monkeypatch.delitem(sys.modules, "scipy.stats._stats_py")
    back = decode(data)
    assert back[0] == {"a": 1}
    assert type(back[0]) is dict
    assert type(back[2]) is tuple


@pytest.mark.parametrize(
    "node",
    [
        [tags.RECORD, "Popen", [], []],
        [tags.RECORD, "Bunch", ["a"], []],
        [tags.RECORD, "Bunch", [1], [1]],
        [tags.NAMED_RECORD, "os", "stat_result", [], [], []],
        [tags.NAMED_RECORD, "__main__", "Named", [1, 2], [], []],
    ],
)
def test_a_forged_record_is_refused(node: Any) -> None:
    with pytest.raises(CodecError):
        decode(join(tags.VALUE_MAGIC, node, []))


def test_a_record_is_no_way_to_another_class() -> None:
    for module, name in (("numpy", "ndarray"), ("scipy", "test"), ("pandas", "DataFrame")):
        made = decode(join(tags.VALUE_MAGIC, [tags.NAMED_RECORD, module, name, [1], [], []], []))
        assert made == (1,)
        assert type(made) is tuple


def _moved(iterator: Any, steps: int) -> Any:
    for _ in range(steps):
        next(iterator)
    return iterator


@pytest.mark.parametrize(
    "make",
    [
        lambda: iter([1, 2, 3]), lambda: iter((1, 2, 3)), lambda: iter("abé"), lambda: iter("abc"),
        lambda: iter(b"abc"), lambda: iter(range(5)), lambda: iter(range(1 << 70)),
        lambda: reversed([1, 2, 3]), lambda: reversed((1, 2, 3)), lambda: iter({1: 2, 3: 4}),
        lambda: iter({1: 2, 3: 4}.items()), lambda: iter({1, 2, 3}), lambda: enumerate([5, 6], 3),
        lambda: zip([1, 2, 3], "abc", strict=False), lambda: itertools.count(5, 2), lambda: itertools.count(1.5),
        lambda: enumerate(zip([1, 2], [3, 4], strict=False)),
    ],
)  # fmt: skip
def test_an_iterator_goes_on_where_it_was_and_is_not_moved_by_being_sent(make: Any) -> None:
    for steps in (0, 1, 2):
        iterator = _moved(make(), steps)
        back = _back(iterator)
        assert not isinstance(back, Opaque), back
        wanted = list(itertools.islice(_moved(make(), steps), 5))
        assert list(itertools.islice(back, 5)) == wanted
        assert list(itertools.islice(iterator, 5)) == wanted


def test_an_exhausted_iterator_is_exhausted_here_too() -> None:
    for make in (lambda: iter([1]), lambda: iter("a"), lambda: reversed([1]), lambda: iter((1,))):
        iterator = _moved(make(), 1)
        assert list(iterator) == []
        assert list(_back(iterator)) == []


def test_an_iterator_over_a_list_goes_over_the_list_beside_it() -> None:
    items = [1, 2]
    iterator, same_items = _back([iter(items), items])
    same_items.append(3)
    assert list(iterator) == [1, 2, 3]


def test_a_bare_object_keeps_its_identity_inside_a_message() -> None:
    marker = object()
    first, inner = _back([marker, {"m": marker}])
    assert type(first) is object
    assert inner["m"] is first


def test_what_follows_a_value_that_cannot_be_encoded_still_refers_to_the_right_objects() -> None:
    shared = [1]
    frame = pd.DataFrame({"a": [1], "p": pd.arrays.SparseArray([1])})
    back = _back([shared, {"bad": frame, "deep": [shared]}, shared, np.arange(2), [shared]])
    assert isinstance(back[1]["bad"], Opaque)
    assert back[2] is back[0] is back[4][0] is back[1]["deep"][0]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda: 1, "function"),
        (threading.Lock(), "cannot be pickled"),
        ((i for i in range(3)), "cannot be pickled"),
        (string.Template("x"), "Template"),
        (pd.arrays.SparseArray([1, 0]), "SparseArray"),
        (collections.defaultdict(lambda: 1), "defaultdict"),
    ],
)
def test_what_has_no_safe_form_arrives_closed(value: Any, says: str) -> None:
    back = decode(encode([value, 1]), source="worker bob")
    assert isinstance(back[0], Opaque)
    assert back[1] == 1
    assert says in repr(back[0])
    assert "worker bob" in repr(back[0])


def test_a_closed_value_opens_only_on_the_users_word(capsys: pytest.CaptureFixture[str]) -> None:
    closed = _back(string.Template("inside"))
    with pytest.raises(PermissionError, match="trust=True"):
        closed.unpickle()
    for _ in range(2):
        assert closed.unpickle(trust=True).template == "inside"
        assert "Warning: unpickling string.Template" in capsys.readouterr().err


def test_a_closed_value_that_is_sent_on_becomes_the_value_in_the_next_container() -> None:
    closed = _back(string.Template("inside"))
    there = pickle.loads(cloudpickle.dumps({"model": closed}))
    assert isinstance(there["model"], string.Template)


def _cycle_that_fails() -> Any:
    inner: list[Any] = []
    ring = (inner,)
    inner.append(ring)
    plain = Plain()
    vars(plain)["__odd__"] = plain.parts = [ring]
    return plain


def test_a_value_that_fails_after_a_cycle_through_a_tuple_travels_closed() -> None:
    back = _back([_cycle_that_fails(), [1]])
    assert isinstance(back[0], Opaque)
    assert back[1] == [1]


@pytest.mark.parametrize("name", ["__class__", "__odd__", "__orig_class"])
def test_of_the_dunders_on_an_instance_only_what_typing_leaves_is_left_out(name: str) -> None:
    box = Box[int](3)
    assert "__orig_class__" in vars(box)
    assert vars(_back(box)) == {"content": 3}
    vars(box)[name] = 1
    assert isinstance(_back(box), Opaque) == name.endswith("__")


@pytest.mark.parametrize(
    "make",
    [
        lambda: io.StringIO("a", newline=None),
        lambda: io.StringIO("a", newline=""),
        lambda: _sought(io.BytesIO(b"a"), 5),
        lambda: _sought(io.StringIO("a"), 5),
        lambda: _with_attribute(io.BytesIO(b"a")),
        lambda: _closed(io.BytesIO(b"a")),
        lambda: type("Mine", (io.BytesIO,), {})(b"a"),
    ],
)
def test_a_file_in_memory_with_more_state_arrives_closed(make: Any) -> None:
    assert isinstance(_back(make()), Opaque)


def _sought(file: Any, position: int) -> Any:
    file.seek(position)
    return file


def _with_attribute(file: Any) -> Any:
    file.name = "x.bin"
    return file


def _closed(file: Any) -> Any:
    file.close()
    return file


def test_a_file_in_memory_goes_on_where_it_was() -> None:
    back, again = _back([_sought(io.BytesIO(b"abcd"), 2)] * 2)
    assert back is again
    back.write(b"X")
    assert back.getvalue() == b"abXd"
    text = _back(_sought(io.StringIO("a\r\nb"), 1))
    assert text.read() == "\r\nb"
    assert text.write("c\n") == 2
    assert text.getvalue() == "a\r\nbc\n"


def test_a_function_over_arrays_works_at_home() -> None:
    back = _back(np.vectorize(halved))
    assert back.pyfunc is halved
    assert back(np.arange(3)).tolist() == [0.0, 0.5, 1.0]
    assert back.__doc__ == halved.__doc__


@pytest.mark.parametrize(
    "made",
    [
        np.vectorize(math.floor),
        np.vectorize(int),
        np.vectorize(functools.partial(halved)),
        np.vectorize(otypes=[float]),
        np.vectorize(halved, excluded=range(200)),
        np.vectorize(halved, signature="(" + "n," * 1_000 + "n)->()"),
    ],
)
def test_a_function_over_arrays_of_other_code_arrives_closed(made: Any) -> None:
    assert isinstance(_back(made), Opaque)


def test_a_function_over_arrays_whose_function_is_gone_here_arrives_as_a_placeholder() -> None:
    back = decode(encode([np.vectorize(halved), [1]]), classes={})
    assert isinstance(back[0], Opaque)
    assert back[1] == [1]


def test_periods_and_intervals_that_pandas_cannot_show_arrive_closed() -> None:
    far = pd.arrays.PeriodArray(np.array([2**40]), dtype="period[M]")
    for value in (far, pd.Series(far), far[0], pd.DataFrame({"p": far})):
        assert isinstance(_back(value), Opaque)


def test_an_instance_of_a_class_that_is_gone_here_arrives_as_a_placeholder() -> None:
    back = decode(encode([Point(1, [2]), Colour.G, [3]]), classes={})
    assert isinstance(back[0], Opaque)
    assert isinstance(back[1], Opaque)
    assert back[2] == [3]
    assert "no definition" in repr(back[0])


def test_a_structure_that_is_nested_too_deeply_arrives_with_its_inside_closed() -> None:
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    back = _back({"deep": deep, "ok": [1]})
    assert back["ok"] == [1]
    while type(back["deep"]) is list:
        back["deep"] = back["deep"][0]
    assert isinstance(back["deep"], Opaque)
    assert not back["deep"].is_lost


def test_what_is_nested_too_deeply_to_be_pickled_at_once_is_not_lost() -> None:
    deep: list[Any] = []
    for _ in range(2_000 if sys.version_info[:2] != (3, 12) else 300):
        deep = [deep]
    recursion, stack_bytes = sys.getrecursionlimit(), threading.stack_size()
    inside = _back(deep)
    while type(inside) is list:
        (inside,) = inside
    assert not inside.is_lost
    assert (sys.getrecursionlimit(), threading.stack_size()) == (recursion, stack_bytes)
    opened = pickle.loads(inside.data)
    levels = 0
    while opened:
        (opened,), levels = opened, levels + 1
    assert levels > 150


class Sneaky:
    """A class whose pickle would run code."""

    def __reduce__(self) -> Any:
        return exec, ("import builtins; builtins.GRIDX_PWNED = 1",)


def test_an_attack_pickle_as_a_result_stays_closed() -> None:
    back = decode(encode({"e": [Sneaky()], "f": Sneaky}))
    repr(back)
    assert isinstance(back["e"][0], Opaque)
    assert not hasattr(builtins, "GRIDX_PWNED")
