"""Each use case on a real database: what it changes, what it refuses, who pays."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from coordinator.services import accounts, views
from coordinator.services.cancel import cancel
from coordinator.services.claim import claim
from coordinator.services.connect import adopt, disconnect
from coordinator.services.enroll import enroll, mark_seen, set_capability
from coordinator.services.expire import expire, find_due, lose
from coordinator.services.finish import finish
from coordinator.services.hand_back import hand_back
from coordinator.services.outcome import Outcome
from coordinator.services.recover import recover
from coordinator.services.sign_in import Passwords, sign_in
from coordinator.services.start import Started, mark_started
from coordinator.services.submit import Submitted, make_order, submit
from coordinator.settings import Settings
from coordinator.store.engine import Store
from coordinator.store.prepared import Prepared
from coordinator.store.records import JobRecord, WorkerRecord
from gridx.errors import (
    AuthError,
    Conflict,
    Forbidden,
    InsufficientCredits,
    InvalidRequest,
    NotFound,
    StaleLease,
)
from gridx.ids import new_job_id, new_worker_id
from gridx.protocol import AttemptRef
from gridx.resources import GIB, Image
from gridx.schemas import CellSpec, JobRequest
from gridx.states import Cause, JobState
from tests.support.database import DOCKER, PROCESS, Database, order, report

CREDIT = 1_000_000
CELL = CellSpec(python="3.11")


@pytest.fixture
def db() -> Iterator[Database]:
    database = Database()
    yield database
    assert database.audit() == ()
    database.close()


@pytest.fixture
def worker(db: Database) -> WorkerRecord:
    return db.add_worker("lee")


def put(
    db: Database, user: str = "ada", worker: WorkerRecord | None = None, **what: object
) -> Submitted:
    return db.run(submit, db.settings, order(user, **what), 0.0, worker)  # type: ignore[arg-type]


def job_of(db: Database, job_id: str) -> JobRecord:
    return db.run(views.get_job, job_id)


def credits_of(db: Database, user: str) -> tuple[float, float]:
    view = views.account_view(db.run(views.get_balance, user))
    assert view.balance == pytest.approx(view.available + view.held)
    return view.balance, view.held


def started(db: Database, job: JobRecord, worker: WorkerRecord) -> None:
    db.run(
        mark_started,
        db.settings,
        [
            Started(
                job_id=job.job_id,
                attempt=job.attempt,
                worker_row_id=worker.row_id,
                started_us=db.now_us,
                timeout_s=job.job.limits.timeout_s,
            )
        ],
    )


# --- submit ---------------------------------------------------------------------------------


def test_an_unknown_user_begins_with_the_grant_in_open_mode(db: Database) -> None:
    submitted = put(db)
    assert submitted.is_new
    assert submitted.job.state is JobState.QUEUED
    assert credits_of(db, "ada") == (100.0, 6.0)
    assert submitted.balance.held_ucr == 6 * CREDIT
    view = views.job_view(submitted.job, waiting="no worker is online")
    assert (view.status, view.reserved, view.waiting) == ("queued", 6.0, "no worker is online")


def test_an_unknown_user_is_refused_where_accounts_are_needed() -> None:
    db = Database(settings=Settings(auth="accounts"))
    with pytest.raises(AuthError):
        put(db)
    db.close()


def test_the_same_job_again_is_the_first_job_and_holds_nothing_more(db: Database) -> None:
    first = order("ada")
    db.run(submit, db.settings, first, 0.0)
    again = db.run(submit, db.settings, first, 0.0)
    assert not again.is_new
    assert again.job.job_id == first.job_id
    assert credits_of(db, "ada") == (100.0, 6.0)


def test_a_jobs_id_cannot_be_used_for_another_body_or_by_another_user(db: Database) -> None:
    job_id = new_job_id()
    put(db, job_id=job_id)
    for other in (order("ada", code="print(2)", job_id=job_id), order("ben", job_id=job_id)):
        with pytest.raises(Conflict):
            db.run(submit, db.settings, other, 0.0)
    with pytest.raises(Conflict):
        db.run(submit, db.settings, order("ada", inputs=b"x", job_id=job_id), 0.0)
    assert credits_of(db, "ada") == (100.0, 6.0)


def test_a_job_that_the_account_cannot_cover_says_how_much_is_missing(db: Database) -> None:
    put(db, timeout_s=900.0)  # 90 credits
    with pytest.raises(InsufficientCredits) as refused:
        put(db, timeout_s=120.0)
    assert refused.value.details["missing_ucr"] == 2 * CREDIT
    assert "2.00 are missing" in refused.value.message
    assert credits_of(db, "ada") == (100.0, 90.0)


def test_a_grant_that_is_too_small_for_the_first_job_creates_nobody() -> None:
    db = Database(settings=Settings(signup_grant_ucr=CREDIT))
    with pytest.raises(InsufficientCredits) as refused:
        put(db)
    assert refused.value.details["available_ucr"] == CREDIT
    assert db.run(accounts.find_user, "ada") is None
    db.close()


def test_the_statements_run_alike_on_a_driver_that_they_are_not_prepared_for(
    db: Database, worker: WorkerRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db.engine.dialect, "name", "another")
    monkeypatch.setattr(Prepared, "_sql", property(lambda self: None), raising=False)
    job = put(db, inputs=b"in").job
    claimed = db.run(claim, db.settings, job.job_id, worker)
    assert claimed is not None
    assert claimed.inputs == b"in"
    db.pass_time(10)
    done = db.run(finish, db.settings, report(job.job_id), worker, 0)
    assert done.job.cost_ucr == CREDIT
    assert [j.job_id for j in db.run(recover, db.settings).queued] == []
    assert credits_of(db, "lee") == (100.85, 0.0)


def test_a_job_for_own_workers_needs_no_hold(db: Database) -> None:
    put(db, timeout_s=1000.0)
    submitted = put(db, own_only=True)
    assert submitted.job.hold_ucr == 0
    assert submitted.job.rate_ucr_per_s == 100_000
    assert submitted.job.to_queued().own_only


def test_malformed_ids_and_names_are_refused_before_anything_is_written(db: Database) -> None:
    with pytest.raises(InvalidRequest):
        make_order("ada", JobRequest(code="", job_id="job_1"))
    with pytest.raises(InvalidRequest):
        make_order("../ada", JobRequest(code=""))


def test_a_job_without_an_id_gets_one(db: Database) -> None:
    made = make_order("ada", JobRequest(code=""))
    assert made.job.job_id == made.job_id
    assert made.job_id.startswith("job_")


def test_a_job_for_a_worker_that_is_kept_free_is_leased_in_the_same_commit(
    db: Database, worker: WorkerRecord
) -> None:
    submitted = put(db, worker=worker)
    assert submitted.claimed
    found = job_of(db, submitted.job.job_id)
    assert found == submitted.job
    assert (found.state, found.attempt, found.worker_id) == (
        JobState.RUNNING,
        1,
        worker.worker_id,
    )


def test_tags_grow_with_what_a_user_asks_for_and_begin_at_the_virtual_time(db: Database) -> None:
    def tag(user: str, virtual_time: float, timeout_s: float = 60.0) -> float:
        made = order(user, timeout_s=timeout_s)
        return db.run(submit, db.settings, made, virtual_time).job.tag

    assert [tag("ada", 0.0), tag("ada", 0.0)] == [6e6, 12e6]
    assert tag("ben", 5e6, 10.0) == 6e6  # a newcomer begins where the grid stands
    assert tag("ada", 5e6) == 18e6  # and who has queued much goes on from there


# --- claim ----------------------------------------------------------------------------------


def test_a_claim_brings_all_that_the_worker_needs(db: Database, worker: WorkerRecord) -> None:
    job = put(db, cell=CELL, inputs=b"pickled").job
    claimed = db.run(claim, db.settings, job.job_id, worker)
    assert claimed is not None
    assert (claimed.attempt, claimed.inputs) == (1, b"pickled")
    assert claimed.job.cell == CELL
    assert claimed.job == job_of(db, job.job_id)


def test_a_job_is_claimed_once(db: Database, worker: WorkerRecord) -> None:
    job = put(db).job
    assert db.run(claim, db.settings, job.job_id, worker) is not None
    assert db.run(claim, db.settings, job.job_id, worker) is None
    assert db.run(claim, db.settings, new_job_id(), worker) is None


def test_a_process_sandbox_never_gets_a_strangers_job(db: Database) -> None:
    process = db.add_worker("lee", PROCESS)
    job = put(db).job
    with pytest.raises(Conflict):
        db.run(claim, db.settings, job.job_id, process)
    with pytest.raises(Conflict):
        put(db, worker=process)
    own = put(db, user="lee").job
    assert db.run(claim, db.settings, own.job_id, process) is not None


def test_a_job_for_own_workers_goes_to_no_other(db: Database, worker: WorkerRecord) -> None:
    job = put(db, own_only=True).job
    with pytest.raises(Conflict):
        db.run(claim, db.settings, job.job_id, worker)


# --- finish ---------------------------------------------------------------------------------


def test_a_completed_job_pays_the_metered_time_and_returns_the_rest(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    db.pass_time(1)
    started(db, job, worker)
    db.pass_time(10)
    done = db.run(finish, db.settings, report(job.job_id, exit_code=0), worker, 0)
    assert (done.outcome, done.job.state) == (Outcome.SETTLED, JobState.COMPLETED)
    assert done.job.cost_ucr == CREDIT  # ten core-seconds
    assert done.balance == db.run(views.get_balance, "ada")
    assert credits_of(db, "ada") == (99.0, 0.0)
    assert credits_of(db, "lee") == (100.85, 0.0)
    assert done.job == job_of(db, job.job_id)
    view = views.job_view(done.job)
    assert (view.cost, view.reserved, view.elapsed_s, view.exit_code) == (1.0, 0.0, 10.0, 0)


def test_the_start_in_memory_counts_where_it_is_not_written_yet(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    db.pass_time(5)
    at = db.now_us
    db.pass_time(2)
    done = db.run(finish, db.settings, report(job.job_id), worker, 0, at)
    assert done.job.cost_ucr == 200_000
    assert job_of(db, job.job_id).started_us == at


def test_without_any_start_the_workers_meter_decides_within_the_lease(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    db.pass_time(5)
    done = db.run(finish, db.settings, report(job.job_id, wall_s=2.0), worker, 0)
    assert done.job.cost_ucr == 200_000


def test_a_report_that_comes_twice_is_answered_alike_and_moves_nothing(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    db.pass_time(1)
    db.run(finish, db.settings, report(job.job_id), worker, 0)
    before = credits_of(db, "ada"), credits_of(db, "lee")
    db.pass_time(100)
    again = db.run(finish, db.settings, report(job.job_id), worker, 0)
    assert again.outcome is Outcome.REPEATED
    assert (credits_of(db, "ada"), credits_of(db, "lee")) == before


def test_a_report_waits_for_the_output_that_is_missing(db: Database, worker: WorkerRecord) -> None:
    job = put(db, worker=worker).job
    waiting = db.run(finish, db.settings, report(job.job_id, stream_bytes=10), worker, 9)
    assert waiting.outcome is Outcome.MORE
    assert job_of(db, job.job_id).state is JobState.RUNNING
    done = db.run(finish, db.settings, report(job.job_id, stream_bytes=10), worker, 10)
    assert done.job.stream_bytes == 10


def test_a_worker_that_sent_more_than_it_reports_is_not_believed(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    db.pass_time(3)
    done = db.run(finish, db.settings, report(job.job_id, stream_bytes=10), worker, 11)
    assert (done.outcome, done.job.tries) == (Outcome.REQUEUED, 1)
    assert credits_of(db, "lee") == (100.0, 0.0)


def test_nobody_reports_for_another_worker_or_about_an_attempt_that_never_was(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    stranger = db.add_worker("eve")
    for wrong in (
        (report(job.job_id), stranger),
        (report(job.job_id, attempt=2), worker),
        (report(new_job_id()), worker),
    ):
        with pytest.raises(StaleLease):
            db.run(finish, db.settings, *wrong, 0)
    assert job_of(db, job.job_id).state is JobState.RUNNING


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (Cause.ERROR, "job_failed"),
        (Cause.TIMEOUT, "timeout"),
        (Cause.OUT_OF_MEMORY, "out_of_memory"),
        (Cause.CRASHED, "crashed"),
    ],
)
def test_a_job_that_failed_by_itself_is_paid_and_not_retried(
    db: Database, worker: WorkerRecord, cause: Cause, code: str
) -> None:
    job = put(db, worker=worker).job
    db.pass_time(10)
    done = db.run(finish, db.settings, report(job.job_id, cause=cause), worker, 0)
    assert (done.job.state, done.job.cost_ucr) == (JobState.FAILED, CREDIT)
    assert done.job.reason is not None
    assert done.job.reason.code == code
    assert done.job == job_of(db, job.job_id)


def test_the_infrastructures_fault_is_retried_and_then_fails_without_a_charge(
    db: Database, worker: WorkerRecord
) -> None:
    job_id = put(db, worker=worker).job.job_id
    for n in (1, 2, 3):
        db.pass_time(5)
        done = db.run(
            finish,
            db.settings,
            report(job_id, n, Cause.SANDBOX_FAILED, message="No space left."),
            worker,
            0,
        )
        if n < 3:
            assert done.outcome is Outcome.REQUEUED
            assert done.balance is None
            assert views.job_view(done.job).worker_id is None
            assert db.run(claim, db.settings, job_id, worker) is not None
    assert (done.outcome, done.job.state, done.job.tries) == (
        Outcome.SETTLED,
        JobState.FAILED,
        3,
    )
    assert done.job.reason is not None
    assert (done.job.reason.code, done.job.reason.message) == ("worker_lost", "No space left.")
    assert credits_of(db, "ada") == (100.0, 0.0)
    again = db.run(finish, db.settings, report(job_id, 1, Cause.SANDBOX_FAILED), worker, 0)
    assert again.outcome is Outcome.REPEATED


def test_on_ones_own_worker_nothing_moves_and_the_hold_comes_back(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, user="lee", worker=worker).job
    db.pass_time(10)
    done = db.run(finish, db.settings, report(job.job_id), worker, 0)
    assert (done.job.state, done.job.cost_ucr) == (JobState.COMPLETED, 0)
    assert credits_of(db, "lee") == (100.0, 0.0)


def test_a_short_output_and_the_result_are_stored_with_the_report(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker, cell=CELL, inputs=b"in").job
    done = report(job.job_id, stream_bytes=3, result=b"out")
    db.run(finish, db.settings, done, worker, 3, None, b"abc")
    assert db.run(views.find_stream, job.job_id, 1) == b"abc"
    assert db.run(views.find_stream, job.job_id, 2) is None
    assert db.run(views.find_payload, job.job_id, "result") == b"out"
    assert db.run(views.find_payload, job.job_id, "inputs") is None  # nobody needs them now


def test_numbers_and_texts_of_a_hostile_worker_are_bounded(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    told = report(
        job.job_id, cause=Cause.ERROR, exit_code=2**63, message="x" * 10**6, wall_s=float("nan")
    )
    done = db.run(finish, db.settings, told, worker, 0)
    assert (done.job.state, done.job.cost_ucr, done.job.exit_code) == (JobState.FAILED, 0, None)
    assert done.job.reason is not None
    assert len(done.job.reason.message) == 1000
    endless = Image(name="x" * 2_000_000, digest="", language="python", python="3.11")
    with pytest.raises(InvalidRequest):
        db.run(set_capability, worker, msgspec.structs.replace(DOCKER, images=(endless,)))


# --- hand back, cancel ----------------------------------------------------------------------


def test_a_job_that_is_handed_back_waits_at_once_and_no_try_is_counted(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    ended = db.run(hand_back, db.settings, job.job_id, 1, worker, "draining")
    assert (ended.outcome, ended.job.state, ended.job.tries) == (
        Outcome.REQUEUED,
        JobState.QUEUED,
        0,
    )
    with pytest.raises(StaleLease):
        db.run(hand_back, db.settings, job.job_id, 1, worker)
    with pytest.raises(StaleLease):
        db.run(finish, db.settings, report(job.job_id), worker, 0)
    claimed = db.run(claim, db.settings, job.job_id, worker)
    assert claimed is not None
    assert claimed.attempt == 2


def test_a_job_that_every_worker_gives_back_ends_with_its_hold_released(
    db: Database, worker: WorkerRecord
) -> None:
    settings = msgspec.structs.replace(db.settings, max_attempts=3)
    job = put(db, worker=worker).job
    for attempt in (1, 2):
        db.run(hand_back, settings, job.job_id, attempt, worker)
        assert db.run(claim, settings, job.job_id, worker) is not None
    ended = db.run(hand_back, settings, job.job_id, 3, worker, "no such image")
    assert (ended.outcome, ended.job.state) == (Outcome.SETTLED, JobState.FAILED)
    assert ended.job.reason is not None
    assert ended.job.reason.code == "worker_lost"
    assert "no such image" in ended.job.reason.message
    assert credits_of(db, "ada") == (100.0, 0.0)


def test_a_cancelled_job_that_is_handed_back_ends(db: Database, worker: WorkerRecord) -> None:
    job = put(db, worker=worker).job
    db.run(cancel, db.settings, job.job_id, "ada")
    ended = db.run(hand_back, db.settings, job.job_id, 1, worker)
    assert (ended.outcome, ended.job.state) == (Outcome.SETTLED, JobState.CANCELLED)
    assert credits_of(db, "ada") == (100.0, 0.0)


def test_a_job_that_waits_is_cancelled_at_once_for_nothing(db: Database) -> None:
    job = put(db, cell=CELL, inputs=b"in").job
    done = db.run(cancel, db.settings, job.job_id, "ada")
    assert (done.changed, done.stop, done.job.state) == (True, False, JobState.CANCELLED)
    assert done.balance == db.run(views.get_balance, "ada")
    assert credits_of(db, "ada") == (100.0, 0.0)
    assert done.job == job_of(db, job.job_id)
    again = db.run(cancel, db.settings, job.job_id, "ada")
    assert (again.changed, again.job) == (False, done.job)


def test_only_its_user_or_an_admin_cancels_a_job(db: Database) -> None:
    job = put(db).job
    for wrong in ("ben", "Ada"):
        with pytest.raises(NotFound):
            db.run(cancel, db.settings, job.job_id, wrong)
    assert db.run(cancel, db.settings, job.job_id, None).changed


def test_a_running_job_is_stopped_by_its_worker_and_pays_what_was_metered(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    started(db, job, worker)
    db.pass_time(10)
    wish = db.run(cancel, db.settings, job.job_id, "ada")
    assert (wish.changed, wish.stop, wish.job.state) == (True, True, JobState.RUNNING)
    assert not db.run(cancel, db.settings, job.job_id, "ada").changed
    db.pass_time(1)
    done = db.run(
        finish, db.settings, report(job.job_id, cause=Cause.CANCELLED, wall_s=10.5), worker, 0
    )
    assert (done.job.state, done.job.cost_ucr) == (JobState.CANCELLED, 1_050_000)
    assert done.job.reason is not None
    assert done.job.reason.code == "cancelled"


def test_a_job_that_ended_before_the_wish_reached_it_has_ended(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    db.run(cancel, db.settings, job.job_id, "ada")
    done = db.run(finish, db.settings, report(job.job_id), worker, 0)
    assert done.job.state is JobState.COMPLETED


def test_a_worker_that_says_cancelled_unasked_has_failed(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    db.pass_time(30)
    done = db.run(finish, db.settings, report(job.job_id, cause=Cause.CANCELLED), worker, 0)
    assert (done.outcome, done.job.state, done.job.tries) == (
        Outcome.REQUEUED,
        JobState.QUEUED,
        1,
    )


def test_a_job_whose_worker_is_gone_is_cancelled_at_once_and_paid_until_it_was_heard(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    started(db, job, worker)
    db.pass_time(4)
    heard = db.now_us
    db.pass_time(10)
    assert db.run(disconnect, db.settings, worker, heard) == 1
    db.pass_time(1)
    done = db.run(cancel, db.settings, job.job_id, "ada")
    assert (done.stop, done.job.state, done.job.cost_ucr) == (False, JobState.CANCELLED, 400_000)
    with pytest.raises(StaleLease):
        db.run(finish, db.settings, report(job.job_id), worker, 0)


# --- leases ---------------------------------------------------------------------------------


def test_a_worker_that_comes_back_within_the_grace_goes_on(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    db.run(disconnect, db.settings, worker, db.now_us)
    db.pass_time(59)
    assert not db.run(find_due)
    other = AttemptRef(job_id=new_job_id(), attempt=1)
    adopted = db.run(adopt, db.settings, worker, [AttemptRef(job_id=job.job_id, attempt=1), other])
    assert [(a.job_id, a.lease_us) for a in adopted.adopted] == [(job.job_id, None)]
    assert adopted.stop == (other,)
    assert adopted.ended == ()
    db.pass_time(30)
    assert db.run(expire, db.settings) == ()
    done = db.run(finish, db.settings, report(job.job_id), worker, 0)
    assert done.job.state is JobState.COMPLETED


def test_a_worker_that_stays_away_loses_its_job_to_another(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    started(db, job, worker)
    db.run(disconnect, db.settings, worker, db.now_us)
    db.pass_time(60)
    assert db.run(find_due)
    (ended,) = db.run(expire, db.settings)
    assert (ended.outcome, ended.job.state, ended.job.tries) == (
        Outcome.REQUEUED,
        JobState.QUEUED,
        1,
    )
    assert (ended.attempt, ended.worker_id) == (1, worker.worker_id)
    assert not db.run(find_due)
    assert db.run(expire, db.settings) == ()
    second = db.add_worker("mia")
    claimed = db.run(claim, db.settings, job.job_id, second)
    assert claimed is not None
    with pytest.raises(StaleLease):  # the first one wakes up and is fenced
        db.run(finish, db.settings, report(job.job_id, 1), worker, 0)
    db.pass_time(2)
    done = db.run(finish, db.settings, report(job.job_id, 2), second, 0)
    assert done.job.cost_ucr == 200_000
    assert credits_of(db, "lee") == (100.0, 0.0)


def test_a_job_that_was_lost_three_times_fails_and_says_why(db: Database) -> None:
    job_id = put(db).job.job_id
    for n in range(3):
        lender = db.add_worker(f"lender{n}")
        assert db.run(claim, db.settings, job_id, lender) is not None
        db.run(disconnect, db.settings, lender, db.now_us)
        db.pass_time(61)
        (ended,) = db.run(expire, db.settings)
    assert (ended.job.state, ended.outcome) == (JobState.FAILED, Outcome.SETTLED)
    assert ended.job.reason is not None
    assert ended.job.reason.code == "worker_lost"
    assert ended.balance is not None
    assert ended.balance.held_ucr == 0
    assert credits_of(db, "ada") == (100.0, 0.0)


def test_an_attempt_that_never_starts_is_given_up(db: Database, worker: WorkerRecord) -> None:
    put(db, worker=worker)
    db.pass_time(119)
    assert not db.run(find_due)
    db.pass_time(1)
    (ended,) = db.run(expire, db.settings)
    assert ended.outcome is Outcome.REQUEUED


def test_an_attempt_that_its_worker_does_not_end_is_given_up(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker, timeout_s=600.0).job
    db.pass_time(100)
    started(db, job, worker)
    db.pass_time(659)
    assert not db.run(find_due)
    db.pass_time(1)
    (ended,) = db.run(expire, db.settings)
    assert ended.outcome is Outcome.REQUEUED
    assert credits_of(db, "lee") == (100.0, 0.0)


def test_a_cancel_that_is_not_answered_ends_the_job_paid_until_the_wish(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    started(db, job, worker)
    db.pass_time(10)
    db.run(cancel, db.settings, job.job_id, "ada")
    db.pass_time(20)
    (ended,) = db.run(expire, db.settings)
    assert (ended.job.state, ended.job.cost_ucr) == (JobState.CANCELLED, CREDIT)


def test_a_start_that_is_written_after_the_cancel_does_not_lengthen_its_limit(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    db.run(cancel, db.settings, job.job_id, "ada")
    started(db, job, worker)
    db.pass_time(20)
    (ended,) = db.run(expire, db.settings)
    assert ended.job.state is JobState.CANCELLED


def test_a_start_of_an_attempt_that_has_ended_or_is_anothers_changes_nothing(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    started(db, job, db.add_worker("eve"))
    assert job_of(db, job.job_id).started_us is None
    db.run(finish, db.settings, report(job.job_id), worker, 0)
    db.pass_time(5)
    before = job_of(db, job.job_id)
    started(db, job, worker)
    assert job_of(db, job.job_id) == before


def test_a_worker_that_began_anew_loses_what_it_forgot_at_once(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    db.run(disconnect, db.settings, worker, db.now_us)
    adopted = db.run(adopt, db.settings, worker, [])
    (ended,) = adopted.ended
    assert (ended.job.job_id, ended.outcome) == (job.job_id, Outcome.REQUEUED)
    assert adopted.adopted == ()


def test_a_wish_to_cancel_is_remembered_for_a_worker_that_comes_back(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    db.run(cancel, db.settings, job.job_id, "ada")
    db.run(disconnect, db.settings, worker, db.now_us)
    ref = AttemptRef(job_id=job.job_id, attempt=1)
    (live,) = db.run(adopt, db.settings, worker, [ref]).adopted
    assert live.cancel_wanted


def test_an_attempt_that_its_workers_beats_do_not_name_is_lost_once(
    db: Database, worker: WorkerRecord
) -> None:
    job = put(db, worker=worker).job
    assert db.run(lose, db.settings, job.job_id, 1, db.add_worker("eve")) is None
    ended = db.run(lose, db.settings, job.job_id, 1, worker)
    assert ended is not None
    assert ended.outcome is Outcome.REQUEUED
    assert db.run(lose, db.settings, job.job_id, 1, worker) is None


def test_a_restart_gives_every_lease_its_grace_and_finds_what_waits(
    db: Database, worker: WorkerRecord
) -> None:
    running = put(db, worker=worker).job
    late, early = put(db, user="ada").job, put(db, user="ben").job
    ended = put(db, user="cid", worker=db.add_worker("mia")).job
    db.run(lose, Settings(max_tries=1), ended.job_id, 1, db.add_worker("mia"))
    found = db.run(recover, db.settings)
    assert [job.job_id for job in found.queued] == [early.job_id, late.job_id]
    assert found.virtual_time == running.tag
    leases = {live.job_id: live.lease_us for live in found.live}
    assert leases[running.job_id] == db.now_us + 60_000_000
    db.pass_time(30)
    again = db.run(recover, db.settings)  # a second crash does not lengthen the grace
    assert {live.job_id: live.lease_us for live in again.live} == leases


# --- workers, users, tokens -----------------------------------------------------------------


def test_a_worker_keeps_its_record_by_its_id_and_belongs_to_one_owner(db: Database) -> None:
    worker_id = new_worker_id()
    lee, eve = db.add_user("lee"), db.add_user("eve")
    first = db.run(enroll, lee, worker_id, "box", DOCKER)
    again = db.run(enroll, lee, worker_id, "renamed", PROCESS)
    assert (again.row_id, again.name, again.capability) == (first.row_id, "renamed", PROCESS)
    with pytest.raises(Forbidden):
        db.run(enroll, eve, worker_id, "mine", DOCKER)
    changed = db.run(set_capability, again, DOCKER)
    db.pass_time(30)
    db.run(mark_seen, [changed.row_id])
    (listed,) = db.run(views.list_workers)
    assert listed.capability == DOCKER
    assert listed.seen_us == db.now_us
    assert db.run(views.list_workers, "eve") == ()


def test_a_token_is_good_until_it_expires_or_is_revoked(db: Database) -> None:
    ada = db.add_user("ada")
    issued = db.run(accounts.issue_token, db.settings, ada, ["jobs:read", "jobs:write"])
    assert issued.token.startswith("gxu_")
    identity = db.run(accounts.identify, issued.token)
    assert (identity.user, identity.worker_id) == ("ada", None)
    assert identity.scopes == {"jobs:read", "jobs:write"}
    other = db.run(accounts.issue_token, db.settings, ada, ["jobs:read"])
    assert db.run(accounts.revoke_token, other.token)
    assert not db.run(accounts.revoke_token, other.token)
    with pytest.raises(AuthError):
        db.run(accounts.identify, other.token)
    db.pass_time(90 * 86_400)
    for wrong in (issued.token, "gxu_wrong", ""):
        with pytest.raises(AuthError):
            db.run(accounts.identify, wrong)


def test_a_workers_token_names_its_worker_and_no_token_is_on_record(
    db: Database, worker: WorkerRecord
) -> None:
    issued = db.run(accounts.issue_token, db.settings, worker.owner_id, ["worker"], worker)
    assert issued.token.startswith("gxw_")
    assert db.run(accounts.identify, issued.token).worker_id == worker.worker_id
    with db.engine.connect() as tx:
        (digest,) = tx.execute(sa.text("SELECT digest FROM api_tokens")).scalars()
    assert digest == hashlib.sha256(issued.token.encode()).digest()


def test_registration_gives_the_grant_in_open_mode_only(db: Database) -> None:
    db.run(accounts.register, db.settings, "ada", "hash")
    assert credits_of(db, "ada") == (100.0, 0.0)
    with pytest.raises(Conflict):
        db.run(accounts.register, db.settings, "ada", "other")
    db.run(accounts.register, Settings(auth="accounts"), "ben", "hash")
    assert credits_of(db, "ben") == (0.0, 0.0)


async def test_a_name_is_its_first_passwords(tmp_path: Path) -> None:
    policy = Settings(data_dir=tmp_path)
    store, passwords = Store(policy.database_url), Passwords()
    await store.open()

    async def enter(name: str, password: str, *, may_create: bool, may_set: bool) -> int:
        user = await sign_in(
            store, policy, passwords, name, password, may_create=may_create, may_set=may_set
        )
        return user.user_id

    try:
        with pytest.raises(AuthError):
            await enter("ada", "secret123", may_create=False, may_set=True)
        ada = await enter("ada", "secret123", may_create=True, may_set=False)
        assert await enter("ada", "secret123", may_create=True, may_set=True) == ada
        for wrong in ("secret124", "", "x" * 2000):
            with pytest.raises(AuthError):
                await enter("ada", wrong, may_create=True, may_set=True)
        ben = (await store.run(accounts.ensure_user, policy, "ben")).user_id
        with pytest.raises(AuthError):
            await enter("ben", "mine", may_create=True, may_set=False)
        assert await enter("ben", "mine", may_create=True, may_set=True) == ben
        with pytest.raises(AuthError):
            await enter("ben", "other", may_create=True, may_set=True)
        cid = {
            await one
            for one in [
                asyncio.ensure_future(enter("cid", "same", may_create=True, may_set=True))
                for _ in range(4)
            ]
        }
        assert len(cid) == 1
        with pytest.raises(AuthError):
            await enter("dan", "", may_create=True, may_set=True)
        with pytest.raises(Conflict):
            await store.run(accounts.set_password, ben, "another hash")
    finally:
        await store.close()
        passwords.close()


# --- views ----------------------------------------------------------------------------------


def test_jobs_are_listed_newest_first_a_page_at_a_time_and_each_user_sees_their_own(
    db: Database, worker: WorkerRecord
) -> None:
    ids = [put(db, timeout_s=1.0).job.job_id for _ in range(5)]
    put(db, user="ben")
    first = db.run(views.list_jobs, "ada", None, 2)
    assert [job.job_id for job in first.jobs] == ids[:2:-1]
    second = db.run(views.list_jobs, "ada", first.next, 2)
    third = db.run(views.list_jobs, "ada", second.next, 2)
    assert [job.job_id for job in (*second.jobs, *third.jobs)] == ids[2::-1]
    assert third.next is None
    assert len(db.run(views.list_jobs, None, None, 1000).jobs) == 6
    db.run(claim, db.settings, ids[0], worker)
    (running,) = db.run(views.list_jobs, "ada", None, 50, JobState.RUNNING).jobs
    assert running.job_id == ids[0]
    counts = db.run(views.count_jobs)
    assert (counts.queued, counts.running) == (5, 1)
    (live,) = db.run(views.list_live)
    assert (live.job_id, live.user, live.request.memory_bytes) == (ids[0], "ada", GIB)


def test_what_is_not_ones_own_is_not_there(db: Database) -> None:
    job = put(db).job
    assert db.run(views.get_job, job.job_id, "ada").job_id == job.job_id
    with pytest.raises(NotFound):
        db.run(views.get_job, job.job_id, "ben")
    with pytest.raises(NotFound):
        db.run(views.get_job, new_job_id())
    with pytest.raises(NotFound):
        db.run(views.get_balance, "ben")


def test_verifying_is_shown_as_running(db: Database) -> None:
    job = put(db).job
    view = views.job_view(msgspec.structs.replace(job, state=JobState.VERIFYING), started_us=1)
    assert view.status == "running"
    assert view.started_at is not None
