"""The worker's rules, one by one and in any order."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gridx.events import Stream, encode_event
from gridx.protocol import (
    AttemptRef,
    AttemptStarted,
    HandBack,
    OutputAck,
    OutputResend,
    Settled,
    StartAttempt,
    StopAttempt,
    StoredEnd,
    Welcome,
)
from gridx.resources import GIB, MIB, Capability, Gpu
from gridx.schemas import JobRequest, Limits, SessionSpec
from worker.machine import (
    STALE_TICKS,
    WINDOW_BYTES,
    AnyInstruction,
    Begin,
    CallEnded,
    CannotRun,
    Disconnected,
    DropResult,
    Ended,
    Forget,
    GiveUp,
    HoldOutput,
    Machine,
    OutputDue,
    OutputSent,
    OutputWritten,
    Phase,
    Received,
    ReleaseOutput,
    SandboxHasJob,
    Send,
    SendCallReport,
    SendOutput,
    SendReport,
    StopSandbox,
    StopTaking,
    Ticked,
    Trim,
    Uploaded,
)

JOB = "job_" + "0" * 32
REF = AttemptRef(job_id=JOB, attempt=1)
CAPABILITY = Capability(cores=2, memory_bytes=4 * GIB, slots=4, sandbox="docker")
WELCOME = Welcome(
    protocol=1, http_url="http://127.0.0.1:1", heartbeat_s=5, max_frame_bytes=16 * MIB
)


def start(ref: AttemptRef = REF, *, user: str = "anna", **limits: float) -> StartAttempt:
    job = JobRequest(code="print(1)", limits=msgspec.convert(limits, Limits))
    return StartAttempt(job_id=ref.job_id, attempt=ref.attempt, user=user, job=job)


def welcome(*adopted: tuple[AttemptRef, int], stop: tuple[AttemptRef, ...] = ()) -> Received:
    ends = tuple(StoredEnd(job_id=r.job_id, attempt=r.attempt, offset=o) for r, o in adopted)
    return Received(message=msgspec.structs.replace(WELCOME, adopted=ends, stop=stop))


def connected(capability: Capability = CAPABILITY) -> Machine:
    machine = Machine(owner="lender", capability=capability)
    machine.handle(welcome())
    return machine


def running(machine: Machine | None = None, ref: AttemptRef = REF) -> Machine:
    machine = machine or connected()
    machine.handle(Received(message=start(ref)))
    machine.handle(SandboxHasJob(ref=ref))
    return machine


def ack(offset: int) -> Received:
    return Received(message=OutputAck(job_id=JOB, attempt=1, offset=offset))


def resend(offset: int) -> Received:
    return Received(message=OutputResend(job_id=JOB, attempt=1, offset=offset))


def stop(*, fenced: bool = False) -> Received:
    return Received(message=StopAttempt(job_id=JOB, attempt=1, fenced=fenced))


def hand_back(message: str, ref: AttemptRef = REF) -> Send:
    return Send(message=HandBack(job_id=ref.job_id, attempt=ref.attempt, message=message))


STARTED = Send(message=AttemptStarted(job_id=JOB, attempt=1))


# ---------------------------------------------------------------- starting


def test_a_start_begins_a_sandbox_and_is_said_when_the_sandbox_has_the_job() -> None:
    machine = connected()
    message = start()
    assert machine.handle(Received(message=message)) == [Begin(start=message)]
    assert machine.attempts[REF].phase is Phase.STARTING
    assert machine.handle(SandboxHasJob(ref=REF)) == [STARTED]
    assert machine.running() == (REF,)


def test_a_start_that_is_said_twice_begins_once() -> None:
    machine = connected()
    machine.handle(Received(message=start()))
    assert machine.handle(Received(message=start())) == []
    machine.handle(SandboxHasJob(ref=REF))
    assert machine.handle(Received(message=start())) == [STARTED]


@pytest.mark.parametrize(
    ("limits", "gpus"),
    [({"cpus": 3.0}, 0), ({"memory_bytes": 5 * GIB}, 0), ({"gpus": 1}, 0), ({"gpus": 2}, 1)],
)
def test_a_job_that_does_not_fit_is_handed_back(limits: dict[str, float], gpus: int) -> None:
    gpu = Gpu(uuid="GPU-1", name="card", memory_bytes=GIB)
    machine = connected(msgspec.structs.replace(CAPABILITY, gpus=(gpu,) * gpus))
    todo = machine.handle(Received(message=start(**limits)))
    assert todo == [hand_back("The worker has too little free for this job.")]
    assert machine.attempts == {}


def test_what_runs_is_counted_and_what_is_finished_is_not() -> None:
    machine = running()
    second = AttemptRef(job_id="job_" + "1" * 32, attempt=1)
    assert machine.handle(Received(message=start(second, cpus=1.5)))[0] == hand_back(
        "The worker has too little free for this job.", second
    )
    machine.handle(Ended(ref=REF, stream_bytes=0))
    assert isinstance(machine.handle(Received(message=start(second, cpus=1.5)))[0], Begin)


def test_no_more_attempts_than_slots() -> None:
    machine = connected(msgspec.structs.replace(CAPABILITY, slots=1))
    machine.handle(Received(message=start(cpus=0.1)))
    second = AttemptRef(job_id="job_" + "1" * 32, attempt=1)
    todo = machine.handle(Received(message=start(second, cpus=0.1)))
    assert todo == [hand_back("The worker has no free slot.", second)]


def test_a_process_worker_takes_its_owners_jobs_only() -> None:
    machine = connected(msgspec.structs.replace(CAPABILITY, sandbox="process"))
    assert isinstance(machine.handle(Received(message=start(user="stranger")))[0], Send)
    assert isinstance(machine.handle(Received(message=start(user="lender")))[0], Begin)


def test_an_attempt_without_a_sandbox_is_handed_back() -> None:
    machine = connected()
    machine.handle(Received(message=start()))
    todo = machine.handle(CannotRun(ref=REF, reason="The engine is gone."))
    assert hand_back("The engine is gone.") in todo
    assert machine.running() == ()
    assert machine.held() == (REF,)


def test_an_attempt_that_the_worker_fails_at_is_handed_back() -> None:
    machine = running()
    todo = machine.handle(CannotRun(ref=REF, reason="The disk is full."))
    assert todo == [StopSandbox(ref=REF, report=False), hand_back("The disk is full.")]


# ---------------------------------------------------------------- output


def test_due_output_is_sent_from_where_the_last_ended() -> None:
    machine = running()
    assert machine.handle(OutputWritten(ref=REF, end=100)) == []
    due = machine.handle(OutputDue(ref=REF))
    assert due == [SendOutput(ref=REF, start=0, budget_bytes=WINDOW_BYTES)]
    assert machine.handle(OutputSent(ref=REF, end=100)) == []
    machine.handle(OutputWritten(ref=REF, end=150))
    due = machine.handle(OutputDue(ref=REF))
    assert due == [SendOutput(ref=REF, start=100, budget_bytes=WINDOW_BYTES - 100)]


def test_an_acknowledgement_trims_and_makes_room() -> None:
    machine = running()
    machine.handle(OutputWritten(ref=REF, end=2 * WINDOW_BYTES))
    machine.handle(OutputDue(ref=REF))
    assert machine.handle(OutputSent(ref=REF, end=WINDOW_BYTES)) == []
    assert machine.handle(ack(1000)) == [
        Trim(ref=REF, offset=1000),
        SendOutput(ref=REF, start=WINDOW_BYTES, budget_bytes=1000),
    ]


@pytest.mark.parametrize("offset", [0, 500, 10_001])
def test_an_acknowledgement_of_the_past_or_of_the_future_changes_nothing(offset: int) -> None:
    machine = running()
    machine.handle(OutputWritten(ref=REF, end=10_000))
    machine.handle(OutputDue(ref=REF))
    machine.handle(OutputSent(ref=REF, end=10_000))
    machine.handle(ack(500))
    assert machine.handle(ack(offset)) == []


def test_a_resend_goes_back_to_the_stored_end() -> None:
    machine = running()
    machine.handle(OutputWritten(ref=REF, end=1000))
    machine.handle(OutputDue(ref=REF))
    machine.handle(OutputSent(ref=REF, end=1000))
    assert machine.handle(resend(400)) == [
        Trim(ref=REF, offset=400),
        SendOutput(ref=REF, start=400, budget_bytes=WINDOW_BYTES),
    ]


def test_a_stored_end_that_went_back_ends_the_attempt_here() -> None:
    machine = running()
    machine.handle(OutputWritten(ref=REF, end=1000))
    machine.handle(OutputDue(ref=REF))
    machine.handle(OutputSent(ref=REF, end=1000))
    machine.handle(ack(1000))
    todo = machine.handle(resend(400))
    assert todo[0] == StopSandbox(ref=REF, report=False)
    assert isinstance(todo[1], Send) and isinstance(todo[1].message, HandBack)


def test_a_sandbox_is_held_back_while_the_coordinator_is_behind() -> None:
    machine = running()
    assert machine.handle(OutputWritten(ref=REF, end=WINDOW_BYTES)) == []
    assert machine.handle(OutputWritten(ref=REF, end=WINDOW_BYTES + 1)) == [HoldOutput(ref=REF)]
    machine.handle(OutputDue(ref=REF))
    machine.handle(OutputSent(ref=REF, end=WINDOW_BYTES))
    assert ReleaseOutput(ref=REF) in machine.handle(ack(1))


def test_a_sandbox_is_read_while_the_coordinator_is_away() -> None:
    machine = running()
    machine.handle(OutputWritten(ref=REF, end=2 * WINDOW_BYTES))
    assert machine.handle(Disconnected()) == [ReleaseOutput(ref=REF)]
    assert machine.handle(OutputWritten(ref=REF, end=50 * WINDOW_BYTES)) == []
    assert HoldOutput(ref=REF) in machine.handle(welcome((REF, 0)))


def test_a_sandbox_that_is_being_stopped_is_read() -> None:
    machine = running()
    machine.handle(OutputWritten(ref=REF, end=2 * WINDOW_BYTES))
    assert machine.handle(stop()) == [StopSandbox(ref=REF, report=True), ReleaseOutput(ref=REF)]


# ---------------------------------------------------------------- the end


def test_the_report_follows_the_last_byte() -> None:
    machine = running()
    machine.handle(OutputWritten(ref=REF, end=10))
    assert machine.handle(Ended(ref=REF, stream_bytes=10)) == [
        SendOutput(ref=REF, start=0, budget_bytes=WINDOW_BYTES)
    ]
    assert machine.handle(OutputSent(ref=REF, end=10)) == [SendReport(ref=REF)]
    assert machine.handle(OutputSent(ref=REF, end=10)) == []


def test_a_settled_attempt_is_forgotten() -> None:
    machine = running()
    machine.handle(Ended(ref=REF, stream_bytes=0))
    settled = Received(message=Settled(job_id=JOB, attempt=1))
    assert machine.handle(settled) == [Forget(ref=REF)]
    assert machine.handle(settled) == []
    assert machine.held() == ()


def test_settled_for_an_attempt_that_runs_is_ignored() -> None:
    machine = running()
    assert machine.handle(Received(message=Settled(job_id=JOB, attempt=1))) == []
    assert machine.running() == (REF,)


def test_a_report_is_repeated_when_more_of_the_stream_is_asked_for() -> None:
    machine = running()
    machine.handle(OutputWritten(ref=REF, end=10))
    machine.handle(Ended(ref=REF, stream_bytes=10))
    machine.handle(OutputSent(ref=REF, end=10))
    assert isinstance(machine.handle(resend(0))[-1], SendOutput)
    assert machine.handle(OutputSent(ref=REF, end=10)) == [SendReport(ref=REF)]


def test_a_report_without_an_answer_is_repeated_after_some_heartbeats() -> None:
    machine = running()
    machine.handle(Ended(ref=REF, stream_bytes=0))
    for _ in range(STALE_TICKS - 1):
        assert machine.handle(Ticked()) == []
    assert machine.handle(Ticked()) == [SendReport(ref=REF)]


def test_output_without_an_answer_is_repeated_after_some_heartbeats() -> None:
    machine = running()
    machine.handle(OutputWritten(ref=REF, end=10))
    machine.handle(OutputDue(ref=REF))
    machine.handle(OutputSent(ref=REF, end=10))
    todo = [instruction for _ in range(STALE_TICKS) for instruction in machine.handle(Ticked())]
    assert todo == [SendOutput(ref=REF, start=0, budget_bytes=WINDOW_BYTES)]


def test_a_cancelled_attempt_is_stopped_once_and_reported() -> None:
    machine = running()
    assert machine.handle(stop()) == [StopSandbox(ref=REF, report=True)]
    assert machine.handle(stop()) == []
    assert machine.handle(Ended(ref=REF, stream_bytes=0)) == [SendReport(ref=REF)]


def test_an_attempt_that_is_cancelled_before_it_has_a_sandbox_is_reported() -> None:
    machine = connected()
    machine.handle(Received(message=start()))
    assert machine.handle(stop()) == [StopSandbox(ref=REF, report=True)]
    assert machine.handle(Ended(ref=REF, stream_bytes=0)) == [SendReport(ref=REF)]


def test_a_fenced_attempt_is_killed_and_forgotten() -> None:
    machine = running()
    assert machine.handle(stop(fenced=True)) == [
        StopSandbox(ref=REF, report=False),
        Forget(ref=REF),
    ]
    for event in (
        OutputWritten(ref=REF, end=5),
        OutputDue(ref=REF),
        Ended(ref=REF, stream_bytes=5),
    ):
        assert machine.handle(event) == []


def test_messages_about_an_unknown_attempt_are_ignored() -> None:
    machine = connected()
    for event in (ack(5), resend(5), stop(), stop(fenced=True)):
        assert machine.handle(event) == []


# ---------------------------------------------------------------- connections


def test_nothing_is_sent_while_disconnected() -> None:
    machine = running()
    machine.handle(Disconnected())
    machine.handle(OutputWritten(ref=REF, end=10))
    assert machine.handle(OutputDue(ref=REF)) == []
    assert machine.handle(Ended(ref=REF, stream_bytes=10)) == []
    assert machine.handle(Ticked()) == []


def test_an_adopted_attempt_goes_on_from_the_stored_end() -> None:
    machine = running()
    machine.handle(OutputWritten(ref=REF, end=100))
    machine.handle(Disconnected())
    assert machine.handle(welcome((REF, 40))) == [
        STARTED,
        Trim(ref=REF, offset=40),
        SendOutput(ref=REF, start=40, budget_bytes=WINDOW_BYTES),
    ]


def test_a_finished_attempt_is_reported_on_the_next_connection() -> None:
    machine = running()
    machine.handle(Disconnected())
    machine.handle(Ended(ref=REF, stream_bytes=0))
    assert SendReport(ref=REF) in machine.handle(welcome((REF, 0)))


@pytest.mark.parametrize("named", [True, False])
def test_an_attempt_that_is_not_adopted_is_dropped(named: bool) -> None:
    machine = running()
    machine.handle(Disconnected())
    assert machine.handle(welcome(stop=(REF,) if named else ())) == [
        StopSandbox(ref=REF, report=False),
        Forget(ref=REF),
    ]


def test_a_hand_back_is_repeated_on_the_next_connection_and_then_forgotten() -> None:
    machine = connected()
    machine.handle(Received(message=start()))
    machine.handle(CannotRun(ref=REF, reason="No."))
    machine.handle(Disconnected())
    assert machine.held() == (REF,)
    assert machine.handle(welcome((REF, 0))) == [hand_back("No."), Forget(ref=REF)]


def test_a_hand_back_that_a_connection_has_carried_is_forgotten() -> None:
    machine = connected()
    machine.handle(Received(message=start()))
    machine.handle(CannotRun(ref=REF, reason="No."))
    todo = [instruction for _ in range(STALE_TICKS) for instruction in machine.handle(Ticked())]
    assert todo == [Forget(ref=REF)]


# ---------------------------------------------------------------- stopping, and coming back


def test_a_worker_that_stops_takes_nothing_and_hands_back_what_does_not_end() -> None:
    machine = running()
    assert machine.handle(StopTaking()) == []
    second = AttemptRef(job_id="job_" + "1" * 32, attempt=1)
    assert machine.handle(Received(message=start(second))) == [
        hand_back("The worker is stopping.", second)
    ]
    assert machine.live_count() == 1
    assert machine.handle(GiveUp()) == [
        StopSandbox(ref=REF, report=False),
        hand_back("The worker is stopping."),
    ]
    assert machine.live_count() == machine.unsettled_count() == 0


def test_a_finished_attempt_waits_for_its_answer_when_the_worker_stops() -> None:
    machine = running()
    machine.handle(Ended(ref=REF, stream_bytes=0))
    assert machine.handle(GiveUp()) == []
    assert machine.unsettled_count() == 1


def test_a_restarted_worker_reports_what_it_finished_and_hands_back_what_died() -> None:
    machine = Machine(owner="lender", capability=CAPABILITY)
    lost = AttemptRef(job_id="job_" + "1" * 32, attempt=3)
    machine.restore(REF, start=100, end=300)
    machine.restore_lost(lost)
    assert set(machine.held()) == {REF, lost}
    assert machine.handle(welcome((REF, 200), (lost, 0))) == [
        STARTED,
        Trim(ref=REF, offset=200),
        SendOutput(ref=REF, start=200, budget_bytes=WINDOW_BYTES),
        hand_back("The worker was restarted while the job ran.", lost),
        Forget(ref=lost),
    ]


# ---------------------------------------------------------------- any order of events


class AnyOrder(RuleBasedStateMachine):
    """One attempt, a coordinator, and a wire that is cut at any moment.

    The coordinator has the guards of the real one: contiguous appends, a report accepted only
    with the whole stream. Whatever happens, its bytes are a prefix of the sandbox's, and in the
    end they are equal and the report is settled once.
    """

    @initialize()
    def begin(self) -> None:
        self.machine = Machine(owner="lender", capability=CAPABILITY)
        self.written = b""
        self.stored = b""
        self.trimmed = 0
        self.total: int | None = None
        self.settled = 0
        self.forgotten = False
        self.connected = False
        self.to_coordinator: list[tuple[str, int, bytes]] = []
        self.to_worker: list[Received] = []
        self.connect()
        self.do(self.machine.handle(Received(message=start())))
        self.do(self.machine.handle(SandboxHasJob(ref=REF)))

    # -- the daemon

    def do(self, todo: list[AnyInstruction]) -> None:
        queue = list(todo)
        while queue:
            instruction = queue.pop(0)
            match instruction:
                case SendOutput(start=begin, budget_bytes=budget):
                    assert begin >= self.trimmed
                    end = begin
                    while end < len(self.written):
                        size = 4 + int.from_bytes(self.written[end : end + 4], "big")
                        if end > begin and end + size - begin > budget:
                            break
                        end += size
                    self.to_coordinator.append(("output", begin, self.written[begin:end]))
                    queue += self.machine.handle(OutputSent(ref=REF, end=end))
                case SendReport():
                    assert self.total is not None
                    self.to_coordinator.append(("report", self.total, b""))
                case Trim(offset=offset):
                    assert offset <= len(self.stored)
                    self.trimmed = max(self.trimmed, offset)
                case Forget():
                    assert self.settled
                    self.forgotten = True
                case StopSandbox():
                    raise AssertionError("a healthy attempt was stopped")
                case _:
                    pass

    @precondition(lambda self: self.total is None)
    @rule(size=st.integers(0, 200_000), count=st.integers(1, 8))
    def write(self, size: int, count: int) -> None:
        self.written += encode_event(Stream(name="stdout", text="x" * size)) * count
        self.do(self.machine.handle(OutputWritten(ref=REF, end=len(self.written))))

    @rule()
    def due(self) -> None:
        self.do(self.machine.handle(OutputDue(ref=REF)))

    @rule()
    def tick(self) -> None:
        self.do(self.machine.handle(Ticked()))

    @precondition(lambda self: self.total is None)
    @rule()
    def end(self) -> None:
        self.total = len(self.written)
        self.do(self.machine.handle(Ended(ref=REF, stream_bytes=self.total)))

    # -- the wire

    def connect(self) -> None:
        self.connected = True
        held = self.machine.held()
        adopted = [(ref, len(self.stored)) for ref in held if not self.settled]
        self.do(self.machine.handle(welcome(*adopted, stop=held if self.settled else ())))

    @precondition(lambda self: self.connected)
    @rule()
    def cut(self) -> None:
        self.connected = False
        self.to_coordinator.clear()
        self.to_worker.clear()
        self.do(self.machine.handle(Disconnected()))

    @precondition(lambda self: not self.connected)
    @rule()
    def reconnect(self) -> None:
        self.connect()

    @precondition(lambda self: self.to_worker)
    @rule(index=st.integers(0, 100))
    def answer_arrives(self, index: int) -> None:
        # In any order: an acknowledgement may overtake, or come late.
        self.do(self.machine.handle(self.to_worker.pop(index % len(self.to_worker))))

    # -- the coordinator

    @precondition(lambda self: self.to_coordinator)
    @rule()
    def arrives(self) -> None:
        kind, offset, data = self.to_coordinator.pop(0)
        if kind == "output":
            if offset > len(self.stored):
                self.to_worker.append(resend(len(self.stored)))
            else:
                self.stored += data[len(self.stored) - offset :]
                self.to_worker.append(ack(len(self.stored)))
        elif len(self.stored) < offset:
            self.to_worker.append(resend(len(self.stored)))
        else:
            self.settled += self.settled == 0
            self.to_worker.append(Received(message=Settled(job_id=JOB, attempt=1)))

    @precondition(lambda self: self.to_coordinator)
    @rule()
    def is_lost_in_a_crash(self) -> None:
        """The coordinator dies with what it has not stored, and the connection with it."""
        self.to_coordinator.pop(0)
        self.cut()

    # -- what always holds

    @invariant()
    def the_stored_bytes_are_a_prefix_of_the_written(self) -> None:
        assert self.written.startswith(self.stored)

    @invariant()
    def nothing_is_settled_without_the_whole_stream(self) -> None:
        assert not self.settled or self.stored == self.written

    @invariant()
    def no_more_than_the_window_is_unacknowledged_on_a_connection(self) -> None:
        attempt = self.machine.attempts.get(REF)
        if attempt is not None:
            assert attempt.acked <= attempt.sent <= attempt.written
            one_event_bytes = 200_100
            assert attempt.sent - attempt.acked <= WINDOW_BYTES + one_event_bytes

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        if self.total is None:
            self.end()
        if not self.connected:
            self.connect()
        for _ in range(2000):
            if self.forgotten:
                break
            if self.to_coordinator:
                self.arrives()
            elif self.to_worker:
                self.answer_arrives(0)
            else:
                self.tick()
        assert self.forgotten
        assert self.stored == self.written
        assert self.settled == 1


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrderOfEvents = AnyOrder.TestCase


# ---------------------------------------------------------------- large results


def uploading() -> Machine:
    machine = running()
    assert machine.handle(Ended(ref=REF, stream_bytes=0, is_uploading=True)) == []
    assert machine.live_count() == 0  # its sandbox is gone, its slot is free
    assert machine.unfinished_count() == 1
    return machine


def test_a_report_goes_when_the_blobs_of_its_result_have_gone() -> None:
    machine = uploading()
    for event in (OutputDue(ref=REF), ack(0), resend(0), Ticked()):
        assert SendReport(ref=REF) not in machine.handle(event)
    assert machine.handle(Uploaded(ref=REF)) == [SendReport(ref=REF)]
    assert machine.unfinished_count() == 0


def test_a_cut_during_the_upload_loses_nothing() -> None:
    machine = uploading()
    machine.handle(Disconnected())
    assert machine.handle(Uploaded(ref=REF)) == []
    assert SendReport(ref=REF) in machine.handle(welcome((REF, 0)))


def test_another_run_of_the_worker_uploads_before_it_reports() -> None:
    machine = Machine(owner="lender", capability=CAPABILITY)
    machine.restore(REF, start=0, end=0, is_uploading=True)
    assert SendReport(ref=REF) not in machine.handle(welcome((REF, 0)))
    assert machine.handle(Uploaded(ref=REF)) == [SendReport(ref=REF)]


def test_a_cancelled_job_does_not_upload_on() -> None:
    machine = uploading()
    assert machine.handle(stop()) == [DropResult(ref=REF)]
    assert machine.handle(stop()) == []
    assert machine.handle(Uploaded(ref=REF)) == [SendReport(ref=REF)]


def test_a_fenced_upload_is_forgotten() -> None:
    machine = uploading()
    assert machine.handle(stop(fenced=True)) == [Forget(ref=REF)]
    assert machine.handle(Uploaded(ref=REF)) == []


def test_the_reports_of_a_session_wait_for_its_calls_uploads() -> None:
    machine = connected()
    session = msgspec.structs.replace(start(), session=SessionSpec(name="s"))
    machine.handle(Received(message=session))
    machine.handle(SandboxHasJob(ref=REF))
    assert machine.handle(CallEnded(ref=REF, call=0, stream_bytes=0, is_uploading=True)) == []
    assert machine.handle(Ended(ref=REF, stream_bytes=0)) == []
    assert machine.handle(Uploaded(ref=REF, call=0)) == [
        SendCallReport(ref=REF, call=0),
        SendReport(ref=REF),
    ]


@given(st.lists(st.sampled_from(["end", "stop", "fence", "give up", "cut", "tick"]), max_size=8))
def test_no_order_of_endings_leaves_a_sandbox_without_an_instruction(order: list[str]) -> None:
    machine = running()
    alive = True
    for word in order:
        event = {
            "end": Ended(ref=REF, stream_bytes=0),
            "stop": stop(),
            "fence": stop(fenced=True),
            "give up": GiveUp(),
            "cut": Disconnected(),
            "tick": Ticked(),
        }[word]
        todo = machine.handle(event)
        alive = alive and word != "end" and not any(isinstance(i, StopSandbox) for i in todo)
        live = REF in machine.attempts and machine.attempts[REF].phase in (
            Phase.STARTING,
            Phase.RUNNING,
        )
        # A sandbox that nobody told to end belongs to an attempt that is live.
        assert live or not alive
