"""What the worker does next, decided without a clock, socket, file or sandbox.

Events go in, instructions come out; ``daemon.py`` carries them out in order. The machine knows
of each attempt only numbers: where its output stream ends, how much of it was sent and how
much the coordinator has stored. The bytes lie in the outbox.

The life of an attempt here:

    STARTING ──sandbox has the job──> RUNNING ──sandbox ended──> FINISHED ──Settled──> forgotten
        │                                │                           │
        └── cannot be started, ──────────┴── worker stops ──> HANDED_BACK ── answered ──> forgotten

A stop on the user's wish leaves the phase and marks it ``stopping``; a fenced one forgets the
attempt at once. A session is one attempt that is RUNNING over many calls: the report of each
waits for its CallSettled beside the phase, and all of them go before the attempt's own.

While the worker is paused it announces no slots and hands back what arrives all the same. What
runs then is let be, stands still (``is_frozen``, beside the phase), or is handed back. A session
is not handed back for a pause: its variables would be lost, so it stands still instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final, assert_never

import msgspec

from gridx.protocol import (
    AttemptFrozen,
    AttemptRef,
    AttemptStarted,
    CallSettled,
    CapabilityChanged,
    EndAttempt,
    HandBack,
    InterruptCall,
    OutputAck,
    OutputResend,
    Settled,
    StartAttempt,
    StartCall,
    StopAttempt,
    StoredEnd,
    ToWorker,
    Welcome,
)
from gridx.resources import MIB, Capability, Pause, PauseReason, ResourceRequest

from .lending.policy import OnPause

WINDOW_BYTES: Final = MIB  # sent and not acknowledged, for one attempt
FREEZING_PROTOCOL: Final = 3  # an older coordinator would let a job's time run on
STALE_TICKS: Final = 3  # heartbeats without an acknowledgement until bytes are sent again


class Phase(StrEnum):
    """Where an attempt stands on this worker."""

    STARTING = "starting"  # a sandbox is being taken for it
    RUNNING = "running"  # the sandbox has the job
    FINISHED = "finished"  # its report is on disk and waits for Settled
    LOST = "lost"  # a session that died with an earlier run; reports of its calls are left
    HANDED_BACK = "handed_back"  # said so; kept until a connection has carried it for sure


LIVE: Final = frozenset({Phase.STARTING, Phase.RUNNING})
_RESTARTED: Final = "The worker was restarted while the job ran."
_STOPPING: Final = "The worker is stopping."


class CallReport(msgspec.Struct, kw_only=True):
    """The report of a session's call, which waits for its CallSettled."""

    call: int
    stream_bytes: int  # the output stream up to here goes before it
    is_uploading: bool = False  # the blobs of its result go before it, too
    is_sent: bool = False  # on this connection


class Attempt(msgspec.Struct, kw_only=True):
    """One attempt in numbers. Offsets are bytes of its output stream."""

    request: ResourceRequest
    phase: Phase
    is_session: bool = False
    call: int = 0  # the newest that was begun in its sandbox
    last_call: int = 0  # the newest that the coordinator asked for
    ended_call: int = -1  # the newest that has ended
    is_closing: bool = False  # its session was asked to end
    call_reports: list[CallReport] = msgspec.field(default_factory=list)
    written: int = 0  # end of the stream in the outbox
    sent: int = 0  # up to here it was sent on this connection
    acked: int = 0  # up to here the coordinator has it stored
    started: bool = False
    stopping: bool = False
    is_held: bool = False  # its sandbox is not being read: back-pressure
    is_uploading: bool = False  # finished, and the blobs of its result go before its report
    report_sent: bool = False
    ticks: int = 0  # since something was sent and not answered
    is_frozen: bool = False  # it is to stand still
    stands_still: bool = False  # and does
    is_known_to_stand: bool = False  # to the coordinator
    reason: str = ""  # of a hand-back

    @property
    def is_idle(self) -> bool:
        """Whether it is a session that waits for its next call, with every report settled."""
        is_running = self.is_session and self.phase == Phase.RUNNING and not self.is_closing
        return is_running and self.ended_call == self.last_call and not self.call_reports

    @property
    def has_sent_report(self) -> bool:
        """Whether a report was sent on this connection and is not settled."""
        return self.report_sent or any(report.is_sent for report in self.call_reports)

    def forget_sent(self) -> None:
        """Have every report sent again."""
        self.report_sent = False
        for report in self.call_reports:
            report.is_sent = False


