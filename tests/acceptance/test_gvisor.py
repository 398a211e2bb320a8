"""gVisor (``--runtime runsc``): the whole contract of a sandbox, and where it differs from runc.

There a job can kill PID 1 and write into its descriptors, because what runs as one user shares
one sandbox. So nothing inside is believed: the host's parser and the worker's clock carry it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gridx.errors import SandboxError
from gridx.ids import new_worker_id
from gridx.resources import MIB, ResourceRequest
from gridx.states import Cause
from tests.support.sandbox_contract import SandboxContract, call, read_to_exit
from tests.support.second_engine import SecondEngine
from worker.runtime.frames import Run
from worker.sandbox.base import DEFAULT_REQUEST, SandboxClosed
from worker.sandbox.docker import DockerEngine

pytestmark = pytest.mark.docker


@pytest.fixture
async def engine(
    second: SecondEngine, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[DockerEngine]:
    """A prepared engine whose containers run in gVisor."""
    assert "runsc" in second.runtimes(), (
        "gVisor is not installed here, so nothing of it is tested. Debian: apt-get install runsc"
    )
    monkeypatch.setenv("DOCKER_HOST", second.host)
    worker_id = new_worker_id()
    made = DockerEngine(worker_id=worker_id, runtime="runsc")
    await made.prepare()
    try:
        yield made
    finally:
        await made.close()
    assert second.containers(worker_id) == set()


class TestGVisorSandbox(SandboxContract):
    """Every promise of the contract."""


async def test_the_job_sees_gvisors_kernel_and_runs_filtered(engine: DockerEngine) -> None:
    assert engine.isolation.runtime == "runsc"
    sandbox = await engine.start(DEFAULT_REQUEST)
    assert sandbox.ready.filtered
    said = await call(sandbox, "import os\nprint(os.uname().release)")
    assert said.stdout == "4.4.0\n"
