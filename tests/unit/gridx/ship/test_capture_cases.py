"""Each case of the table in a fresh process that holds only what was captured."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import gc
import inspect
import io
import warnings
from typing import Any

import IPython.core.inputtransformer2  # noqa: F401  # magics are understood where it is loaded
import pytest

from gridx.errors import CaptureError
from gridx.ship.capture import Captured, capture

from ..fresh_process import FreshProcesses
from .capture_cases import CASES, Case

_BY_NAME = {case.name: case for case in CASES}


def _run_at_home(source: str, namespace: dict[str, Any]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(source, "<notebook>", "exec", flags=flags, dont_inherit=True)
        result = eval(code, namespace)
        if inspect.iscoroutine(result):
            asyncio.run(result)
    return out.getvalue()


def _captured(case: Case, notebook: dict[str, Any]) -> Captured:
    _run_at_home(case.setup, notebook)
    return capture(case.cell, notebook)


@pytest.fixture(autouse=True)
def _libraries_may_warn() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", [case.name for case in CASES if not case.limit])
def test_a_cell_finds_elsewhere_what_it_finds_at_home(
    name: str, notebook: dict[str, Any], fresh: FreshProcesses
) -> None:
    case = _BY_NAME[name]
    captured = _captured(case, notebook)
    assert "huge_unrelated" not in captured.names
    if case.inputs is not None:
        assert case.inputs <= captured.names.keys()
    assert (case.outputs or set()) <= captured.writes
    if case.deletes is not None:
        assert captured.deletes == case.deletes
    answer = fresh.run(case.cell, captured.payload, ipython=case.ipython)
    assert answer["error"] is None
    if case.compare_output and not case.ipython:
        assert answer["out"] == _run_at_home(case.cell, notebook)
    elif case.compare_output:
        assert "abc" in answer["out"].lower()


@pytest.mark.parametrize("name", [case.name for case in CASES if case.shows == "refused"])
def test_what_cannot_travel_is_refused_by_name_before_anything_is_sent(
    name: str, notebook: dict[str, Any]
) -> None:
    case = _BY_NAME[name]
    _run_at_home(case.setup, notebook)
    with pytest.raises(CaptureError) as refusal:
        capture(case.cell, notebook)
    assert refusal.value.code == "not_picklable"
    variable = refusal.value.details["name"]
    assert variable in notebook
    assert repr(variable) in refusal.value.message
    assert "--without" in refusal.value.hint
    # Files and coroutines of the case warn when they go: here, and not in another test.
    del refusal
    notebook.clear()
    gc.collect()


@pytest.mark.parametrize("name", [case.name for case in CASES if case.shows == "differs"])
def test_a_declared_limit_shows_as_another_output_and_not_as_a_refusal(
    name: str, notebook: dict[str, Any], fresh: FreshProcesses
) -> None:
    case = _BY_NAME[name]
    answer = fresh.run(case.cell, _captured(case, notebook).payload, ipython=case.ipython)
    at_home = _run_at_home(case.cell, notebook)
    assert (answer["out"], answer["error"]) != (at_home, None)


def test_every_declared_limit_says_why_and_how_it_shows() -> None:
    assert all(bool(case.limit) == bool(case.shows) for case in CASES)
    assert len({case.name for case in CASES}) == len(CASES)
