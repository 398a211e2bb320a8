"""The Docker sandbox: the shared contract, and what only a container can promise.

What hostile code can do in one is in ``adversarial/``.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gridx.errors import SandboxError
from gridx.ids import new_worker_id
from gridx.resources import MIB, ResourceRequest
from tests.support.sandbox_contract import SandboxContract, call, first_output, read_to_exit
from worker.runtime.frames import Run
from worker.sandbox.base import DEFAULT_REQUEST
from worker.sandbox.docker import DockerEngine

pytestmark = pytest.mark.docker


class TestDockerSandbox(SandboxContract):
    """Every promise of the contract."""


def alive(api: Any, container: str) -> bool:
    return bool(api.containers(filters={"id": container}))


def there(api: Any, container: str) -> bool:
    return bool(api.containers(all=True, filters={"id": container}))


async def test_the_child_is_filtered_before_it_is_ready(engine: DockerEngine) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    assert sandbox.ready.filtered


async def test_the_metered_time_and_memory_are_the_jobs(engine: DockerEngine) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    said = await call(sandbox, "import time\nx = b'x' * (100 << 20)\ntime.sleep(0.5)")
    usage = said.exited.usage
    assert usage.source == "cgroup"
    assert usage.wall_s >= 0.5
    assert 0 < usage.cpu_s < 0.5
    assert 100 * MIB <= usage.peak_memory_bytes < 300 * MIB


async def test_a_killed_sandbox_is_gone_from_the_engine(
    engine: DockerEngine, docker_api: Any
) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    assert alive(docker_api, sandbox.id)
    await sandbox.kill()
    assert not there(docker_api, sandbox.id)


@pytest.mark.guards("StdinOnce")
async def test_when_the_workers_end_is_cut_the_container_ends_by_itself(
    engine: DockerEngine, docker_api: Any
) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    await sandbox.send(Run(kind="script", code="print(1)\nwhile True: pass", timeout_s=60))
    await first_output(sandbox)
    sandbox._stream.close()
    state = await engine.state_of(sandbox.id)  # waits for its end
    assert state["Running"] is False


@pytest.mark.guards("StdinOnce")
async def test_a_warm_container_ends_by_itself_too(engine: DockerEngine) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    sandbox._stream.close()
    assert (await engine.state_of(sandbox.id))["Running"] is False


@pytest.mark.guards("Labels")
async def test_the_sweep_removes_what_an_earlier_run_left_and_nothing_else(
    engine: DockerEngine, docker_api: Any
) -> None:
    other = await engine.start(DEFAULT_REQUEST)
    worker_id = new_worker_id()
    earlier = DockerEngine(worker_id=worker_id)
    await earlier.prepare()
    left = [await earlier.start(DEFAULT_REQUEST) for _ in range(2)]
    later = DockerEngine(worker_id=worker_id)
    try:
        await later.prepare()
        assert not any(there(docker_api, sandbox.id) for sandbox in left)
        assert alive(docker_api, other.id)
    finally:
        await later.close()
        await earlier.close()


async def test_the_sweep_removes_another_workers_containers_only_long_after_their_end(
    engine: DockerEngine, docker_api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = await engine.start(DEFAULT_REQUEST)
    running = await engine.start(DEFAULT_REQUEST)
    gone._stream.close()
    await engine.state_of(gone.id)
    other = DockerEngine(worker_id=new_worker_id())
    try:
        await other.prepare()
        assert there(docker_api, gone.id)
        monkeypatch.setattr("worker.sandbox.docker.ABANDONED_S", -1.0)
        await other.sweep()
        assert not there(docker_api, gone.id)
        assert alive(docker_api, running.id)
    finally:
        await other.close()


async def test_a_container_killed_from_outside_closes_its_sandbox(
    engine: DockerEngine, docker_api: Any
) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    await sandbox.send(Run(kind="script", code="while True: pass", timeout_s=60))
    docker_api.kill(sandbox.id)
    with pytest.raises(SandboxError):
        await read_to_exit(sandbox)
    death = await sandbox.post_mortem()
    assert (death.exit_code, death.out_of_memory) == (137, False)


async def test_a_gpu_without_its_driver_is_a_sentence_and_leaves_nothing(
    engine: DockerEngine,
) -> None:
    with pytest.raises(SandboxError, match="no driver for GPUs"):
        await engine.start(ResourceRequest(gpus=1), gpus=["GPU-none"])


async def test_an_unknown_runtime_is_refused_with_those_that_there_are(docker_api: Any) -> None:
    engine = DockerEngine(worker_id=new_worker_id(), runtime="no-such-runtime")
    try:
        with pytest.raises(
            SandboxError, match=r"no runtime 'no-such-runtime'; it has .*runc"
        ) as no:
            await engine.prepare()
        assert "gvisor.md" in no.value.hint
    finally:
        await engine.close()


async def test_an_engine_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    engine = DockerEngine(worker_id=new_worker_id())
    with pytest.raises(SandboxError, match="No Docker engine answers"):
        await engine.prepare()
    await engine.close()


# ---------------------------------------------------------------- inputs


@pytest.fixture
def slots(tmp_path: Path) -> Path:
    """The folder of the containers' folders, with one that an earlier run has left."""
    folder = tmp_path / "slots"
    (folder / "left").mkdir(parents=True)
    return folder


