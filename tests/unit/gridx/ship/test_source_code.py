"""Where Python's minor version differs, definitions travel as source and data without code.

The payload names no Python version, so the same interpreter can prove what it holds.
`make other-pythons` runs the same cells on other interpreters.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

from gridx.errors import CaptureError
from gridx.ship.capture import Captured, capture

from ..fresh_process import FreshProcesses
from .other_python_cases import CASES, REFUSED, OtherPythonCase, run_here

OTHER = f"3.{sys.version_info[1] + 1}"


def _captured(cells: list[str], cell: str, notebook: dict[str, Any]) -> Captured:
    for text in cells:
        run_here(text, notebook)
    return capture(cell, notebook, target_python=OTHER, sources=cells)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_cell_finds_under_another_python_what_it_finds_at_home(
    case: OtherPythonCase, notebook: dict[str, Any], fresh: FreshProcesses
) -> None:
    captured = _captured(case.cells, case.cell, notebook)
    assert captured.python == OTHER
    assert not captured.has_code
    assert not any(word in captured.payload for word in (b"CodeType", b"_make_function"))
    answer = fresh.run(case.cell, captured.payload)
    assert (answer["out"], answer["error"]) == (run_here(case.cell, notebook), None)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_what_holds_code_is_refused_with_the_reason(
    case: OtherPythonCase, notebook: dict[str, Any]
) -> None:
    with pytest.raises(CaptureError, match=case.refusal):
        _captured(case.cells, case.cell, notebook)


def test_this_python_gets_code_as_ever(notebook: dict[str, Any]) -> None:
    run_here("def f(): return 1", notebook)
    here = f"3.{sys.version_info[1]}"
    captured = capture("f()", notebook, target_python=here, sources=["def f(): return 1"])
    assert captured.has_code
    assert captured.python == here


def test_a_definition_that_no_cell_shows_is_refused(notebook: dict[str, Any]) -> None:
    run_here("def f(): return 1", notebook)
    with pytest.raises(CaptureError, match="source of f is not among the cells"):
        capture("f()", notebook, target_python=OTHER, sources=["x = 1"])


def test_what_a_definition_reads_travels_and_says_why(notebook: dict[str, Any]) -> None:
    captured = _captured(["k = 2", "class A:\n    v = k", "class B(A): pass"], "B.v", notebook)
    assert set(captured.names) == {"A", "B", "k"}
    assert captured.why["A"] == "read by B, whose source is sent"


def test_a_secret_that_only_source_reads_stays(notebook: dict[str, Any]) -> None:
    cells = ["api_key = 's-1'", "class A:\n    k = api_key[:1]", "b = A()"]
    captured = _captured(cells, "b", notebook)
    assert b"s-1" not in captured.payload
    assert "api_key" in captured.withheld
