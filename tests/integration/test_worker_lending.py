"""A lender's word to a real worker: the control socket, pauses, frozen jobs, drains.

Real sockets and processes, a scripted coordinator, and the process sandbox; the same over Docker
with the real three programs is in tests/acceptance/test_lending.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from gridx.errors import InvalidRequest, SettingsError
from gridx.protocol import AttemptFrozen, AttemptRef, CapabilityChanged, Heartbeat, StopAttempt
from gridx.resources import Accepts, PauseReason
from gridx.states import Cause
from tests.support.worker_coordinator import WorkerCoordinator, worker_coordinator
from tests.support.worker_program import WorkerProgram, worker_program
from worker.lending.control import Ask, Status, ask_worker
from worker.lending.policy import OnPause

PROCESS = ("--sandbox", "process", "--warm", "1", "--cores", "2", "--memory", "4G")
COUNTS = """
import time
at = 0
while True:
    at += 1
    print(at, flush=True)
    time.sleep(0.01)
"""


@pytest.fixture
async def coordinator() -> AsyncIterator[WorkerCoordinator]:
    async with worker_coordinator() as made:
        yield made


@pytest.fixture
async def worker(coordinator: WorkerCoordinator, tmp_path: Path) -> AsyncIterator[WorkerProgram]:
    async with worker_program(coordinator.url, tmp_path, *PROCESS) as program:
        await program.wait_ready()
        yield program


async def tell(folder: Path, command: str, **more: object) -> Status:
    return await asyncio.to_thread(ask_worker, folder, Ask(command=command, **more))  # type: ignore[arg-type]


async def gridx_worker(*words: str) -> tuple[int, str, str]:
    """Run a command as a lender does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker.main", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def capability(coordinator: WorkerCoordinator, *, paused: bool) -> CapabilityChanged:
    changed: CapabilityChanged = await coordinator.wait(
        lambda: next(
            (
                c
                for c in coordinator.of(CapabilityChanged)[-1:]
                if (c.capability.pause is not None) is paused
            ),
            None,
        )
    )
    return changed


async def frozen(coordinator: WorkerCoordinator, ref: AttemptRef, is_frozen: bool) -> AttemptFrozen:
    said: AttemptFrozen = await coordinator.wait(
        lambda: next(
            (
                m
                for m in coordinator.of(AttemptFrozen)[-1:]
                if m.job_id == ref.job_id and m.frozen is is_frozen
            ),
            None,
        )
    )
    return said


async def beats(coordinator: WorkerCoordinator, more: int) -> None:
    had = len(coordinator.of(Heartbeat))
    await coordinator.wait(lambda: len(coordinator.of(Heartbeat)) >= had + more)


async def test_the_socket_is_its_users_alone_and_tells_how_the_worker_is(
    coordinator: WorkerCoordinator, worker: WorkerProgram, tmp_path: Path
) -> None:
    assert stat.S_IMODE((tmp_path / "control.sock").stat().st_mode) == 0o600
    status = await tell(tmp_path, "status")
    assert status.is_connected and status.pid == worker.process.pid
    assert status.pause is None and status.jobs == ()
    assert status.worker_id == coordinator.hellos[0].worker_id
    code, out, _ = await gridx_worker("status", "--data-dir", str(tmp_path))
    assert code == 0 and "lending   yes" in out and "connected to" in out
    code, out, _ = await gridx_worker("status", "--json", "--data-dir", str(tmp_path))
    assert json.loads(out)["status" if "status" in json.loads(out) else "user"] == "lender"
    with pytest.raises(InvalidRequest, match="no command 'sleep'"):
        await tell(tmp_path, "sleep")
    with pytest.raises(InvalidRequest, match="no GPU '0'"):
        await tell(tmp_path, "snooze", gpu="0")


