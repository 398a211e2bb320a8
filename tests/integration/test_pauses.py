"""Lenders pause: what stands still, what is paid, what is counted; on a real database."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from coordinator.services import session_views, views
from coordinator.services.cancel import cancel
from coordinator.services.claim import claim
from coordinator.services.connect import adopt, disconnect
from coordinator.services.end_session import end_due, end_session, has_ending
from coordinator.services.enroll import set_capability
from coordinator.services.expire import expire, find_due
from coordinator.services.finish import finish
from coordinator.services.finish_call import finish_call
from coordinator.services.freeze import note_frozen
from coordinator.services.hand_back import hand_back
from coordinator.services.outcome import Outcome
from coordinator.services.recover import recover
from coordinator.services.start import CallStarted, Started, mark_calls_started, mark_started
from coordinator.services.submit import submit
from coordinator.services.submit_call import submit_call
from coordinator.settings import Settings
from coordinator.store.records import JobRecord, WorkerRecord
from gridx.errors import Conflict, StaleLease
from gridx.protocol import AttemptRef
from gridx.resources import GIB, Accepts, Gpu, Usage
from gridx.schemas import CellSpec, SessionSpec
from gridx.states import CallState, Cause, JobState
from tests.support.database import DOCKER, Database, call_order, call_report, order, report

CREDIT = 1_000_000


@pytest.fixture
def db() -> Iterator[Database]:
    database = Database(settings=Settings(signup_grant_ucr=1000 * CREDIT))
    yield database
    assert database.audit() == ()
    database.close()


@pytest.fixture
def worker(db: Database) -> WorkerRecord:
    return db.add_worker("lee")


def running(
    db: Database, worker: WorkerRecord, *, timeout_s: float = 60.0, session: bool = False
) -> JobRecord:
    """A job of one core that has started just now."""
    made = order(
        "ada",
        timeout_s=timeout_s,
        cell=CellSpec(python="3.11") if session else None,
        session=SessionSpec(name="main", idle_s=600) if session else None,
        call_timeout_s=30 if session else None,
    )
    job = db.run(submit, db.settings, made, 0.0, worker).job
    start(db, job, worker)
    return job


def start(db: Database, job: JobRecord, worker: WorkerRecord) -> None:
    begin = Started(
        job_id=job.job_id,
        attempt=job.attempt,
        worker_row_id=worker.row_id,
        started_us=db.now_us,
        timeout_s=job.job.limits.timeout_s,
        is_session=job.session is not None,
    )
    db.run(mark_started, db.settings, [begin])


def freeze(
    db: Database, job: JobRecord, worker: WorkerRecord, *, is_frozen: bool = True
) -> JobRecord:
    return db.run(note_frozen, db.settings, job.job_id, job.attempt, worker, is_frozen=is_frozen)


def stand_still(db: Database, job: JobRecord, worker: WorkerRecord, seconds: float) -> None:
    """Let a job stand still for so long, and go on."""
    assert freeze(db, job, worker).is_frozen
    db.pass_time(seconds)
    assert not freeze(db, job, worker, is_frozen=False).is_frozen


def job_of(db: Database, job: JobRecord) -> JobRecord:
    return db.run(views.get_job, job.job_id)


def spent(db: Database, user: str = "ada") -> float:
    return (db.settings.signup_grant_ucr - db.run(views.get_balance, user).posted_ucr) / CREDIT


# --- frozen attempts --------------------------------------------------------------------------


def test_nothing_is_paid_for_standing_still_whatever_the_worker_says(
    db: Database, worker: WorkerRecord
) -> None:
    job = running(db, worker)
    db.pass_time(4)
    stand_still(db, job, worker, 1000)
    db.pass_time(6)
    usage = Usage(wall_s=1010, cpu_s=1e9, frozen_s=1e9)
    done = db.run(finish, db.settings, report(job.job_id, usage=usage), worker, 0)
    assert done.outcome is Outcome.SETTLED
    assert spent(db) == 1.0  # ten seconds of a core
    kept = db.run(views.find_usage, done.job)
    assert kept is not None
    assert (kept.wall_s, kept.cpu_s, kept.frozen_s) == pytest.approx((10.0, 11.0, 1000.0))


def test_a_worker_that_metered_less_gets_less(db: Database, worker: WorkerRecord) -> None:
    job = running(db, worker)
    db.pass_time(4)
    stand_still(db, job, worker, 100)
    db.pass_time(6)
    db.run(finish, db.settings, report(job.job_id, wall_s=2.0), worker, 0)
    assert spent(db) == 0.2


def test_a_job_that_ends_while_it_stands_still_is_not_paid_for_that(
    db: Database, worker: WorkerRecord
) -> None:
    job = running(db, worker)
    db.pass_time(5)
    freeze(db, job, worker)
    db.pass_time(300)
    done = db.run(finish, db.settings, report(job.job_id, cause=Cause.CRASHED), worker, 0)
    assert (done.job.state, done.job.is_frozen) == (JobState.FAILED, False)
    assert spent(db) == 0.5
    assert not job_of(db, job).is_frozen


def test_the_limits_of_a_job_move_by_what_it_stood_still(
    db: Database, worker: WorkerRecord
) -> None:
    job = running(db, worker, timeout_s=60)
    limit_s = 60 + db.settings.overrun_s
    db.pass_time(limit_s - 10)
    freeze(db, job, worker)
    db.pass_time(1000)
    assert not db.run(find_due)
    freeze(db, job, worker, is_frozen=False)
    assert not db.run(find_due)
    db.pass_time(9)
    assert not db.run(find_due)
    db.pass_time(1)
    (ended,) = db.run(expire, db.settings)
    assert (ended.outcome, ended.job.tries) == (Outcome.REQUEUED, 1)


def test_said_twice_it_is_the_same(db: Database, worker: WorkerRecord) -> None:
    job = running(db, worker)
    freeze(db, job, worker)
    db.pass_time(50)
    freeze(db, job, worker)
    db.pass_time(50)
    freeze(db, job, worker, is_frozen=False)
    freeze(db, job, worker, is_frozen=False)
    db.pass_time(10)
    db.run(finish, db.settings, report(job.job_id), worker, 0)
    assert spent(db) == 1.0


def test_what_has_not_started_cannot_stand_still(db: Database, worker: WorkerRecord) -> None:
    job = db.run(submit, db.settings, order("ada"), 0.0, worker).job
    assert not freeze(db, job, worker).is_frozen
    db.pass_time(db.settings.starting_limit_s)
    assert db.run(find_due)


def test_only_its_own_worker_lets_an_attempt_stand_still(
    db: Database, worker: WorkerRecord
) -> None:
    job = running(db, worker)
    with pytest.raises(StaleLease):
        freeze(db, job, db.add_worker("eve"))
    db.run(finish, db.settings, report(job.job_id), worker, 0)
    with pytest.raises(StaleLease):
        freeze(db, job, worker)


def test_standing_still_has_an_end_and_then_the_job_goes_elsewhere_uncharged(
    db: Database, worker: WorkerRecord
) -> None:
    job = running(db, worker)
    stand_still(db, job, worker, db.settings.max_frozen_s - 100)
    freeze(db, job, worker)
    db.pass_time(99)
    assert not db.run(find_due)
    db.pass_time(1)
    assert db.run(find_due)
    (ended,) = db.run(expire, db.settings)
    assert ended.outcome is Outcome.REQUEUED
    assert (ended.job.tries, ended.job.spared) == (0, 1)  # the job has done nothing wrong
    assert (job_of(db, job).state, spent(db)) == (JobState.QUEUED, 0)
    with pytest.raises(StaleLease):
        freeze(db, job, worker, is_frozen=False)
    other = db.add_worker("eve")
    again = db.run(claim, db.settings, job.job_id, other)
    assert again is not None
    assert not again.job.is_frozen


def test_a_job_that_stands_still_is_cancelled_as_any_other(
    db: Database, worker: WorkerRecord
) -> None:
    job = running(db, worker)
    db.pass_time(10)
    freeze(db, job, worker)
    db.pass_time(500)
    assert db.run(cancel, db.settings, job.job_id, "ada").stop
    db.pass_time(db.settings.cancel_limit_s)
    assert db.run(find_due)
    (ended,) = db.run(expire, db.settings)
    assert (ended.job.state, spent(db)) == (JobState.CANCELLED, 1.0)


def test_a_worker_that_goes_on_does_not_get_more_time_to_stop(
    db: Database, worker: WorkerRecord
) -> None:
    job = running(db, worker)
    freeze(db, job, worker)
    db.pass_time(500)
    db.run(cancel, db.settings, job.job_id, "ada")
    freeze(db, job, worker, is_frozen=False)
    db.pass_time(db.settings.cancel_limit_s)
    assert db.run(find_due)


def test_a_worker_that_comes_back_says_again_what_stands_still(
    db: Database, worker: WorkerRecord
) -> None:
    job = running(db, worker)
    db.pass_time(10)
    freeze(db, job, worker)
    db.pass_time(100)
    db.run(disconnect, db.settings, worker, db.now_us)
    db.run(recover, db.settings)
    assert job_of(db, job).is_frozen
    db.pass_time(20)
    ref = AttemptRef(job_id=job.job_id, attempt=1)
    assert len(db.run(adopt, db.settings, worker, [ref]).adopted) == 1
    assert not job_of(db, job).is_frozen
    assert freeze(db, job, worker).is_frozen
    db.pass_time(100)
    freeze(db, job, worker, is_frozen=False)
    db.pass_time(5)
    db.run(finish, db.settings, report(job.job_id), worker, 0)
    assert spent(db) == 1.5


def test_a_worker_that_vanishes_with_what_stands_still_loses_it_after_the_grace(
    db: Database, worker: WorkerRecord
) -> None:
    job = running(db, worker)
    freeze(db, job, worker)
    db.run(disconnect, db.settings, worker, db.now_us)
    db.pass_time(db.settings.grace_s)
    (ended,) = db.run(expire, db.settings)
    assert (ended.outcome, ended.job.tries, job_of(db, job).state) == (
        Outcome.REQUEUED,
        1,
        JobState.QUEUED,
    )


# --- sessions that stand still ----------------------------------------------------------------


def test_the_idle_clock_and_the_limit_of_a_session_stand_still(
    db: Database, worker: WorkerRecord
) -> None:
    job = running(db, worker, timeout_s=900, session=True)
    db.run(finish_call, db.settings, call_report(job.job_id), worker, 0)
    db.pass_time(590)
    freeze(db, job, worker)
    db.pass_time(2000)
    assert not db.run(has_ending)
    freeze(db, job, worker, is_frozen=False)
    db.pass_time(9)
    assert not db.run(has_ending)
    db.pass_time(1)
    assert db.run(has_ending)
    (ending,) = db.run(end_due, db.settings)
    assert ending.tell
    db.run(finish, db.settings, report(job.job_id), worker, 0)
    ended = job_of(db, job)
    assert ended.reason is not None
    assert "10 minutes without a call" in ended.reason.message
    assert spent(db) == 60.0


def test_a_call_that_stands_still_keeps_its_time_and_costs_nothing_for_it(
    db: Database, worker: WorkerRecord
) -> None:
    job = running(db, worker, timeout_s=900, session=True)
    db.run(finish_call, db.settings, call_report(job.job_id), worker, 0)
    db.run(submit_call, db.settings, call_order("ada", job.job_id, 1, timeout_s=30))
    begin = CallStarted(job_id=job.job_id, call=1, started_us=db.now_us)
    db.run(mark_calls_started, db.settings, [begin])
    db.pass_time(20)
    freeze(db, job, worker)
    db.pass_time(1000)
    assert not db.run(has_ending)
    freeze(db, job, worker, is_frozen=False)
    db.pass_time(20)
    assert not db.run(has_ending)
    done = db.run(finish_call, db.settings, call_report(job.job_id, 1), worker, 0)
    assert (done.call.state, done.call.cost_ucr) == (CallState.COMPLETED, 4 * CREDIT)


def test_a_call_that_came_while_its_session_stood_still_has_all_of_its_time(
    db: Database, worker: WorkerRecord
) -> None:
    job = running(db, worker, timeout_s=900, session=True)
    db.run(finish_call, db.settings, call_report(job.job_id), worker, 0)
    freeze(db, job, worker)
    db.pass_time(500)
    db.run(submit_call, db.settings, call_order("ada", job.job_id, 1))
    db.pass_time(700)  # far over the limit of starting
    assert not db.run(has_ending)
    freeze(db, job, worker, is_frozen=False)
    db.pass_time(db.settings.starting_limit_s - 1)
    assert not db.run(has_ending)
    db.pass_time(1)
    assert db.run(has_ending)


def test_a_session_that_stands_still_can_be_closed(db: Database, worker: WorkerRecord) -> None:
    job = running(db, worker, timeout_s=900, session=True)
    db.run(finish_call, db.settings, call_report(job.job_id), worker, 0)
    db.pass_time(10)
    freeze(db, job, worker)
    db.pass_time(100)
    assert db.run(end_session, db.settings, job.job_id, "ada").tell
    db.pass_time(db.settings.cancel_limit_s)
    assert db.run(find_due)
    (ended,) = db.run(expire, db.settings)
    assert (ended.job.state, spent(db)) == (JobState.COMPLETED, 1.0)


def test_a_session_that_stood_still_for_too_long_is_lost_and_free(
    db: Database, worker: WorkerRecord
) -> None:
    job = running(db, worker, timeout_s=900, session=True)
    freeze(db, job, worker)
    db.pass_time(db.settings.max_frozen_s)
    (ended,) = db.run(expire, db.settings)
    assert ended.job.state is JobState.FAILED
    assert ended.job.reason is not None
    assert "its lender paused it" in ended.job.reason.message
    assert spent(db) == 0


def test_the_limit_of_a_session_is_counted_without_what_it_stood_still(
    db: Database, worker: WorkerRecord
) -> None:
    job = running(db, worker, timeout_s=900, session=True)
    stand_still(db, job, worker, 600)
    db.pass_time(600)
    # A time-out of the sandbox 600 s after the start is not the end of the session's time.
    done = db.run(finish, db.settings, report(job.job_id, cause=Cause.TIMEOUT), worker, 0)
    assert (done.job.state, done.job.reason and done.job.reason.code) == (
        JobState.FAILED,
        "timeout",
    )
    assert db.run(session_views.find_newest, job.row_id) is not None


# --- given back -------------------------------------------------------------------------------


def test_polite_lenders_never_use_a_job_up(db: Database) -> None:
    job = db.run(submit, db.settings, order("ada"), 0.0).job
    few = msgspec.structs.replace(db.settings, max_attempts=3)
    lenders = [db.add_worker(f"lender{n}") for n in range(8)]
    for number, lender in enumerate(lenders, 1):
        assert db.run(claim, few, job.job_id, lender) is not None
        ended = db.run(hand_back, few, job.job_id, number, lender, is_polite=True)
        assert ended.outcome is Outcome.REQUEUED
    assert (job_of(db, job).tries, job_of(db, job).spared, spent(db)) == (0, 8, 0)
    for number in range(9, 12):  # the others are counted as they always were
        assert db.run(claim, few, job.job_id, lenders[0]) is not None
        ended = db.run(hand_back, few, job.job_id, number, lenders[0], "no such image")
    assert ended.job.state is JobState.FAILED
    assert ended.job.reason is not None
    assert "no such image" in ended.job.reason.message


def test_even_polite_lenders_do_not_give_a_job_back_for_ever(
    db: Database, worker: WorkerRecord
) -> None:
    job = db.run(submit, db.settings, order("ada"), 0.0).job
    few = msgspec.structs.replace(db.settings, most_attempts=4)
    for number in range(1, 5):
        assert db.run(claim, few, job.job_id, worker) is not None
        ended = db.run(hand_back, few, job.job_id, number, worker, is_polite=True)
    assert (ended.job.state, spent(db)) == (JobState.FAILED, 0)


# --- packages -----------------------------------------------------------------------------------


def test_packages_that_cannot_be_installed_end_the_job_at_once_and_free(
    db: Database, worker: WorkerRecord
) -> None:
    made = order("ada", pip=("polras",))
    job = db.run(submit, db.settings, made, 0.0, worker).job
    db.pass_time(db.settings.starting_limit_s + 1)
    assert not db.run(find_due)  # installing takes longer than starting
    log = "x" * 9000 + "ERROR: No matching distribution found for polras"
    done = db.run(
        finish, db.settings, report(job.job_id, cause=Cause.ENVIRONMENT, message=log), worker, 0
    )
    assert (done.outcome, done.job.state, done.job.tries) == (Outcome.SETTLED, JobState.FAILED, 0)
    assert done.job.reason is not None
    assert done.job.reason.code == "environment_failed"
    assert done.job.reason.message.endswith("for polras")
    assert 4000 < len(done.job.reason.message) <= 4096
    assert spent(db) == 0
    assert db.run(views.get_balance, "ada").held_ucr == 0
    again = db.run(finish, db.settings, report(job.job_id, cause=Cause.ENVIRONMENT), worker, 0)
    assert again.outcome is Outcome.REPEATED


def test_installing_has_an_end_too(db: Database, worker: WorkerRecord) -> None:
    db.run(submit, db.settings, order("ada", pip=("polars",)), 0.0, worker)
    db.pass_time(db.settings.preparing_limit_s)
    assert db.run(find_due)


def test_a_worker_cannot_fail_a_job_for_packages_that_it_does_not_list(
    db: Database, worker: WorkerRecord
) -> None:
    job = db.run(submit, db.settings, order("ada"), 0.0, worker).job
    done = db.run(finish, db.settings, report(job.job_id, cause=Cause.ENVIRONMENT), worker, 0)
    assert (done.outcome, done.job.tries) == (Outcome.REQUEUED, 1)


def test_a_session_whose_packages_fail_ends_with_its_first_call_and_free(
    db: Database, worker: WorkerRecord
) -> None:
    made = order(
        "ada",
        cell=CellSpec(python="3.11"),
        session=SessionSpec(name="main"),
        call_timeout_s=30,
        pip=("polras",),
    )
    job = db.run(submit, db.settings, made, 0.0, worker).job
    message = "No matching distribution found for polras"
    done = db.run(
        finish,
        db.settings,
        report(job.job_id, cause=Cause.ENVIRONMENT, message=message),
        worker,
        0,
    )
    assert (done.job.state, spent(db)) == (JobState.FAILED, 0)
    assert done.call is not None
    assert done.call.state is CallState.FAILED
    assert done.call.reason is not None
    assert (done.call.reason.code, done.call.reason.message) == ("environment_failed", message)


# --- whose jobs, and which cards ----------------------------------------------------------------


def test_the_database_refuses_what_the_dispatcher_must_not_do(db: Database) -> None:
    choosy = msgspec.structs.replace(DOCKER, accepts=Accepts.USERS, users=("bob",))
    worker = db.add_worker("lee", choosy)
    job = db.run(submit, db.settings, order("ada"), 0.0).job
    with pytest.raises(Conflict, match="may not run jobs of ada"):
        db.run(claim, db.settings, job.job_id, worker)
    for user in ("bob", "lee"):
        theirs = db.run(submit, db.settings, order(user), 0.0).job
        assert db.run(claim, db.settings, theirs.job_id, worker) is not None
    mine = msgspec.structs.replace(DOCKER, accepts=Accepts.MINE)
    worker = db.run(set_capability, worker, mine)
    theirs = db.run(submit, db.settings, order("bob"), 0.0).job
    with pytest.raises(Conflict):
        db.run(claim, db.settings, theirs.job_id, worker)


def test_the_memory_of_gpus_is_bounded_by_the_cards_of_the_worker(db: Database) -> None:
    cards = tuple(Gpu(uuid=str(n), name="T4", memory_bytes=16 * GIB) for n in range(2))
    worker = db.add_worker("lee", msgspec.structs.replace(DOCKER, gpus=cards))
    made = order("ada")
    limits = msgspec.structs.replace(made.job.limits, gpus=1)
    made = msgspec.structs.replace(made, job=msgspec.structs.replace(made.job, limits=limits))
    job = db.run(submit, db.settings, made, 0.0, worker).job
    start(db, job, worker)
    db.pass_time(2)
    usage = Usage(wall_s=2, gpu_s=float("inf"), gpu_memory_peak_bytes=1 << 50, source="host")
    done = db.run(finish, db.settings, report(job.job_id, usage=usage), worker, 0)
    kept = db.run(views.find_usage, done.job)
    assert kept is not None
    assert (kept.gpu_s, kept.gpu_memory_peak_bytes, kept.source) == (0.0, 16 * GIB, "host")
