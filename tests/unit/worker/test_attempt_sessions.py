"""A session over a sandbox that behaves, dies, lies or never answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from gridx.errors import NotFound
from gridx.events import OutputDropped, Stream, decode_events, encode_event
from gridx.ids import new_job_id
from gridx.protocol import AttemptFinished, CallFinished, StartAttempt, StartCall
from gridx.resources import MIB, Usage
from gridx.schemas import BlobRef, CellSpec, JobRequest, Limits, SessionSpec
from gridx.states import Cause
from worker import attempt as attempt_module
from worker.attempt import AttemptRun
from worker.results import Results
from worker.runtime.frames import (
    CallExited,
    Cancel,
    Events,
    Exited,
    FromSupervisor,
    Interrupt,
    Result,
    Run,
)
from worker.sandbox.base import Death, SandboxClosed

from .test_attempt import Heard, LendsBlobs, NoTransfers, OneSandboxPool, ScriptedSandbox

ENDED = Exited(cause=Cause.CANCELLED, exit_code=137, usage=Usage(wall_s=0.0, source="cgroup"))
CELL = CellSpec(python="3.11")
BLOB = BlobRef(digest="0" * 64, size=100)


def line(call: int, text: str = "hello\n") -> bytes:
    return encode_event(Stream(call=call, name="stdout", text=text))


def over(call: int, cause: Cause = Cause.COMPLETED) -> CallExited:
    return CallExited(call=call, cause=cause, exit_code=0, usage=Usage(source="cgroup"))


class Session:
    """A session whose call 0 its sandbox has."""

    def __init__(
        self,
        sandbox: ScriptedSandbox,
        *,
        timeout_s: float = 60,
        call_timeout_s: float = 30,
        lender: LendsBlobs | None = None,
    ) -> None:
        self.sandbox = sandbox
        self.heard = Heard()
        self.pool = OneSandboxPool(sandbox)
        self.start = StartAttempt(
            job_id=new_job_id(),
            attempt=1,
            user="anna",
            job=JobRequest(code="1", limits=Limits(timeout_s=timeout_s)),
            cell=CELL,
            call_timeout_s=call_timeout_s,
            session=SessionSpec(name="s"),
        )
        self.run = AttemptRun(
            self.start,
            self.pool,  # type: ignore[arg-type]
            self.heard.listener(),
            blobs=lender or LendsBlobs(),  # type: ignore[arg-type]
            results=Results(
                NoTransfers(),  # type: ignore[arg-type]
                folder=lambda ref: Path(),
                limit_bytes=15 * MIB,
            ),
        )
        self._task = asyncio.create_task(self.run.run())

    def say(self, *frames: FromSupervisor | Exception) -> None:
        for frame in frames:
            self.sandbox.say(frame)

    def call(self, number: int, *, blobs: tuple[BlobRef, ...] = ()) -> None:
        self.run.begin_call(
            StartCall(
                job_id=self.start.job_id,
                attempt=1,
                call=number,
                code=f"call {number}",
                timeout_s=5,
                cell=CELL,
                blobs=blobs,
            )
        )

    async def begun(self, number: int) -> None:
        """Begin a call, and return when its sandbox has it."""
        self.call(number)
        while number not in self.heard.calls_begun:
            await asyncio.sleep(0)

    async def call_report(self) -> CallFinished:
        return await self.heard.call_reports.get()

    async def sent(self, kind: type) -> object:
        """Return the first frame of that kind that the sandbox was sent."""
        while not any(isinstance(frame, kind) for frame in self.sandbox.sent):
            await asyncio.sleep(0)
        return next(frame for frame in self.sandbox.sent if isinstance(frame, kind))

    async def report(self) -> AttemptFinished:
        await self._task
        assert self.heard.report is not None
        assert self.pool.discarded == [self.sandbox]
        return self.heard.report


async def opened(**more: object) -> Session:
    session = Session(ScriptedSandbox(on_cancel=ENDED), **more)  # type: ignore[arg-type]
    await session.heard.started.wait()
    return session


async def idle(**more: object) -> Session:
    session = await opened(**more)
    session.say(over(0))
    await session.call_report()
    return session


def calls_of(output: bytes) -> list[int]:
    return [event.call for event in decode_events(output)]


async def test_calls_run_one_after_another_in_one_sandbox() -> None:
    session = await opened()
    session.call(1)
    session.call(2)
    session.say(Events(data=line(0)), Result(data=b"zero"), over(0))
    first = await session.call_report()
    assert (first.call, first.cause, first.result) == (0, Cause.COMPLETED, b"zero")
    assert first.stream_bytes == len(line(0))
    await session.sent(Run)
    session.say(over(1))
    second = await session.call_report()
    assert (second.call, second.result) == (1, None)
    session.say(over(2))
    assert (await session.call_report()).call == 2
    assert session.heard.calls_begun == [0, 1, 2]
    runs = [frame for frame in session.sandbox.sent if isinstance(frame, Run)]
    assert [(run.call, run.code, run.keep) for run in runs] == [
        (0, "1", True),
        (1, "call 1", True),
        (2, "call 2", True),
    ]
    assert [run.timeout_s for run in runs] == [30, 5, 5]
    session.run.end_session()
    assert (await session.report()).cause is Cause.COMPLETED


async def test_a_session_that_is_closed_reports_its_whole_use() -> None:
    session = await idle()
    session.sandbox._on_cancel = msgspec.structs.replace(
        ENDED, usage=Usage(wall_s=0.0, cpu_s=0.0, peak_memory_bytes=7, source="cgroup")
    )
    session.run.end_session()
    report = await session.report()
    assert (report.cause, report.exit_code, report.message, report.call) == (
        Cause.COMPLETED,
        None,
        "",
        0,
    )
    assert report.usage.peak_memory_bytes == 7
    assert report.usage.input_bytes == 1


async def test_a_session_that_is_closed_during_a_call_interrupts_it_first() -> None:
    session = await opened()
    session.run.end_session()
    await session.sent(Interrupt)
    assert not any(isinstance(frame, Cancel) for frame in session.sandbox.sent)
    session.say(over(0, Cause.CANCELLED))
    assert (await session.call_report()).cause is Cause.CANCELLED
    assert (await session.report()).cause is Cause.COMPLETED


async def test_a_call_that_had_to_be_killed_for_a_close_is_reported_before_the_session() -> None:
    session = await opened()
    session.run.end_session()
    session.say(ENDED)
    assert (await session.call_report()).cause is Cause.CANCELLED
    report = await session.report()
    assert (report.cause, report.call) == (Cause.COMPLETED, 0)


async def test_what_an_interrupted_call_bound_comes_home() -> None:
    session = await opened()
    session.run.interrupt(0)
    await session.sent(Interrupt)
    session.say(Result(data=b"bound"), over(0, Cause.CANCELLED))
    report = await session.call_report()
    assert (report.cause, report.result) == (Cause.CANCELLED, b"bound")
    session.run.stop()
    await session.report()


async def test_an_interrupt_of_a_call_that_has_ended_interrupts_nothing() -> None:
    session = await idle()
    session.run.interrupt(0)
    session.run.stop()
    await session.report()
    assert not any(isinstance(frame, Interrupt) for frame in session.sandbox.sent)


async def test_a_call_is_interrupted_while_its_blobs_are_on_the_way() -> None:
    lender = LendsBlobs()
    session = await idle(lender=lender)
    lender.there.clear()
    session.call(1, blobs=(BLOB,))
    while session.run._call is None or session.run._call.preparing is None:
        await asyncio.sleep(0)
    session.run.interrupt(1)
    report = await session.call_report()
    assert (report.call, report.cause) == (1, Cause.CANCELLED)
    session.call(2)
    session.say(over(2))
    assert (await session.call_report()).call == 2
    session.run.stop()
    await session.report()


async def test_a_call_whose_blobs_cannot_be_had_leaves_the_session_open() -> None:
    lender = LendsBlobs()
    session = await idle(lender=lender)
    lender.refusal = NotFound("There is no such blob.")
    session.call(1, blobs=(BLOB,))
    report = await session.call_report()
    assert (report.cause, report.message) == (Cause.SANDBOX_FAILED, "There is no such blob.")
    session.run.end_session()
    assert (await session.report()).cause is Cause.COMPLETED


@pytest.mark.parametrize(
    ("last", "cause"),
    [
        (Exited(cause=Cause.CRASHED, exit_code=3, usage=Usage()), Cause.CRASHED),
        (Exited(cause=Cause.OUT_OF_MEMORY, exit_code=137, usage=Usage()), Cause.OUT_OF_MEMORY),
        (Exited(cause=Cause.TIMEOUT, exit_code=137, usage=Usage()), Cause.TIMEOUT),
        (SandboxClosed("gone"), Cause.SANDBOX_FAILED),
    ],
)
async def test_the_end_of_the_sandbox_is_that_of_the_session_and_its_call(
    last: FromSupervisor | Exception, cause: Cause
) -> None:
    session = await idle()
    await session.begun(1)
    session.say(Events(data=line(1)), last)
    report = await session.report()
    assert (report.cause, report.call) == (cause, 1)
    assert report.stream_bytes == len(line(1))


async def test_a_sandbox_that_ran_out_of_memory_between_two_calls_ends_the_session() -> None:
    session = await idle()
    session.sandbox._death = Death(out_of_memory=True)
    session.say(SandboxClosed("gone"))
    report = await session.report()
    assert (report.cause, report.call) == (Cause.OUT_OF_MEMORY, 0)


async def test_a_session_ends_at_its_own_time_limit() -> None:
    session = await idle(timeout_s=0.5)
    report = await session.report()
    assert report.cause is Cause.TIMEOUT
    assert report.message == "The session was open for its limit of 0.5 s."


async def test_a_call_whose_supervisor_keeps_no_time_is_ended_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempt_module, "HARD_GRACE_S", 0.0)
    monkeypatch.setattr(attempt_module, "INTERRUPT_GRACE_S", 0.05)
    session = await opened(call_timeout_s=0.01)
    report = await session.report()
    assert (report.cause, report.call) == (Cause.TIMEOUT, 0)


async def test_a_session_that_is_stopped_is_cancelled_with_its_call() -> None:
    session = await opened()
    session.call(1)
    session.run.stop()
    report = await session.report()
    assert (report.cause, report.message, report.call) == (Cause.CANCELLED, "Cancelled.", 0)
    assert session.heard.calls_begun == [0]


# ---------------------------------------------------------------- output


async def test_what_belongs_to_an_earlier_call_stays_with_it() -> None:
    session = await idle()
    session.say(Events(data=line(0, "between\n")))
    await session.begun(1)
    session.say(Events(data=line(1) + line(0, "late\n") + line(1)), over(1))
    report = await session.call_report()
    session.run.stop()
    last = await session.report()
    assert calls_of(session.heard.output) == [0, 1, 0, 1]
    assert report.stream_bytes == last.stream_bytes == len(session.heard.output)


async def test_late_output_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_module, "LATE_HEAD_BYTES", 1000)
    monkeypatch.setattr(attempt_module, "LATE_TAIL_BYTES", 100)
    session = await idle()
    await session.begun(1)
    session.say(Events(data=line(0, "x" * 500 + "\n") * 5), Events(data=line(1)), over(1))
    await session.call_report()
    session.run.stop()
    report = await session.report()
    dropped = [e for e in decode_events(session.heard.output) if isinstance(e, OutputDropped)]
    assert len(dropped) == 1
    assert report.usage.dropped_bytes == dropped[0].dropped_bytes > 0
    assert 1 in calls_of(session.heard.output)


async def test_a_loud_call_leaves_output_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_module, "HEAD_BYTES", 6000)
    session = await opened()
    session.say(Events(data=line(0, "x" * 500 + "\n") * 20), over(0))
    first = await session.call_report()
    assert first.usage.dropped_bytes > 0
    assert len(session.heard.output) < 6000
    await session.begun(1)
    session.say(Events(data=line(1, "x" * 500 + "\n")), over(1))
    await session.call_report()
    session.run.stop()
    await session.report()
    assert calls_of(session.heard.output).count(1) == 1


# ---------------------------------------------------------------- a sandbox that lies


@pytest.mark.parametrize(
    "lie",
    [over(1), over(7), Result(data=b"x")],
    ids=["the end of a call that ended", "of one to come", "a result between two calls"],
)
async def test_a_sandbox_that_breaks_the_protocol_is_given_up(lie: FromSupervisor) -> None:
    session = await idle()
    session.say(lie)
    assert (await session.report()).cause is Cause.SANDBOX_FAILED


async def test_an_event_of_a_call_to_come_is_the_jobs_own_fault() -> None:
    session = await idle()
    session.say(Events(data=line(1)))
    assert (await session.report()).cause is Cause.CRASHED
