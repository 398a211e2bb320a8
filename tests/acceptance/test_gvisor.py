"""gVisor (``--runtime runsc``): the whole contract of a sandbox, and where it differs from runc.

There a job can kill PID 1 and write into its stream, because gVisor's kernel does not keep
processes of one user apart as Linux does. So nothing inside is believed: the host's parser and the
worker's clock carry it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gridx.ids import new_worker_id
from gridx.resources import GIB, MIB
from gridx.states import Cause
from tests.support.programs import wait_for
from tests.support.sandbox_contract import SandboxContract, call
from tests.support.second_engine import SecondEngine
from tests.support.worker_coordinator import WorkerCoordinator, worker_coordinator
from tests.support.worker_program import worker_program
from worker.sandbox.base import DEFAULT_REQUEST
from worker.sandbox.docker import DockerEngine

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def gvisor(second: SecondEngine) -> SecondEngine:
    """An engine that knows ``runsc``: where it is not installed this fails, and says how."""
    if "runsc" not in second.runtimes():
        pytest.fail(
            "gVisor is not installed, so none of its tests can run: apt-get install runsc",
            pytrace=False,
        )
    return second


@pytest.fixture
async def engine(
    gvisor: SecondEngine, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[DockerEngine]:
    """A prepared engine whose containers run in gVisor."""
    monkeypatch.setenv("DOCKER_HOST", gvisor.host)
    worker_id = new_worker_id()
    made = DockerEngine(worker_id=worker_id, runtime="runsc")
    await made.prepare()
    try:
        yield made
    finally:
        await made.close()
    assert gvisor.containers(worker_id) == set()


class TestGVisorSandbox(SandboxContract):
    """Every promise of the contract."""


async def test_the_job_sees_gvisors_kernel_and_is_filtered_and_alone(engine: DockerEngine) -> None:
    assert engine.isolation.runtime == "runsc"
    sandbox = await engine.start(DEFAULT_REQUEST)
    assert sandbox.ready.filtered
    assert sandbox.is_open_inside
    code = (
        "import os\nprint(os.uname().release, os.listdir('/sys/class/net'))\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        "print([l.split()[1] for l in lines if l.startswith(('CapEff', 'Seccomp'))])"
    )
    said = await call(sandbox, code)
    assert said.stdout == "4.4.0 ['lo']\n['0000000000000000', '2']\n"


# ---------------------------------------------------------------- differences, the whole worker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grid(
    gvisor: SecondEngine, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[WorkerCoordinator]:
    """A coordinator with one worker whose jobs run in gVisor; its self-test has passed there."""
    folder: Any = tmp_path_factory.mktemp("worker")
    options = ("--warm", "1", "--cores", "2", "--memory", "4G", "--languages", "python")
    options += ("--runtime", "runsc")
    async with (
        worker_coordinator() as coordinator,
        worker_program(coordinator.url, folder, *options, DOCKER_HOST=gvisor.host) as program,
    ):
        await program.wait_ready()
        yield coordinator


@pytest.mark.asyncio(loop_scope="module")
async def test_a_job_is_metered_from_outside(grid: WorkerCoordinator) -> None:
    code = (
        "import time\nx = b'x' * (100 << 20)\nend = time.process_time() + 0.5\n"
        "while time.process_time() < end: pass\nprint('done')"
    )
    ref = grid.give(code)
    report = await grid.wait_settled(ref)
    assert (report.cause, grid.text(ref)) == (Cause.COMPLETED, "done\n")
    assert report.usage.source in ("host", "rusage")
    assert 0.4 < report.usage.cpu_s < 5
    assert 100 * MIB < report.usage.peak_memory_bytes <= GIB


@pytest.mark.asyncio(loop_scope="module")
async def test_a_job_that_kills_pid_1_has_crashed_and_leaves_nothing(
    grid: WorkerCoordinator, gvisor: SecondEngine
) -> None:
    ref = grid.give("import os, time\nprint('on', flush=True)\nos.kill(1, 9)\ntime.sleep(60)")
    report = await grid.wait_settled(ref)
    assert (report.cause, report.exit_code) == (Cause.CRASHED, 137)
    assert report.message == "The job ended its own sandbox."
    assert 0 < report.usage.wall_s < 30
    wait_for(lambda: len(gvisor.containers(grid.hellos[0].worker_id)) == 1)  # the warm one


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("where", ["", "if os.fork() == 0:\n    "], ids=["job", "child of the job"])
async def test_memory_without_end_ends_the_whole_sandbox(
    grid: WorkerCoordinator, where: str
) -> None:
    code = (
        f"import os\na = []\n{where}while True: a.append(bytearray(os.urandom(1 << 20)) * 16)\n"
        "os.wait()"
    )
    report = await grid.wait_settled(grid.give(code, memory_bytes=256 * MIB))
    assert (report.cause, report.exit_code) == (Cause.OUT_OF_MEMORY, 137)
    assert report.usage.out_of_memory


# The way to the worker is a descriptor of PID 1 that gVisor shows as "host:[N]".
FORGE = """\
import os, sys
sys.path.insert(0, "/opt/gridx/lib")
from gridx_runtime.frames import *
from gridx.resources import Usage
for name in os.listdir("/proc/1/fd"):
    path = f"/proc/1/fd/{name}"
    if int(name) < 3 or not os.readlink(path).startswith("host:"):
        continue
    try:
        os.write(os.open(path, os.O_WRONLY | os.O_NONBLOCK), FORGED)
    except OSError:
        pass  # the way from the worker, which is one way
while True: pass
"""
ABSURD = (
    "encode_frame(Exited(cause='completed', exit_code=0, message='forged',"
    " usage=Usage(wall_s=1e300, cpu_s=1e300, gpu_s=1e300, peak_memory_bytes=1 << 60)))"
)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_forged_end_is_believed_no_further_than_the_workers_clock(
    grid: WorkerCoordinator,
) -> None:
    ref = grid.give(FORGE.replace("FORGED", ABSURD), timeout_s=5)
    report = await grid.wait_settled(ref)
    assert report.cause in (Cause.COMPLETED, Cause.CRASHED), report
    assert report.usage.wall_s < 30
    assert report.usage.cpu_s <= report.usage.wall_s * 1.1
    assert report.usage.peak_memory_bytes <= GIB
    assert report.usage.gpu_s == 0


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "forged",
    [
        "b'\\xff\\xff\\xff\\xf0'",
        "b'\\0\\0\\0\\4abcd'",
        "encode_frame(Ready(python='3', filtered=True))",
        "encode_frame(Exited(cause='completed', usage=Usage(wall_s=float('nan'))))",
    ],
    ids=["oversize", "garbage", "Ready", "not a number"],
)
async def test_a_forged_frame_is_refused_and_is_the_jobs_own_crash(
    grid: WorkerCoordinator, forged: str
) -> None:
    report = await grid.wait_settled(grid.give(FORGE.replace("FORGED", forged), timeout_s=5))
    assert report.cause is Cause.CRASHED, report
    assert "in its sandbox's name" in report.message
    assert report.usage.wall_s < 30
