"""A cell there and back: captured here, run in a fresh process, its result applied here."""

from __future__ import annotations

import os
import pickle
import string
import threading
from typing import Any

import msgspec
import numpy as np
import pytest

from gridx.codec import CodecError, Opaque
from gridx.codec.encode import Encoder
from gridx.codec.framing import join
from gridx.codec.results import (
    apply_result,
    encode_result,
    result_pieces,
    snapshot,
)
from gridx.codec.tags import RESULT_MAGIC, VALUE_MAGIC

from ..homecoming import Grid


def test_new_and_rebound_names_come_home(grid: Grid) -> None:
    grid.here("x = 1\nold = 'a'")
    applied = grid.there("y = x + 1\nold = 'b'\n_private = 3")
    assert set(applied.bound) == {"y", "old"}
    assert (grid.names["y"], grid.names["old"]) == (2, "b")
    assert "_private" not in grid.names


def test_a_name_that_the_cell_deletes_is_deleted_here(grid: Grid) -> None:
    grid.here("tmp = 1\nkeep = 2")
    applied = grid.there("del tmp\nz = keep")
    assert applied.deleted == ("tmp",)
    assert "tmp" not in grid.names


def test_the_deletion_of_a_name_that_shadows_a_builtin_comes_home(grid: Grid) -> None:
    grid.here("max = 3")
    grid.there("del max\nm = max(1, 2)")
    assert "max" not in grid.names
    assert grid.names["m"] == 2


@pytest.mark.parametrize(
    ("setup", "cell"),
    [
        ("v = [1, 2]", "v.append(3)"),
        ("v = {'a': 1}", "v['b'] = 2; del v['a']"),
        ("v = {1, 2}", "v.add(3)"),
        ("v = bytearray(b'ab')", "v += b'c'"),
        ("import numpy as np\nv = np.zeros(4)", "v[1] = 5"),
        ("v = [[1], [2]]", "v[0].append(9)"),
        ("v = [0.5] * 100", "v[3] = 1.5"),
    ],
)
def test_a_container_that_was_changed_is_changed_in_place(
    grid: Grid, setup: str, cell: str
) -> None:
    grid.here(setup + "\nother = v")
    before = grid.names["v"]
    applied = grid.there(cell)
    assert grid.names["v"] is grid.names["other"] is before
    grid.here(f"import copy\n{setup}\n{cell}\nsame = (other == v)")
    assert np.all(grid.names["same"])
    assert "v" in applied.updated_in_place


def test_what_was_not_changed_is_not_sent_back(grid: Grid) -> None:
    grid.here("import numpy as np\nbig = np.arange(100_000)\nwords = ['a'] * 10_000")
    applied = grid.there("total = int(big.sum()) + len(words)")
    assert applied.bound == ("total",)
    assert len(bytes.fromhex(grid.answer["result"])) < 200


def test_an_alias_between_two_results_stays_one_object(grid: Grid) -> None:
    grid.there("a = [1]\nb = a\nc = {'a': a}")
    assert grid.names["a"] is grid.names["b"] is grid.names["c"]["a"]


def test_a_result_that_holds_an_input_holds_the_notebooks_own_object(grid: Grid) -> None:
    grid.here("import numpy as np\ndata = np.arange(50_000)\nitems = [1]")
    grid.there("items.append(2)\nreport = {'data': data, 'items': items}\nalias = data")
    assert grid.names["report"]["data"] is grid.names["alias"] is grid.names["data"]
    assert grid.names["report"]["items"] is grid.names["items"]
    assert grid.names["items"] == [1, 2]
    assert len(bytes.fromhex(grid.answer["result"])) < 500


def test_a_changed_list_inside_a_changed_dict_stays_the_notebooks_own(grid: Grid) -> None:
    grid.here("row = [0]\ngrid = {'r': row}")
    row, table = grid.names["row"], grid.names["grid"]
    grid.there("row.append(1)\ngrid['n'] = 2")
    assert grid.names["grid"] is table
    assert table == {"r": [0, 1], "n": 2}
    assert table["r"] is grid.names["row"] is row


