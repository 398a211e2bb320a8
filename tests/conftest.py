"""Fixtures that more than one folder needs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.app import Serving, serving
from coordinator.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Free ports, a data folder of its own, and times that a test can wait for."""
    return Settings(
        http_port=0,
        ws_port=0,
        data_dir=tmp_path / "coordinator",
        heartbeat_s=0.2,
        silence_s=5.0,
        grace_s=0.3,
    )


@pytest.fixture
async def coordinator(settings: Settings) -> AsyncIterator[Serving]:
    """A real coordinator on free ports. Ready when yielded: its sockets are bound before."""
    async with serving(settings) as running:
        yield running
