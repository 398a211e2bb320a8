"""Sessions in the worker's machine: one attempt, many calls, each reported until it is settled."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from gridx.protocol import (
    AttemptRef,
    AttemptStarted,
    CallSettled,
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
    Welcome,
)
from gridx.resources import GIB, MIB, Capability
from gridx.schemas import CellSpec, JobRequest, SessionSpec
from worker.machine import (
    AnyInstruction,
    BeginCall,
    CallEnded,
    CallReport,
    CloseSession,
    Disconnected,
    Ended,
    Forget,
    ForgetCall,
    GiveUp,
    InterruptSandbox,
    Machine,
    OutputDue,
    OutputSent,
    OutputWritten,
    Phase,
    Received,
    SandboxHasJob,
    Send,
    SendCallReport,
    SendOutput,
    SendReport,
    StopSandbox,
    StopTaking,
    Ticked,
    Trim,
)

JOB = "job_" + "0" * 32
REF = AttemptRef(job_id=JOB, attempt=1)
CAPABILITY = Capability(cores=2, memory_bytes=4 * GIB, slots=1, sandbox="docker")
WELCOME = Welcome(
    protocol=2, http_url="http://127.0.0.1:1", heartbeat_s=5, max_frame_bytes=16 * MIB
)
OPEN = Received(
    message=StartAttempt(
        job_id=JOB,
        attempt=1,
        user="anna",
        job=JobRequest(code="1"),
        cell=CellSpec(python="3.11"),
        session=SessionSpec(name="s"),
    )
)


def welcome(*offsets: int) -> Received:
    """Return a Welcome that adopts the session at this stored end, or does not know it."""
    adopted = tuple(StoredEnd(job_id=JOB, attempt=1, offset=offset) for offset in offsets)
    return Received(message=msgspec.structs.replace(WELCOME, adopted=adopted))


def start_call(call: int) -> Received:
    return Received(
        message=StartCall(
            job_id=JOB,
            attempt=1,
            call=call,
            code="2",
            timeout_s=5,
            cell=CellSpec(python="3.11"),
        )
    )


def settle_call(call: int) -> Received:
    return Received(message=CallSettled(job_id=JOB, attempt=1, call=call))


def started(call: int) -> Send:
    return Send(message=AttemptStarted(job_id=JOB, attempt=1, call=call))


def opened() -> Machine:
    """Return a machine whose session runs call 0."""
    machine = Machine(owner="lender", capability=CAPABILITY)
    machine.handle(welcome())
    machine.handle(OPEN)
    machine.handle(SandboxHasJob(ref=REF, call=0))
    return machine


def idle() -> Machine:
    """Return a machine whose session has had call 0."""
    machine = opened()
    machine.handle(CallEnded(ref=REF, call=0, stream_bytes=0))
    machine.handle(settle_call(0))
    return machine


# ---------------------------------------------------------------- calls


def test_a_call_that_ends_is_reported_and_the_session_lives_on() -> None:
    machine = opened()
    reported = machine.handle(CallEnded(ref=REF, call=0, stream_bytes=0))
    assert reported == [SendCallReport(ref=REF, call=0)]
    assert machine.handle(settle_call(0)) == [ForgetCall(ref=REF, call=0)]
    assert machine.attempts[REF].phase is Phase.RUNNING


def test_the_next_call_begins_and_is_said_when_its_sandbox_has_it() -> None:
    machine = idle()
    message = start_call(1)
    assert machine.handle(message) == [BeginCall(start=message.message)]  # type: ignore[arg-type]
    assert machine.handle(SandboxHasJob(ref=REF, call=1)) == [started(1)]


def test_a_call_that_is_started_twice_begins_once() -> None:
    machine = idle()
    machine.handle(start_call(1))
    assert machine.handle(start_call(1)) == []
    machine.handle(SandboxHasJob(ref=REF, call=1))
    assert machine.handle(start_call(1)) == [started(1)]


def test_a_call_that_is_started_again_after_its_end_is_reported_again() -> None:
    machine = idle()
    machine.handle(start_call(1))
    machine.handle(SandboxHasJob(ref=REF, call=1))
    machine.handle(CallEnded(ref=REF, call=1, stream_bytes=0))
    assert machine.handle(start_call(1)) == [SendCallReport(ref=REF, call=1)]
    machine.handle(settle_call(1))
    assert machine.handle(start_call(1)) == []


def test_a_report_waits_for_the_output_before_it() -> None:
    machine = opened()
    machine.handle(OutputWritten(ref=REF, end=100))
    [send] = machine.handle(CallEnded(ref=REF, call=0, stream_bytes=100))
    assert isinstance(send, SendOutput)
    assert machine.handle(OutputSent(ref=REF, end=100)) == [SendCallReport(ref=REF, call=0)]


def test_a_session_holds_its_slot_between_its_calls() -> None:
    machine = idle()
    other = msgspec.structs.replace(OPEN.message, job_id="job_" + "1" * 32)
    [answer] = machine.handle(Received(message=other))
    assert isinstance(answer, Send) and isinstance(answer.message, HandBack)


@pytest.mark.parametrize("call", [0, 2])
def test_an_interrupt_of_another_call_is_ignored(call: int) -> None:
    machine = idle()
    machine.handle(start_call(1))
    assert machine.handle(Received(message=InterruptCall(job_id=JOB, attempt=1, call=call))) == []


def test_an_interrupt_reaches_a_call_that_waits_as_well_as_one_that_runs() -> None:
    machine = idle()
    machine.handle(start_call(1))
    interrupt = Received(message=InterruptCall(job_id=JOB, attempt=1, call=1))
    assert machine.handle(interrupt) == [InterruptSandbox(ref=REF, call=1)]
    machine.handle(SandboxHasJob(ref=REF, call=1))
    assert machine.handle(interrupt) == [InterruptSandbox(ref=REF, call=1)]


def test_calls_of_a_job_that_is_no_session_are_ignored() -> None:
    machine = Machine(owner="lender", capability=CAPABILITY)
    machine.handle(welcome())
    machine.handle(
        Received(message=StartAttempt(job_id=JOB, attempt=1, user="anna", job=JobRequest(code="1")))
    )
    machine.handle(SandboxHasJob(ref=REF))
    for message in (
        start_call(1),
        Received(message=InterruptCall(job_id=JOB, attempt=1, call=0)),
        Received(message=EndAttempt(job_id=JOB, attempt=1)),
    ):
        assert machine.handle(message) == []


# ---------------------------------------------------------------- the end


def test_a_session_is_closed_once_and_takes_no_more_calls() -> None:
    machine = idle()
    close = Received(message=EndAttempt(job_id=JOB, attempt=1))
    assert machine.handle(close) == [CloseSession(ref=REF)]
    assert machine.handle(close) == []
    assert machine.handle(start_call(1)) == []
    assert machine.handle(Ended(ref=REF, stream_bytes=0)) == [SendReport(ref=REF)]
    assert machine.handle(Received(message=Settled(job_id=JOB, attempt=1))) == [Forget(ref=REF)]


def test_the_reports_of_calls_go_before_that_of_the_session() -> None:
    machine = opened()
    machine.handle(Disconnected())
    machine.handle(CallEnded(ref=REF, call=0, stream_bytes=0))
    machine.handle(Ended(ref=REF, stream_bytes=0))
    assert machine.handle(welcome(0)) == [
        started(0),
        SendCallReport(ref=REF, call=0),
        SendReport(ref=REF),
    ]


def test_a_session_can_be_stopped_like_any_attempt() -> None:
    machine = idle()
    stop = Received(message=StopAttempt(job_id=JOB, attempt=1))
    assert machine.handle(stop) == [StopSandbox(ref=REF, report=True)]
    assert machine.handle(start_call(1)) == []


def test_a_stopping_worker_hands_an_idle_session_back_at_once() -> None:
    machine = idle()
    todo = machine.handle(StopTaking())
    assert [type(one) for one in todo] == [StopSandbox, Send]
    assert machine.attempts[REF].phase is Phase.HANDED_BACK


def test_a_stopping_worker_lets_a_running_call_end_and_be_settled() -> None:
    machine = opened()
    assert machine.handle(StopTaking()) == []
    machine.handle(CallEnded(ref=REF, call=0, stream_bytes=0))
    todo = machine.handle(settle_call(0))
    assert [type(one) for one in todo] == [ForgetCall, StopSandbox, Send]


def test_a_worker_that_gives_up_hands_back_whatever_runs() -> None:
    machine = opened()
    assert [type(one) for one in machine.handle(GiveUp())] == [StopSandbox, Send]


# ---------------------------------------------------------------- the wire


def test_an_adopted_session_says_where_it_stands_and_reports_again() -> None:
    machine = idle()
    machine.handle(start_call(1))
    machine.handle(SandboxHasJob(ref=REF, call=1))
    machine.handle(CallEnded(ref=REF, call=1, stream_bytes=0))
    machine.handle(Disconnected())
    assert machine.handle(welcome(0)) == [started(1), SendCallReport(ref=REF, call=1)]


def test_a_report_that_is_not_answered_is_sent_again() -> None:
    machine = opened()
    machine.handle(CallEnded(ref=REF, call=0, stream_bytes=0))
    said = [instruction for _ in range(3) for instruction in machine.handle(Ticked())]
    assert said == [SendCallReport(ref=REF, call=0)]


def restored(*, is_finished: bool) -> Machine:
    """Return the machine of a new run that finds call 0 unsettled, with 300 bytes of output."""
    machine = Machine(owner="lender", capability=CAPABILITY)
    calls = [CallReport(call=0, stream_bytes=250)]
    machine.restore(REF, start=100, end=300, calls=calls, is_finished=is_finished)
    return machine


def test_a_finished_session_is_restored_with_the_reports_of_its_calls() -> None:
    machine = restored(is_finished=True)
    assert machine.handle(welcome(300)) == [
        started(0),
        Trim(ref=REF, offset=300),
        SendCallReport(ref=REF, call=0),
        SendReport(ref=REF),
    ]


@pytest.mark.parametrize("stored", [300, 900])
def test_a_session_that_died_reports_its_calls_and_is_then_handed_back(stored: int) -> None:
    machine = restored(is_finished=False)
    assert SendCallReport(ref=REF, call=0) in machine.handle(welcome(stored))
    assert machine.running() == (REF,)
    forgotten, said = machine.handle(settle_call(0))
    assert forgotten == ForgetCall(ref=REF, call=0)
    assert isinstance(said, Send) and isinstance(said.message, HandBack)


# ---------------------------------------------------------------- any order of events


class AnyOrder(RuleBasedStateMachine):
    """A session, a coordinator, and a wire that is cut at any moment.

    The coordinator starts a call only when the one before is settled, repeats itself after a
    reconnect, and settles a report only when it has the output before it. Whatever happens, each
    call begins once in the sandbox and is settled once, in order.
    """

    @initialize()
    def begin(self) -> None:
        self.machine = Machine(owner="lender", capability=CAPABILITY)
        self.written = self.stored = 0
        self.running: int | None = 0  # in the sandbox
        self.asked = 0
        self.ends: dict[int, int] = {}
        self.settled: list[int] = []
        self.connected = False
        self.to_coordinator: list[tuple[str, int, int]] = []
        self.connect()
        self.do(self.machine.handle(OPEN))
        self.do(self.machine.handle(SandboxHasJob(ref=REF, call=0)))

    def do(self, todo: list[AnyInstruction]) -> None:
        queue = list(todo)
        while queue:
            match queue.pop(0):
                case SendOutput(start=begin, budget_bytes=budget):
                    end = min(self.written, begin + budget)
                    self.to_coordinator.append(("output", begin, end))
                    queue += self.machine.handle(OutputSent(ref=REF, end=end))
                case SendCallReport(call=call):
                    self.to_coordinator.append(("report", call, self.ends[call]))
                case BeginCall(start=start):
                    assert self.running is None and start.call == self.asked
                    self.running = start.call
                    queue += self.machine.handle(SandboxHasJob(ref=REF, call=start.call))
                case StopSandbox():
                    raise AssertionError("a healthy session was stopped")
                case _:
                    pass

    @precondition(lambda self: self.running is not None)
    @rule(size=st.integers(1, 3 * MIB))
    def write(self, size: int) -> None:
        self.written += size
        self.do(self.machine.handle(OutputWritten(ref=REF, end=self.written)))

    @rule()
    def due(self) -> None:
        self.do(self.machine.handle(OutputDue(ref=REF)))

    @rule()
    def tick(self) -> None:
        self.do(self.machine.handle(Ticked()))

    @precondition(lambda self: self.running is not None)
    @rule()
    def end(self) -> None:
        assert self.running is not None
        self.ends[self.running] = self.written
        call, self.running = self.running, None
        self.do(self.machine.handle(CallEnded(ref=REF, call=call, stream_bytes=self.written)))

    def connect(self) -> None:
        self.connected = True
        self.do(self.machine.handle(welcome(*([self.stored] if self.machine.held() else []))))
        if self.asked and self.asked not in self.settled:
            self.do(self.machine.handle(start_call(self.asked)))

    @precondition(lambda self: self.connected)
    @rule()
    def cut(self) -> None:
        self.connected = False
        self.to_coordinator.clear()
        self.do(self.machine.handle(Disconnected()))

    @precondition(lambda self: not self.connected)
    @rule()
    def reconnect(self) -> None:
        self.connect()

    @precondition(lambda self: self.connected and self.asked in self.settled)
    @rule()
    def ask(self) -> None:
        self.asked += 1
        self.do(self.machine.handle(start_call(self.asked)))

    @precondition(lambda self: self.to_coordinator)
    @rule()
    def arrives(self) -> None:
        kind, first, end = self.to_coordinator.pop(0)
        if kind == "output" and first <= self.stored:
            self.stored = max(self.stored, end)
            ack = OutputAck(job_id=JOB, attempt=1, offset=self.stored)
            self.do(self.machine.handle(Received(message=ack)))
        elif kind == "report" and self.stored >= end:
            if first not in self.settled:
                self.settled.append(first)
            self.do(self.machine.handle(settle_call(first)))
        else:
            resend = OutputResend(job_id=JOB, attempt=1, offset=self.stored)
            self.do(self.machine.handle(Received(message=resend)))

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        if self.running is not None:
            self.end()
        if not self.connected:
            self.connect()
        for _ in range(200):
            if self.asked in self.settled:
                break
            if self.to_coordinator:
                self.arrives()
            else:
                self.due()
                self.tick()
        assert self.settled == list(range(self.asked + 1))


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