def test_a_later_cell_has_all_levels_of_a_structure_that_came_home_closed(grid: Grid) -> None:
    made = grid.there("nested = []\nfor _ in range(500):\n    nested = [nested]")
    assert any("nested holds 1 value" in warning for warning in made.warnings)
    measure = "depth, inner = 0, nested\nwhile inner:\n    depth, inner = depth + 1, inner[0]"
    own = grid.names["nested"]
    grid.there(measure)
    assert (grid.names["depth"], grid.names["inner"]) == (500, [])
    assert grid.names["nested"] is own
    grid.there("inner = nested\nwhile inner:\n    inner = inner[0]\ninner += [[[]]]")
    grid.there(measure)
    assert grid.names["depth"] == 502
    assert grid.names["nested"] is own


def test_functions_inside_a_changed_container_stay_the_notebooks_own(grid: Grid) -> None:
    grid.here(
        "def f(): return 1\nsteps = [f, lambda: 2]\ntable = {'g': lambda: 3, 'n': [1]}\n"
        "quiet = [lambda: 4]"
    )
    names = grid.names
    own = [*names["steps"], names["table"]["g"], names["quiet"][0]]
    applied = grid.there("steps.append(5)\ntable['n'].append(2)\nquiet\npicked = [steps[1]]")
    assert names["steps"] == [own[0], own[1], 5]
    assert names["table"] == {"g": own[2], "n": [1, 2]}
    assert names["quiet"] == [own[3]]
    assert names["picked"] == [own[1]]
    assert set(applied.updated_in_place) == {"steps", "table"}


def test_a_changed_frame_is_bound_again_and_the_old_one_is_named(grid: Grid) -> None:
    grid.here("import pandas as pd\ndf = pd.DataFrame({'a': [1, 2]})\nview = df")
    applied = grid.there("df['b'] = df['a'] * 2")
    assert list(grid.names["df"].columns) == ["a", "b"]
    assert applied.bound == ("df",)
    assert any("view still stands for df" in warning for warning in applied.warnings)


def test_a_generator_that_the_cell_drew_from_goes_on_from_there(grid: Grid) -> None:
    setup = (
        "import random\nimport numpy as np\nrng = np.random.default_rng(1)\nr = random.Random(2)"
    )
    cell = "drawn = rng.random(5).sum() + r.gauss(0, 1) + r.random()"
    grid.here(setup)
    grid.there(cell)
    remote = (grid.names["drawn"], grid.names["rng"].random(), grid.names["r"].gauss(0, 1))
    grid.here(setup + "\n" + cell)
    assert remote == (grid.names["drawn"], grid.names["rng"].random(), grid.names["r"].gauss(0, 1))


def test_what_was_bound_before_an_error_comes_home(grid: Grid) -> None:
    applied = grid.there("a = 1\nb = 1/0\nc = 2")
    assert grid.answer["error"].startswith("ZeroDivisionError")
    assert applied.bound == ("a",)
    assert "b" not in grid.names


def test_functions_classes_and_imports_are_made_here_from_the_cells_own_text(grid: Grid) -> None:
    grid.here("base = 10")
    applied = grid.there(
        "import json as js\nfrom math import sqrt, pi\nstep = 5\n"
        "def f(x, k=step): return x + k + base\n"
        "class C:\n    def __init__(self): self.v = 1\n"
        "g = lambda x: f(x) * 2\nc = C()\nr = g(1)"
    )
    names = grid.names
    assert {"js", "sqrt", "pi", "f", "C", "g"} <= set(applied.replayed)
    assert {"step", "c", "r"} <= set(applied.bound)
    assert names["f"](1) == 16
    assert names["f"].__globals__ is names
    assert type(names["c"]) is names["C"]
    assert names["c"].v == 1
    assert names["g"](1) == names["r"]
    assert names["js"].dumps([1]) == "[1]"
    assert not applied.warnings


def test_instances_of_the_notebooks_own_classes_come_home_as_such(grid: Grid) -> None:
    grid.here(
        "import dataclasses, enum\n@dataclasses.dataclass\nclass P:\n    x: int\n"
        "class E(enum.Enum):\n    A = 1\n"
    )
    grid.there("p = P(3)\nlst = [P(4), E.A]")
    assert grid.names["p"] == grid.names["P"](3)
    assert grid.names["lst"][1] is grid.names["E"].A


