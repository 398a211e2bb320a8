"""Whole notebooks here and under ``%%gridx``: equal, or different just where they say so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fidelity.__main__ import NOTEBOOKS
from tests.fidelity.harness import cells, compare
from tests.support.kernels import Kernel
from tests.support.programs import Coordinator, grid

pytestmark = [pytest.mark.docker, pytest.mark.slow]
FOUND = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    with grid(tmp_path_factory.mktemp("grid")) as (coordinator, _):
        yield coordinator


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_every_cell_is_as_it_would_be_here(
    coordinator: Coordinator, path: Path, tmp_path: Path
) -> None:
    # A user for each notebook: the grant of a new account pays for all of its cells.
    user = path.stem.partition("_")[2]
    with (
        Kernel(coordinator.http_url, user, cwd=tmp_path) as here,
        Kernel(coordinator.http_url, user, cwd=tmp_path) as there,
    ):
        compared = list(compare(path, here, there))
    assert compared
    wrong = [cell for cell in compared if not cell.is_as_declared]
    assert not wrong, "\n".join(
        f"cell {cell.number}: {cell.source.splitlines()[0]}\n{cell.explanation()}" for cell in wrong
    )


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_a_cell_that_may_differ_says_why(path: Path) -> None:
    for _, declared in cells(path):
        assert not declared or declared["because"]