async def test_a_command_without_a_worker_says_what_to_do(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        code, _, err = await gridx_worker("pause", "--data-dir", str(folder))
        assert code == 1 and "No worker runs" in err and "--data-dir" in err
    with pytest.raises(SettingsError, match="No worker runs"):
        ask_worker(tmp_path, Ask(command="status"))


async def test_two_workers_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    long = tmp_path / ("a folder whose name is longer than the address of a socket " * 3)
    async with (
        worker_coordinator() as coordinator,
        worker_program(coordinator.url, tmp_path / "one", *PROCESS) as one,
        worker_program(coordinator.url, long, *PROCESS) as two,
    ):
        await asyncio.gather(one.wait_ready(), two.wait_ready())
        assert (await tell(long, "pause")).pause is not None
        assert (await tell(tmp_path / "one", "status")).pause is None


async def test_a_pause_is_announced_and_outlives_the_worker_until_it_is_taken_back(
    coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    async with worker_program(coordinator.url, tmp_path, *PROCESS) as worker:
        await worker.wait_ready()
        await tell(tmp_path, "pause", for_s=3600.0)
        said = (await capability(coordinator, paused=True)).capability
        assert said.slots == 0 and said.pause is not None
        assert said.pause.reason is PauseReason.ASKED
        assert said.pause.until is not None
        left = said.pause.until - datetime.now(UTC)
        assert timedelta(minutes=50) < left <= timedelta(hours=1)
        ref = coordinator.give("print(1)", user="lender")
        await coordinator.wait(lambda: coordinator.handed_back(ref))
        assert coordinator.handed_back(ref)[0].message == (
            "Paused by its lender: The owner has paused it."
        )
        assert (await worker.wait_log("pause"))["reason"] == "asked"
    async with worker_program(coordinator.url, tmp_path, *PROCESS) as worker:
        await worker.wait_ready()
        assert coordinator.hellos[-1].capability.pause is not None
        assert (await tell(tmp_path, "resume")).note == "It is lent again."
        assert (await capability(coordinator, paused=False)).capability.slots > 0
        ref = coordinator.give("print(1)", user="lender")
        await coordinator.wait_settled(ref)
        assert (await tell(tmp_path, "resume")).note == "It was not paused."


async def test_a_pause_ends_by_itself(
    coordinator: WorkerCoordinator, worker: WorkerProgram, tmp_path: Path
) -> None:
    await tell(tmp_path, "pause", for_s=0.5)
    await capability(coordinator, paused=True)
    await capability(coordinator, paused=False)


async def test_a_worker_outside_its_hours_says_until_when_and_beats_on(
    coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=2)
    (tmp_path / "worker.toml").write_text(f'hours = "{tomorrow:%a}"\naccept = "users:anna"\n')
    async with worker_program(coordinator.url, tmp_path, *PROCESS, TZ="UTC") as worker:
        await worker.wait_ready()
        said = coordinator.hellos[0].capability
        assert said.slots == 0 and said.pause is not None
        assert said.pause.reason is PauseReason.HOURS
        assert said.pause.until is not None and said.pause.until.date() == tomorrow.date()
        assert (said.accepts, said.users) == (Accepts.USERS, ("anna",))
        await beats(coordinator, 2)
        note = (await tell(tmp_path, "resume")).note
        assert "It is paused, and not by your word" in note and "--hours" in note


async def test_a_job_stands_still_and_comes_to_its_end_with_its_time_and_nothing_more(
    coordinator: WorkerCoordinator, worker: WorkerProgram, tmp_path: Path
) -> None:
    # Its time limit is shorter than the time for which it stands still.
    code = (
        "import time\nprint('on', flush=True)\nfor _ in range(10): time.sleep(0.05)\nprint('off')"
    )
    ref = coordinator.give(code, user="lender", timeout_s=3)
    await coordinator.wait(lambda: coordinator.text(ref) == "on\n")
    await tell(tmp_path, "pause")
    said = await frozen(coordinator, ref, True)
    assert said.reason is PauseReason.ASKED and said.message == "The owner has paused it."
    status = await tell(tmp_path, "status")
    assert [job.is_frozen for job in status.jobs] == [True]
    await beats(coordinator, 16)  # 3.2 s
    assert coordinator.text(ref) == "on\n"
    assert ref in coordinator.of(Heartbeat)[-1].running
    await tell(tmp_path, "resume")
    await frozen(coordinator, ref, False)
    report = await coordinator.wait_settled(ref)
    assert report.cause is Cause.COMPLETED
    assert coordinator.text(ref) == "on\noff\n"
    assert report.usage.frozen_s > 3
    assert 0.4 < report.usage.wall_s < 3


async def test_nothing_of_a_job_runs_while_it_stands_still(
    coordinator: WorkerCoordinator, worker: WorkerProgram, tmp_path: Path
) -> None:
    # It spins in three processes, one of them in a session of its own.
    code = "import os\nif os.fork() and not os.fork(): os.setsid()\nwhile True: pass"
    ref = coordinator.give(code, user="lender")
    await coordinator.wait(lambda: coordinator.has_started(ref))
    async with asyncio.timeout(60):
        while len(spinning := await _spinning(coordinator, worker)) < 3:
            pass
    await tell(tmp_path, "pause")
    await frozen(coordinator, ref, True)
    assert not spinning & set(await _spinning(coordinator, worker))
    await tell(tmp_path, "resume")
    await frozen(coordinator, ref, False)
    async with asyncio.timeout(60):
        while len(spinning & await _spinning(coordinator, worker)) < 3:
            pass
    coordinator.send(StopAttempt(job_id=ref.job_id, attempt=1))
    assert (await coordinator.wait_settled(ref)).cause is Cause.CANCELLED


async def _spinning(coordinator: WorkerCoordinator, worker: WorkerProgram) -> set[int]:
    """Return which processes of the worker's jobs have used the processor for some heartbeats."""
    before = _cpu_s(worker)
    await beats(coordinator, 3)
    after = _cpu_s(worker)
    return {pid for pid in before if after.get(pid, 0.0) > before[pid]}


def _cpu_s(worker: WorkerProgram) -> dict[int, float]:
    found = {}
    for process in psutil.Process(worker.process.pid).children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        found[process.pid] = times.user + times.system
    return found


async def test_a_frozen_job_can_be_cancelled(
    coordinator: WorkerCoordinator, worker: WorkerProgram, tmp_path: Path
) -> None:
    ref = coordinator.give(COUNTS, user="lender")
    await coordinator.wait_lines(ref, 3)
    await tell(tmp_path, "pause")
    await frozen(coordinator, ref, True)
    coordinator.send(StopAttempt(job_id=ref.job_id, attempt=1))
    report = await coordinator.wait_settled(ref)
    assert report.cause is Cause.CANCELLED
    assert report.usage.frozen_s > 0
    assert not (await tell(tmp_path, "status")).jobs


async def test_a_job_that_stands_still_too_long_is_handed_back(
    coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    options = (*PROCESS, "--freeze-for", "1")
    async with worker_program(coordinator.url, tmp_path, *options) as worker:
        await worker.wait_ready()
        ref = coordinator.give(COUNTS, user="lender")
        await coordinator.wait_lines(ref, 3)
        await tell(tmp_path, "pause")
        await frozen(coordinator, ref, True)
        await coordinator.wait(lambda: coordinator.handed_back(ref))
        assert not (await tell(tmp_path, "status")).jobs


@pytest.mark.parametrize("jobs", [OnPause.HAND_BACK, OnPause.FINISH])
async def test_a_pause_may_hand_jobs_back_or_let_them_finish(
    coordinator: WorkerCoordinator, worker: WorkerProgram, tmp_path: Path, jobs: OnPause
) -> None:
    code = "import time\nprint('on', flush=True)\ntime.sleep(3)"
    ref = coordinator.give(code, user="lender")
    await coordinator.wait(lambda: coordinator.text(ref) == "on\n")
    await tell(tmp_path, "pause", jobs=jobs)
    if jobs is OnPause.HAND_BACK:
        await coordinator.wait(lambda: coordinator.handed_back(ref))
        assert ref not in coordinator.settled
        return
    assert (await coordinator.wait_settled(ref)).cause is Cause.COMPLETED
    assert not coordinator.of(AttemptFrozen)


async def test_a_session_stands_still_and_runs_its_next_call_when_it_goes_on(
    coordinator: WorkerCoordinator, worker: WorkerProgram, tmp_path: Path
) -> None:
    ref = coordinator.open_session("x = 20", user="lender")
    await coordinator.wait_call(ref, 0)
    await tell(tmp_path, "pause", jobs=OnPause.HAND_BACK)  # its variables would be lost
    await frozen(coordinator, ref, True)
    coordinator.start_call(ref, 1, "print(x + 1)", timeout_s=1)
    await beats(coordinator, 7)  # longer than the call may take
    assert (ref, 1) not in coordinator.call_reports
    await tell(tmp_path, "resume")
    report = await coordinator.wait_call(ref, 1)
    assert report.cause is Cause.COMPLETED
    assert coordinator.text(ref) == "21\n"
    assert report.usage.frozen_s == pytest.approx(0, abs=0.3)


async def test_a_frozen_job_survives_a_cut_and_the_coordinator_hears_again(
    coordinator: WorkerCoordinator, worker: WorkerProgram, tmp_path: Path
) -> None:
    ref = coordinator.give(COUNTS, user="lender")
    await coordinator.wait_lines(ref, 3)
    await tell(tmp_path, "pause")
    await frozen(coordinator, ref, True)
    had = len(coordinator.of(AttemptFrozen))
    coordinator.cut()
    await coordinator.wait(lambda: len(coordinator.of(AttemptFrozen)) > had)
    assert coordinator.of(AttemptFrozen)[-1].frozen
    assert coordinator.hellos[-1].capability.pause is not None
    coordinator.send(StopAttempt(job_id=ref.job_id, attempt=1, fenced=True))
    await coordinator.wait(lambda: coordinator.of(Heartbeat)[-1].running == ())


async def test_a_coordinator_of_the_release_before_gets_its_job_back(
    coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    coordinator.protocol = 2
    async with worker_program(coordinator.url, tmp_path, *PROCESS) as worker:
        await worker.wait_ready()
        ref = coordinator.give(COUNTS, user="lender")
        await coordinator.wait_lines(ref, 3)
        await tell(tmp_path, "pause")
        await coordinator.wait(lambda: coordinator.handed_back(ref))
        assert not coordinator.of(AttemptFrozen)


async def test_a_drained_worker_takes_nothing_lets_its_job_end_and_leaves_with_0(
    coordinator: WorkerCoordinator, worker: WorkerProgram, tmp_path: Path
) -> None:
    code = "import time\nprint('on', flush=True)\ntime.sleep(4)\nprint('off')"
    ref = coordinator.give(code, user="lender")
    await coordinator.wait(lambda: coordinator.text(ref) == "on\n")
    assert "stops when its jobs have ended" in (await tell(tmp_path, "drain")).note
    said = (await capability(coordinator, paused=True)).capability.pause
    assert said is not None and said.reason is PauseReason.DRAINING
    late = coordinator.give("print(1)", user="lender")
    await coordinator.wait(lambda: coordinator.handed_back(late))
    assert (await coordinator.wait_settled(ref)).cause is Cause.COMPLETED
    assert await worker.wait_exit() == 0
    assert coordinator.text(ref) == "on\noff\n"
    assert not (tmp_path / "control.sock").exists()


async def test_an_idle_worker_drains_at_once_and_starts_again_as_if_nothing_was(
    coordinator: WorkerCoordinator, worker: WorkerProgram, tmp_path: Path
) -> None:
    code, out, _ = await gridx_worker("drain", "--data-dir", str(tmp_path))
    assert code == 0 and "stops when its jobs have ended" in out
    assert await worker.wait_exit() == 0
    async with worker_program(coordinator.url, tmp_path, *PROCESS) as again:
        await again.wait_ready()
        assert (await tell(tmp_path, "status")).pause is None


async def test_a_paused_worker_gives_back_what_waits_for_jobs_when_it_is_stopped(
    coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    async with worker_program(coordinator.url, tmp_path, *PROCESS) as worker:
        await worker.wait_ready()
        ref = coordinator.give(COUNTS, user="lender")
        await coordinator.wait_lines(ref, 3)
        await tell(tmp_path, "pause")
        await frozen(coordinator, ref, True)
        below = psutil.Process(worker.process.pid).children(recursive=True)
        worker.process.terminate()
        await coordinator.wait(lambda: coordinator.handed_back(ref))  # at once: it will not end
        assert await worker.wait_exit() == 0
        assert not [one for one in below if one.is_running() and one.pid != os.getpid()]


# Of NVIDIA's library only what a worker asks; temperatures are in a file.
NVML = """
import os
from types import SimpleNamespace

class NVMLError(Exception):
    value = 0

NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED, NVML_TEMPERATURE_GPU = 15, 16, 0

def __getattr__(name):
    def absent(*arguments):
        raise NVMLError(name)
    return absent

def nvmlInit(): pass
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUUID(card): return "GPU-" + "ab"[card]
def nvmlDeviceGetName(card): return "A100"
def nvmlDeviceGetMemoryInfo(card): return SimpleNamespace(total=2**30, used=0)
def nvmlDeviceGetTemperature(card, kind):
    with open(os.environ["GPU_TEMPERATURES"]) as file:
        return float(file.read().split()[card])
"""


async def test_a_gpu_snoozes_and_wakes_and_a_hot_one_pauses_the_worker(
    coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "pynvml.py").write_text(NVML)
    temperatures = tmp_path / "temperatures"
    temperatures.write_text("40 41")
    env = {"PYTHONPATH": str(tmp_path / "library"), "GPU_TEMPERATURES": str(temperatures)}
    async with worker_program(coordinator.url, tmp_path, *PROCESS, **env) as worker:
        await worker.wait_ready()
        assert [gpu.uuid for gpu in coordinator.hellos[0].capability.gpus] == ["GPU-a", "GPU-b"]
        status = await tell(tmp_path, "snooze", gpu="0", for_s=3600.0)
        assert [gpu.is_snoozed for gpu in status.gpus] == [True, False]
        await coordinator.wait(lambda: _gpus(coordinator) == ["GPU-b"])
        await tell(tmp_path, "wake", gpu="GPU-a")
        await coordinator.wait(lambda: _gpus(coordinator) == ["GPU-a", "GPU-b"])
        temperatures.write_text("40 91")
        said = (await capability(coordinator, paused=True)).capability.pause
        assert said is not None and said.reason is PauseReason.GPU_HOT
        assert (await tell(tmp_path, "status")).readings.gpu_temperature_c == 91


def _gpus(coordinator: WorkerCoordinator) -> list[str]:
    changed = coordinator.of(CapabilityChanged)
    return [gpu.uuid for gpu in changed[-1].capability.gpus] if changed else []