def test_a_definition_in_a_branch_is_made_here_only_when_it_ran_there(grid: Grid) -> None:
    grid.here("fast = False")
    grid.there(
        "if fast:\n    def f(): return 'fast'\nelse:\n    def f(): return 'slow'\n"
        "try:\n    import not_a_module\nexcept ImportError:\n    not_a_module = None\n"
    )
    assert grid.names["f"]() == "slow"
    assert grid.names["not_a_module"] is None


def test_a_decorated_function_is_made_here_with_its_decorator(grid: Grid) -> None:
    grid.there(
        "import functools\n@functools.lru_cache\ndef fib(n): return n if n < 2 else fib(n-1) + fib(n-2)\nv = fib(20)"
    )
    assert grid.names["fib"](20) == grid.names["v"] == 6765


_COUNTER = (
    "def counter(start=0):\n"
    "    n = start\n"
    "    def increment(by=1):\n"
    "        nonlocal n\n"
    "        n += by\n"
    "        return n\n"
    "    return increment, lambda: n\n"
)


def test_closures_that_the_users_own_function_made_come_home_with_what_they_share(
    grid: Grid,
) -> None:
    grid.here(_COUNTER)
    applied = grid.there("increment, get = counter(5)\nv = increment(2)")
    names = grid.names
    assert not applied.opaque
    assert not applied.warnings
    assert (names["v"], names["get"](), names["increment"](3), names["get"]()) == (7, 7, 10, 10)
    assert names["increment"].__globals__ is names
    again = grid.there("increment, get = counter(50)\nw = increment()")
    assert (names["w"], names["get"](), set(again.bound)) == (51, 51, {"increment", "get", "w"})


def test_functions_that_the_cell_itself_made_inside_values_come_home(grid: Grid) -> None:
    applied = grid.there(
        "scale = 3\ntable = {'twice': lambda x: 2 * x, 'scaled': lambda x, k=10: scale * x + k}\n"
        "def make(n):\n    def add(x):\n        return x + n\n    return add\n"
        "adders = [make(n) for n in range(3)]\n"
        "def fact():\n    def f(n):\n        return n * f(n - 1) if n else 1\n    return f\n"
        "f = fact()\n"
    )
    names = grid.names
    assert (names["table"]["twice"](4), names["table"]["scaled"](1)) == (8, 13)
    assert [add(10) for add in names["adders"]] == [10, 11, 12]
    assert names["f"](5) == 120
    assert not applied.warnings


def test_a_variable_that_closures_share_is_changed_in_the_notebooks_own(grid: Grid) -> None:
    grid.here(_COUNTER + "increment, get = counter(5)\nsaved = get")
    applied = grid.there("v = increment(10)")
    assert (grid.names["v"], grid.names["saved"](), grid.names["get"]()) == (15, 15, 15)
    assert applied.bound == ("v",)
    assert "increment.variable 0" in applied.held


def test_attributes_of_the_users_classes_and_functions_are_changed_in_the_notebooks_own(
    grid: Grid,
) -> None:
    grid.here(
        "class Animal:\n    count = 0\n    names = []\n    limit = 9\n"
        "    def __init__(self, name):\n        Animal.count += 1\n"
        "        type(self).names.append(name)\n"
        "class Dog(Animal): pass\n"
        "def f(): f.calls += 1\nf.calls = 0\nkept = Animal.names\nanimal = Animal\n"
    )
    applied = grid.there("d = Dog('rex')\nf(); f()\nAnimal.owner = 'anna'")
    names = grid.names
    animal = names["Animal"]
    assert (animal.count, animal.names, animal.owner, names["f"].calls) == (1, ["rex"], "anna", 2)
    assert names["kept"] is animal.names
    assert type(names["d"]) is names["Dog"]
    assert {"Animal.count", "Animal.names", "Animal.owner", "f.calls"} <= set(applied.held)
    assert "Animal.limit" not in applied.held


def test_what_a_new_class_or_function_holds_comes_home(grid: Grid) -> None:
    grid.there(
        "class Registry:\n    seen = []\n    total = 0\n    def add(self, x):\n"
        "        Registry.total += x\n        self.seen.append(x)\n"
        "def g(): pass\ng.tag = 'a'\nRegistry().add(4)"
    )
    registry = grid.names["Registry"]
    assert (registry.seen, registry.total, grid.names["g"].tag) == ([4], 4, "a")