# ---------------------------------------------------------------- what may happen


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what the daemon tells the machine."""


class Received(Event, frozen=True, kw_only=True):
    """A message of the coordinator. Welcome is one of them."""

    message: ToWorker


class Disconnected(Event, frozen=True, kw_only=True):
    """The connection is gone. Work goes on."""


class SandboxHasJob(Event, frozen=True, kw_only=True):
    """The call was written to its sandbox."""

    ref: AttemptRef
    call: int = 0


class OutputWritten(Event, frozen=True, kw_only=True):
    """The stream in the outbox now ends at ``end``."""

    ref: AttemptRef
    end: int


class OutputDue(Event, frozen=True, kw_only=True):
    """Output has waited long enough, or enough of it has gathered."""

    ref: AttemptRef


class OutputSent(Event, frozen=True, kw_only=True):
    """Whole events up to ``end`` were sent, as SendOutput asked."""

    ref: AttemptRef
    end: int


class Ended(Event, frozen=True, kw_only=True):
    """The call has ended; its report and all its output are in the outbox."""

    ref: AttemptRef
    stream_bytes: int
    is_uploading: bool = False  # its result is blobs; Uploaded follows


class CallEnded(Event, frozen=True, kw_only=True):
    """A call of a session has ended, which goes on; report and output are in the outbox."""

    ref: AttemptRef
    call: int
    stream_bytes: int
    is_uploading: bool = False  # its result is blobs; Uploaded follows


class Uploaded(Event, frozen=True, kw_only=True):
    """The coordinator has the blobs of a result: of this call of a session, or of the attempt's
    own report. Or it refused them, and the report in the outbox says so now."""

    ref: AttemptRef
    call: int | None = None


class CannotRun(Event, frozen=True, kw_only=True):
    """The attempt never got a sandbox, or this worker failed at it."""

    ref: AttemptRef
    reason: str


class Ticked(Event, frozen=True, kw_only=True):
    """A heartbeat interval has passed."""


class PauseChanged(Event, frozen=True, kw_only=True):
    """The worker is paused, for another reason, or no longer (None)."""

    pause: Pause | None
    jobs: OnPause = OnPause.FINISH  # what becomes of those that run


class Offered(Event, frozen=True, kw_only=True):
    """What this machine lends when it is not paused is another now."""

    capability: Capability


class Froze(Event, frozen=True, kw_only=True):
    """The attempt stands still, as FreezeSandbox asked."""

    ref: AttemptRef


class Thawed(Event, frozen=True, kw_only=True):
    """It goes on."""

    ref: AttemptRef


class FrozenTooLong(Event, frozen=True, kw_only=True):
    """The attempt has stood still for as long as is sensible: another worker may run it."""

    ref: AttemptRef


class StopTaking(Event, frozen=True, kw_only=True):
    """The worker was asked to stop: hand back what arrives from now on."""


class GiveUp(Event, frozen=True, kw_only=True):
    """The worker stops now: hand back what still runs."""


AnyEvent = (
    Received
    | Disconnected
    | SandboxHasJob
    | OutputWritten
    | OutputDue
    | OutputSent
    | Ended
    | CallEnded
    | Uploaded
    | CannotRun
    | Ticked
    | PauseChanged
    | Offered
    | Froze
    | Thawed
    | FrozenTooLong
    | StopTaking
    | GiveUp
)

# ---------------------------------------------------------------- what to do then


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what the machine asks of the daemon."""


class Send(Instruction, frozen=True, kw_only=True):
    """Send this message now."""

    message: AttemptStarted | AttemptFrozen | HandBack | CapabilityChanged


class SendOutput(Instruction, frozen=True, kw_only=True):
    """Send whole events from ``start``: at least one, then while they fit in ``budget_bytes``.
    Answer with OutputSent."""

    ref: AttemptRef
    start: int
    budget_bytes: int


class SendReport(Instruction, frozen=True, kw_only=True):
    """Send the attempt's report from the outbox."""

    ref: AttemptRef


class SendCallReport(Instruction, frozen=True, kw_only=True):
    """Send the report of a session's call from the outbox."""

    ref: AttemptRef
    call: int


class Begin(Instruction, frozen=True, kw_only=True):
    """Take a sandbox and run the call in it."""

    start: StartAttempt


