"""Sessions through the services, in any order, repeated, late and by the wrong worker.

Whatever happens: the audit is clean (one hold a session, closed once; credits conserved; the
calls numbered without a gap, only the newest open), and what has ended stays as it is.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from coordinator.ledger.audit import audit
from coordinator.services import session_views, views
from coordinator.services.cancel import cancel
from coordinator.services.claim import claim
from coordinator.services.connect import adopt, disconnect
from coordinator.services.end_session import end_due, end_session, has_ending
from coordinator.services.expire import expire, find_due, lose
from coordinator.services.finish import finish
from coordinator.services.finish_call import finish_call
from coordinator.services.hand_back import hand_back
from coordinator.services.interrupt import interrupt
from coordinator.services.outcome import Outcome
from coordinator.services.recover import recover
from coordinator.services.start import CallStarted, Started, mark_calls_started, mark_started
from coordinator.services.submit import submit
from coordinator.services.submit_call import submit_call
from coordinator.settings import Settings
from coordinator.store.records import CallRecord, JobRecord, WorkerRecord
from gridx.errors import (
    Conflict,
    InsufficientCredits,
    NotFound,
    SessionEnded,
    StaleLease,
    WorkerLost,
)
from gridx.protocol import AttemptRef
from gridx.schemas import CellSpec, SessionSpec
from gridx.states import Cause, JobState
from tests.support.database import Database, call_order, call_report, order, report

CREDIT = 1_000_000
OPEN_S = 100.0
which_session = st.integers(0, 1)
which_worker = st.integers(0, 1)
which_call = st.sampled_from((0, 0, 0, 0, -1, 1))  # beside the newest
cause = st.sampled_from((*Cause, *[Cause.COMPLETED] * 4))
seldom = st.sampled_from((False, False, False, True))  # what ends a session


class SessionsMachine(RuleBasedStateMachine):
    """One user, two workers (one of them hers), never more than two sessions alive."""

    @initialize()
    def open(self) -> None:
        self.db = Database(settings=Settings(signup_grant_ucr=40 * CREDIT))
        self.workers: list[WorkerRecord] = [self.db.add_worker("lee"), self.db.add_worker("ada")]
        self.sessions: list[str] = []
        self.ended: dict[str, JobRecord] = {}
        self.ended_calls: dict[tuple[str, int], CallRecord] = {}
        for worker in (0, 1):
            self.open_one(worker)

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()

    def job(self, which: int) -> JobRecord:
        return self.db.run(views.get_job, self.sessions[-2:][which])

    def newest(self, job: JobRecord) -> CallRecord:
        found = self.db.run(session_views.find_newest, job.row_id)
        assert found is not None
        return found.call

    @rule(worker=st.none() | which_worker)
    def open_one(self, worker: int | None) -> None:
        live = self.db.run(views.count_jobs)
        if live.queued + live.running > 1:
            return
        made = order(
            "ada",
            timeout_s=OPEN_S,
            cell=CellSpec(python="3.11"),
            inputs=b"in",
            session=SessionSpec(name="main", idle_s=30),
            call_timeout_s=10,
        )
        chosen = None if worker is None else self.workers[worker]
        try:
            submitted = self.db.run(submit, self.db.settings, made, 0.0, chosen)
        except InsufficientCredits:
            return
        assert submitted.job.max_tries == 1
        self.sessions.append(made.job_id)
        again = self.db.run(submit, self.db.settings, made, 0.0, chosen)
        assert (again.is_new, again.job.row_id) == (False, submitted.job.row_id)

    @rule(which=which_session, worker=which_worker)
    def claim(self, which: int, worker: int) -> None:
        job = self.job(which)
        claimed = self.db.run(claim, self.db.settings, job.job_id, self.workers[worker])
        assert (claimed is not None) == (job.state is JobState.QUEUED)

    @rule(which=which_session, beside=which_call)
    def starts(self, which: int, beside: int) -> None:
        job = self.job(which)
        now_us = self.db.now_us
        for worker in self.workers:
            begin = Started(
                job_id=job.job_id,
                attempt=job.attempt,
                worker_row_id=worker.row_id,
                started_us=now_us,
                timeout_s=OPEN_S,
                is_session=True,
            )
            self.db.run(mark_started, self.db.settings, [begin])
        call = CallStarted(job_id=job.job_id, call=self.newest(job).n + beside, started_us=now_us)
        self.db.run(mark_calls_started, self.db.settings, [call])

    @rule(which=which_session, beside=which_call, code=st.sampled_from("xy"), user=st.booleans())
    def submit_call(self, which: int, beside: int, code: str, user: bool) -> None:
        job = self.job(which)
        newest = self.newest(job)
        n = max(1, newest.n + 1 + beside)
        made = call_order("ada" if user else "eve", job.job_id, n, code=code)
        try:
            done = self.db.run(submit_call, self.db.settings, made)
        except NotFound:
            assert not user
            return
        except (SessionEnded, WorkerLost):
            assert job.is_final or job.cancel_us is not None or self.is_closing(job)
            return
        except Conflict:
            assert n <= newest.n or n > newest.n + 1 or not newest.is_final
            return
        assert user
        if done.is_new:
            assert (n, newest.is_final, job.is_final) == (newest.n + 1, True, False)
        assert not self.db.run(submit_call, self.db.settings, made).is_new

    def is_closing(self, job: JobRecord) -> bool:
        pending = self.db.run(session_views.find_pending, job.job_id)
        return pending is not None and pending.is_ending

    @rule(
        which=which_session,
        beside=which_call,
        cause=cause,
        worker=which_worker,
        stored=st.sampled_from((0, 50, 50, 50)),
        wall_s=st.sampled_from((0.0, 1.0, 1e6, float("nan"))),
    )
    def finish_call(
        self, which: int, beside: int, cause: Cause, worker: int, stored: int, wall_s: float
    ) -> None:
        job, by = self.job(which), self.workers[worker]
        newest = self.newest(job)
        told = call_report(
            job.job_id,
            newest.n + beside,
            cause,
            attempt=job.attempt,
            stream_bytes=20,
            wall_s=wall_s,
            result=b"r",
        )
        try:
            done = self.db.run(finish_call, self.db.settings, told, by, stored)
        except StaleLease:
            return
        if done.outcome is Outcome.MORE:
            assert stored < 20
        elif done.outcome is Outcome.SETTLED:
            assert (beside, newest.is_final, job.worker_id) == (0, False, by.worker_id)
            assert 0 <= done.call.cost_ucr <= job.hold_ucr
            again = self.db.run(finish_call, self.db.settings, told, by, stored)
            assert again.outcome is Outcome.REPEATED

    @rule(
        which=which_session,
        cause=cause,
        worker=which_worker,
        wall_s=st.sampled_from((0.0, 1.0, 1e6)),
        lag=st.sampled_from((0, 0, 1)),
        really=seldom,
    )
    def finish(
        self, which: int, cause: Cause, worker: int, wall_s: float, lag: int, really: bool
    ) -> None:
        if not really:
            return
        job, by = self.job(which), self.workers[worker]
        told = report(job.job_id, job.attempt - lag, cause, wall_s=wall_s, call=self.newest(job).n)
        try:
            done = self.db.run(finish, self.db.settings, told, by, 0)
        except StaleLease:
            return
        assert done.outcome in (Outcome.SETTLED, Outcome.REPEATED), "a session is never retried"
        assert done.job.is_final
        assert done.job.cost_ucr <= job.hold_ucr
        if by.owner == "ada":
            assert done.job.cost_ucr == 0

    @rule(which=which_session, worker=which_worker, has_started=st.booleans(), really=seldom)
    def hand_back(self, which: int, worker: int, has_started: bool, really: bool) -> None:
        if not really:
            return
        job, by = self.job(which), self.workers[worker]
        if job.attempt > 10:
            return
        try:
            ended = self.db.run(
                hand_back,
                self.db.settings,
                job.job_id,
                job.attempt,
                by,
                has_started=has_started,
            )
        except StaleLease:
            return
        if has_started:
            assert ended.outcome is Outcome.SETTLED

    @rule(which=which_session, beside=which_call)
    def interrupt(self, which: int, beside: int) -> None:
        job = self.job(which)
        n = self.newest(job).n + beside
        try:
            done = self.db.run(interrupt, self.db.settings, job.job_id, n, "ada")
        except NotFound:
            assert n < 0 or n > self.newest(job).n
            return
        assert done.send == (not done.call.is_final and job.state is JobState.RUNNING)

    @rule(which=which_session, really=seldom)
    def end(self, which: int, really: bool) -> None:
        if not really:
            return
        job = self.job(which)
        done = self.db.run(end_session, self.db.settings, job.job_id, "ada")
        assert done.tell or done.job.is_final

    @rule(which=which_session, really=seldom)
    def cancel(self, which: int, really: bool) -> None:
        if not really:
            return
        job = self.job(which)
        done = self.db.run(cancel, self.db.settings, job.job_id, "ada")
        assert done.changed == (not job.is_final and job.cancel_us is None)

    @rule(seconds=st.sampled_from((0.0, 1.0, 15.0, 31.0, 61.0, 150.0)))
    def time_passes(self, seconds: float) -> None:
        self.db.pass_time(seconds)
        if self.db.run(has_ending):
            self.db.run(end_due, self.db.settings)
        if self.db.run(find_due):
            for ended in self.db.run(expire, self.db.settings):
                assert ended.job.is_final or ended.outcome is Outcome.REQUEUED
        assert not self.db.run(find_due)

    @rule(worker=which_worker, really=seldom)
    def disconnect(self, worker: int, really: bool) -> None:
        if not really:
            return
        self.db.run(disconnect, self.db.settings, self.workers[worker], self.db.now_us)

    @rule(worker=which_worker, forgets=seldom)
    def hello(self, worker: int, forgets: bool) -> None:
        me = self.workers[worker]
        mine = [
            AttemptRef(job_id=live.job_id, attempt=live.attempt)
            for live in self.db.run(views.list_live)
            if live.worker_id == me.worker_id
        ]
        for each in self.db.run(adopt, self.db.settings, me, mine[1:] if forgets else mine).ended:
            assert each.job.is_final

    @rule(which=which_session, worker=which_worker, really=seldom)
    def lose(self, which: int, worker: int, really: bool) -> None:
        if not really:
            return
        job, by = self.job(which), self.workers[worker]
        ended = self.db.run(lose, self.db.settings, job.job_id, job.attempt, by)
        assert ended is None or ended.job.is_final

    @rule()
    def restart(self) -> None:
        self.db.run(recover, self.db.settings)

    @invariant()
    def nothing_is_lost_or_created(self) -> None:
        if hasattr(self, "db"):
            with self.db.engine.connect() as tx:
                assert audit(tx) == ()

    @invariant()
    def what_has_ended_stays(self) -> None:
        for job_id in getattr(self, "sessions", ())[-4:]:
            job = self.db.run(views.get_job, job_id)
            if job.is_final:
                assert self.ended.setdefault(job_id, job) == job
                assert job.reason is not None
            call = self.newest(job)
            if call.is_final:
                kept = self.ended_calls.setdefault((job_id, call.n), call)
                assert kept == call


SessionsMachine.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestSessionsInAnyOrder = SessionsMachine.TestCase
