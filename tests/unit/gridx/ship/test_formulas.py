"""Values that evaluate a formula when they are restored, and the names that they ask for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gridx.ship.capture import capture

from ..fresh_process import FreshProcesses

_FIT = """\
import numpy as np, pandas as pd
import statsmodels.formula.api as smf
def logx(v): return np.log(v)
factor = 2.0
api_key = 's-1'
df = pd.DataFrame({"x": np.arange(1.0, 50), "y": np.arange(1.0, 50) ** 2})
fit = smf.ols("y ~ logx(x) + I(x * factor)", df).fit()
note = "api_key"
"""
_CELL = "print(fit.params.round(2).tolist())"


@pytest.fixture
def fitted(notebook: dict[str, Any]) -> dict[str, Any]:
    exec(compile(_FIT, "<notebook>", "exec", dont_inherit=True), notebook)
    return notebook


def test_only_names_that_strings_of_the_values_mention_may_be_asked_for(
    fitted: dict[str, Any],
) -> None:
    captured = capture(_CELL, fitted)
    assert set(captured.names) == {"fit"}
    assert captured.may_be_asked_for == {"logx", "factor"}
    assert "api_key" not in capture("fit; note", fitted).may_be_asked_for
    assert "factor" not in capture(_CELL, fitted, without=["factor"]).may_be_asked_for


def test_values_without_formulas_allow_no_name_to_be_asked_for(notebook: dict[str, Any]) -> None:
    notebook.update(a=["big", "other"], big=1, other=2)
    assert not capture("print(a)", notebook).may_be_asked_for


@pytest.mark.slow
def test_what_a_formula_lacks_is_named_until_it_has_all(
    fitted: dict[str, Any], fresh: FreshProcesses
) -> None:
    needs: list[str] = []
    for _ in range(3):
        captured = capture(_CELL, fitted, needs=needs)
        answer = fresh.run(_CELL, captured.payload)
        if answer["error"] is None:
            break
        named = re.search(r"refers to the name '(\w+)', which was not sent", answer["error"])
        assert named is not None, answer["error"]
        assert named[1] in captured.may_be_asked_for
        needs.append(named[1])
    assert sorted(needs) == ["factor", "logx"]
    assert answer["out"] == f"{fitted['fit'].params.round(2).tolist()}\n"


@pytest.mark.slow
def test_a_formula_is_restored_after_the_data_that_it_may_read(
    fitted: dict[str, Any], fresh: FreshProcesses
) -> None:
    fitted["a_fit"] = fitted.pop("fit")
    cell = _CELL.replace("fit", "a_fit") + "\nprint(factor, logx(1.0))"
    answer = fresh.run(cell, capture(cell, fitted).payload)
    assert answer["error"] is None
