"""The worker daemon against a scripted coordinator: real sockets, real processes, real disk.

The sandbox here is the process one, so that these rules are tried without an engine; the same
daemon over Docker is in tests/acceptance/test_worker_daemon.py.
"""

from __future__ import annotations

import asyncio
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from gridx.errors import AuthError
from gridx.protocol import CapabilityChanged, Heartbeat, StopAttempt
from gridx.states import Cause
from tests.support.programs import wait_for
from tests.support.worker_coordinator import WorkerCoordinator, worker_coordinator
from tests.support.worker_program import WorkerProgram, worker_program

# No file tells a job when to go on: it sees neither the worker's folder nor the test's /tmp.
WHILE_THE_TEST_ACTS = "import time; time.sleep(3)"
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


async def test_a_worker_registers_says_ready_and_keeps_its_token(
    coordinator: WorkerCoordinator, worker: WorkerProgram, tmp_path: Path
) -> None:
    fields = await worker.wait_ready()
    hello = coordinator.hellos[0]
    assert fields == {"worker": hello.worker_id, "sandbox": "process"}
    assert hello.password == "secret123" and hello.token is None
    assert hello.capability.cores == 2
    assert hello.capability.own_jobs_only
    assert "numpy" in hello.capability.images[0].packages
    assert any(line.startswith("NOTICE: --sandbox process") for line in worker.stderr)
    assert stat.S_IMODE((tmp_path / "worker.json").stat().st_mode) == 0o600

    coordinator.cut()
    again = await coordinator.wait(lambda: coordinator.hellos[1:])
    assert again[0].password is None and again[0].token == "gxw_scripted"
    assert again[0].worker_id == hello.worker_id


