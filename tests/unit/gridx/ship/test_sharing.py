"""Other names for a part of what a cell reads travel with it, and come home changed."""

from __future__ import annotations

from typing import Any

import pytest

from gridx.ship.capture import capture

from ..homecoming import Grid

_CLASS = "class P:\n    def __init__(self): self.items = [0]\n"


@pytest.mark.parametrize(
    ("setup", "cell", "name", "holder"),
    [
        ("shared = [1, 2]\nfirst, second = {'s': shared}, {'s': shared}",
         "first['s'].append(3)", "shared", "second['s']"),
        ("row = [0, 0]\ngrid = [row, [0, 0]]\nsaved = (row,)",
         "grid[0][1] = 5", "row", "saved[0]"),
        ("row = [0, 0]\ngrid = [row, row, [1, 2]]",
         "grid[0].append(7)", "row", "grid[1]"),
        ("import numpy as np\na = np.zeros(3)\nparts = [a, a]\nkept = {'a': a}",
         "parts[0][1] = 4", "a", "kept['a']"),
        ("import numpy as np\ncell = [1]\nbox = np.array([cell, None], dtype=object)",
         "box[0].append(2)", "cell", "box[0]"),
        (_CLASS + "p = P()\nitems = p.items\nkept = {'i': items}",
         "p.items.append(1)", "items", "kept['i']"),
        ("inner = {'n': 1}\nouter = {'a': {'b': ({'c': inner},)}}\nkept = [inner]",
         "outer['a']['b'][0]['c']['n'] = 2", "inner", "kept[0]"),
        ("seen = {1}\nbox = {'s': seen}\nkept = [seen]", "box['s'].add(2)", "seen", "kept[0]"),
        ("raw = bytearray(b'ab')\nbox = [raw]\nkept = [raw]", "box[0] += b'c'", "raw", "kept[0]"),
        ("a = [3, 1]\nb = a\nkept = [a]", "a.append(2)\na = sorted(a)", "b", "kept[0]"),
        ("from types import SimpleNamespace\nlog = []\nstate = SimpleNamespace(log=log)",
         "state.log.append(1)", "log", "state.log"),
    ],
)  # fmt: skip
def test_a_shared_object_is_changed_under_all_its_names(
    grid: Grid, setup: str, cell: str, name: str, holder: str
) -> None:
    grid.here(setup)
    own = grid.names[name]
    captured = capture(cell, grid.names)
    assert name in captured.inputs & captured.expected
    assert captured.why[name].startswith("shares an object with ")
    grid.there(cell)
    assert grid.names[name] is own
    assert eval(holder, grid.names) is own
    grid.here(f"changed = repr({name})\n{setup}\n{cell}")
    assert grid.names["changed"] == repr(grid.names[name])


@pytest.mark.parametrize(
    ("setup", "cell"),
    [
        (_CLASS + "p = P()\nq = p", "p.items = [9]"),
        (_CLASS + "p = [P()]\nq = p[0]", "p[0].items.append(9)"),
        ("from collections import deque\np = {'d': deque([1])}\nq = p['d']", "p['d'].append(2)"),
        ("import pandas as pd\nq = pd.DataFrame({'a': [1]})\np = {'df': q}", "p['df']['b'] = 2"),
    ],
)
def test_what_is_bound_anew_is_bound_under_all_its_names(grid: Grid, setup: str, cell: str) -> None:
    grid.here(setup)
    applied = grid.there(cell)
    assert "q" in applied.bound
    value = grid.names["p"]
    parts = (
        [value] if grid.names["q"] is value else [*value.values()] if type(value) is dict else value
    )
    assert parts[0] is grid.names["q"]
    there = repr(getattr(grid.names["q"], "items", grid.names["q"]))
    grid.here(f"{setup}\n{cell}")
    assert there == repr(getattr(grid.names["q"], "items", grid.names["q"]))


def test_what_the_cell_does_not_change_stays_the_notebooks_own(grid: Grid) -> None:
    grid.here("shared = [1]\nfirst = {'s': shared}")
    own = grid.names["shared"]
    grid.there("first['n'] = 2")
    assert grid.names["first"] == {"s": [1], "n": 2}
    assert grid.names["first"]["s"] is grid.names["shared"] is own


@pytest.mark.parametrize(
    "setup",
    [
        "v = {'s': []}\nother = []",
        "api_key = [1]\nv = {'s': api_key}",
        "_hidden = [1]\nv = {'s': _hidden}",
        "def f(): pass\nclass C: pass\nimport json\nv = {'s': [f, C, json]}",
        "import enum\nclass E(enum.Enum):\n    A = 1\ne = E.A\nv = [e]",
        "t = (1, 2)\ntext = 'long text'\nv = {'s': [t, text]}",
        "import numpy as np\nv = np.zeros(3)\nw = v\nx = v[1:]",
        "v = [1]\nw = v",
        "v = 1\nw = v",
    ],
)
def test_nothing_else_travels(notebook: dict[str, Any], setup: str) -> None:
    exec(setup, notebook)
    assert capture("print(v)", notebook).names.keys() <= {"v", "f", "C", "E", "json"}


def test_a_name_that_is_left_out_is_not_added(notebook: dict[str, Any]) -> None:
    exec("shared = [1]\nfirst = {'s': shared}", notebook)
    assert set(capture("first", notebook, without=["shared"]).names) == {"first"}


def test_a_model_that_keeps_its_data_does_not_bring_it(notebook: dict[str, Any]) -> None:
    exec(
        "import numpy as np\nfrom sklearn.neighbors import KNeighborsClassifier\n"
        "X = np.eye(20)\nmodel = KNeighborsClassifier(1).fit(X, range(20))",
        notebook,
    )
    assert "X" not in capture("model.n_features_in_", notebook).names


def test_the_values_of_names_that_the_cell_does_not_read_run_no_code(
    notebook: dict[str, Any],
) -> None:
    exec(
        "class Lazy:\n    @property\n    def __class__(self): raise RuntimeError('touched')\n"
        "lazy = Lazy()\nkept = [lazy]\nshared = []\nv = [shared]",
        notebook,
    )
    assert set(capture("v", notebook).names) == {"v", "shared"}


def test_many_numbers_before_a_shared_object_do_not_hide_it(notebook: dict[str, Any]) -> None:
    exec("shared = [1]\nv = {'many': list(range(300_000)), 's': [[shared]]}", notebook)
    assert "shared" in capture("v", notebook).names
