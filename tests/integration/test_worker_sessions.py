"""Sessions in the worker's daemon: real sockets, real processes, real disk, a scripted coordinator."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from gridx.events import ErrorOutput, Stream
from gridx.protocol import (
    AttemptRef,
    AttemptStarted,
    CallFinished,
    EndAttempt,
    InterruptCall,
    StopAttempt,
)
from gridx.states import Cause
from tests.support.programs import wait_for
from tests.support.worker_coordinator import WorkerCoordinator, worker_coordinator
from tests.support.worker_program import WorkerProgram, worker_program

ROOT = Path(__file__).resolve().parents[2]
PROCESS = ("--sandbox", "process", "--warm", "1", "--cores", "2", "--memory", "4G")


@pytest.fixture
async def coordinator() -> AsyncIterator[WorkerCoordinator]:
    async with worker_coordinator() as made:
        yield made


@pytest.fixture
async def worker(coordinator: WorkerCoordinator, tmp_path: Path) -> AsyncIterator[WorkerProgram]:
    async with worker_program(coordinator.url, tmp_path, *PROCESS, user="lender") as program:
        await program.wait_ready()
        yield program


@pytest.fixture
async def session(coordinator: WorkerCoordinator, worker: WorkerProgram) -> AttemptRef:
    """A session that has had call 0, which bound ``x``."""
    ref = coordinator.open_session("x = 1", user="lender")
    assert (await coordinator.wait_call(ref, 0)).cause is Cause.COMPLETED
    return ref


def text_of(coordinator: WorkerCoordinator, ref: AttemptRef, call: int) -> str:
    events = coordinator.events(ref)
    return "".join(e.text for e in events if isinstance(e, Stream) and e.call == call)


async def cut(coordinator: WorkerCoordinator) -> None:
    """Break the connection and wait until the worker has come back."""
    hellos = len(coordinator.hellos)
    coordinator.cut()
    await coordinator.wait(lambda: len(coordinator.hellos) > hellos)


async def test_calls_share_a_namespace_and_their_session_is_closed(
    coordinator: WorkerCoordinator, session: AttemptRef
) -> None:
    coordinator.start_call(session, 1, "x += 1\nprint(x)")
    report = await coordinator.wait_call(session, 1)
    assert (report.cause, report.usage.source) == (Cause.COMPLETED, "rusage")
    assert text_of(coordinator, session, 1) == "2\n"
    assert report.stream_bytes == len(coordinator.streams[session])
    assert [m.call for m in coordinator.of(AttemptStarted)] == [0, 1]
    coordinator.send(EndAttempt(job_id=session.job_id, attempt=1))
    last = await coordinator.wait_settled(session)
    assert (last.cause, last.call) == (Cause.COMPLETED, 1)
    assert last.usage.wall_s >= report.usage.wall_s


async def test_a_call_that_is_started_twice_runs_once(
    coordinator: WorkerCoordinator, session: AttemptRef
) -> None:
    for _ in range(2):
        coordinator.start_call(session, 1, "x += 1\nprint(x)")
    await coordinator.wait_call(session, 1)
    coordinator.start_call(session, 1, "x += 1\nprint(x)")
    coordinator.start_call(session, 2, "print('end')")
    await coordinator.wait_call(session, 2)
    assert coordinator.text(session) == "2\nend\n"


async def test_an_interrupt_leaves_the_session_open(
    coordinator: WorkerCoordinator, session: AttemptRef
) -> None:
    coordinator.start_call(session, 1, "y = 5\nprint('on')\nimport time\ntime.sleep(600)")
    await coordinator.wait(lambda: text_of(coordinator, session, 1) == "on\n")
    coordinator.send(InterruptCall(job_id=session.job_id, attempt=1, call=1))
    report = await coordinator.wait_call(session, 1)
    assert report.cause is Cause.CANCELLED
    [error] = [e for e in coordinator.events(session) if isinstance(e, ErrorOutput)]
    assert (error.call, error.error["type"]) == (1, "KeyboardInterrupt")
    coordinator.start_call(session, 2, "print(x + y)")
    await coordinator.wait_call(session, 2)
    assert text_of(coordinator, session, 2) == "6\n"


async def test_the_time_limit_of_a_call_leaves_the_session_open(
    coordinator: WorkerCoordinator, session: AttemptRef
) -> None:
    coordinator.start_call(session, 1, "while True: pass", timeout_s=0.2)
    assert (await coordinator.wait_call(session, 1)).cause is Cause.TIMEOUT
    coordinator.start_call(session, 2, "print(x)")
    assert (await coordinator.wait_call(session, 2)).cause is Cause.COMPLETED


async def test_a_call_that_takes_its_process_along_ends_the_session(
    coordinator: WorkerCoordinator, session: AttemptRef
) -> None:
    coordinator.start_call(session, 1, "import os\nos._exit(3)")
    report = await coordinator.wait_settled(session)
    assert (report.cause, report.exit_code, report.call) == (Cause.CRASHED, 3, 1)


async def test_a_session_is_open_no_longer_than_its_limit(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    ref = coordinator.open_session("1", user="lender", timeout_s=3.0)
    await coordinator.wait_call(ref, 0)
    report = await coordinator.wait_settled(ref)
    assert report.cause is Cause.TIMEOUT
    assert report.usage.wall_s >= 2.9


async def test_a_session_is_stopped_like_any_job(
    coordinator: WorkerCoordinator, session: AttemptRef
) -> None:
    coordinator.send(StopAttempt(job_id=session.job_id, attempt=1))
    assert (await coordinator.wait_settled(session)).cause is Cause.CANCELLED


async def test_a_session_goes_on_after_the_connection_was_cut(
    coordinator: WorkerCoordinator, session: AttemptRef
) -> None:
    await cut(coordinator)  # while it is idle
    code = "import time\nfor i in range(40):\n    print(i); time.sleep(0.02)"
    coordinator.start_call(session, 1, code)
    await coordinator.wait_lines(session, 5)
    await cut(coordinator)  # and while it is not
    coordinator.start_call(session, 1, code)  # as a coordinator says again what may be lost
    await coordinator.wait_call(session, 1)
    assert text_of(coordinator, session, 1) == "".join(f"{i}\n" for i in range(40))


async def test_the_report_of_a_call_is_said_again_until_it_is_settled(
    coordinator: WorkerCoordinator, session: AttemptRef
) -> None:
    coordinator.settles = False
    coordinator.start_call(session, 1, "print('on')")
    await coordinator.wait(lambda: sum(m.call == 1 for m in coordinator.of(CallFinished)) >= 2)
    await cut(coordinator)
    coordinator.settles = True
    await coordinator.wait_call(session, 1)
    coordinator.start_call(session, 2, "print('end')")
    await coordinator.wait_call(session, 2)
    assert coordinator.text(session) == "on\nend\n"


async def test_a_session_of_a_stranger_is_handed_back(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    ref = coordinator.open_session("1", user="somebody")
    await coordinator.wait(lambda: coordinator.handed_back(ref))
    assert not coordinator.has_started(ref)


async def test_sigterm_hands_an_idle_session_back_without_waiting(
    coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    options = (*PROCESS, "--drain-s", "3600")
    async with worker_program(coordinator.url, tmp_path, *options, user="lender") as worker:
        await worker.wait_ready()
        ref = coordinator.open_session("1", user="lender")
        await coordinator.wait_call(ref, 0)
        worker.signal(signal.SIGTERM)
        [said] = await coordinator.wait(lambda: coordinator.handed_back(ref))
        assert said.message == "The worker is stopping."
        assert await worker.wait_exit() == 0


async def test_sigterm_lets_the_call_that_runs_end_first(
    coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    options = (*PROCESS, "--drain-s", "3600")
    # Where a job of the process sandbox sees it: its temporary folders are its own.
    ROOT.joinpath(".cache").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gate-", dir=ROOT / ".cache") as gate:
        await _ends_first(coordinator, tmp_path, options, Path(gate) / "go")


async def _ends_first(
    coordinator: WorkerCoordinator, tmp_path: Path, options: tuple[str, ...], go: Path
) -> None:
    async with worker_program(coordinator.url, tmp_path, *options, user="lender") as worker:
        await worker.wait_ready()
        code = (
            "import os, time\nprint('on')\n"
            f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\nprint('end')"
        )
        ref = coordinator.open_session(code, user="lender")
        await coordinator.wait(lambda: coordinator.text(ref) == "on\n")
        worker.signal(signal.SIGTERM)
        await worker.wait_log("stop")
        await asyncio.to_thread(go.touch)
        await coordinator.wait_call(ref, 0)
        await coordinator.wait(lambda: coordinator.handed_back(ref))
        assert coordinator.text(ref) == "on\nend\n"
        assert await worker.wait_exit() == 0


async def test_after_kill_9_the_next_run_reports_the_last_call_and_hands_the_session_back(
    coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    first = await WorkerProgram.start(coordinator.url, tmp_path, *PROCESS)
    try:
        await first.wait_ready()
        ref = coordinator.open_session("1", user="lender")
        await coordinator.wait_call(ref, 0)
        coordinator.settles = False
        coordinator.start_call(ref, 1, "print('done')")
        folder = tmp_path / "outbox" / f"{ref.job_id}.1"
        await asyncio.to_thread(wait_for, (folder / "call-1").exists)
        assert not (folder / "call-0").exists()
        below = psutil.Process(first.process.pid).children(recursive=True)
    finally:
        first.signal(signal.SIGKILL)
        await first.wait_exit()
    _, alive = await asyncio.to_thread(psutil.wait_procs, below, 30)
    assert alive == []  # the sandbox ends with its worker
    coordinator.settles = True
    async with worker_program(coordinator.url, tmp_path, *PROCESS) as second:
        await second.wait_ready()
        report = await coordinator.wait_call(ref, 1)
        assert report.cause is Cause.COMPLETED
        assert coordinator.text(ref) == "done\n"
        [said] = await coordinator.wait(lambda: coordinator.handed_back(ref))
        assert "restarted" in said.message
        await asyncio.to_thread(wait_for, lambda: not folder.exists())
    assert ref not in coordinator.settled
