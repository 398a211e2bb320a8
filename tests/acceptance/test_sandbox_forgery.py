"""A container whose PID 1 is hostile: the worker believes nothing, and loses nothing but the job.

Under runc no job gets this far; under gVisor it does, and a kernel may have a hole. Each case runs
in a real container, against the real worker.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import pytest_asyncio

from gridx.errors import SandboxError
from gridx.events import Stream
from gridx.states import Cause
from tests.support.hostile_supervisor import command
from tests.support.worker_coordinator import WorkerCoordinator, worker_coordinator
from tests.support.worker_program import WorkerProgram, worker_program
from worker.sandbox.base import DEFAULT_REQUEST
from worker.sandbox.docker import DockerEngine

pytestmark = pytest.mark.docker

# ---------------------------------------------------------------- before it has a job

BEFORE_READY = {
    "a huge length": ("say(b'\\xff\\xff\\xff\\xf0')", "4294967280 bytes came out"),
    "no protocol at all": ("say(b'HTTP/1.1 200 OK\\r\\n\\r\\n')", "bytes came out"),
    "an empty frame": ("say(bytes(4))", "malformed"),
    "a frame of the worker's": ("say(Cancel())", "malformed"),
    "another frame first": ("say(end())", "first frame was not Ready"),
    "an unfiltered child": ("say(Ready(python='3.11.2', filtered=False))", "system call filter"),
    "a huge Ready": ("say(Ready(python='3' * 200000, filtered=True))", "A Ready frame of"),
    "its end": ("sys.exit('last words')", r"exit 1: last words"),
    "nothing": ("", "not ready after"),
    "a frame by the drop": (
        "say(b'\\0\\0\\4\\0')\nwhile True: say(b'x'); time.sleep(0.01)",
        "not ready after",
    ),
    "errors without an end": ("while True: os.write(2, bytes(65536))", "error bytes"),
}


@pytest.mark.parametrize("name", BEFORE_READY)
async def test_a_container_that_begins_with_something_else_is_destroyed(
    engine: DockerEngine, docker_api: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    code, sentence = BEFORE_READY[name]
    monkeypatch.setattr("worker.sandbox.limits.COMMAND", command(code + "\nos.read(0, 1)"))
    if "not ready" in sentence:
        monkeypatch.setattr("worker.sandbox.docker.READY_TIMEOUT_S", 1.0)
    with pytest.raises(SandboxError, match=sentence):
        await engine.start(DEFAULT_REQUEST)
    label = {"label": f"gridx.worker={engine._worker_id}"}
    assert docker_api.containers(all=True, filters=label) == []
    assert engine._live == {}  # neither its uid nor its folder is kept


# ---------------------------------------------------------------- with a job


class Grid(NamedTuple):
    """A worker whose containers say what their job's code says, and what it registered with."""

    coordinator: WorkerCoordinator
    worker: WorkerProgram


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grid(docker_api: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Grid]:
    folder: Path = tmp_path_factory.mktemp("worker")
    options = ("--warm", "2", "--cores", "2", "--memory", "4G", "--max-result", "1M")
    module = "tests.support.hostile_supervisor"
    async with (
        worker_coordinator() as coordinator,
        worker_program(coordinator.url, folder, *options, module=module) as worker,
    ):
        await worker.wait_ready()
        yield Grid(coordinator, worker)


