"""What ``%gridx on`` makes of a cell."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.inputtransformer2 import TransformerManager

from gridx_jupyter.magics import every_cell
from gridx_jupyter.magics.every_cell import remote_lines


def remote(text: str, options: str = "") -> str:
    return "".join(remote_lines(text.splitlines(keepends=True), options))


def test_the_examples_in_the_text_hold() -> None:
    assert doctest.testmod(every_cell).failed == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n  \n",
        "%gridx off\n",
        "%load_ext autoreload\n%gridx status\n",
        "%config GridX.cpus = 2\n",
        "%matplotlib inline\n",
        "x?\n",
        "?x\n",
        "%%gridx --cpus 2\nx = 1\n",
        "# gridx: local\nx = 1\n",
    ],
)
def test_what_belongs_to_this_kernel_stays_here(text: str) -> None:
    assert remote(text) == text


def test_a_local_cell_keeps_its_lines() -> None:
    assert remote("%%local\nx = 1\n") == "#\nx = 1\n"


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\n",
        "%time x = 1\n",
        "%%time\nx = 1\n",
        "%%bash\nls\n",
        "%unknown 1\n",
        "%%unknown\n1\n",
        "!ls\n",
        "%timeit f()\n",
        "await f()\n",
        "x = %sql select\n",
    ],
)
def test_everything_else_is_remote_magics_that_nobody_knows_too(text: str) -> None:
    assert remote(text) == f"get_ipython().run_cell_magic('gridx', '', {text!r})\n"


def test_options_come_from_the_switch_and_from_the_first_comment() -> None:
    call = remote("# gridx: --gpu\nx = 1\n", "--cpus 2")
    assert call.startswith("get_ipython().run_cell_magic('gridx', '--cpus 2 --gpu', ")
    assert "'gridx', '--cpus 2', " in remote("# a comment\nx = 1\n", "--cpus 2")


def test_lines_about_this_kernel_run_before_the_rest_goes_away() -> None:
    text = remote("%load_ext autoreload\n\nx = 1\n")
    assert text == (
        "%load_ext autoreload\n\nget_ipython().run_cell_magic('gridx', '', 'x = 1\\n')\n"
    )


def test_a_line_of_ours_below_code_is_refused() -> None:
    with pytest.raises(UsageError, match="stands below code"):
        remote("x = 1\n%gridx off\n")


def test_the_text_is_python_that_ipython_runs() -> None:
    body = "s = '''a\n%time b'''\nprint(f\"{s!r}\")\n"
    manager: Any = TransformerManager
    assert manager().transform_cell(remote(body)).count("run_cell_magic") == 1
