"""One worker's engine for all hostile cells; each has a container of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.hostile_cells import HostileCells


@pytest.fixture(scope="session")
def cells(docker_api: Any) -> Iterator[HostileCells]:
    """Prepared; nothing of it is left afterwards."""
    made = HostileCells(docker_api)
    try:
        yield made
    finally:
        made.close()
    label = {"label": f"gridx.worker={made.worker_id}"}
    assert docker_api.containers(all=True, filters=label) == []
