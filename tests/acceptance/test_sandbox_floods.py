"""Output without measure: readers that keep up, that are slow, that are stuck, that have gone.

Against an engine of the tests' own, so that its memory is this traffic's and nobody else's.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from gridx.events import OutputDropped, Stream, decode_events
from gridx.ids import new_worker_id
from gridx.resources import MIB
from gridx.states import Cause
from tests.support.hostile_supervisor import command
from tests.support.sandbox_contract import first_output
from tests.support.second_engine import SecondEngine
from tests.support.worker_coordinator import worker_coordinator
from tests.support.worker_program import worker_program
from worker.runtime.frames import Events, Exited, Run
from worker.sandbox.base import DEFAULT_REQUEST
from worker.sandbox.docker import DockerEngine, DockerSandbox

pytestmark = pytest.mark.docker

KILLED_WITHIN_S = 6.0  # two are promised; this machine is shared
FLOOD = "import os\nblock = b'x' * 65535 + b'\\n'\nwhile True: os.write(1, block)"


@pytest.fixture
async def engine(
    second: SecondEngine, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[DockerEngine]:
    """The second engine, prepared; nothing is left in it afterwards."""
    monkeypatch.setenv("DOCKER_HOST", second.host)
    worker_id = new_worker_id()
    made = DockerEngine(worker_id=worker_id)
    await made.prepare()
    try:
        yield made
    finally:
        await made.close()
    assert second.containers(worker_id) == set()


def processes(second: SecondEngine, sandbox: DockerSandbox) -> list[psutil.Process]:
    """Return the container's processes, as the host sees them."""
    with closing(second.client()) as api:
        pid = api.inspect_container(sandbox.id)["State"]["Pid"]
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


def is_there(folder: Path) -> bool:
    return folder.exists()


def cpu_s(of: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in of)


# ---------------------------------------------------------------- through the whole worker


@pytest.mark.parametrize(("fd", "megabytes"), [(1, 1000), (2, 200)], ids=["stdout", "stderr"])
async def test_a_flood_with_a_fast_reader_is_counted_and_costs_no_memory(
    second: SecondEngine, tmp_path: Path, fd: int, megabytes: int
) -> None:
    blocks = megabytes * 1000 * 1000 // 64_000
    code = (
        "import os\nblock = b'x' * 63999 + b'\\n'\n"
        f"for _ in range({blocks}):\n    data = block\n"
        f"    while data: data = data[os.write({fd}, data):]\n"
        f"os.write({fd}, b'the end\\n')"
    )
    sent_bytes = blocks * 64_000 + 8
    options = ("--warm", "1", "--cores", "2", "--memory", "4G", "--languages", "python")
    async with (
        worker_coordinator() as coordinator,
        worker_program(coordinator.url, tmp_path, *options, DOCKER_HOST=second.host) as program,
    ):
        await program.wait_ready()
        worker = psutil.Process(program.process.pid)
        at_rest = worker.memory_info().rss, second.rss_bytes
        most = list(at_rest)

        def is_over() -> bool:
            now = worker.memory_info().rss, second.rss_bytes
            most[:] = map(max, zip(most, now, strict=True))
            return ref in coordinator.settled

        ref = coordinator.give(code, timeout_s=600, cpus=2.0)
        await coordinator.wait(is_over, within_s=500)
        report = coordinator.settled[ref]
        assert report.cause is Cause.COMPLETED, report
        name = ("stdout", "stderr")[fd - 1]
        events = coordinator.events(ref)
        kept_bytes = sum(
            len(event.text) for event in events if isinstance(event, Stream) and event.name == name
        )
        (marker,) = (event for event in events if isinstance(event, OutputDropped))
        assert marker.dropped_bytes == report.usage.dropped_bytes
        # What is counted are events: the text, and a few bytes around each piece of it.
        assert 0.98 < (kept_bytes + marker.dropped_bytes) / sent_bytes < 1.02
        assert 60 * MIB < kept_bytes < 70 * MIB
        assert coordinator.text(ref, name).endswith("the end\n")
        print(f"worker +{(most[0] - at_rest[0]) / MIB:.0f} MiB", end=", ")
        print(f"engine +{(most[1] - at_rest[1]) / MIB:.0f} MiB, {report.usage.wall_s:.1f} s")
        assert most[0] - at_rest[0] < 100 * MIB
        assert most[1] - at_rest[1] < 60 * MIB


# ---------------------------------------------------------------- at the sandbox itself


