"""What a pause does to the jobs of a worker, and what each side is told."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridx.protocol import (
    AttemptFrozen,
    CapabilityChanged,
    EndAttempt,
    HandBack,
    StoredEnd,
)
from gridx.resources import Accepts, Pause, PauseReason
from gridx.schemas import SessionSpec
from tests.unit.worker.test_machine import (
    CAPABILITY,
    REF,
    WELCOME,
    connected,
    hand_back,
    running,
    start,
    stop,
)
from worker.lending.policy import OnPause
from worker.machine import (
    AnyEvent,
    CannotRun,
    CloseSession,
    Disconnected,
    Ended,
    FreezeSandbox,
    Froze,
    FrozenTooLong,
    Machine,
    Offered,
    PauseChanged,
    Received,
    SandboxHasJob,
    Send,
    SendReport,
    StopSandbox,
    StopTaking,
    Thawed,
    ThawSandbox,
)

ACTIVE = Pause(reason=PauseReason.ACTIVE, message="The owner is using the machine.")
HOT = Pause(reason=PauseReason.CPU_HOT, message="Its processor is too hot.")
PAUSED = msgspec.structs.replace(CAPABILITY, slots=0, pause=ACTIVE)
WHY = "Paused by its lender: The owner is using the machine."
SESSION = msgspec.structs.replace(start(), session=SessionSpec(name="s"))


def modern(machine: Machine | None = None) -> Machine:
    """Return a machine whose coordinator knows of jobs that stand still."""
    machine = machine or Machine(owner="lender", capability=CAPABILITY)
    machine.handle(Received(message=msgspec.structs.replace(WELCOME, protocol=3)))
    return machine


def pausing(jobs: OnPause, pause: Pause = ACTIVE) -> PauseChanged:
    return PauseChanged(pause=pause, jobs=jobs)


def session(machine: Machine) -> Machine:
    machine.handle(Received(message=SESSION))
    machine.handle(SandboxHasJob(ref=REF))
    return machine


def frozen(machine: Machine | None = None) -> Machine:
    machine = machine or running(modern())
    machine.handle(pausing(OnPause.FREEZE))
    machine.handle(Froze(ref=REF))
    return machine


def said(is_frozen: bool, pause: Pause = ACTIVE) -> Send:
    return Send(
        message=AttemptFrozen(
            job_id=REF.job_id,
            attempt=REF.attempt,
            frozen=is_frozen,
            reason=pause.reason,
            message=pause.message if is_frozen else "",
        )
    )


def changed(machine: Machine) -> Send:
    return Send(message=CapabilityChanged(capability=machine.capability))


def test_a_paused_worker_offers_no_slot_and_says_why() -> None:
    machine = modern()
    assert machine.handle(pausing(OnPause.FREEZE)) == [
        Send(message=CapabilityChanged(capability=PAUSED))
    ]
    assert machine.handle(pausing(OnPause.FREEZE)) == []  # said once
    assert machine.handle(PauseChanged(pause=None)) == [
        Send(message=CapabilityChanged(capability=CAPABILITY))
    ]


def test_a_worker_that_is_away_says_so_in_its_next_hello() -> None:
    machine = Machine(owner="lender", capability=CAPABILITY)
    assert machine.handle(pausing(OnPause.FREEZE)) == []
    assert machine.capability == PAUSED


def test_what_is_lent_may_change_during_a_pause_and_counts_after_it() -> None:
    machine = modern()
    machine.handle(pausing(OnPause.FREEZE))
    more = msgspec.structs.replace(CAPABILITY, cores=8)
    machine.handle(Offered(capability=more))
    assert (machine.capability.cores, machine.capability.slots) == (8, 0)
    machine.handle(PauseChanged(pause=None))
    assert machine.capability == more


def test_a_job_that_arrives_meanwhile_is_handed_back_with_the_reason() -> None:
    machine = modern()
    machine.handle(pausing(OnPause.FINISH))
    assert machine.handle(Received(message=start())) == [hand_back(WHY)]


@pytest.mark.parametrize("jobs", [OnPause.FREEZE, OnPause.HAND_BACK])
def test_a_job_that_has_not_begun_is_handed_back(jobs: OnPause) -> None:
    machine = modern()
    machine.handle(Received(message=start()))
    assert machine.handle(pausing(jobs))[1:] == [
        StopSandbox(ref=REF, report=False),
        hand_back(WHY),
    ]


def test_jobs_that_may_finish_are_let_be() -> None:
    machine = running(modern())
    machine.handle(Received(message=start()))
    assert machine.handle(pausing(OnPause.FINISH)) == [changed(machine)]


def test_a_job_is_handed_back_when_the_lender_wishes_so() -> None:
    machine = running(modern())
    assert machine.handle(pausing(OnPause.HAND_BACK))[1:] == [
        StopSandbox(ref=REF, report=False),
        hand_back(WHY),
    ]


def test_a_job_is_frozen_and_the_coordinator_told_when_it_stands_and_when_it_goes_on() -> None:
    machine = running(modern())
    assert machine.handle(pausing(OnPause.FREEZE))[1:] == [FreezeSandbox(ref=REF)]
    assert machine.handle(Froze(ref=REF)) == [said(True)]
    assert REF in machine.running()  # heartbeats name it
    assert machine.handle(PauseChanged(pause=None))[1:] == [ThawSandbox(ref=REF)]
    assert machine.handle(Thawed(ref=REF)) == [said(False, Pause(reason=PauseReason.ASKED))]


def test_a_pause_for_another_reason_is_told_and_freezes_nothing_twice() -> None:
    machine = frozen()
    assert machine.handle(pausing(OnPause.FREEZE, HOT)) == [changed(machine), said(True, HOT)]


def test_a_pause_that_lets_jobs_finish_thaws_those_that_stand_still() -> None:
    machine = frozen()
    assert machine.handle(pausing(OnPause.FINISH)) == [ThawSandbox(ref=REF)]


@pytest.mark.parametrize("jobs", [OnPause.FREEZE, OnPause.HAND_BACK])
def test_a_session_is_frozen_rather_than_lost(jobs: OnPause) -> None:
    machine = session(modern())
    assert machine.handle(pausing(jobs))[1:] == [FreezeSandbox(ref=REF)]


def test_a_job_that_stood_still_too_long_is_handed_back_and_any_other_is_not() -> None:
    assert running(modern()).handle(FrozenTooLong(ref=REF)) == []
    machine = frozen()
    assert machine.handle(FrozenTooLong(ref=REF)) == [
        StopSandbox(ref=REF, report=False),
        hand_back(WHY),
    ]
    assert machine.handle(FrozenTooLong(ref=REF)) == []


def test_a_sandbox_that_cannot_be_frozen_is_handed_back() -> None:
    machine = running(modern())
    machine.handle(pausing(OnPause.FREEZE))
    assert machine.handle(CannotRun(ref=REF, reason="It cannot stand still.")) == [
        StopSandbox(ref=REF, report=False),
        hand_back("It cannot stand still."),
    ]


def test_a_frozen_job_that_its_user_cancels_goes_on_to_be_ended() -> None:
    machine = frozen()
    assert machine.handle(stop())[:2] == [
        StopSandbox(ref=REF, report=True),
        ThawSandbox(ref=REF),
    ]
    assert machine.handle(pausing(OnPause.FREEZE, HOT)) == [changed(machine)]  # not again


def test_a_frozen_session_that_is_closed_goes_on_to_be_ended() -> None:
    machine = frozen(session(modern()))
    todo = machine.handle(Received(message=EndAttempt(job_id=REF.job_id, attempt=1)))
    assert todo[:2] == [CloseSession(ref=REF), ThawSandbox(ref=REF)]


def test_a_report_that_was_on_its_way_says_first_that_it_stands_still_no_more() -> None:
    machine = frozen()
    assert machine.handle(Ended(ref=REF, stream_bytes=0)) == [said(False), SendReport(ref=REF)]


def test_after_a_cut_the_coordinator_hears_again_what_stands_still() -> None:
    machine = frozen()
    machine.handle(Disconnected())
    again = msgspec.structs.replace(WELCOME, protocol=3, adopted=(_end(0),))
    assert said(True) in machine.handle(Received(message=again))


def test_after_a_cut_the_coordinator_hears_what_went_on_meanwhile() -> None:
    machine = frozen()
    machine.handle(Disconnected())
    machine.handle(PauseChanged(pause=None))
    assert machine.handle(Thawed(ref=REF)) == []
    again = msgspec.structs.replace(WELCOME, protocol=3, adopted=(_end(0),))
    assert said(False, Pause(reason=PauseReason.ASKED)) in machine.handle(Received(message=again))
    assert machine.handle(Thawed(ref=REF)) == []


def test_an_older_coordinator_gets_the_job_back_and_its_sessions_go_on() -> None:
    machine = running(connected())
    assert machine.handle(pausing(OnPause.FREEZE))[1:] == [
        StopSandbox(ref=REF, report=False),
        hand_back(WHY),
    ]
    machine = session(connected())
    assert machine.handle(pausing(OnPause.FREEZE))[1:] == []


def test_a_worker_that_stops_hands_back_what_stands_still() -> None:
    machine = frozen(session(modern()))
    assert machine.handle(StopTaking()) == [
        StopSandbox(ref=REF, report=False),
        hand_back("The worker is stopping."),
    ]


@pytest.mark.parametrize(
    ("accepts", "users", "user", "is_taken"),
    [
        (Accepts.ANYONE, (), "anna", True),
        (Accepts.USERS, ("anna", "bert"), "anna", True),
        (Accepts.USERS, ("bert",), "anna", False),
        (Accepts.USERS, (), "lender", True),
        (Accepts.MINE, (), "lender", True),
        (Accepts.MINE, (), "anna", False),
    ],
)
def test_only_jobs_of_whom_the_lender_accepts_are_taken(
    accepts: Accepts, users: tuple[str, ...], user: str, is_taken: bool
) -> None:
    machine = connected(msgspec.structs.replace(CAPABILITY, accepts=accepts, users=users))
    (first, *_) = machine.handle(Received(message=start(user=user)))
    is_refused = isinstance(first, Send) and isinstance(first.message, HandBack)
    assert is_refused is not is_taken


_EVENTS: dict[str, AnyEvent] = {
    "freeze": pausing(OnPause.FREEZE),
    "finish": pausing(OnPause.FINISH),
    "hot": pausing(OnPause.FREEZE, HOT),
    "resume": PauseChanged(pause=None),
    "cut": Disconnected(),
    "cancel": stop(),
    "end": Ended(ref=REF, stream_bytes=0),
}


@given(st.lists(st.sampled_from(sorted(_EVENTS)), max_size=12), st.booleans())
def test_in_any_order_the_coordinator_believes_what_is_so(words: list[str], keeps: bool) -> None:
    machine = running(modern())
    if keeps:
        machine = session(modern())
    sandbox_stands = believed = False
    for word in [*words, "cut"]:
        todo = list(machine.handle(_EVENTS[word]))
        if word == "cut" and REF in machine.attempts:
            again = msgspec.structs.replace(WELCOME, protocol=3, adopted=(_end(0),))
            todo += machine.handle(Received(message=again))
        while todo:
            match todo.pop(0):
                case FreezeSandbox(ref=ref):
                    assert not sandbox_stands
                    sandbox_stands = True
                    todo += machine.handle(Froze(ref=ref))
                case ThawSandbox(ref=ref):
                    sandbox_stands = False
                    todo += machine.handle(Thawed(ref=ref))
                case Send(message=AttemptFrozen(frozen=is_frozen)):
                    believed = is_frozen
                case _:
                    pass
        attempt = machine.attempts.get(REF)
        if attempt is None or word == "end":
            sandbox_stands = False
        assert attempt is None or believed is sandbox_stands


def _end(offset: int) -> StoredEnd:
    return StoredEnd(job_id=REF.job_id, attempt=REF.attempt, offset=offset)
