from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest

from gridx.ship.replay import run, statements

_CELL = """\
import json as js, os.path
from math import pi
x = 3
def f(a, b=x):
    return a + b
class C:
    pass
g = lambda v: v
P = namedtuple('P', 'a b')
if x:
    def h(): pass
y = f(1)
"""


def test_only_imports_definitions_and_what_makes_types_is_made_again() -> None:
    source = "\n".join(ast.unparse(part.node) for part in statements(_CELL).definitions)
    assert "x = 3" not in source
    assert "y = f(1)" not in source
    assert statements(_CELL).names == {"js", "os", "pi", "f", "C", "g", "P", "h"}
    (part,) = statements(_CELL).chosen({"C": 0})
    assert ast.unparse(part.node) == "class C:\n    pass"


@pytest.mark.parametrize(
    ("cell", "final"),
    [
        ("def f(): pass", {"f"}),
        ("def f(): pass\nf = 5", set()),
        ("f = 5\ndef f(): pass", {"f"}),
        ("if c:\n    def f(): pass", set()),
        ("import a\nfor a in b: pass", set()),
        ("with c as f: pass\nimport f", {"f"}),
    ],
)
def test_a_name_is_a_definition_when_its_last_binding_surely_is_one(
    cell: str, final: set[str]
) -> None:
    assert statements(cell).final == final


def test_of_two_branches_the_one_that_ran_is_chosen_by_its_line() -> None:
    cell = statements("if c:\n    def f(): return 1\nelse:\n    @d\n    def f(): return 2\n")
    assert [part.node.lineno for part in cell.chosen({"f": 2})] == [2]
    assert [part.node.lineno for part in cell.chosen({"f": 4})] == [5]
    assert cell.chosen({"f": 0}) == []
    assert cell.chosen({"g": 2}) == []


def test_a_star_import_is_chosen_for_names_that_the_cell_does_not_mention() -> None:
    cell = statements("from math import *\ndef f(): pass")
    assert [part.is_star for part in cell.chosen({"floor": 0})] == [True]
    assert [part.is_star for part in cell.chosen({"f": 2})] == [False]


def test_the_body_of_a_timing_magic_is_looked_into() -> None:
    assert statements("get_ipython().run_cell_magic('time', '', 'import a\\n')").names == {"a"}
    assert statements("get_ipython().run_cell_magic('bash', '', 'import a\\n')").names == set()


def test_a_cell_that_is_not_python_has_no_definitions() -> None:
    assert statements("def f(").names == set()


def test_a_function_that_was_made_again_shows_its_source_and_its_visible_line() -> None:
    source = "x = 1\ndef f():\n    return x\n"
    cell = statements(source)
    namespace: dict[str, Any] = {"__name__": "__main__", "x": 5}
    (part,) = cell.chosen({"f": 2})
    run(part, namespace, flags=cell.flags, cell_source=source, line_offset=1)
    run(part, namespace, flags=cell.flags, cell_source=source, line_offset=1)
    assert namespace["f"]() == 5
    assert namespace["f"].__code__.co_firstlineno == 3
    assert inspect.getsource(namespace["f"]) == "def f():\n    return x\n"


def test_future_imports_of_the_cell_hold_for_what_is_made_again() -> None:
    source = "from __future__ import annotations\ndef f(x: Later): pass\n"
    cell = statements(source)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for part in cell.chosen({"f": 2}):
        run(part, namespace, flags=cell.flags, cell_source=source)
    assert namespace["f"].__annotations__ == {"x": "Later"}


@pytest.mark.parametrize(
    ("cell", "later"),
    [
        ("x = 1\ndef f(a=x): pass\nx = 2", ("x",)),
        ("x = 1\ndef f(a=x): return y\ny = 2", ()),
        ("@d\nclass C(B):\n    v = k\n    def m(self): return z\nk = z = B = 1", ("B", "k")),
        ("f = lambda a=x: y\nx = y = 1", ("x",)),
        ("import a\na = 1", ()),
    ],
)
def test_what_a_definition_evaluates_and_the_cell_binds_again_is_known(
    cell: str, later: tuple[str, ...]
) -> None:
    assert statements(cell).definitions[0].later == later