@pytest.mark.parametrize(
    "held",
    [
        ["Kept", "value", 0, 2], ["C", "method", 0, 2], ["C", "__init__", 0, 2],
        ["C", "prop", 0, 2], ["C", "__class__", 0, 2], ["E", "A", 0, 2], ["x", "real", 0, 2],
        ["f", "__code__", 0, 2], ["f", "__wrapped__", 0, 2], ["f", 0, 0, 2], ["f", 9, 0, 2],
        ["os", "sep", 0, "!"], ["len", "x", 0, 2], ["C", "a b", 0, 2], ["C", "base", 0, 2],
    ],
)  # fmt: skip
def test_a_worker_changes_no_code_and_nothing_that_the_cell_cannot_reach(
    grid: Grid, held: list[Any]
) -> None:
    grid.here(
        "import enum, os\nclass Kept:\n    value = 1\nclass B:\n    def base(self): return 1\n"
        "class C(B):\n    def __init__(self): pass\n    def method(self): return 1\n"
        "    @property\n    def prop(self): return 1\n"
        "class E(enum.Enum):\n    A = 1\n"
        "def outer():\n    helper = lambda: 1\n    def f(): return helper()\n    return f\n"
        "f = outer()\nx = 1"
    )
    names = grid.names
    root = [[], [], [], [], [], [], None, [held]]
    applied = apply_result(
        join(RESULT_MAGIC, root, []), names, expected={"x"}, cell_source="C(), E, x, f, os, len"
    )
    assert applied.held == ()
    assert names["Kept"].value == 1
    assert (names["C"]().method(), names["C"]().prop, names["C"]().base()) == (1, 1, 1)
    assert (names["f"](), names["E"].A.value, names["os"].sep) == (1, 1, "/")


def test_a_partial_and_a_decorated_function_of_the_user_come_home(grid: Grid) -> None:
    grid.here(
        "import functools\n"
        "def logged(f):\n    @functools.wraps(f)\n    def wrapper(*a):\n        return f(*a) + 1\n"
        "    return wrapper\n"
        "def power(base, exp): return base ** exp\n"
    )
    grid.there("square = functools.partial(power, exp=2)\nmore = [logged(power)]")
    assert grid.names["square"](5) == 25
    assert grid.names["more"][0](2, 3) == 9


def test_a_function_whose_code_is_not_the_users_comes_closed(grid: Grid) -> None:
    applied = grid.there("exec('def g(): return 1', globals())\nmade = eval('lambda: 2')")
    assert "made" in applied.opaque
    assert isinstance(grid.names["made"], Opaque)


_FOREST = (
    "import numpy as np\nfrom sklearn.ensemble import RandomForestClassifier\n"
    "x = np.arange(40.0).reshape(20, 2)\ny = (x[:, 0] > 20).astype(int)\n"
    "model = RandomForestClassifier(n_estimators=5, random_state=0).fit(x, y)\n"
    "models = {'best': model, 'again': [model]}\n"
)


class _ProcessId:
    def __reduce__(self) -> Any:
        return os.getpid, ()


def test_a_closed_value_is_opened_where_the_cell_runs_and_not_here(grid: Grid) -> None:
    grid.names["box"] = [Opaque("T", "whoever opens it", pickle.dumps(_ProcessId()))]
    grid.there("import os\nopened_there = box[0] == os.getpid()\nn = box[0]")
    assert grid.names["opened_there"] is True
    assert grid.names["n"] != os.getpid()


@pytest.mark.slow
def test_a_model_that_comes_home_closed_is_used_in_the_next_cell(grid: Grid) -> None:
    applied = grid.there(_FOREST)
    names = grid.names
    model = names["model"]
    assert isinstance(model, Opaque)
    assert "RandomForestClassifier" in repr(model)
    assert "worker bob" in repr(model)
    assert names["models"]["best"] is names["models"]["again"][0] is model
    assert list(applied.opaque) == ["model"]
    applied = grid.there(
        "same = models['best'] is models['again'][0] is model\n"
        "right = int((model.predict(x) == y).sum())\nkind = type(model).__name__\n"
    )
    assert (names["same"], names["right"], names["kind"]) == (True, 20, "RandomForestClassifier")
    assert names["model"] is model
    assert set(applied.bound) == {"same", "right", "kind"}


