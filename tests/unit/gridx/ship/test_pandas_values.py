"""pandas objects travel column by column, and arrive as they were."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gridx.ship.capture import Captured, capture
from gridx.ship.restore import restore

from ..fresh_process import FreshProcesses

_N = 20_000
_EVEN = np.arange(_N) % 2 == 0


def _column(name: str) -> Any:
    numbers = np.arange(_N)
    words = pd.Series(numbers).astype(str)
    match name:
        case "int64" | "float32" | "bool" | "complex128" | "uint8" | "float16":
            return numbers.astype(name)
        case "datetime":
            return pd.date_range("2020", periods=_N, freq="s")
        case "datetime in seconds":
            return pd.Series(numbers.astype("datetime64[s]"))
        case "timedelta":
            return pd.to_timedelta(numbers, unit="s")
        case "zoned":
            return pd.date_range("2020", periods=_N, freq="s", tz="Europe/Berlin")
        case "offset zone":
            return pd.date_range("2020", periods=_N, freq="s", tz="+02:00")
        case "str":
            return words
        case "string":
            return words.astype("string").where(pd.Series(_EVEN))
        case "python strings":
            return words.astype(pd.StringDtype("python"))
        case "object strings":
            return words.astype(object)
        case "object strings and None":
            return words.astype(object).where(pd.Series(_EVEN), None)
        case "object strings and NaN":
            return words.astype(object).where(pd.Series(_EVEN), np.nan)
        case "object strings, None and NaN":
            return pd.Series(["a", None, np.nan, "b"] * (_N // 4), dtype=object)
        case "lone surrogates":
            return pd.Series(["\ud800", "é"] * (_N // 2), dtype=object)
        case "mixed objects":
            return pd.Series([1, "a", (2,), None] * (_N // 4), dtype=object)
        case "category":
            return pd.Categorical.from_codes(numbers % 3, ["x", "y", "z"], ordered=True)
        case "category of times":
            return pd.Categorical(pd.date_range("2020", periods=4)[numbers % 4])
        case "nullable":
            return pd.Series(numbers, dtype="Int64").where(pd.Series(_EVEN))
        case "arrow":
            return pd.array(numbers, dtype="int64[pyarrow]")
        case "period":
            return pd.period_range("2000", periods=_N, freq="D")
        case "interval":
            return pd.interval_range(0, _N)
        case "sparse":
            return pd.arrays.SparseArray(numbers % 2)
    raise AssertionError(name)


_COLUMNS = [
    "int64", "float32", "bool", "complex128", "uint8", "float16", "datetime", "datetime in seconds",
    "timedelta", "zoned", "offset zone", "str", "string", "python strings", "object strings",
    "object strings and None", "object strings and NaN", "object strings, None and NaN",
    "lone surrogates", "mixed objects", "category", "category of times", "nullable", "arrow",
    "period", "interval", "sparse",
]  # fmt: skip

_WHOLE: dict[str, Any] = {
    "nothing": pd.DataFrame(),
    "rows without columns": pd.DataFrame(index=[1, 2]),
    "columns without rows": pd.DataFrame(columns=["a", "b"]),
    "double labels": pd.DataFrame(
        np.ones((2, 3)), columns=["a", "a", "b"], index=["x", "x"]
    ).astype({"b": object}),
    "objects under double labels": pd.DataFrame({"o": [1, "a"]}).set_axis([1, 1]),
    "rows of an array": pd.DataFrame(np.arange(12.0).reshape(3, 4)),
    "every second row": pd.DataFrame({"a": np.arange(9), "s": list("abcdefghi")}).iloc[1:8:2],
    "an index of tuples": pd.DataFrame({"a": [1], "b": ["x"], "c": [2]}).set_index(["a", "b"]),
    "columns of tuples": pd.DataFrame(
        np.ones((2, 4)), columns=pd.MultiIndex.from_product([[1, 2], ["a", "b"]], names=["x", "y"])
    ),
    "names of the axes": pd.DataFrame({"a": [1]}).rename_axis(columns="c", index="i"),
    "more columns than a frame has loose": pd.DataFrame(np.arange(900.0).reshape(3, 300)),
    "strings, all of them missing": pd.Series([None, None], dtype="str"),
    "no strings": pd.Series([], dtype="str"),
    "a name that is a tuple": pd.Series([1, 2], name=("a", 1)),
    "an index of strings": pd.Index(["a", "b"], name="n"),
    "an index of objects": pd.Index(["a", "b"], dtype=object),
    "an index of categories": pd.CategoricalIndex(["a", "b"], name="n"),
    "days": pd.date_range("2020", periods=5, name="d"),
    "business month ends": pd.date_range("2020", periods=5, freq="BME", tz="Asia/Tokyo"),
    "a range": pd.RangeIndex(3, 30, 4, name="r"),
}


def _back(value: Any, folder: Path) -> tuple[Any, Captured]:
    namespace = {"value": value}
    captured = capture("value", namespace, with_blobs=True)
    for blob in captured.blobs:
        (folder / blob.ref.digest).write_bytes(blob.data)
    restored: dict[str, Any] = {}
    restore(captured.payload, restored, str(folder))
    return restored["value"], captured


def _assert_same(there: Any, here: Any) -> None:
    assert type(there) is type(here)
    if isinstance(here, pd.DataFrame):
        pd.testing.assert_frame_equal(there, here, check_freq=True)
        assert type(there.columns) is type(here.columns)
        assert there.columns.dtype == here.columns.dtype
    elif isinstance(here, pd.Series):
        pd.testing.assert_series_equal(there, here, check_freq=True)
    else:
        pd.testing.assert_index_equal(there, here, exact=True)
        assert getattr(there, "freq", None) == getattr(here, "freq", None)


@pytest.mark.parametrize("name", _COLUMNS)
def test_a_column_arrives_as_it_was_alone_and_in_a_frame(name: str, tmp_path: Path) -> None:
    column = _column(name)
    series = pd.Series(column, name=name)
    _assert_same(_back(series, tmp_path)[0], series)
    frame = pd.DataFrame({name: column, "other": 1})
    there, _ = _back(frame, tmp_path)
    _assert_same(there, frame)
    if series.dtype == object:
        assert list(map(type, there[name])) == list(map(type, series))


@pytest.mark.parametrize("name", list(_WHOLE))
def test_frames_series_and_indexes_of_every_shape_arrive_as_they_were(
    name: str, tmp_path: Path
) -> None:
    _assert_same(_back(_WHOLE[name], tmp_path)[0], _WHOLE[name])


def test_attributes_and_flags_arrive(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2]})
    frame.attrs["unit"] = "m"
    frame.flags.allows_duplicate_labels = False
    there, _ = _back(frame, tmp_path)
    assert there.attrs == {"unit": "m"}
    assert not there.flags.allows_duplicate_labels


def test_a_restored_frame_can_be_changed(tmp_path: Path) -> None:
    frame = pd.DataFrame({name: _column(name) for name in ("int64", "str", "zoned", "category")})
    there, _ = _back(frame, tmp_path)
    there.loc[3, "int64"] = -1
    there.iloc[0, 1] = "new"
    there.loc[1, "zoned"] = there.loc[0, "zoned"]
    there["made"] = there["int64"] * 2
    assert (there.loc[3, "made"], there.loc[0, "str"]) == (-2, "new")
    assert frame.loc[3, "int64"] == 3


@pytest.mark.parametrize("make", ["of columns", "of one array"])
def test_an_edited_column_is_the_only_thing_that_is_sent_again(make: str) -> None:
    numbers = np.random.default_rng(1).random((_N, 8))
    frame = pd.DataFrame(numbers, columns=list("abcdefgh"))
    if make == "of columns":
        frame = frame.copy()
    frame["s"] = _column("str")

    def blobs() -> set[str]:
        return {ref.digest for ref in capture("frame", {"frame": frame}, with_blobs=True).blob_refs}

    first = blobs()
    assert len(first) == 8 + 2  # strings are offsets and text
    assert blobs() == first
    frame.loc[5, "c"] = 7.0
    edited = blobs()
    assert len(edited - first) == 1
    frame["h"] = 0.0
    assert len(blobs() - edited) == 1


def test_columns_and_strings_travel_beside_the_pickle(tmp_path: Path) -> None:
    frame = pd.DataFrame({name: _column(name) for name in ("int64", "str", "object strings")})
    _, captured = _back(frame, tmp_path)
    assert len(captured.payload) < 2_000
    assert len(captured.blobs) == 3  # both columns of strings have the same offsets and text


def test_one_index_of_two_frames_is_one_index_there(
    notebook: dict[str, Any], fresh: FreshProcesses
) -> None:
    code = "import pandas as pd\na = pd.DataFrame({'x': [1]}, index=['i'])\nb = [a, a.index]"
    exec(code, notebook)
    cell = "print(a is b[0], a.index is b[1] or a.index.equals(b[1]), a.to_dict())"
    answer = fresh.run(cell, capture(cell, notebook).payload)
    assert answer["out"] == "True True {'x': {'i': 1}}\n"


def test_a_frame_with_a_class_of_its_own_is_pickled_its_own_way(
    notebook: dict[str, Any], fresh: FreshProcesses
) -> None:
    exec(
        "import pandas as pd\n"
        "class Geo(pd.DataFrame):\n"
        "    _metadata = ['crs']\n"
        "    @property\n"
        "    def _constructor(self): return Geo\n"
        "g = Geo({'a': [1, 2]})\ng.crs = 'EPSG:4326'",
        notebook,
    )
    cell = "print(type(g).__name__, g.crs, g.a.tolist(), type(g.head(1)).__name__)"
    answer = fresh.run(cell, capture(cell, notebook).payload)
    assert (answer["out"], answer["error"]) == ("Geo EPSG:4326 [1, 2] Geo\n", None)


def test_without_arrow_strings_arrive_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.DataFrame({"o": _column("object strings and None")})
    captured = capture("frame", {"frame": frame})
    restored: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    restore(captured.payload, restored)
    assert restored["frame"]["o"].tolist() == frame["o"].tolist()


def test_a_pandas_that_is_built_otherwise_pickles_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.DataFrame({"a": [1], "b": ["x"]})
    monkeypatch.delattr(pd.DataFrame, "_get_column_array")
    there, captured = _back(frame, tmp_path)
    monkeypatch.undo()
    _assert_same(there, frame)
    assert b"rebuild_frame" not in captured.payload


def test_a_frame_needs_pandas_where_it_arrives() -> None:
    assert "pandas" in capture("value", {"value": pd.DataFrame({"a": [1]})}).modules