async def test_a_slow_reader_sets_the_pace_of_the_writer(engine: DockerEngine) -> None:
    """Both write down when they were where, on the one clock of this machine."""
    total = 48 * MIB
    code = (
        "import os, time\nat = 0\n"
        f"while at < {total}:\n"
        "    line = b'%d %r ' % (at, time.monotonic())\n    line += b'x' * (16383 - len(line))\n"
        "    at += os.write(1, line + b'\\n')\n"
    )
    sandbox = await engine.start(DEFAULT_REQUEST)
    await sandbox.send(Run(kind="script", code=code, timeout_s=120))
    text, read_at = bytearray(), []
    async with asyncio.timeout(150):
        while not isinstance(frame := await sandbox.receive(), Exited):
            assert isinstance(frame, Events)
            text += "".join(
                event.text for event in decode_events(frame.data) if isinstance(event, Stream)
            ).encode()
            read_at.append((time.monotonic(), len(text)))
            await asyncio.sleep(len(frame.data) / (24 * MIB))  # that is how slow it is
    assert frame.cause is Cause.COMPLETED
    assert len(text) == total
    written = [(float(line.split()[1]), int(line.split()[0])) for line in text.splitlines()]
    ahead = [
        written[max(0, bisect.bisect(written, (now_s, total)) - 1)][1] - here
        for now_s, here in read_at
    ]
    assert max(ahead) < 24 * MIB, max(ahead)  # pipes, sockets and queues, never the rest
    assert frame.usage.wall_s > 0.5 * total / (24 * MIB)


async def test_a_stuck_reader_stops_the_writer_and_the_kill_does_not_hang(
    engine: DockerEngine, second: SecondEngine
) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    await sandbox.send(Run(kind="script", code=FLOOD, timeout_s=300))
    await first_output(sandbox)  # and then nobody reads
    inside = processes(second, sandbox)
    assert len(inside) >= 2

    async def used_in(seconds: float) -> float:
        before = cpu_s(inside)
        await asyncio.sleep(seconds)
        return cpu_s(inside) - before

    async with asyncio.timeout(60):
        while await used_in(0.2) > 0:  # until every buffer on the way is full
            pass
    rss_bytes = second.rss_bytes
    assert await used_in(2.0) <= 0.05
    assert second.rss_bytes - rss_bytes < 8 * MIB
    folder = sandbox._slot
    began_s = time.monotonic()
    await sandbox.kill()
    assert time.monotonic() - began_s < KILLED_WITHIN_S
    with closing(second.client()) as api:
        assert api.containers(all=True, filters={"id": sandbox.id}) == []
    assert not any(process.is_running() for process in inside)
    assert sandbox.is_removed and not is_there(folder)


async def test_a_flood_after_its_reader_has_gone_ends_by_itself(
    engine: DockerEngine, second: SecondEngine
) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    await sandbox.send(Run(kind="script", code=FLOOD, timeout_s=300))
    await first_output(sandbox)
    rss_bytes = second.rss_bytes
    sandbox._stream.close()
    state = await engine.state_of(sandbox.id)
    assert state["Running"] is False
    assert second.rss_bytes - rss_bytes < 30 * MIB
    await sandbox.kill()


async def test_a_flood_that_nothing_ends_goes_on_into_nothing_until_the_kill(
    engine: DockerEngine, second: SecondEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PID 1 itself, hostile: it minds neither the end of its stdin nor that nobody reads."""
    code = (
        "import signal, time\nfor n in (1, 2, 3, 13, 15): signal.signal(n, signal.SIG_IGN)\n"
        "say(Ready(python='3.11.2', filtered=True))\n"
        "time.sleep(1)\n"  # else the flood may come with the frame that makes it ready
        "while True:\n    try: os.write(1, bytes(65536))\n    except OSError: pass\n"
    )
    monkeypatch.setattr("worker.sandbox.limits.COMMAND", command(code))
    sandbox = await engine.start(DEFAULT_REQUEST)
    (pid_1,) = processes(second, sandbox)
    sandbox._stream.close()
    rss_bytes = second.rss_bytes
    used_s = cpu_s([pid_1])
    async with asyncio.timeout(60):
        while cpu_s([pid_1]) < used_s + 0.3:  # it is not held up by anybody
            await asyncio.sleep(0.05)
    assert second.rss_bytes - rss_bytes < 30 * MIB
    began_s = time.monotonic()
    await sandbox.kill()
    assert time.monotonic() - began_s < KILLED_WITHIN_S
    assert not pid_1.is_running()