@pytest.mark.slow
def test_a_closed_model_that_a_later_cell_changes_is_bound_anew(grid: Grid) -> None:
    grid.there(_FOREST)
    model = grid.names["model"]
    grid.there("model.set_params(n_estimators=7).fit(x, y)\ntrees = len(model.estimators_)")
    assert grid.names["trees"] == 7
    assert isinstance(grid.names["model"], Opaque)
    assert grid.names["model"] is not model


def test_a_star_import_of_the_cell_is_made_here(grid: Grid) -> None:
    grid.there("from math import *\nv = floor(2.5)")
    assert grid.names["v"] == 2
    assert grid.names["floor"](1.5) == 1


def test_a_default_that_is_bound_again_later_is_told(grid: Grid) -> None:
    applied = grid.there("x = 10\ndef f(y=x): return y\nx = 20\ndef g(z=x): return z")
    assert [w for w in applied.warnings if "f was defined here with the last value of x" in w]
    assert not [w for w in applied.warnings if w.startswith("g ")]


def test_what_stays_closed_inside_a_container_is_told(grid: Grid) -> None:
    applied = grid.there(
        "import threading\nbox = [1, threading.Lock(), (i for i in [1])]\nok = [1]"
    )
    assert applied.warnings == ("box holds 2 values that came home unopened.",)


def test_the_namespace_itself_is_the_notebooks_own(grid: Grid) -> None:
    grid.there("g = globals()")
    assert grid.names["g"] is grid.names


def test_a_definition_that_fails_here_is_named(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "colorsys", None)
    applied = grid.there("import colorsys\nx = 1")
    assert grid.names["x"] == 1
    (warning,) = applied.warnings
    assert warning.startswith("colorsys could not be defined here")


def test_a_class_that_is_derived_from_a_builtin_is_made_here(grid: Grid) -> None:
    applied = grid.there(
        "import sys\nif not hasattr(sys, 'nope'):\n    k = 1\nclass D(dict): pass\n"
    )
    assert not applied.warnings
    assert grid.names["D"] is not None


def test_a_name_that_nobody_expects_is_listed_and_not_bound(grid: Grid) -> None:
    applied = grid.there("globals()['made' + '1'] = 5\nx = 1")
    assert applied.unexpected == ("made1",)
    assert "made1" not in grid.names


def test_a_worker_that_sends_unasked_names_touches_nothing(grid: Grid) -> None:
    grid.here("password_hash = 'mine'\nimport os\ndef f(): return 1\nx = 0")
    applied = grid.there(
        "globals().update(password_hash='theirs', os=5, f=6, print=7, _x=8, x=9)\nx = 1",
        worker_expects=None,
    )
    assert grid.names["password_hash"] == "mine"
    assert grid.names["f"]() == 1
    assert grid.names["os"].sep == "/"
    assert "print" not in grid.names
    assert applied.bound == ("x",)
    assert "password_hash" in applied.refused


def test_code_and_builtins_of_the_notebook_are_never_replaced_by_a_value(grid: Grid) -> None:
    grid.here("def f(): return 1\nimport math")
    applied = grid.there(
        "f = 5\nmath = 6\nglobals()['len'] = 7\nok = 8",
        expected={"f", "math", "len", "ok"},
        worker_expects=None,
    )
    assert grid.names["f"]() == 1
    assert grid.names["math"].pi > 3
    assert "len" not in grid.names
    assert applied.bound == ("ok",)
    assert applied.refused.keys() == {"f", "math", "len"}
    assert applied.values["len"] == 7


def test_a_builtins_name_that_the_cells_own_text_binds_is_bound_and_told(grid: Grid) -> None:
    applied = grid.there("max = 5\nsum = 0\nfor n in [1, 2]:\n    sum += n")
    assert (grid.names["max"], grid.names["sum"]) == (5, 3)
    assert any("max is this cell's value now" in warning for warning in applied.warnings)
    grid.there("del max\nm = max(1, 2)")
    assert "max" not in grid.names
    assert grid.names["m"] == 2