async def test_a_job_runs_and_is_settled(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    ref = coordinator.give("import sys; print('out'); print('err', file=sys.stderr)", user="lender")
    report = await coordinator.wait_settled(ref)
    assert report.cause is Cause.COMPLETED
    assert coordinator.has_started(ref)
    assert coordinator.text(ref) == "out\n"
    assert coordinator.text(ref, "stderr") == "err\n"
    assert report.stream_bytes == report.usage.output_bytes == len(coordinator.streams[ref])
    assert 0 < report.usage.wall_s < 30


async def test_heartbeats_name_the_attempt_and_carry_the_load(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    ref = coordinator.give("import time; print('on'); time.sleep(60)", user="lender")
    beat = await coordinator.wait(
        lambda: next((b for b in coordinator.of(Heartbeat) if ref in b.running), None)
    )
    assert beat.load.memory_total_bytes > 0
    coordinator.send(StopAttempt(job_id=ref.job_id, attempt=1))
    report = await coordinator.wait_settled(ref)
    assert report.cause is Cause.CANCELLED
    assert coordinator.text(ref) == "on\n"


async def test_a_process_worker_hands_back_a_strangers_job(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    ref = coordinator.give("print(1)", user="stranger")
    await coordinator.wait(lambda: coordinator.handed_back(ref))
    assert not coordinator.has_started(ref)


async def test_output_goes_on_without_a_gap_after_the_connection_was_cut(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    code = "import time\nfor i in range(60):\n    print(i, flush=True); time.sleep(0.02)"
    ref = coordinator.give(code, user="lender")
    for lines in (5, 20, 40):
        await coordinator.wait_lines(ref, lines)
        await cut_once(coordinator)
    await coordinator.wait_settled(ref)
    assert coordinator.text(ref) == "".join(f"{i}\n" for i in range(60))
    assert len(coordinator.hellos) == 4


async def test_a_job_goes_on_while_the_coordinator_is_away(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    code = f"print('begun')\n{WHILE_THE_TEST_ACTS}\nfor i in range(40000): print('x' * 90)"
    ref = coordinator.give(code, user="lender")
    await coordinator.wait(lambda: coordinator.text(ref) == "begun\n")
    await coordinator.stop()
    outbox = await _ended_outbox(worker, ref.job_id)
    assert sum(path.stat().st_size for path in outbox.glob("*.events")) > 3_000_000
    await coordinator.start()
    report = await coordinator.wait_settled(ref)
    assert report.cause is Cause.COMPLETED
    assert coordinator.text(ref) == "begun\n" + ("x" * 90 + "\n") * 40000
    await coordinator.wait(lambda: not outbox.exists() or coordinator.of(Heartbeat))


async def test_unacknowledged_output_is_sent_again_and_the_job_held_back_meanwhile(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    coordinator.acknowledges = False
    ref = coordinator.give("for i in range(100000): print('y' * 99)", user="lender")
    await coordinator.wait(lambda: _received_bytes(coordinator) >= 1_000_000)
    beats = len(coordinator.of(Heartbeat))
    coordinator.heartbeat_s = 0.2
    await coordinator.wait(lambda: len(coordinator.of(Heartbeat)) > beats + 2)
    outbox = next((Path(_data_dir(worker)) / "outbox").iterdir())
    held = sum(path.stat().st_size for path in outbox.glob("*.events"))
    assert held < 8_000_000  # not the whole ten: the job waits
    coordinator.acknowledges = True
    await coordinator.wait_settled(ref)
    assert coordinator.text(ref) == ("y" * 99 + "\n") * 100000


async def test_a_report_is_said_again_until_it_is_settled(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    coordinator.settles = False
    ref = coordinator.give("print('once')", user="lender")
    await coordinator.wait(lambda: coordinator.text(ref) == "once\n")
    coordinator.cut()
    await coordinator.wait(lambda: len(coordinator.hellos) == 2)
    assert coordinator.hellos[1].running == (ref,)
    coordinator.settles = True
    await coordinator.wait_settled(ref)  # the connection stands: a later heartbeat says it
    assert coordinator.text(ref) == "once\n"


async def test_a_fenced_attempt_is_dropped_without_a_word(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    ref = coordinator.give("import time; print('on'); time.sleep(60)", user="lender")
    await coordinator.wait(lambda: any(ref in b.running for b in coordinator.of(Heartbeat)))
    coordinator.send(StopAttempt(job_id=ref.job_id, attempt=1, fenced=True))
    await coordinator.wait(lambda: coordinator.of(Heartbeat)[-1].running == ())
    beats = len(coordinator.of(Heartbeat))
    await coordinator.wait(lambda: len(coordinator.of(Heartbeat)) > beats)
    assert ref not in coordinator.settled


async def test_sigterm_lets_a_short_job_finish_and_exits_0(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    ref = coordinator.give(f"print('on')\n{WHILE_THE_TEST_ACTS}\nprint('off')", user="lender")
    await coordinator.wait(lambda: coordinator.text(ref) == "on\n")
    worker.signal(signal.SIGTERM)
    await coordinator.wait(lambda: coordinator.of(CapabilityChanged))
    assert coordinator.of(CapabilityChanged)[-1].capability.slots == 0
    late = coordinator.give("print('too late')", user="lender")
    report = await coordinator.wait_settled(ref)
    assert report.cause is Cause.COMPLETED
    await coordinator.wait(lambda: coordinator.handed_back(late))
    assert await worker.wait_exit() == 0


async def test_sigterm_hands_back_what_does_not_end_in_time(
    coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    options = (*PROCESS, "--drain-s", "0.2")
    async with worker_program(coordinator.url, tmp_path, *options) as worker:
        await worker.wait_ready()
        ref = coordinator.give("import time; print('on'); time.sleep(60)", user="lender")
        await coordinator.wait(lambda: coordinator.text(ref) == "on\n")
        processes = psutil.Process(worker.process.pid).children(recursive=True)
        worker.signal(signal.SIGTERM)
        await coordinator.wait(lambda: coordinator.handed_back(ref))
        assert await worker.wait_exit() == 0
        assert not [process for process in processes if process.is_running()]


async def test_a_second_signal_stops_at_once(
    coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    options = (*PROCESS, "--drain-s", "3600")  # the first signal alone would be waited for so long
    async with worker_program(coordinator.url, tmp_path, *options, user="lender") as worker:
        await worker.wait_ready()
        ref = coordinator.give("import time; print('on'); time.sleep(600)", user="lender")
        await coordinator.wait(lambda: coordinator.text(ref) == "on\n")
        worker.signal(signal.SIGINT)
        await coordinator.wait(lambda: coordinator.of(CapabilityChanged))
        worker.signal(signal.SIGINT)
        await coordinator.wait(lambda: coordinator.handed_back(ref))
        assert await worker.wait_exit() == 0


async def test_after_kill_9_a_new_run_reports_what_was_finished_and_hands_back_what_was_not(
    coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    coordinator.settles = False
    first = await WorkerProgram.start(coordinator.url, tmp_path, *PROCESS)
    try:
        await first.wait_ready()
        finished = coordinator.give("print('done')", user="lender")
        await coordinator.wait(
            lambda: any(getattr(m, "stream_bytes", 0) for m in coordinator.received)
        )
        running = coordinator.give("import time; print('on'); time.sleep(60)", user="lender")
        await coordinator.wait(lambda: coordinator.text(running) == "on\n")
        outbox = tmp_path / "outbox"
        for path in (f"{finished.job_id}.1/report", f"{running.job_id}.1"):
            await asyncio.to_thread(wait_for, (outbox / path).exists)
    finally:
        first.signal(signal.SIGKILL)
        await first.wait_exit()
    coordinator.settles = True
    async with worker_program(coordinator.url, tmp_path, *PROCESS) as second:
        await second.wait_ready()
        assert coordinator.hellos[1].worker_id == coordinator.hellos[0].worker_id
        assert set(coordinator.hellos[1].running) == {finished, running}
        report = await coordinator.wait_settled(finished)
        assert report.cause is Cause.COMPLETED
        assert coordinator.text(finished) == "done\n"
        await coordinator.wait(lambda: coordinator.handed_back(running))
    assert running not in coordinator.settled


async def test_a_refused_login_stops_with_the_reason_and_exit_code_2(
    coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    coordinator.refusal = lambda hello: AuthError("Wrong password for lender.")
    worker = await WorkerProgram.start(coordinator.url, tmp_path, *PROCESS)
    assert await worker.wait_exit() == 2
    assert any("Wrong password for lender." in line for line in worker.stderr)
    assert not worker.stdout


async def test_a_refused_token_is_replaced_by_the_password(
    coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    async with worker_program(coordinator.url, tmp_path, *PROCESS) as worker:
        await worker.wait_ready()
    coordinator.refusal = lambda hello: AuthError("Expired.") if hello.token else None
    async with worker_program(coordinator.url, tmp_path, *PROCESS) as worker:
        await worker.wait_ready()
    assert [bool(hello.token) for hello in coordinator.hellos] == [False, True, False]


async def test_a_worker_waits_for_a_coordinator_that_comes_later(tmp_path: Path) -> None:
    async with worker_coordinator() as coordinator:
        await coordinator.stop()
        async with worker_program(coordinator.url, tmp_path, *PROCESS) as worker:
            await worker.wait_log("connect")
            await coordinator.start()
            await worker.wait_ready()


async def test_a_data_folder_belongs_to_one_worker(
    coordinator: WorkerCoordinator, worker: WorkerProgram, tmp_path: Path
) -> None:
    second = await WorkerProgram.start(coordinator.url, tmp_path, *PROCESS)
    assert await second.wait_exit() == 1
    assert any("Another worker uses the data folder" in line for line in second.stderr)


async def test_without_docker_the_worker_says_what_to_type(
    coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    nowhere = f"unix://{tmp_path}/nothing.sock"
    worker = await WorkerProgram.start(coordinator.url, tmp_path / "d", DOCKER_HOST=nowhere)
    assert await worker.wait_exit() == 1
    said = "\n".join(worker.stderr)
    assert "No Docker engine answers." in said
    assert "--sandbox process" in said


def _received_bytes(coordinator: WorkerCoordinator) -> int:
    return sum(len(getattr(message, "data", b"")) for message in coordinator.received)


def _data_dir(worker: WorkerProgram) -> str:
    command = psutil.Process(worker.process.pid).cmdline()
    return command[command.index("--data-dir") + 1]


async def cut_once(coordinator: WorkerCoordinator) -> None:
    """Cut the connection and return when the worker is back: the next cut is another one."""
    hellos = len(coordinator.hellos)
    coordinator.cut()
    await coordinator.wait(lambda: len(coordinator.hellos) > hellos)


async def _ended_outbox(worker: WorkerProgram, job_id: str) -> Path:
    folder = Path(_data_dir(worker)) / "outbox" / f"{job_id}.1"
    await asyncio.to_thread(wait_for, (folder / "report").exists)
    return folder