REFUSED = Cause.SANDBOX_FAILED
CRASHED = Cause.CRASHED
ABSURD = "say(end(usage=Usage(wall_s={wall}, cpu_s={cpu}, peak_memory_bytes={peak})))"
CASES: dict[str, tuple[str, Cause, str]] = {
    "a huge length": ("say(b'\\xff\\xff\\xff\\xf0')", REFUSED, "4294967280 bytes came out"),
    "a length above the cap": ("say((10 << 20).to_bytes(4, 'big'))", REFUSED, "bytes came out"),
    "garbage": ("say(b'\\0\\0\\0\\4abcd')", REFUSED, "malformed"),
    "deep nesting": ("say(b'\\0\\1\\0\\0' + b'\\x91' * 65536)", REFUSED, "malformed"),
    "a frame of the worker's": ("say(Cancel())", REFUSED, "malformed"),
    "a field of another type": (
        "say(encode_frame(Events(data=b'')).replace(b'data', b'dota'))",
        REFUSED,
        "malformed",
    ),
    "Ready again": ("say(Ready(python='3.11.2', filtered=True))", REFUSED, "Ready twice"),
    "frames without number": (
        "one = encode_frame(Events(data=b'')) * 1000\nwhile True: say(one)",
        REFUSED,
        "More frames",
    ),
    "too large an output": ("say(Events(data=bytes((9 << 20) + 1)))", REFUSED, "An? Events frame"),
    "too large a piece": ("say(Result(data=bytes((8 << 20) + 1)))", REFUSED, "A Result frame"),
    "too large a result": (
        "for _ in range(5): say(Result(data=bytes(1 << 18)))",
        REFUSED,
        "result",
    ),
    "the end of another call": (
        "say(CallExited(call=3, cause='completed', usage=Usage()))",
        REFUSED,
        "a call that it did not have",
    ),
    "a time that is no number": (
        ABSURD.format(wall="float('nan')", cpu=0, peak=0),
        REFUSED,
        "none that there is",
    ),
    "a negative time": (ABSURD.format(wall=-1e9, cpu=-1.0, peak=0), REFUSED, "none that there is"),
    "negative memory": (ABSURD.format(wall=0, cpu=0, peak=-1), REFUSED, "none that there is"),
    "a huge message": ("say(end(message='x' * 200000))", REFUSED, "An? Exited frame"),
    "an unknown cause": ("say(end(cause='won'))", REFUSED, "malformed"),
    "errors without an end": (
        "while True: os.write(2, bytes(65536))",
        REFUSED,
        "error bytes",
    ),
    "output of another call": (
        "say(Events(data=encode_event(Stream(call=7, name='stdout', text='x'))))",
        CRASHED,
        "own output channel",
    ),
    "the worker's own marker": (
        "say(Events(data=encode_event(OutputDropped(dropped_bytes=5))))",
        CRASHED,
        "own output channel",
    ),
    "output that is none": ("say(Events(data=b'\\0\\0\\0\\4abcd'))", CRASHED, "output channel"),
    "a frame by the drop": (
        "say(b'\\0\\0\\4\\0')\nfor _ in range(900): say(b'x'); time.sleep(0.02)",
        Cause.TIMEOUT,
        "time limit of 0.5 s",
    ),
    "nothing, with its stream closed": (
        "os.close(1)\nwhile True: time.sleep(60)",
        Cause.TIMEOUT,
        "time limit of 0.5 s",
    ),
    "its own death": ("os._exit(0)", REFUSED, "The sandbox died"),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", CASES)
async def test_a_lie_ends_its_job_and_is_not_paid_for(grid: Grid, name: str) -> None:
    code, cause, sentence = CASES[name]
    ref = grid.coordinator.give(code, timeout_s=0.5)
    report = await grid.coordinator.wait_settled(ref)
    assert report.cause is cause, report
    assert re.search(sentence, report.message)
    assert report.result is None
    if cause is REFUSED:
        assert report.usage.wall_s == report.usage.cpu_s == 0
    assert report.usage.wall_s < 30
    assert grid.coordinator.events(ref) == []


@pytest.mark.asyncio(loop_scope="module")
async def test_a_meter_that_lies_upwards_is_cut_to_the_workers_clock(grid: Grid) -> None:
    code = ABSURD.format(wall=1e300, cpu=1e300, peak=1 << 60)
    ref = grid.coordinator.give(code, cpus=1.0)
    report = await grid.coordinator.wait_settled(ref)
    assert report.cause is Cause.COMPLETED
    assert report.usage.wall_s < 30
    assert report.usage.cpu_s <= report.usage.wall_s * 1.1


@pytest.mark.asyncio(loop_scope="module")
async def test_the_worker_lives_on_small_and_with_nothing_left_over(
    grid: Grid, docker_api: Any
) -> None:
    """Last of this file: after all of the lies."""
    code = (
        "say(Events(data=encode_event(Stream(name='stdout', text='fine'))))\nsay(end())\n"
        "while True: pass"  # the end of its stdin does not end it: it is killed
    )
    ref = grid.coordinator.give(code)
    report = await grid.coordinator.wait_settled(ref)
    assert report.cause is Cause.COMPLETED
    (event,) = grid.coordinator.events(ref)
    assert isinstance(event, Stream) and event.text == "fine"
    label = {"label": f"gridx.worker={grid.coordinator.hellos[0].worker_id}"}
    await grid.coordinator.wait(  # asked with every heartbeat: the warm ones alone are left
        lambda: len(docker_api.containers(all=True, filters=label)) == 2
    )
    assert len(grid.coordinator.hellos) == 1  # it was never away
    assert psutil.Process(grid.worker.process.pid).memory_info().rss < 200_000_000