def test_a_bare_object_that_is_a_default_in_the_same_cell_is_that_object_here(grid: Grid) -> None:
    applied = grid.there(
        "sentinel = object()\ndef pick(value=sentinel):\n    return value is sentinel\nr = pick()"
    )
    assert not applied.warnings
    assert grid.names["r"] is True
    assert grid.names["pick"]() is True
    assert grid.names["pick"](1) is False


def test_a_definition_that_needs_a_value_of_a_class_of_the_cell_is_made_here(grid: Grid) -> None:
    applied = grid.there(
        "class Box:\n    def __init__(self): self.n = 3\n"
        "box = Box()\nsize = box.n\ndef f(k=box.n, b=box): return k + b.n\n"
    )
    assert not applied.warnings
    assert grid.names["f"]() == 6
    assert grid.names["f"].__defaults__[1] is grid.names["box"]


def test_out_limits_what_is_brought_home(grid: Grid) -> None:
    grid.here("v = [1]\nt = 1")
    applied = grid.there("a = 1\nb = 2\nv.append(3)\ndel t", out={"a"})
    assert applied.bound == ("a",)
    assert (grid.names["v"], "b" in grid.names, grid.names["t"]) == ([1], False, 1)
    assert grid.there("c = 1\nimport json", out=()).bound == ()
    assert "json" not in grid.names


def test_what_the_user_bound_meanwhile_is_kept(grid: Grid) -> None:
    grid.here("x = 1\nv = [1]")
    at_submit = dict(grid.names)
    applied = grid.there("x = 10\ny = 20\nv.append(2)", at_submit=at_submit, between="x = 'mine'")
    assert (grid.names["x"], grid.names["y"], grid.names["v"]) == ("mine", 20, [1, 2])
    assert applied.values["x"] == 10
    assert "while the cell ran" in applied.refused["x"]


def test_a_value_that_cannot_be_encoded_does_not_spoil_the_others(grid: Grid) -> None:
    applied = grid.there(
        "import threading\nlock = threading.Lock()\ngen = (i for i in [1])\nok = [1]"
    )
    assert grid.names["ok"] == [1]
    assert applied.opaque.keys() == {"lock", "gen"}
    assert "cannot be pickled" in repr(grid.names["lock"])


def test_a_malformed_result_leaves_the_notebook_untouched(grid: Grid) -> None:
    grid.here("v = [1]\nx = 0")
    cell = "v.append(2)\nx = 5\nimport json\nclass K: pass\nk = K()"
    grid.there(cell, out=())
    data = bytes.fromhex(grid.answer["result"])
    before = dict(grid.names)
    for position in range(len(data)):
        for byte in (0, 0x91, 0xC1, 0xFF):
            changed = data[:position] + bytes([byte]) + data[position + 1 :]
            try:
                apply_result(
                    changed, grid.names, expected={"v", "x", "json", "K", "k"}, cell_source=cell
                )
            except CodecError:
                assert grid.names == before
                assert grid.names["v"] == [1]
            grid.names.clear()
            grid.names.update(before)
            grid.names["v"][:] = [1]


