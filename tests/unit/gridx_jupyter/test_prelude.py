"""Lines that run first in every remote cell."""

from __future__ import annotations

import decimal
import random
from typing import Any

import numpy as np
import pytest

from gridx_jupyter.magics.prelude import Prelude


def test_lines_are_added_in_their_order_and_cleared() -> None:
    prelude = Prelude()
    prelude.add("import numpy as np")
    prelude.add("np.random.seed(0); k = 1")
    assert prelude.text == "import numpy as np\nnp.random.seed(0); k = 1"
    assert prelude.names == {"np", "k"}
    prelude.clear()
    assert prelude.text == ""


def test_a_line_that_is_not_python_is_refused() -> None:
    with pytest.raises(SyntaxError):
        Prelude().add("import")


def test_the_state_of_generators_makes_there_what_it_would_make_here() -> None:
    prelude = Prelude()
    random.seed(5)
    np.random.seed(6)
    prelude.take_state({"random": random, "np": np})
    here = (random.random(), np.random.rand())
    random.seed(0)
    np.random.seed(0)
    there: dict[str, Any] = {}
    exec(prelude.text, there)
    assert (random.random(), np.random.rand()) == here
    assert all(name.startswith("__") for name in there)


def test_generators_that_the_notebook_does_not_use_stay() -> None:
    prelude = Prelude()
    prelude.take_state({})
    assert "random" not in prelude.text


def test_settings_that_differ_from_the_defaults_travel() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    pandas = pytest.importorskip("pandas")
    prelude = Prelude()
    with (
        matplotlib.rc_context({"lines.linewidth": 7.5}),
        pandas.option_context("display.max_rows", 3),
        decimal.localcontext() as context,
    ):
        context.prec = 5
        prelude.take_state({})
    assert "'lines.linewidth': 7.5" in prelude.text
    assert "__pandas.set_option('display.max_rows', 3)" in prelude.text
    assert "__decimal.getcontext().prec = 5" in prelude.text
    compile(prelude.text, "<prelude>", "exec")