class BeginCall(Instruction, frozen=True, kw_only=True):
    """Run this call in the sandbox of its session, when those before it have ended."""

    start: StartCall


class InterruptSandbox(Instruction, frozen=True, kw_only=True):
    """Interrupt a call of a session."""

    ref: AttemptRef
    call: int


class CloseSession(Instruction, frozen=True, kw_only=True):
    """End a session in order: it is reported as completed."""

    ref: AttemptRef


class StopSandbox(Instruction, frozen=True, kw_only=True):
    """End the call. ``report``: it is metered and reported as cancelled; else killed at once."""

    ref: AttemptRef
    report: bool


class HoldOutput(Instruction, frozen=True, kw_only=True):
    """Stop reading the sandbox: the coordinator is behind."""

    ref: AttemptRef


class ReleaseOutput(Instruction, frozen=True, kw_only=True):
    """Read the sandbox again."""

    ref: AttemptRef


class FreezeSandbox(Instruction, frozen=True, kw_only=True):
    """Let its sandbox stand still. Answer with Froze; when it cannot, with CannotRun."""

    ref: AttemptRef


class ThawSandbox(Instruction, frozen=True, kw_only=True):
    """Let it go on. Answer with Thawed; when it cannot, with CannotRun."""

    ref: AttemptRef


class Trim(Instruction, frozen=True, kw_only=True):
    """The outbox may drop the stream before ``offset``."""

    ref: AttemptRef
    offset: int


class DropResult(Instruction, frozen=True, kw_only=True):
    """Put no more blobs of the attempt's result, and have its report say that it was cancelled.
    Answer with Uploaded."""

    ref: AttemptRef


class ForgetCall(Instruction, frozen=True, kw_only=True):
    """Remove the report of a session's call from the outbox."""

    ref: AttemptRef
    call: int


class Forget(Instruction, frozen=True, kw_only=True):
    """Remove the attempt from the outbox."""

    ref: AttemptRef


AnyInstruction = (
    Send
    | SendOutput
    | SendReport
    | SendCallReport
    | Begin
    | BeginCall
    | InterruptSandbox
    | CloseSession
    | StopSandbox
    | HoldOutput
    | ReleaseOutput
    | FreezeSandbox
    | ThawSandbox
    | Trim
    | DropResult
    | ForgetCall
    | Forget
)


