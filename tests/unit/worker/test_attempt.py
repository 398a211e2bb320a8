"""One attempt over sandboxes that behave, die, lie or never answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gridx.errors import EnvironmentFailed, GridXError, NotFound, SandboxError
from gridx.events import OutputDropped, Stream, encode_event
from gridx.ids import new_job_id
from gridx.protocol import AttemptFinished, AttemptRef, CallFinished, StartAttempt
from gridx.resources import GIB, MIB, Image, ResourceRequest, Usage
from gridx.schemas import BlobRef, CellSpec, JobRequest, Limits
from gridx.states import Cause
from worker import attempt as attempt_module
from worker.attempt import AttemptListener, AttemptRun
from worker.gpu_meter import GpuSampler
from worker.probe import GpuState
from worker.results import Results
from worker.runtime.frames import (
    Cancel,
    Events,
    Exited,
    Frame,
    FromSupervisor,
    Ready,
    Result,
    Run,
)
from worker.sandbox.base import DEFAULT_REQUEST, Death, SandboxClosed
from worker.sandbox.metering import HostReading

LINE = encode_event(Stream(name="stdout", text="hello\n"))
DONE = Exited(cause=Cause.COMPLETED, exit_code=0, usage=Usage(wall_s=0.0, source="cgroup"))


class ScriptedMeter:
    """The host's counters as they are at each look."""

    source = "host"

    def __init__(self, *readings: HostReading | None) -> None:
        self._readings = list(readings)
        self.begun = 0

    def begin(self) -> None:
        self.begun += 1

    def read(self) -> HostReading | None:
        return self._readings.pop(0) if len(self._readings) > 1 else self._readings[0]

    def close(self) -> None:
        pass


class ScriptedSandbox:
    """Says its script, then nothing; ``on_cancel`` is what it says when it is asked to stop."""

    def __init__(
        self,
        *script: FromSupervisor | Exception,
        on_cancel: FromSupervisor | None = None,
        death: Death | None = None,
    ) -> None:
        self.id = "scripted"
        self.request = DEFAULT_REQUEST
        self.ready = Ready(python="3.11.2", filtered=True)
        self.is_closed = False
        self.is_open_inside = False
        self.meter: ScriptedMeter | None = None
        self.inputs_dir = "/in"
        self.is_open_inside = False
        self.inputs: dict[str, Path] = {}
        self.sent: list[Frame] = []
        self.received = 0
        self._on_cancel = on_cancel
        self._death = death or Death()
        self._queue: asyncio.Queue[FromSupervisor | Exception] = asyncio.Queue()
        for said in script:
            self._queue.put_nowait(said)

    def say(self, frame: FromSupervisor | Exception) -> None:
        self._queue.put_nowait(frame)

    async def put_inputs(self, files: dict[str, Path]) -> None:
        self.inputs |= files

    async def send(self, frame: Frame) -> None:
        if self.is_closed:
            raise SandboxClosed("The sandbox has ended.")
        self.sent.append(frame)
        if isinstance(frame, Cancel) and self._on_cancel is not None:
            self.say(self._on_cancel)

    async def receive(self) -> FromSupervisor:
        said = await self._queue.get()
        self.received += 1
        if isinstance(said, Exception):
            raise said
        return said

    async def kill(self) -> None:
        self.is_closed = True

    async def post_mortem(self) -> Death:
        return self._death


PYTHON = Image(name="gridx/python:3.11-1", digest="sha256:1", language="python", python="3.11")
BASH = Image(name="gridx/bash:1", digest="sha256:2", language="bash", python="")
ADDED = Image(name="gridx/env:1", digest="sha256:3", language="python", python="3.11")