@pytest.fixture
async def engine_with_slots(docker_api: Any, slots: Path) -> AsyncIterator[DockerEngine]:
    """An engine whose containers' folders the test can look into."""
    made = DockerEngine(worker_id=new_worker_id(), slots=slots)
    await made.prepare()
    try:
        yield made
    finally:
        await made.close()


def inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def content(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(b"x" * 1000)
    path.chmod(0o444)
    return path


async def test_a_job_cannot_change_its_inputs_or_their_folder(
    engine: DockerEngine, blob: Path
) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    await sandbox.put_inputs({"a": blob})
    code = """
import os
def tried(act):
    try:
        act()
    except OSError as error:
        print(error.errno)
    else:
        print("done")
tried(lambda: open("/in/a", "r+b"))
tried(lambda: open("/in/new", "wb"))
tried(lambda: os.unlink("/in/a"))
tried(lambda: os.rename("/in/a", "/in/b"))
tried(lambda: os.chmod("/in/a", 0o666))
tried(lambda: os.symlink("/", "/in/link"))
tried(lambda: os.utime("/in/a"))
tried(lambda: os.truncate("/in/a", 0))
print(os.listdir("/in"), len(open("/in/a", "rb").read()))
"""
    said = await call(sandbox, code)
    *errors, last = said.stdout.splitlines()
    assert set(errors) <= {"1", "13", "30"}, said.stdout  # EPERM, EACCES, EROFS
    assert last == "['a'] 1000"
    assert content(blob) == b"x" * 1000


@pytest.mark.guards("Mounts Source")
async def test_a_job_sees_its_own_folder_and_nobody_on_the_host_can_come_near(
    engine_with_slots: DockerEngine, slots: Path, blob: Path
) -> None:
    engine = engine_with_slots
    assert inside(slots) == []  # what an earlier run left is gone
    one, two = await asyncio.gather(*(engine.start(DEFAULT_REQUEST) for _ in range(2)))
    await one.put_inputs({"secret": blob})
    files = [file for folder in inside(slots) for file in inside(folder)]
    assert [file.name for file in files] == ["secret"]
    assert files[0].samefile(blob)  # no copy
    assert mode(slots) == 0o700
    assert {mode(folder) for folder in inside(slots)} == {0o755}
    assert mode(files[0]) == 0o444
    code = (
        "import os\nprint(os.listdir('/in'), os.path.exists('/in/../secret'))\n"
        f"print(os.path.exists({str(slots)!r}), os.path.exists({str(blob)!r}))"
    )
    assert (await call(two, code)).stdout == "[] False\nFalse False\n"
    await asyncio.gather(one.kill(), two.kill())
    assert inside(slots) == []
    assert content(blob)
