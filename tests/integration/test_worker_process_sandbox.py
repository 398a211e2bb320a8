"""The process sandbox: the shared contract, and what it does without a container."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from tests.support.sandbox_contract import SandboxContract, call
from worker.sandbox.base import DEFAULT_REQUEST
from worker.sandbox.process import ProcessEngine


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[ProcessEngine]:
    made = ProcessEngine(folder=tmp_path / "process")
    await made.prepare()
    try:
        yield made
    finally:
        await made.close()
    assert psutil.Process().children(recursive=True) == []


class TestProcessSandbox(SandboxContract):
    """Every promise of the contract."""


async def test_it_says_that_nothing_filters_it(engine: ProcessEngine) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    assert not sandbox.ready.filtered


async def test_the_job_works_in_a_folder_of_its_own_that_goes_with_it(
    engine: ProcessEngine, tmp_path: Path
) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    said = await call(sandbox, "import os\nprint(os.getcwd(), os.environ['HOME'])")
    where, home = said.stdout.split()
    assert where == home
    assert Path(where).parent == tmp_path / "process"
    await sandbox.kill()
    assert list((tmp_path / "process").iterdir()) == []


async def test_the_workers_environment_does_not_reach_the_job(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIDX_PASSWORD", "secret123")
    sandbox = await engine.start(DEFAULT_REQUEST)
    said = await call(sandbox, "import os\nprint('GRIDX_PASSWORD' in os.environ)")
    assert said.stdout == "False\n"


async def test_the_size_of_a_file_is_limited(engine: ProcessEngine) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    said = await call(sandbox, "open('big', 'wb').truncate(1 << 30)")
    assert "File too large" in said.stderr