@pytest.mark.parametrize(
    "root",
    [
        None,
        [],
        [[], [], [], [], [], []],
        [[["x y", 0, 1]], [], [], [], [], [], None, []],
        [[["x", 5, 1]], [], [], [], [], [], None, []],
        [[["x", -1, 1]], [], [], [], [], [], None, []],
        [[["x", 0, [14, 0]]], [], [], [], [], [], None, []],
        [[], [[0]], [], [], [], [], None, []],
        [[], [], [5], [], [], [], None, []],
        [[], [], [], [["f", "line"]], [], [], None, []],
        [[["x", 10**9, 1]], [], [], [], [], [], None, []],
        [[], [], [], [], [], [], 5, []],
        [[], [], [], [], [], [], [0], []],
        [[], [], [], [], [], [], [3, 1], []],
        [[], [], [], [], [], [["a"]], None, []],
        [[], [], [], [], [], [], None, [["f", 0, 1]]],
        [[], [], [], [], [], [], None, [["f", None, 0, 1]]],
        [[], [], [], [], [], [["a", "text"]], None, []],
        [[], [], [], [], [], [["a", [15, 9]]], None, []],
    ],
)
def test_a_result_of_another_form_is_refused(root: Any) -> None:
    namespace: dict[str, Any] = {"x": 0}
    with pytest.raises(CodecError) as refusal:
        apply_result(join(RESULT_MAGIC, root, []), namespace, expected={"x"}, cell_source="x = 1")
    assert refusal.value.hint
    assert namespace == {"x": 0}


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "..", "../x", "a/../../x", "a//b", "", ".", "./a", "a/", "C:\\x", "c:x",
        "a\\b", "a\0b", "a\nb", "\x1b[31m", "\u202egnp.exe", " a", "a ", "a.", "x" * 300, "a*", 5,
    ],
)  # fmt: skip
def test_a_file_whose_path_leaves_the_folder_spoils_the_message(path: Any) -> None:
    namespace: dict[str, Any] = {}
    root = [[["x", 0, 1]], [], [], [], [], [[path, b"1"]], None, []]
    with pytest.raises(CodecError, match="path of a file"):
        apply_result(join(RESULT_MAGIC, root, []), namespace, expected={"x"}, cell_source="x = 1")
    assert namespace == {}


def test_two_files_of_one_path_spoil_the_message() -> None:
    root = [[], [], [], [], [], [["a/B", b"1"], ["a/b", b"2"]], None, []]
    with pytest.raises(CodecError, match="one file twice"):
        apply_result(join(RESULT_MAGIC, root, []), {}, expected=(), cell_source="")


def _pieces(after: dict[str, Any], **options: Any) -> Any:
    return result_pieces(snapshot({}, ()), after, expected=None, cell="", **options)


def test_files_come_home_beside_the_values() -> None:
    large = bytes(range(256)) * 100
    made = _pieces({"x": 1}, files=[("out/.model.txt", b"abc"), ("b.bin", memoryview(large))])
    applied = apply_result(made.join(), {}, expected={"x"}, cell_source="x = 1")
    assert [(path, bytes(data)) for path, data in applied.files] == [
        ("out/.model.txt", b"abc"),
        ("b.bin", large),
    ]


def test_a_message_in_blocks_is_the_message() -> None:
    rng = np.random.default_rng(3)
    after = {"a": rng.random(40_000), "b": rng.random(3), "t": "x" * 5_000, "c": bytes(70_000)}
    made = _pieces(after)
    whole = made.join()
    assert made.size_bytes == len(whole)
    for size in (4_096, 65_536, 70_001, 10**7):
        blocks = list(made.blocks(size))
        assert {len(block) for block in blocks[:-1]} <= {size}
        assert b"".join(blocks) == whole


def test_the_largest_parts_of_a_result_are_told() -> None:
    made = _pieces(
        {"a": np.zeros(1_000), "b": [None, "x" * 3_000], "c": 1}, files=[("f.bin", bytes(20_000))]
    )
    assert made.largest(2) == [("f.bin", 20_001), ("a", made.largest()[1][1])]
    assert [name for name, _ in made.largest(9)] == ["f.bin", "a", "b", "c"]


def test_a_block_inside_an_array_is_the_arrays_own_memory() -> None:
    array = np.zeros(1_000_000)
    blocks = [b for b in _pieces({"a": array}).blocks(65_536) if isinstance(b, memoryview)]
    array[:] = 1.0
    assert len(blocks) > 100
    assert bytes(blocks[5]) == np.ones(8_192).tobytes()


def test_a_large_array_lives_in_the_message_that_it_came_in() -> None:
    data = bytearray(_pieces({"a": np.arange(400_000), "s": np.arange(9)}).join())
    names: dict[str, Any] = {}
    apply_result(data, names, expected={"a", "s"}, cell_source="")
    assert np.shares_memory(names["a"], np.frombuffer(data, "u1"))
    assert not np.shares_memory(names["s"], np.frombuffer(data, "u1"))
    names["a"][5] = 7
    assert names["a"].flags.writeable
    assert names["a"].flags.aligned
    again: dict[str, Any] = {}
    apply_result(bytes(data), again, expected={"a"}, cell_source="")
    assert again["a"][5] == 7
    again["a"][5] = 8


