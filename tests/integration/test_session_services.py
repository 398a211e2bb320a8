"""Sessions through the services on a real database: what each does, what it refuses, who pays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.services import session_views, views
from coordinator.services.cancel import cancel
from coordinator.services.claim import claim
from coordinator.services.connect import adopt, disconnect
from coordinator.services.end_session import end_due, end_session, has_ending
from coordinator.services.expire import expire, find_due
from coordinator.services.finish import finish
from coordinator.services.finish_call import FinishedCall, finish_call
from coordinator.services.hand_back import hand_back
from coordinator.services.interrupt import interrupt
from coordinator.services.outcome import Outcome
from coordinator.services.start import CallStarted, Started, mark_calls_started, mark_started
from coordinator.services.submit import submit
from coordinator.services.submit_call import CallSubmitted, submit_call
from coordinator.services.transfer import note_transfer
from coordinator.store.records import CallRecord, JobRecord, WorkerRecord
from gridx.errors import Conflict, InvalidRequest, NotFound, SessionEnded, StaleLease, WorkerLost
from gridx.protocol import AttemptRef, CallFinished
from gridx.resources import Usage
from gridx.schemas import BlobRef, CellSpec, SessionSpec
from gridx.states import CallState, Cause, JobState
from tests.support.database import Database, call_order, call_report, order, report

CREDIT = 1_000_000
SESSION = SessionSpec(name="main", idle_s=600)
OPEN_S = 3600.0


@pytest.fixture
def db() -> Iterator[Database]:
    database = Database()
    database.settings = type(database.settings)(signup_grant_ucr=1000 * CREDIT)
    yield database
    assert database.audit() == ()
    database.close()


@pytest.fixture
def worker(db: Database) -> WorkerRecord:
    return db.add_worker("lee")


def opened(
    db: Database, worker: WorkerRecord | None, user: str = "ada", idle_s: float = 600
) -> JobRecord:
    """A session with call 0, on ``worker`` or waiting for one."""
    made = order(
        user,
        timeout_s=OPEN_S,
        cell=CellSpec(python="3.11"),
        inputs=b"inputs 0",
        session=SessionSpec(name="main", idle_s=idle_s),
        call_timeout_s=30,
    )
    job = db.run(submit, db.settings, made, 0.0, worker).job
    if worker is not None:
        begin = Started(
            job_id=job.job_id,
            attempt=1,
            worker_row_id=worker.row_id,
            started_us=db.now_us,
            timeout_s=OPEN_S,
            is_session=True,
        )
        db.run(mark_started, db.settings, [begin])
    return job


def job_of(db: Database, job: JobRecord) -> JobRecord:
    return db.run(views.get_job, job.job_id)


def newest(db: Database, job: JobRecord) -> CallRecord:
    found = db.run(session_views.find_newest, job.row_id)
    assert found is not None
    return found.call


def end_call(db: Database, job: JobRecord, worker: WorkerRecord, call: int = 0) -> FinishedCall:
    done = db.run(
        finish_call, db.settings, call_report(job.job_id, call, result=b"result"), worker, 0
    )
    assert done.outcome is Outcome.SETTLED
    return done


def next_call(db: Database, job: JobRecord, call: int, user: str = "ada") -> CallSubmitted:
    return db.run(submit_call, db.settings, call_order(user, job.job_id, call))


def spent(db: Database, user: str = "ada") -> float:
    balance = db.run(views.get_balance, user)
    return (db.settings.signup_grant_ucr - balance.posted_ucr) / CREDIT


def held(db: Database, user: str = "ada") -> float:
    return db.run(views.get_balance, user).held_ucr / CREDIT


def test_opening_a_session_writes_its_first_call_and_holds_what_it_can_cost(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    assert (job.max_tries, held(db)) == (1, 360.0)
    assert views.job_view(job_of(db, job)).kind == "session"
    assert views.job_view(job_of(db, job)).session == "main"
    call = newest(db, job)
    assert (call.n, call.state, call.spec.timeout_s, call.begin_bytes) == (
        0,
        CallState.QUEUED,
        30,
        0,
    )


def test_calls_come_one_after_the_other_and_the_same_one_twice_is_one(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    with pytest.raises(Conflict, match="Call 0 of this session has not ended"):
        next_call(db, job, 1)
    end_call(db, job, worker)
    first = next_call(db, job, 1)
    assert first.is_new
    again = next_call(db, job, 1)
    assert (again.is_new, again.call.row_id) == (False, first.call.row_id)
    with pytest.raises(Conflict, match="is another one"):
        db.run(submit_call, db.settings, call_order("ada", job.job_id, 1, code="other"))
    with pytest.raises(Conflict, match="has not ended"):
        next_call(db, job, 2)
    end_call(db, job, worker, 1)
    with pytest.raises(Conflict, match="is 2, not 7"):
        next_call(db, job, 7)


def test_a_stranger_s_call_finds_no_session(db: Database, worker: WorkerRecord) -> None:
    job = opened(db, worker)
    end_call(db, job, worker)
    db.add_user("eve")
    for attempt in (
        lambda: next_call(db, job, 1, "eve"),
        lambda: db.run(interrupt, db.settings, job.job_id, 0, "eve"),
        lambda: db.run(end_session, db.settings, job.job_id, "eve"),
    ):
        with pytest.raises(NotFound):
            attempt()
    plain = db.run(submit, db.settings, order("ada"), 0.0).job
    with pytest.raises(InvalidRequest, match="is no session"):
        next_call(db, plain, 1)


def test_a_call_keeps_its_result_until_the_next_one_and_its_inputs_until_it_ends(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    assert db.run(views.find_payload, job.job_id, "inputs") == b"inputs 0"
    end_call(db, job, worker)
    assert db.run(views.find_payload, job.job_id, "inputs") is None
    event = db.run(session_views.find_call, job.row_id, 0)
    assert event is not None and event.result == b"result"
    next_call(db, job, 1)
    event = db.run(session_views.find_call, job.row_id, 0)
    assert event is not None and event.result is None
    pending = db.run(session_views.find_pending, job.job_id)
    assert pending is not None and pending.call is not None
    assert (pending.call.n, pending.inputs, pending.is_ending) == (1, b"inputs 1", False)
    end_call(db, job, worker, 1)
    pending = db.run(session_views.find_pending, job.job_id)
    assert pending is not None
    assert (pending.call, pending.inputs) == (None, b"")


def test_a_report_waits_for_the_output_and_counts_once(db: Database, worker: WorkerRecord) -> None:
    job = opened(db, worker)
    told = call_report(job.job_id, 0, stream_bytes=100, result=b"r")
    assert db.run(finish_call, db.settings, told, worker, 99).outcome is Outcome.MORE
    assert not newest(db, job).is_final
    # More may be stored: a thread of the call prints on.
    assert db.run(finish_call, db.settings, told, worker, 140).outcome is Outcome.SETTLED
    assert (newest(db, job).begin_bytes, newest(db, job).end_bytes) == (0, 100)
    assert db.run(finish_call, db.settings, told, worker, 140).outcome is Outcome.REPEATED
    assert next_call(db, job, 1).call.begin_bytes == 100


def test_reports_of_the_wrong_worker_attempt_or_call_are_fenced(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    other = db.add_worker("mia")
    for told, by in (
        (call_report(job.job_id, 0), other),
        (call_report(job.job_id, 0, attempt=2), worker),
        (call_report(job.job_id, 1), worker),
    ):
        with pytest.raises(StaleLease):
            db.run(finish_call, db.settings, told, by, 0)


def test_a_session_is_paid_for_as_long_as_it_was_open_idle_time_included(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    db.pass_time(10)
    first = end_call(db, job, worker)
    assert first.call.cost_ucr == 1 * CREDIT
    db.pass_time(50)
    ending = db.run(end_session, db.settings, job.job_id, "ada")
    assert ending.tell
    assert (spent(db), held(db)) == (0.0, 360.0)
    done = db.run(finish, db.settings, report(job.job_id), worker, 0)
    assert (done.job.state, done.outcome) == (JobState.COMPLETED, Outcome.SETTLED)
    assert done.job.reason is not None
    assert "was closed by its user" in done.job.reason.message
    assert (spent(db), held(db)) == (6.0, 0.0)
    with pytest.raises(SessionEnded, match="was closed by its user"):
        next_call(db, job, 1)


def test_a_worker_s_meter_can_only_make_a_session_cheaper(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    end_call(db, job, worker)
    db.pass_time(100)
    db.run(end_session, db.settings, job.job_id, "ada")
    db.run(finish, db.settings, report(job.job_id, wall_s=20), worker, 0)
    assert spent(db) == 2.0


def test_a_session_on_its_user_s_own_worker_costs_nothing(db: Database) -> None:
    own = db.add_worker("ada")
    job = opened(db, own)
    db.pass_time(10)
    assert end_call(db, job, own).call.cost_ucr == 0
    db.run(end_session, db.settings, job.job_id, "ada")
    db.run(finish, db.settings, report(job.job_id), own, 0)
    assert (spent(db), held(db)) == (0.0, 0.0)


def test_an_idle_session_ends_by_itself_and_a_call_in_time_keeps_it(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    db.pass_time(700)
    assert not db.run(has_ending), "a session with a call is not idle"
    end_call(db, job, worker)
    db.pass_time(599)
    assert not db.run(has_ending)
    next_call(db, job, 1)
    db.pass_time(100)
    assert not db.run(has_ending)
    end_call(db, job, worker, 1)
    db.pass_time(600)
    assert db.run(has_ending)
    (ending,) = db.run(end_due, db.settings)
    assert ending.tell
    assert not db.run(has_ending), "it is told once"
    with pytest.raises(SessionEnded, match="is being closed"):
        next_call(db, job, 2)
    done = db.run(finish, db.settings, report(job.job_id, wall_s=9999), worker, 0)
    assert done.job.state is JobState.COMPLETED
    assert done.job.reason is not None
    assert "after 10 minutes without a call" in done.job.reason.message
    assert spent(db) == pytest.approx(199.9)


def test_a_session_at_its_limit_ends_with_a_sentence_and_takes_its_call_along(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    end_call(db, job, worker)
    db.pass_time(OPEN_S - 60)
    next_call(db, job, 1)
    db.pass_time(60)
    (ending,) = db.run(end_due, db.settings)
    assert ending.tell
    done = db.run(finish, db.settings, report(job.job_id, wall_s=OPEN_S, call=1), worker, 0)
    assert done.job.state is JobState.COMPLETED
    assert done.call is not None and done.call.reason is not None
    assert (done.call.state, done.call.reason.code) == (CallState.FAILED, "timeout")
    assert "at the end of the 60 minutes" in done.call.reason.message
    assert spent(db) == 360.0


def test_a_worker_that_does_not_close_a_session_is_paid_until_it_was_asked(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    end_call(db, job, worker)
    db.pass_time(30)
    db.run(end_session, db.settings, job.job_id, "ada")
    db.pass_time(db.settings.cancel_limit_s + 1)
    assert db.run(find_due)
    (ended,) = db.run(expire, db.settings)
    assert ended.job.state is JobState.COMPLETED
    assert spent(db) == 3.0


def test_a_session_whose_worker_is_away_is_closed_at_once(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    end_call(db, job, worker)
    db.pass_time(20)
    heard_us = db.now_us
    db.pass_time(10)
    db.run(disconnect, db.settings, worker, heard_us)
    ending = db.run(end_session, db.settings, job.job_id, "ada")
    assert ending.ended is not None
    assert ending.ended.job.state is JobState.COMPLETED
    assert spent(db) == 2.0


def test_a_session_that_waits_for_a_worker_is_cancelled_by_its_end_and_by_an_interrupt(
    db: Database,
) -> None:
    for close in (
        lambda job: db.run(end_session, db.settings, job.job_id, "ada").cancelled,
        lambda job: db.run(interrupt, db.settings, job.job_id, 0, "ada").cancelled,
        lambda job: db.run(cancel, db.settings, job.job_id, "ada"),
    ):
        job = opened(db, None)
        done = close(job)
        assert done is not None and done.call is not None
        assert (done.job.state, done.call.state) == (JobState.CANCELLED, CallState.CANCELLED)
        assert (spent(db), held(db)) == (0.0, 0.0)


def test_an_interrupt_is_kept_for_a_worker_that_is_away_and_leaves_the_session_open(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    end_call(db, job, worker)
    next_call(db, job, 1)
    assert db.run(interrupt, db.settings, job.job_id, 1, "ada").send
    pending = db.run(session_views.find_pending, job.job_id)
    assert pending is not None and pending.call is not None
    assert pending.call.interrupt_us == db.now_us
    told = call_report(job.job_id, 1, Cause.CANCELLED)
    done = db.run(finish_call, db.settings, told, worker, 0)
    assert done.call.state is CallState.CANCELLED
    assert not db.run(interrupt, db.settings, job.job_id, 1, "ada").send
    assert next_call(db, job, 2).is_new
    with pytest.raises(NotFound, match="has no call 9"):
        db.run(interrupt, db.settings, job.job_id, 9, "ada")


def test_a_call_that_is_killed_because_it_did_not_obey_takes_the_session_along_and_is_paid(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    db.run(interrupt, db.settings, job.job_id, 0, "ada")
    db.pass_time(10)
    told = report(job.job_id, cause=Cause.CANCELLED)
    done = db.run(finish, db.settings, told, worker, 0)
    assert done.call is not None
    assert (done.job.state, done.call.state) == (JobState.CANCELLED, CallState.CANCELLED)
    assert done.job.reason is not None
    assert "did not obey the interrupt" in done.job.reason.message
    assert spent(db) == 1.0


def test_a_call_that_dies_of_its_own_fault_ends_the_session_and_is_paid(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    db.pass_time(10)
    told = report(job.job_id, cause=Cause.OUT_OF_MEMORY, result=b"partial")
    done = db.run(finish, db.settings, told, worker, 0)
    assert done.call is not None and done.call.reason is not None
    assert (done.job.state, done.call.state) == (JobState.FAILED, CallState.FAILED)
    assert done.call.reason.code == "out_of_memory"
    assert spent(db) == 1.0
    event = db.run(session_views.find_newest, job.row_id)
    assert event is not None and event.result == b"partial"


def loss_by_time(db: Database, job: JobRecord, worker: WorkerRecord) -> None:
    db.run(disconnect, db.settings, worker, db.now_us)
    db.pass_time(db.settings.grace_s + 1)
    assert len(db.run(expire, db.settings)) == 1


def loss_by_hand_back(db: Database, job: JobRecord, worker: WorkerRecord) -> None:
    db.run(hand_back, db.settings, job.job_id, 1, worker, "going home")


def loss_by_restart(db: Database, job: JobRecord, worker: WorkerRecord) -> None:
    assert len(db.run(adopt, db.settings, worker, []).ended) == 1


def loss_by_report(db: Database, job: JobRecord, worker: WorkerRecord) -> None:
    told = report(job.job_id, cause=Cause.SANDBOX_FAILED, message="no space left")
    db.run(finish, db.settings, told, worker, 0)


def loss_by_a_call_over_its_limit(db: Database, job: JobRecord, worker: WorkerRecord) -> None:
    start = CallStarted(job_id=job.job_id, call=newest(db, job).n, started_us=db.now_us)
    db.run(mark_calls_started, db.settings, [start])
    db.pass_time(60 + db.settings.overrun_s)
    assert db.run(has_ending)
    (ending,) = db.run(end_due, db.settings)
    assert ending.ended is not None


@pytest.mark.parametrize(
    "lose",
    [
        loss_by_time,
        loss_by_hand_back,
        loss_by_restart,
        loss_by_report,
        loss_by_a_call_over_its_limit,
    ],
)
def test_a_lost_session_is_worker_lost_for_session_and_call_and_free(
    db: Database, worker: WorkerRecord, lose: object
) -> None:
    job = opened(db, worker)
    end_call(db, job, worker)
    db.pass_time(10)
    next_call(db, job, 1)
    lose(db, job, worker)  # type: ignore[operator]
    ended, call = job_of(db, job), newest(db, job)
    assert (ended.state, call.state) == (JobState.FAILED, CallState.FAILED)
    for reason in (ended.reason, call.reason):
        assert reason is not None
        assert reason.code == "worker_lost"
        assert "Its variables there are gone." in reason.message
        assert "Run the cells again" in reason.hint
    assert (spent(db), held(db)) == (0.0, 0.0)
    with pytest.raises(WorkerLost, match="Its variables there are gone"):
        next_call(db, job, 2)


def test_a_session_that_is_handed_back_before_it_began_waits_for_another_worker(
    db: Database, worker: WorkerRecord
) -> None:
    made = order(
        "ada", timeout_s=OPEN_S, cell=CellSpec(python="3.11"), session=SESSION, call_timeout_s=30
    )
    job = db.run(submit, db.settings, made, 0.0, worker).job
    ended = db.run(hand_back, db.settings, job.job_id, 1, worker, "full")
    assert (ended.outcome, ended.job.state) == (Outcome.REQUEUED, JobState.QUEUED)
    assert newest(db, job).state is CallState.QUEUED
    db.run(cancel, db.settings, job.job_id, "ada")


def test_a_session_that_was_interrupted_before_it_began_does_not_wait_for_another_worker(
    db: Database, worker: WorkerRecord
) -> None:
    made = order(
        "ada", timeout_s=OPEN_S, cell=CellSpec(python="3.11"), session=SESSION, call_timeout_s=30
    )
    job = db.run(submit, db.settings, made, 0.0, worker).job
    db.run(interrupt, db.settings, job.job_id, 0, "ada")
    ended = db.run(hand_back, db.settings, job.job_id, 1, worker, "full")
    assert ended.call is not None
    assert (ended.job.state, ended.call.state) == (JobState.CANCELLED, CallState.CANCELLED)


def test_a_call_and_a_job_wait_for_a_worker_that_moves_their_data_but_not_for_ever(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    end_call(db, job, worker)
    next_call(db, job, 1)
    plain = db.run(submit, db.settings, order("ada"), 0.0, worker).job
    other = db.add_worker("mia")

    def both_go_on_after(seconds: float) -> bool:
        db.pass_time(seconds)
        return not (db.run(has_ending) or db.run(find_due))

    for _ in range(30):  # each piece takes longer than a start may
        for moved in (job, plain):
            db.run(note_transfer, db.settings, moved.job_id, worker.worker_id)
        assert both_go_on_after(db.settings.overrun_s - 1)
    for moved in (job, plain):
        db.run(note_transfer, db.settings, moved.job_id, other.worker_id)
    assert not both_go_on_after(2), "another worker's transfer does not count"
    db.run(expire, db.settings)
    (ending,) = db.run(end_due, db.settings)
    assert ending.ended is not None
    assert job_of(db, plain).state is JobState.QUEUED

    late = db.run(claim, db.settings, plain.job_id, worker)
    assert late is not None
    at_most_s = db.settings.transfer_limit_s + db.settings.overrun_s + 60
    db.pass_time(100)
    db.run(note_transfer, db.settings, plain.job_id, worker.worker_id)
    db.pass_time(at_most_s - 100)
    assert db.run(find_due)
    db.run(note_transfer, db.settings, plain.job_id, worker.worker_id)
    assert db.run(find_due), "it has had all the time that there is"
    db.run(cancel, db.settings, plain.job_id, "ada")
    db.run(expire, db.settings)


def test_a_cancelled_session_is_stopped_and_paid_for_the_time_it_was_open(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    db.pass_time(10)
    assert db.run(cancel, db.settings, job.job_id, "ada").stop
    done = db.run(finish, db.settings, report(job.job_id, cause=Cause.CANCELLED), worker, 0)
    assert done.call is not None
    assert (done.job.state, done.call.state) == (JobState.CANCELLED, CallState.CANCELLED)
    assert spent(db) == 1.0


def test_a_call_that_ends_while_its_session_is_being_closed_says_so(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    db.run(end_session, db.settings, job.job_id, "ada")
    told = call_report(job.job_id, 0, Cause.CANCELLED)
    done = db.run(finish_call, db.settings, told, worker, 0)
    assert done.call.reason is not None
    assert done.call.reason.message == "The session was closed before this call had ended."
    db.run(finish, db.settings, report(job.job_id), worker, 0)


def test_a_result_whose_blobs_never_came_fails_the_call_and_not_the_session(
    db: Database, worker: WorkerRecord
) -> None:
    job = opened(db, worker)
    told = CallFinished(
        job_id=job.job_id,
        attempt=1,
        call=0,
        cause=Cause.COMPLETED,
        stream_bytes=0,
        result_blobs=(BlobRef(digest="0" * 64, size=1),),
        usage=Usage(wall_s=1),
    )
    done = db.run(finish_call, db.settings, told, worker, 0)
    assert (done.call.state, done.result_blobs) == (CallState.FAILED, ())
    assert next_call(db, job, 1).is_new


def test_open_sessions_and_their_time_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "gridx.db"
    db = Database(path)
    db.settings = type(db.settings)(signup_grant_ucr=1000 * CREDIT)
    worker = db.add_worker("lee")
    job = opened(db, worker)
    end_call(db, job, worker)
    next_call(db, job, 1)
    db.close()

    again = Database(path, db.settings)
    found = again.run(adopt, again.settings, worker, [AttemptRef(job_id=job.job_id, attempt=1)])
    assert [one.is_session for one in found.adopted] == [True]
    assert found.adopted[0].timeout_s == OPEN_S
    pending = again.run(session_views.find_pending, job.job_id)
    assert pending is not None and pending.call is not None
    assert pending.call.n == 1
    end_call(again, job, worker, 1)
    again.pass_time(600)
    assert again.run(has_ending)
    again.run(end_due, again.settings)
    again.run(finish, again.settings, report(job.job_id, wall_s=1), worker, 0)
    assert again.audit() == ()
    again.close()