class OneSandboxPool:
    """Gives the one that it has, and remembers that it came back."""

    images: tuple[Image, ...] = (PYTHON, BASH)

    def __init__(self, sandbox: ScriptedSandbox | SandboxError | None) -> None:
        self._sandbox = sandbox
        self.asked: list[Image | None] = []
        self.built: asyncio.Future[Image] | None = None
        self.say: Callable[[str], None] = lambda step: None
        self.gpus: tuple[str, ...] = ()
        self.discarded: list[ScriptedSandbox] = []
        self.was_asked = False

    async def environment(
        self, requirements: Sequence[str], *, base: Image, say: Callable[[str], None]
    ) -> Image:
        self.say = say
        say(f"Installing {', '.join(requirements)}")
        self.built = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self.built)

    def gpus_of(self, sandbox: ScriptedSandbox) -> tuple[str, ...]:
        return self.gpus

    async def take(self, request: ResourceRequest, image: Image | None = None) -> ScriptedSandbox:
        self.asked.append(image)
        if self._sandbox is None:
            await asyncio.Event().wait()
        self.was_asked = True
        if isinstance(self._sandbox, ScriptedSandbox):
            return self._sandbox
        assert isinstance(self._sandbox, SandboxError)
        raise self._sandbox

    def take_warm(
        self, request: ResourceRequest, image: Image | None = None
    ) -> ScriptedSandbox | None:
        self.asked.append(image)
        return self._sandbox if isinstance(self._sandbox, ScriptedSandbox) else None

    def discard(self, sandbox: ScriptedSandbox, *, is_idle: bool = False) -> None:
        self.discarded.append(sandbox)


class LendsBlobs:
    """Lends every blob, or none for ``refusal``; waits for ``there``."""

    def __init__(self, refusal: GridXError | None = None) -> None:
        self.there = asyncio.Event()
        self.there.set()
        self.refusal = refusal
        self.owner = ""
        self.has_ended = False

    def loan(self, owner: str, attempt: AttemptRef) -> LendsBlobs:
        self.owner = owner
        return self

    async def take(self, refs: Sequence[BlobRef]) -> dict[str, Path]:
        await self.there.wait()
        if self.refusal is not None:
            raise self.refusal
        return {ref.digest: Path(ref.digest) for ref in refs}

    def end(self) -> None:
        self.has_ended = True


class NoTransfers:
    """Nothing is large enough here to be put anywhere."""