def test_two_values_that_claim_one_part_of_the_message_do_not_share_it() -> None:
    encoder = Encoder()
    first = encoder.node(np.zeros(200_000))
    root = [[["a", 0, first], ["b", 1, list(first)]], [], [], [], [], [], None, []]
    data = bytearray(join(RESULT_MAGIC, root, encoder.blobs))
    names: dict[str, Any] = {}
    apply_result(data, names, expected={"a", "b"}, cell_source="")
    names["a"][0] = 1
    assert names["b"][0] == 0


def test_the_last_value_comes_home_when_it_is_small_or_bound_anyway() -> None:
    big = np.zeros(1_000_000)
    names: dict[str, Any] = {}
    assert apply_result(_pieces({}, last=[1, 2]).join(), {}, expected=(), cell_source="").last == [
        1,
        2,
    ]
    applied = apply_result(
        _pieces({"big": big}, last=big).join(), names, expected={"big"}, cell_source=""
    )
    assert applied.last is names["big"]
    for kept_there in (big, [threading.Lock()], {"deep": [string.Template("closed")]}, None):
        made = _pieces({"x": [1]}, last=kept_there)
        applied = apply_result(made.join(), {}, expected={"x"}, cell_source="")
        assert applied.last is None
        assert applied.bound == ("x",)
        assert made.size_bytes < 200


def test_a_last_value_that_is_an_input_is_the_notebooks_own() -> None:
    namespace: dict[str, Any] = {"v": [1, 2]}
    made = result_pieces(
        snapshot(namespace, ["v"]), namespace, expected={"v"}, cell="v", last=namespace["v"]
    )
    here: dict[str, Any] = {"v": [1, 2]}
    assert apply_result(made.join(), here, expected={"v"}, cell_source="v").last is here["v"]


def test_a_value_is_not_taken_for_a_result() -> None:
    with pytest.raises(CodecError, match="not a result"):
        apply_result(join(VALUE_MAGIC, 1, []), {}, expected=set(), cell_source="")


def test_an_update_of_another_type_binds_and_does_not_write_into_the_old_object() -> None:
    encoder = Encoder()
    node = encoder.node({"a": 1})
    data = join(
        RESULT_MAGIC, [[["v", 0, node]], [[0, "v"]], [], [], [], [], None, []], encoder.blobs
    )
    old = [1]
    namespace: dict[str, Any] = {"v": old}
    applied = apply_result(data, namespace, expected={"v"}, cell_source="v = {}")
    assert namespace["v"] == {"a": 1}
    assert old == [1]
    assert applied.updated_in_place == ()


def test_a_library_that_is_missing_here_closes_that_value_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    after = {"a": [1], "table": np.arange(3), "b": [2]}
    after["c"] = after["b"]
    data = encode_result(snapshot({}, ()), after, expected=None, cell="")
    monkeypatch.setitem(sys.modules, "numpy", None)
    namespace: dict[str, Any] = {}
    applied = apply_result(data, namespace, expected={"a", "b", "c", "table"}, cell_source="")
    assert namespace["b"] is namespace["c"]
    assert "pip install numpy" in repr(namespace["table"])
    assert any("numpy" in warning for warning in applied.warnings)


def test_a_snapshot_sees_what_changed_and_what_did_not() -> None:
    import pandas as pd

    namespace: dict[str, Any] = {
        "a": np.zeros(3),
        "f": pd.DataFrame({"x": ["a", "b"]}),
        "l": [1, {"k": [2]}],
        "gen": (i for i in [1]),
    }
    before = snapshot(namespace, namespace)
    assert before.digests["gen"] is None
    namespace["l"][1]["k"].append(3)
    root = encode_result(before, namespace, expected=None, cell="")
    applied = apply_result(root, {}, expected=set(namespace), cell_source="")
    assert set(applied.bound) == {"l"}


def test_a_result_is_plain_messagepack_and_blobs() -> None:
    data = encode_result(snapshot({}, ()), {"x": 1}, expected=None, cell="x = 1")
    (length,) = np.frombuffer(data[4:12], "<u8")
    assert msgspec.msgpack.decode(data[12 : 12 + int(length)])[1][0] == [["x", 0, 1]]