class Machine:
    """The worker's attempts, and the rules for them."""

    def __init__(self, *, owner: str, capability: Capability) -> None:
        self._owner = owner
        self.offered = capability  # when it is not paused
        self.pause: Pause | None = None
        self._jobs = OnPause.FINISH
        self._protocol = 0
        self.attempts: dict[AttemptRef, Attempt] = {}
        self.is_connected = False
        self.is_stopping = False

    # ---- what a connection needs to know

    @property
    def capability(self) -> Capability:
        """What is announced: no slots while it is paused."""
        if self.pause is None:
            return self.offered
        return msgspec.structs.replace(self.offered, slots=0, pause=self.pause)

    def running(self) -> tuple[AttemptRef, ...]:
        """Return what a heartbeat names: all that is held, but for what was handed back."""
        return tuple(
            ref for ref, attempt in self.attempts.items() if attempt.phase != Phase.HANDED_BACK
        )

    def held(self) -> tuple[AttemptRef, ...]:
        """Return what a hello names: a hand-back is repeated when the coordinator adopts it."""
        return tuple(self.attempts)

    def live_count(self) -> int:
        """Return how many attempts have, or are about to have, a sandbox."""
        return sum(attempt.phase in LIVE for attempt in self.attempts.values())

    def unfinished_count(self) -> int:
        """Return how many attempts have a sandbox, or a result that is still on its way."""
        return sum(
            attempt.phase in LIVE
            or attempt.is_uploading
            or any(report.is_uploading for report in attempt.call_reports)
            for attempt in self.attempts.values()
            if attempt.phase != Phase.HANDED_BACK
        )

    def unsettled_count(self) -> int:
        """Return how many attempts the coordinator still has to answer for."""
        return len(self.running())

    def restore(
        self,
        ref: AttemptRef,
        *,
        start: int,
        end: int,
        calls: Iterable[CallReport] = (),
        is_finished: bool = True,
        is_uploading: bool = False,
    ) -> None:
        """Take up an attempt that an earlier run left with reports to be sent.

        Args:
            ref: the attempt.
            start: where the stream that is left begins.
            end: where it ends.
            calls: of a session, those that are not settled.
            is_finished: its own report is there; else the session died with its worker.
            is_uploading: its result is blobs; Uploaded follows.
        """
        self.attempts[ref] = Attempt(
            request=ResourceRequest(),
            phase=Phase.FINISHED if is_finished else Phase.LOST,
            written=end,
            sent=start,
            acked=start,
            started=True,
            is_uploading=is_uploading,
            call_reports=list(calls),
        )

    def restore_lost(self, ref: AttemptRef) -> None:
        """Take up an attempt that died with an earlier run of the worker."""
        self.attempts[ref] = Attempt(
            request=ResourceRequest(), phase=Phase.HANDED_BACK, reason=_RESTARTED
        )

    # ---- events in, instructions out

    def handle(self, event: AnyEvent) -> list[AnyInstruction]:
        """Return what has to be done because of ``event``, in this order."""
        match event:
            case Received(message=message):
                return self._received(message)
            case Disconnected():
                return self._disconnected()
            case SandboxHasJob(ref=ref, call=call):
                return self._sandbox_has_job(ref, call)
            case OutputWritten(ref=ref, end=end):
                return self._output_written(ref, end)
            case OutputDue(ref=ref):
                return self._pump(ref)
            case OutputSent(ref=ref, end=end):
                return self._output_sent(ref, end)
            case Ended(ref=ref, stream_bytes=end, is_uploading=is_uploading):
                return self._ended(ref, end, is_uploading=is_uploading)
            case CallEnded(ref=ref, call=call, stream_bytes=end, is_uploading=is_uploading):
                return self._call_ended(ref, call, end, is_uploading=is_uploading)
            case Uploaded(ref=ref, call=call):
                return self._uploaded(ref, call)
            case CannotRun(ref=ref, reason=reason):
                return self._cannot_run(ref, reason)
            case Ticked():
                return self._ticked()
            case PauseChanged(pause=pause, jobs=jobs):
                return self._pause_changed(pause, jobs)
            case Offered(capability=capability):
                self.offered = capability
                return self._announce()
            case Froze(ref=ref):
                return self._stands(ref, still=True)
            case Thawed(ref=ref):
                return self._stands(ref, still=False)
            case FrozenTooLong(ref=ref):
                return self._frozen_too_long(ref)
            case StopTaking():
                return self._stop_taking()
            case GiveUp():
                return self._give_up()
            case _:
                assert_never(event)

    def _received(self, message: ToWorker) -> list[AnyInstruction]:
        match message:
            case Welcome():
                return self._welcomed(message)
            case StartAttempt():
                return self._start(message)
            case StartCall():
                return self._start_call(message)
            case InterruptCall(call=call):
                return self._interrupt_call(_ref(message), call)
            case EndAttempt():
                return self._end_attempt(_ref(message))
            case StopAttempt(fenced=fenced):
                return self._stop(_ref(message), fenced=fenced)
            case OutputAck(offset=offset):
                return self._acked(_ref(message), offset)
            case OutputResend(offset=offset):
                return self._resend(_ref(message), offset)
            case Settled():
                return self._settled(_ref(message))
            case CallSettled(call=call):
                return self._call_settled(_ref(message), call)
            case _:  # Refused: the connection deals with it
                return []

    def _welcomed(self, welcome: Welcome) -> list[AnyInstruction]:
        self.is_connected = True
        self._protocol = welcome.protocol
        adopted = {_ref(end): end.offset for end in welcome.adopted}
        todo: list[AnyInstruction] = []
        for ref in list(self.attempts):
            attempt = self.attempts[ref]
            if ref not in adopted:
                todo += self._drop(ref)  # in ``stop``, or not live for another reason
            elif attempt.phase == Phase.HANDED_BACK:
                todo += [self._hand_back_message(ref, attempt), *self._drop(ref)]
            else:
                if attempt.started:
                    todo.append(Send(message=_started(ref, attempt)))
                attempt.forget_sent()
                todo += self._say_whether_it_stands(ref, attempt)
                todo += self._resend(ref, adopted[ref])
        if self.pause is not None:  # an older coordinator cannot be told of frozen jobs
            todo += self._treat_jobs()
        return todo

    def _disconnected(self) -> list[AnyInstruction]:
        self.is_connected = False
        todo: list[AnyInstruction] = []
        for ref, attempt in self.attempts.items():
            attempt.sent = attempt.acked
            attempt.forget_sent()
            todo += self._hold_or_release(ref, attempt)
        return todo

    def _start(self, start: StartAttempt) -> list[AnyInstruction]:
        ref = _ref(start)
        request = start.job.limits.request()
        known = self.attempts.get(ref)
        if known is not None:  # said twice
            is_told = known.started and known.phase in LIVE
            return [Send(message=_started(ref, known))] if is_told else []
        refusal = self._why_not(start, request)
        if refusal:
            return [Send(message=HandBack(job_id=ref.job_id, attempt=ref.attempt, message=refusal))]
        self.attempts[ref] = Attempt(
            request=request,
            phase=Phase.STARTING,
            is_session=start.session is not None,
            call=start.call,
            last_call=start.call,
            ended_call=start.call - 1,
        )
        return [Begin(start=start)]

    def _start_call(self, start: StartCall) -> list[AnyInstruction]:
        ref = _ref(start)
        attempt = self._open_session(ref)
        if attempt is None:
            return []
        if start.call > attempt.last_call:
            attempt.last_call = start.call
            return [BeginCall(start=start)]
        for report in attempt.call_reports:  # said twice: so is the answer
            if report.call == start.call:
                report.is_sent = False
                return self._pump(ref)
        is_told = attempt.started and attempt.ended_call < start.call == attempt.call
        return [Send(message=_started(ref, attempt))] if is_told else []

    def _interrupt_call(self, ref: AttemptRef, call: int) -> list[AnyInstruction]:
        attempt = self._open_session(ref)
        if attempt is None or not attempt.ended_call < call <= attempt.last_call:
            return []
        return [InterruptSandbox(ref=ref, call=call)]

    def _end_attempt(self, ref: AttemptRef) -> list[AnyInstruction]:
        attempt = self._open_session(ref)
        if attempt is None:
            return []
        attempt.is_closing = True
        todo: list[AnyInstruction] = [CloseSession(ref=ref)]
        if attempt.is_frozen:
            todo += self._thaw(ref, attempt)
        return todo + self._hold_or_release(ref, attempt)

    def _open_session(self, ref: AttemptRef) -> Attempt | None:
        """Return the attempt of a session that takes calls."""
        attempt = self.attempts.get(ref)
        if attempt is None or not attempt.is_session or attempt.phase not in LIVE:
            return None
        return None if attempt.stopping or attempt.is_closing else attempt

    def _why_not(self, start: StartAttempt, request: ResourceRequest) -> str:
        if self.is_stopping:
            return _STOPPING
        if self.pause is not None:
            return f"Paused by its lender: {self.pause.message}".strip()
        if not self.offered.takes_jobs_of(start.user, owner=self._owner):
            if self.offered.sandbox != "docker":
                return "This worker has no Docker and runs its own owner's jobs only."
            return "Its lender does not take this user's jobs."
        live = [attempt.request for attempt in self.attempts.values() if attempt.phase in LIVE]
        if len(live) >= self.capability.slots:
            return "The worker has no free slot."
        fits = (
            sum(taken.cores for taken in live) + request.cores <= self.capability.cores + 1e-9
            and sum(taken.memory_bytes for taken in live) + request.memory_bytes
            <= self.capability.memory_bytes
            and sum(taken.gpus for taken in live) + request.gpus <= len(self.capability.gpus)
        )
        return "" if fits else "The worker has too little free for this job."

    def _stop(self, ref: AttemptRef, *, fenced: bool) -> list[AnyInstruction]:
        attempt = self.attempts.get(ref)
        if attempt is None:
            return []
        if fenced or attempt.phase == Phase.HANDED_BACK:
            return self._drop(ref)
        if attempt.phase == Phase.FINISHED and attempt.is_uploading and not attempt.stopping:
            attempt.stopping = True  # nobody waits for the result any more
            return [DropResult(ref=ref)]
        if attempt.phase == Phase.FINISHED or attempt.stopping:
            return []  # the report is on its way
        attempt.stopping = True
        todo: list[AnyInstruction] = [StopSandbox(ref=ref, report=True)]
        if attempt.is_frozen:  # it goes on for a moment, so that its last word is heard
            todo += self._thaw(ref, attempt)
        return todo + self._hold_or_release(ref, attempt)

    def _sandbox_has_job(self, ref: AttemptRef, call: int) -> list[AnyInstruction]:
        attempt = self.attempts.get(ref)
        if attempt is None or attempt.phase not in LIVE:
            return []
        attempt.call = call
        attempt.phase = Phase.RUNNING
        attempt.started = True
        return [Send(message=_started(ref, attempt))] if self.is_connected else []

    def _output_written(self, ref: AttemptRef, end: int) -> list[AnyInstruction]:
        attempt = self.attempts.get(ref)
        if attempt is None:
            return []
        attempt.written = end
        return self._hold_or_release(ref, attempt)

    def _output_sent(self, ref: AttemptRef, end: int) -> list[AnyInstruction]:
        attempt = self.attempts.get(ref)
        if attempt is None or not self.is_connected:
            return []
        attempt.sent = max(attempt.sent, end)
        return self._pump(ref)

    def _pump(self, ref: AttemptRef) -> list[AnyInstruction]:
        """Send what the window allows; each report after the last byte before its end."""
        attempt = self.attempts.get(ref)
        if attempt is None or not self.is_connected or attempt.phase == Phase.HANDED_BACK:
            return []
        for report in attempt.call_reports:
            if report.is_uploading:
                break  # and none overtakes it
            if not report.is_sent and report.stream_bytes <= attempt.sent:
                report.is_sent = True
                attempt.ticks = 0
                return [SendCallReport(ref=ref, call=report.call), *self._pump(ref)]
        budget = WINDOW_BYTES - (attempt.sent - attempt.acked)
        if attempt.sent < attempt.written:
            if budget <= 0:
                return []
            return [SendOutput(ref=ref, start=attempt.sent, budget_bytes=budget)]
        is_uploading = attempt.is_uploading or any(r.is_uploading for r in attempt.call_reports)
        if attempt.phase == Phase.FINISHED and not attempt.report_sent and not is_uploading:
            attempt.report_sent = True
            attempt.ticks = 0
            return [SendReport(ref=ref)]
        return []

    def _acked(self, ref: AttemptRef, offset: int) -> list[AnyInstruction]:
        attempt = self.attempts.get(ref)
        if attempt is None or not attempt.acked < offset <= attempt.written:
            return []
        attempt.acked = offset
        attempt.sent = max(attempt.sent, offset)
        attempt.ticks = 0
        todo: list[AnyInstruction] = [Trim(ref=ref, offset=offset)]
        return todo + self._hold_or_release(ref, attempt) + self._pump(ref)

    def _resend(self, ref: AttemptRef, offset: int) -> list[AnyInstruction]:
        attempt = self.attempts.get(ref)
        if attempt is None or attempt.phase == Phase.HANDED_BACK:
            return []
        if attempt.phase == Phase.LOST:  # what was acknowledged is no longer here to be counted
            attempt.written = max(attempt.written, offset)
        if not attempt.acked <= offset <= attempt.written:
            # The stored end went back, or is past what was ever written: the streams are not
            # the same any more, and only another attempt can make a whole one.
            return self._hand_back(ref, "The stored output and this worker's do not meet.")
        todo: list[AnyInstruction] = []
        if offset > attempt.acked:
            todo.append(Trim(ref=ref, offset=offset))
        attempt.acked = attempt.sent = offset
        attempt.ticks = 0
        attempt.forget_sent()
        return todo + self._hold_or_release(ref, attempt) + self._pump(ref)

    def _ended(
        self, ref: AttemptRef, stream_bytes: int, *, is_uploading: bool
    ) -> list[AnyInstruction]:
        attempt = self.attempts.get(ref)
        if attempt is None or attempt.phase not in LIVE:
            return []
        attempt.phase = Phase.FINISHED
        attempt.is_uploading = is_uploading
        attempt.written = stream_bytes
        attempt.is_frozen = attempt.stands_still = False
        return [*self._say_whether_it_stands(ref, attempt), *self._pump(ref)]

    def _call_ended(
        self, ref: AttemptRef, call: int, stream_bytes: int, *, is_uploading: bool
    ) -> list[AnyInstruction]:
        attempt = self.attempts.get(ref)
        if attempt is None or attempt.phase not in LIVE:
            return []
        attempt.ended_call = call
        attempt.written = stream_bytes
        attempt.call_reports.append(
            CallReport(call=call, stream_bytes=stream_bytes, is_uploading=is_uploading)
        )
        return self._pump(ref)

    def _uploaded(self, ref: AttemptRef, call: int | None) -> list[AnyInstruction]:
        attempt = self.attempts.get(ref)
        if attempt is None:
            return []
        if call is None:
            attempt.is_uploading = False
        for report in attempt.call_reports:
            report.is_uploading &= report.call != call
        return self._pump(ref)

    def _call_settled(self, ref: AttemptRef, call: int) -> list[AnyInstruction]:
        attempt = self.attempts.get(ref)
        if attempt is None or all(report.call != call for report in attempt.call_reports):
            return []
        attempt.call_reports = [r for r in attempt.call_reports if r.call != call]
        attempt.ticks = 0
        todo: list[AnyInstruction] = [ForgetCall(ref=ref, call=call)]
        if self.is_stopping and attempt.is_idle:
            todo += self._hand_back(ref, _STOPPING)
        elif attempt.phase == Phase.LOST and not attempt.call_reports:
            todo += self._hand_back(ref, _RESTARTED)
        return todo

    # ---- pauses

    def _pause_changed(self, pause: Pause | None, jobs: OnPause) -> list[AnyInstruction]:
        was = self.capability
        self.pause, self._jobs = pause, jobs
        todo = self._announce() if self.capability != was else []
        return todo + self._treat_jobs()

    def _announce(self) -> list[AnyInstruction]:
        if not self.is_connected:
            return []  # the next hello says so
        return [Send(message=CapabilityChanged(capability=self.capability))]

    def _treat_jobs(self) -> list[AnyInstruction]:
        """Do with every job what the pause says, or its end."""
        todo: list[AnyInstruction] = []
        for ref, attempt in list(self.attempts.items()):
            if attempt.phase in LIVE:
                todo += self._treat(ref, attempt)
        return todo

    def _treat(self, ref: AttemptRef, attempt: Attempt) -> list[AnyInstruction]:
        jobs = OnPause.FINISH if self.pause is None else self._jobs
        if attempt.stopping or attempt.is_closing:
            return []  # it is over in a moment
        if jobs is OnPause.FINISH:
            return self._thaw(ref, attempt)
        assert self.pause is not None
        is_told = self._protocol >= FREEZING_PROTOCOL or not self._protocol
        if attempt.phase is Phase.STARTING:  # nothing is lost
            return self._hand_back(ref, f"Paused by its lender: {self.pause.message}")
        if attempt.is_session:
            return self._freeze(ref, attempt) if is_told else []
        if jobs is OnPause.HAND_BACK or not is_told:
            return self._hand_back(ref, f"Paused by its lender: {self.pause.message}")
        return self._freeze(ref, attempt)

    def _freeze(self, ref: AttemptRef, attempt: Attempt) -> list[AnyInstruction]:
        if attempt.is_frozen:  # for another reason now
            return self._say_whether_it_stands(ref, attempt)
        attempt.is_frozen = True
        return [FreezeSandbox(ref=ref)]

    def _thaw(self, ref: AttemptRef, attempt: Attempt) -> list[AnyInstruction]:
        if not attempt.is_frozen:
            return []
        attempt.is_frozen = False
        return [ThawSandbox(ref=ref)]

    def _stands(self, ref: AttemptRef, *, still: bool) -> list[AnyInstruction]:
        attempt = self.attempts.get(ref)
        if attempt is None or attempt.phase not in LIVE:
            return []
        attempt.stands_still = still
        return self._say_whether_it_stands(ref, attempt)

    def _say_whether_it_stands(self, ref: AttemptRef, attempt: Attempt) -> list[AnyInstruction]:
        if not self.is_connected or self._protocol < FREEZING_PROTOCOL:
            return []
        if not attempt.stands_still and not attempt.is_known_to_stand:
            return []
        attempt.is_known_to_stand = attempt.stands_still
        pause = self.pause or Pause(reason=PauseReason.ASKED)
        return [
            Send(
                message=AttemptFrozen(
                    job_id=ref.job_id,
                    attempt=ref.attempt,
                    frozen=attempt.stands_still,
                    reason=pause.reason,
                    message=pause.message if attempt.stands_still else "",
                )
            )
        ]

    def _frozen_too_long(self, ref: AttemptRef) -> list[AnyInstruction]:
        attempt = self.attempts.get(ref)
        if attempt is None or attempt.phase not in LIVE or not attempt.is_frozen:
            return []
        why = self.pause.message if self.pause is not None else ""
        return self._hand_back(ref, f"Paused by its lender: {why}".strip())

    # ---- the end

    def _stop_taking(self) -> list[AnyInstruction]:
        """Take nothing more. A session that waits for its next call waits in vain."""
        self.is_stopping = True
        todo: list[AnyInstruction] = []
        for ref, attempt in list(self.attempts.items()):
            if attempt.is_idle or attempt.is_frozen:
                todo += self._hand_back(ref, _STOPPING)
        return todo

    def _cannot_run(self, ref: AttemptRef, reason: str) -> list[AnyInstruction]:
        attempt = self.attempts.get(ref)
        if attempt is None or attempt.phase not in LIVE:
            return []
        return self._hand_back(ref, reason)

    def _settled(self, ref: AttemptRef) -> list[AnyInstruction]:
        attempt = self.attempts.get(ref)
        if attempt is None or attempt.phase != Phase.FINISHED:
            return []
        return self._drop(ref)

    def _ticked(self) -> list[AnyInstruction]:
        """Say again what was not answered. One connection loses nothing, so this is for a
        coordinator that was too busy, or lost its memory without losing the connection."""
        todo: list[AnyInstruction] = []
        for ref, attempt in list(self.attempts.items()):
            is_handed_back = attempt.phase == Phase.HANDED_BACK
            is_waiting = attempt.sent > attempt.acked or attempt.has_sent_report or is_handed_back
            if not self.is_connected or not is_waiting:
                continue
            attempt.ticks += 1
            if attempt.ticks < STALE_TICKS:
                continue
            if is_handed_back:  # the connection has carried it by now
                todo += self._drop(ref)
            else:
                attempt.ticks = 0
                attempt.sent = attempt.acked
                attempt.forget_sent()
                todo += self._pump(ref)
        return todo

    def _give_up(self) -> list[AnyInstruction]:
        self.is_stopping = True
        todo: list[AnyInstruction] = []
        for ref, attempt in list(self.attempts.items()):
            if attempt.phase in LIVE:
                todo += self._hand_back(ref, _STOPPING)
        return todo

    def _hand_back(self, ref: AttemptRef, reason: str) -> list[AnyInstruction]:
        attempt = self.attempts[ref]
        todo: list[AnyInstruction] = []
        if attempt.phase in LIVE:
            todo.append(StopSandbox(ref=ref, report=False))
        attempt.phase = Phase.HANDED_BACK
        attempt.reason = reason
        attempt.is_frozen = attempt.stands_still = False
        attempt.ticks = 0
        if self.is_connected:
            todo.append(self._hand_back_message(ref, attempt))
        return todo

    @staticmethod
    def _hand_back_message(ref: AttemptRef, attempt: Attempt) -> Send:
        return Send(
            message=HandBack(job_id=ref.job_id, attempt=ref.attempt, message=attempt.reason)
        )

    def _drop(self, ref: AttemptRef) -> list[AnyInstruction]:
        attempt = self.attempts.pop(ref)
        todo: list[AnyInstruction] = []
        if attempt.phase in LIVE:
            todo.append(StopSandbox(ref=ref, report=False))
        return [*todo, Forget(ref=ref)]

    def _hold_or_release(self, ref: AttemptRef, attempt: Attempt) -> list[AnyInstruction]:
        """Read the sandbox only while the coordinator keeps up, or is away: then the disk does.

        A sandbox that is being stopped is always read, so that its last word arrives.
        """
        is_behind = attempt.written - attempt.acked > WINDOW_BYTES
        is_ending = attempt.stopping or attempt.is_closing
        hold = self.is_connected and is_behind and attempt.phase in LIVE and not is_ending
        if hold == attempt.is_held:
            return []
        attempt.is_held = hold
        return [HoldOutput(ref=ref) if hold else ReleaseOutput(ref=ref)]


_Naming = (
    StartAttempt
    | StartCall
    | InterruptCall
    | EndAttempt
    | StopAttempt
    | OutputAck
    | OutputResend
    | Settled
    | CallSettled
    | StoredEnd
)


def _ref(message: _Naming) -> AttemptRef:
    return AttemptRef(job_id=message.job_id, attempt=message.attempt)


def _started(ref: AttemptRef, attempt: Attempt) -> AttemptStarted:
    return AttemptStarted(job_id=ref.job_id, attempt=ref.attempt, call=attempt.call)