class Heard:
    """What the attempt told."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.calls_begun: list[int] = []
        self.call_reports: asyncio.Queue[CallFinished] = asyncio.Queue()
        self.output = b""
        self.report: AttemptFinished | None = None
        self.refusal = ""
        self.steps: list[str] = []

    def listener(self) -> AttemptListener:
        return AttemptListener(
            started=self._on_started,
            output=self._on_output,
            call_ended=self.call_reports.put_nowait,
            ended=self._on_ended,
            cannot_run=self._on_cannot_run,
            preparing=lambda ref, step: self.steps.append(step),
        )

    def _on_started(self, ref: AttemptRef, call: int) -> None:
        self.calls_begun.append(call)
        self.started.set()

    def _on_output(self, ref: AttemptRef, data: bytes) -> None:
        assert self.report is None
        self.output += data

    def _on_ended(self, report: AttemptFinished) -> None:
        assert self.report is None
        self.report = report

    def _on_cannot_run(self, ref: AttemptRef, reason: str) -> None:
        assert self.report is None
        self.refusal = reason


def make(
    sandbox: ScriptedSandbox | SandboxError | None,
    *,
    python: str | None = None,
    timeout_s: float = 60,
    blobs: tuple[BlobRef, ...] = (),
    lender: LendsBlobs | None = None,
    job: JobRequest | None = None,
    gpus: GpuSampler | None = None,
) -> tuple[AttemptRun, Heard, OneSandboxPool]:
    start = StartAttempt(
        job_id=new_job_id(),
        attempt=1,
        user="anna",
        job=job or JobRequest(code="print('hello')", limits=Limits(timeout_s=timeout_s)),
        cell=None if python is None else CellSpec(python=python, expected=("x",), inputs=("a",)),
        inputs=b"inputs",
        blobs=blobs,
    )
    heard, pool = Heard(), OneSandboxPool(sandbox)
    run = AttemptRun(
        start,
        pool,  # type: ignore[arg-type]
        heard.listener(),
        blobs=lender or LendsBlobs(),  # type: ignore[arg-type]
        results=Results(
            NoTransfers(),  # type: ignore[arg-type]
            folder=lambda ref: Path(),
            limit_bytes=15 * MIB,
        ),
        gpus=gpus,
    )
    return run, heard, pool


async def finish(
    *script: FromSupervisor | Exception, death: Death | None = None
) -> tuple[AttemptFinished, Heard]:
    sandbox = ScriptedSandbox(*script, death=death)
    run, heard, pool = make(sandbox)
    await run.run()
    assert heard.report is not None
    assert pool.discarded == [sandbox]
    return heard.report, heard


async def test_output_result_and_usage_make_the_report() -> None:
    report, heard = await finish(Events(data=LINE), Result(data=b"result"), DONE)
    assert heard.started.is_set()
    assert heard.output == LINE
    assert (report.cause, report.exit_code, report.result) == (Cause.COMPLETED, 0, b"result")
    assert report.stream_bytes == report.usage.output_bytes == len(LINE)
    assert report.usage.input_bytes == len("print('hello')") + len(b"inputs")
    assert report.usage.source == "cgroup"


async def test_the_cell_travels_into_the_sandbox_as_it_was_sent() -> None:
    sandbox = ScriptedSandbox(DONE)
    run, _, _ = make(sandbox, python="3.11", timeout_s=7)
    await run.run()
    frame = sandbox.sent[0]
    assert isinstance(frame, Run)
    assert (frame.kind, frame.timeout_s, frame.inputs) == ("cell", 7, b"inputs")
    assert (frame.expected, frame.watched) == (("x",), ("a",))


@pytest.mark.parametrize("cause", [Cause.ERROR, Cause.TIMEOUT, Cause.OUT_OF_MEMORY, Cause.CRASHED])
async def test_the_supervisors_cause_is_reported(cause: Cause) -> None:
    report, _ = await finish(Exited(cause=cause, exit_code=1, message="Why.", usage=Usage()))
    assert (report.cause, report.exit_code, report.message) == (cause, 1, "Why.")


async def test_a_failed_start_is_no_report() -> None:
    run, heard, _ = make(SandboxError("The engine is gone."))
    await run.run()
    assert (heard.refusal, heard.report) == ("The engine is gone.", None)


async def test_a_sandbox_that_ended_before_it_had_the_job_is_no_report() -> None:
    sandbox = ScriptedSandbox()
    sandbox.is_closed = True
    run, heard, pool = make(sandbox)
    await run.run()
    assert heard.refusal and heard.report is None
    assert pool.discarded == [sandbox]


async def test_a_cell_of_another_python_is_not_run() -> None:
    sandbox = ScriptedSandbox()
    run, heard, _ = make(sandbox, python="3.12")
    await run.run()
    assert "3.12" in heard.refusal and "3.11" in heard.refusal
    assert sandbox.sent == []


async def test_a_sandbox_killed_for_memory_is_out_of_memory() -> None:
    death = Death(out_of_memory=True, exit_code=137)
    report, heard = await finish(Events(data=LINE), SandboxClosed("Gone."), death=death)
    assert report.cause is Cause.OUT_OF_MEMORY
    assert report.usage.out_of_memory
    assert report.usage.peak_memory_bytes == GIB
    assert heard.output == LINE


async def test_a_sandbox_that_only_its_job_can_have_ended_is_a_crash() -> None:
    death = Death(exit_code=137, from_inside=True)
    report, _ = await finish(SandboxClosed("Gone."), death=death)
    assert (report.cause, report.exit_code) == (Cause.CRASHED, 137)
    assert report.usage.wall_s > 0  # by the worker's clock


async def test_broken_frames_are_the_jobs_where_a_job_can_write_them() -> None:
    sandbox = ScriptedSandbox(SandboxError("No frame."))
    sandbox.is_open_inside = True
    run, heard, _ = make(sandbox)
    await run.run()
    assert heard.report is not None and heard.report.cause is Cause.CRASHED
    assert "No frame." in heard.report.message


async def test_a_sandbox_that_just_dies_is_the_infrastructures_fault() -> None:
    report, _ = await finish(SandboxClosed("Gone."), death=Death(exit_code=1))
    assert report.cause is Cause.SANDBOX_FAILED


@pytest.mark.parametrize(
    "lie",
    [
        Events(data=b"\0\0\0\1\xc1"),
        Events(data=b"\0\0\0\xffshort"),
        Events(data=encode_event(Stream(name="stdout", text="x", call=3))),
        Events(data=encode_event(OutputDropped(dropped_bytes=1))),
    ],
)
async def test_forged_events_end_the_job_as_crashed(lie: Events) -> None:
    report, heard = await finish(Events(data=LINE), lie)
    assert report.cause is Cause.CRASHED
    assert heard.output == LINE
    assert report.result is None


@pytest.mark.parametrize(
    "lie",
    [
        Ready(python="3.11", filtered=True),
        Result(data=b"x" * (15 * MIB + 1)),
        SandboxError("A frame is malformed."),
    ],
)
async def test_broken_frames_are_the_sandboxes_failure(lie: FromSupervisor | Exception) -> None:
    report, _ = await finish(Events(data=LINE), lie)
    assert report.cause is Cause.SANDBOX_FAILED


async def test_a_supervisor_that_does_not_keep_the_limit_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempt_module, "HARD_GRACE_S", 0.0)
    sandbox = ScriptedSandbox(Events(data=LINE))
    run, heard, pool = make(sandbox, timeout_s=0.05)
    await run.run()
    assert heard.report is not None
    assert heard.report.cause is Cause.TIMEOUT
    assert 0 < heard.report.usage.wall_s <= 0.05
    assert pool.discarded == [sandbox]


async def test_a_cancelled_call_is_reported_with_what_it_used() -> None:
    cancelled = Exited(cause=Cause.CANCELLED, exit_code=137, usage=Usage(cpu_s=0.0))
    run, heard, _ = make(ScriptedSandbox(Events(data=LINE), on_cancel=cancelled))
    task = asyncio.create_task(run.run())
    await heard.started.wait()
    run.stop()
    run.stop()
    await task
    assert heard.report is not None
    assert (heard.report.cause, heard.output) == (Cause.CANCELLED, LINE)


async def test_a_supervisor_that_does_not_obey_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_module, "CANCEL_GRACE_S", 0.0)
    sandbox = ScriptedSandbox()
    run, heard, pool = make(sandbox)
    task = asyncio.create_task(run.run())
    await heard.started.wait()
    run.stop()
    await task
    assert heard.report is not None and heard.report.cause is Cause.CANCELLED
    assert pool.discarded == [sandbox]


async def test_a_call_that_ended_while_it_was_being_stopped_keeps_its_end() -> None:
    run, heard, _ = make(ScriptedSandbox(on_cancel=DONE))
    task = asyncio.create_task(run.run())
    await heard.started.wait()
    run.stop()
    await task
    assert heard.report is not None and heard.report.cause is Cause.COMPLETED


async def test_an_attempt_cancelled_while_it_waits_for_a_sandbox_is_reported() -> None:
    run, heard, _ = make(None)
    task = asyncio.create_task(run.run())
    await asyncio.sleep(0)
    run.stop()
    await task
    assert heard.report is not None
    assert (heard.report.cause, heard.report.usage.wall_s) == (Cause.CANCELLED, 0.0)


async def test_a_fenced_attempt_says_nothing_and_leaves_its_sandbox_to_be_killed() -> None:
    sandbox = ScriptedSandbox(Events(data=LINE))
    run, heard, pool = make(sandbox)
    task = asyncio.create_task(run.run())
    await heard.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard.report is None
    assert pool.discarded == [sandbox]


async def test_a_held_attempt_reads_nothing_and_does_not_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempt_module, "HARD_GRACE_S", 0.0)
    sandbox = ScriptedSandbox()
    run, heard, _ = make(sandbox, timeout_s=0.05)
    task = asyncio.create_task(run.run())
    await heard.started.wait()
    run.hold()
    sandbox.say(Events(data=LINE))  # what was being waited for is still taken
    sandbox.say(DONE)
    timer = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, timer.set)
    await timer.wait()
    assert not task.done()
    assert sandbox.received == 1
    run.release()
    await task
    assert heard.report is not None and heard.report.cause is Cause.COMPLETED


async def test_a_held_attempt_that_is_cancelled_is_read_to_its_end() -> None:
    cancelled = Exited(cause=Cause.CANCELLED, exit_code=137, usage=Usage())
    sandbox = ScriptedSandbox(on_cancel=cancelled)
    run, heard, _ = make(sandbox)
    task = asyncio.create_task(run.run())
    await heard.started.wait()
    run.hold()
    sandbox.say(Events(data=LINE))
    run.stop()
    run.hold()
    await task
    assert heard.report is not None
    assert (heard.report.cause, heard.output) == (Cause.CANCELLED, LINE)


# ---------------------------------------------------------------- what it brings along


BLOB = BlobRef(digest="a" * 64, size=100)


async def test_blobs_lie_in_the_sandbox_before_it_has_the_job() -> None:
    sandbox, lender = ScriptedSandbox(DONE), LendsBlobs()
    run, heard, _ = make(sandbox, python="3.11", blobs=(BLOB,), lender=lender)
    await run.run()
    assert lender.owner == "anna"  # the job's user, not the worker's
    assert sandbox.inputs == {BLOB.digest: Path(BLOB.digest)}
    (frame,) = sandbox.sent
    assert isinstance(frame, Run) and frame.inputs_dir == "/in"
    assert heard.report is not None
    assert heard.report.usage.input_bytes == len("print('hello')") + len(b"inputs") + BLOB.size
    assert lender.has_ended


async def test_no_sandbox_waits_for_blobs_that_come_slowly() -> None:
    sandbox, lender = ScriptedSandbox(DONE), LendsBlobs()
    lender.there.clear()
    run, heard, pool = make(sandbox, blobs=(BLOB,), lender=lender)
    running = asyncio.create_task(run.run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not pool.was_asked
    lender.there.set()
    await running
    assert heard.report is not None and heard.report.usage.wall_s < 10


async def test_blobs_that_cannot_be_had_hand_the_attempt_back() -> None:
    lender = LendsBlobs(NotFound("There is no such blob."))
    run, heard, pool = make(ScriptedSandbox(DONE), blobs=(BLOB,), lender=lender)
    await run.run()
    assert (heard.refusal, heard.report) == ("There is no such blob.", None)
    assert not pool.was_asked
    assert lender.has_ended


async def test_a_stop_during_the_transfer_is_a_cancelled_job_that_used_nothing() -> None:
    lender = LendsBlobs()
    lender.there.clear()
    run, heard, pool = make(ScriptedSandbox(DONE), blobs=(BLOB,), lender=lender)
    running = asyncio.create_task(run.run())
    await asyncio.sleep(0)
    run.stop()
    await running
    assert heard.report is not None
    assert heard.report.cause is Cause.CANCELLED
    assert heard.report.usage.wall_s == 0
    assert not pool.was_asked


# ---------------------------------------------------------------- images and packages


async def test_a_job_gets_the_image_of_its_language() -> None:
    run, heard, pool = make(ScriptedSandbox(DONE), job=JobRequest(code="ls", language="bash"))
    await run.run()
    assert heard.report is not None
    assert pool.asked == [BASH]


@pytest.mark.parametrize(
    ("job", "wants"),
    [
        (JobRequest(code="1", language="node"), "of node"),
        (JobRequest(code="1", image="torch"), "named 'torch'"),
    ],
)
async def test_a_job_whose_image_is_not_here_is_handed_back(job: JobRequest, wants: str) -> None:
    run, heard, pool = make(ScriptedSandbox(DONE), job=job)
    await run.run()
    assert wants in heard.refusal and "it has python 3.11, bash" in heard.refusal
    assert pool.asked == []


WITH_PACKAGES = JobRequest(code="import tqdm", pip=("tqdm",))


async def test_packages_are_installed_before_a_sandbox_is_taken() -> None:
    run, heard, pool = make(ScriptedSandbox(DONE), job=WITH_PACKAGES)
    running = asyncio.create_task(run.run())
    while pool.built is None:
        await asyncio.sleep(0)
    pool.say("Building")
    assert [step.rpartition(": ")[2] for step in heard.steps] == ["Installing tqdm", "Building"]
    assert pool.asked == []
    pool.built.set_result(ADDED)
    await running
    pool.say("A build for another has something to say")
    assert len(heard.steps) == 2
    assert pool.asked == [ADDED]
    assert heard.report is not None and heard.report.cause is Cause.COMPLETED


async def test_packages_that_cannot_be_installed_end_the_job_and_cost_nothing() -> None:
    run, heard, pool = make(ScriptedSandbox(DONE), job=WITH_PACKAGES)
    running = asyncio.create_task(run.run())
    while pool.built is None:
        await asyncio.sleep(0)
    pool.built.set_exception(EnvironmentFailed("No tqdm anywhere."))
    await running
    report = heard.report
    assert report is not None
    assert (report.cause, report.message) == (Cause.ENVIRONMENT, "No tqdm anywhere.")
    assert (report.usage.wall_s, report.usage.cpu_s, report.usage.source) == (0.0, 0.0, "none")


async def test_a_job_can_be_cancelled_while_its_packages_are_installed() -> None:
    run, heard, pool = make(ScriptedSandbox(DONE), job=WITH_PACKAGES)
    running = asyncio.create_task(run.run())
    while pool.built is None:
        await asyncio.sleep(0)
    run.stop()
    await running
    assert heard.report is not None and heard.report.cause is Cause.CANCELLED
    assert not pool.built.cancelled()  # others may wait for it


# ---------------------------------------------------------------- meters


async def test_the_hosts_own_counters_are_charged_from_the_hand_over_on() -> None:
    sandbox = ScriptedSandbox(DONE)
    sandbox.meter = meter = ScriptedMeter(HostReading(2.0, 30, 0), HostReading(2.0, 170, 0))
    run, heard, _ = make(sandbox)
    await run.run()
    assert heard.report is not None
    usage = heard.report.usage
    assert (usage.source, usage.cpu_s, usage.peak_memory_bytes) == ("host", 0.0, 170)
    assert meter.begun == 1


async def test_a_lie_of_the_supervisor_about_its_memory_is_not_believed() -> None:
    said = Exited(
        cause=Cause.COMPLETED,
        usage=Usage(cpu_s=0.0, peak_memory_bytes=1, out_of_memory=False, source="cgroup"),
    )
    sandbox = ScriptedSandbox(said)
    sandbox.meter = ScriptedMeter(HostReading(1.0, 30, 0), HostReading(1.0, 900 * MIB, 1))
    run, heard, _ = make(sandbox)
    await run.run()
    assert heard.report is not None
    assert heard.report.usage.peak_memory_bytes == 900 * MIB
    assert heard.report.usage.out_of_memory


async def test_a_container_that_has_gone_leaves_what_its_supervisor_said() -> None:
    sandbox = ScriptedSandbox(DONE)
    sandbox.meter = ScriptedMeter(HostReading(1.0), None)
    run, heard, _ = make(sandbox)
    await run.run()
    assert heard.report is not None and heard.report.usage.source == "cgroup"


async def test_a_job_with_a_gpu_is_metered_on_it() -> None:
    sampler = GpuSampler(dict)
    watches = []
    make_watch = sampler.watch

    def watch(uuids: Sequence[str]) -> object:
        made = make_watch(uuids)
        watches.append(made)
        return made

    sampler.watch = watch  # type: ignore[method-assign, assignment]
    sandbox = ScriptedSandbox()
    sandbox.request = ResourceRequest(gpus=1)
    job = JobRequest(code="1", limits=Limits(gpus=1))
    run, heard, pool = make(sandbox, job=job, gpus=sampler)
    pool.gpus = ("GPU-7",)
    running = asyncio.create_task(run.run())
    await heard.started.wait()
    watches[0].take({"GPU-7": GpuState(utilisation=0.5, process_memory_bytes=GIB)}, 0.0)
    sandbox.say(DONE)
    await running
    assert heard.report is not None
    assert heard.report.usage.gpu_memory_peak_bytes == GIB
