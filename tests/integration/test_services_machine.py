"""Jobs and attempts through the services, in any order, repeated, late and by the wrong worker.

Whatever happens: the audit is clean (a hold is open exactly while its job lives, a running job
has one live attempt, nothing is paid twice), and what is final stays as it is.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.ledger.audit import audit
from coordinator.services import views
from coordinator.services.cancel import cancel
from coordinator.services.claim import claim
from coordinator.services.connect import adopt, disconnect
from coordinator.services.expire import expire, find_due, lose
from coordinator.services.finish import finish
from coordinator.services.freeze import note_frozen
from coordinator.services.hand_back import hand_back
from coordinator.services.outcome import Outcome
from coordinator.services.recover import recover
from coordinator.services.start import Started, mark_started
from coordinator.services.submit import Order, submit
from coordinator.settings import Settings
from coordinator.store.records import JobRecord, WorkerRecord
from gridx.errors import Conflict, InsufficientCredits, StaleLease
from gridx.protocol import AttemptFinished, AttemptRef
from gridx.schemas import CellSpec
from gridx.states import Cause, JobState
from tests.support.database import PROCESS, Database, order, report

USERS = ("ada", "ben", "lee")
which_job = st.integers(0, 3)
which_worker = st.integers(0, 2)
lag = st.sampled_from((0, 0, 0, 1))  # how many attempts behind the newest one


class ServicesMachine(RuleBasedStateMachine):
    """Three users, three workers (one of ``lee``'s, one process sandbox), never more than four jobs alive."""

    @initialize()
    def open(self) -> None:
        self.db = Database(settings=Settings(signup_grant_ucr=30_000_000, max_tries=2))
        self.workers: list[WorkerRecord] = [
            self.db.add_worker("lee"),
            self.db.add_worker("mia"),
            self.db.add_worker("ada", PROCESS),
        ]
        self.orders: list[Order] = []
        self.final: dict[str, JobRecord] = {}
        self.accepted: dict[tuple[str, int], tuple[AttemptFinished, WorkerRecord]] = {}
        for user, worker in (("ada", None), ("ben", 0), ("lee", 0), ("ada", 1)):
            self.submit_new(user, False, user == "ben", worker)

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()

    def job(self, which: int) -> JobRecord:
        """One of the four newest jobs: they are the ones that something can still happen to."""
        return self.db.run(views.get_job, self.orders[-4:][which].job_id)

    def keep(self, job: JobRecord) -> None:
        """A record that a service returned is what the database says."""
        assert self.db.run(views.get_job, job.job_id) == job

    @rule(
        user=st.sampled_from(USERS),
        own_only=st.booleans(),
        is_cell=st.booleans(),
        at_once=st.none() | which_worker,
    )
    def submit(self, user: str, own_only: bool, is_cell: bool, at_once: int | None) -> None:
        live = self.db.run(views.count_jobs)
        if live.queued + live.running < 4:
            self.submit_new(user, own_only, is_cell, at_once)

    def submit_new(self, user: str, own_only: bool, is_cell: bool, at_once: int | None) -> None:
        cell = CellSpec(python="3.11") if is_cell else None
        made = order(user, own_only=own_only, cell=cell, inputs=b"in" if is_cell else b"")
        worker = None if at_once is None else self.workers[at_once]
        try:
            submitted = self.db.run(submit, self.db.settings, made, 0.0, worker)
        except InsufficientCredits as refused:
            assert refused.details["missing_ucr"] > 0
        except Conflict:
            assert worker is not None
            assert worker.owner != user
            assert own_only or worker.capability.own_jobs_only
        else:
            assert submitted.is_new
            assert submitted.claimed == (worker is not None)
            self.orders.append(made)
            self.keep(submitted.job)

    @rule(which=which_job)
    def submit_again(self, which: int) -> None:
        made = self.orders[-4:][which]
        again = self.db.run(submit, self.db.settings, made, 0.0, self.workers[0])
        assert not again.is_new
        assert not again.claimed
        self.keep(again.job)

    @rule(which=which_job, worker=which_worker)
    def claim(self, which: int, worker: int) -> None:
        before = self.job(which)
        try:
            claimed = self.db.run(claim, self.db.settings, before.job_id, self.workers[worker])
        except Conflict:
            assert before.user != self.workers[worker].owner
            return
        assert (claimed is not None) == (before.state is JobState.QUEUED)
        if claimed is not None:
            assert claimed.attempt == before.attempt + 1
            assert claimed.inputs == (b"" if before.cell is None else b"in")
            self.keep(claimed.job)

    @rule(which=which_job, lag=lag)
    def start(self, which: int, lag: int) -> None:
        job = self.job(which)
        told = Started(
            job_id=job.job_id,
            attempt=job.attempt - lag,
            worker_row_id=self.worker_of(job).row_id,
            started_us=self.db.now_us,
            timeout_s=60.0,
        )
        self.db.run(mark_started, self.db.settings, [told])

    @rule(
        which=which_job,
        lag=lag,
        worker=which_worker,
        cause=st.sampled_from(Cause),
        wall_s=st.sampled_from((0.0, 1.5, 1e6)),
        stored_end=st.sampled_from((0, 4, 4, 4, 5)),
    )
    def finish_by_anybody(
        self, which: int, lag: int, worker: int, cause: Cause, wall_s: float, stored_end: int
    ) -> None:
        job = self.job(which)
        by = self.workers[worker]
        self._finish(job.job_id, job.attempt - lag, by, cause, wall_s, stored_end)

    @rule(which=which_job, cause=st.sampled_from(Cause), wall_s=st.sampled_from((0.0, 1.5, 1e6)))
    def finish_by_its_worker(self, which: int, cause: Cause, wall_s: float) -> None:
        job = self.job(which)
        self._finish(job.job_id, job.attempt, self.worker_of(job), cause, wall_s, 4)

    def worker_of(self, job: JobRecord) -> WorkerRecord:
        named = [worker for worker in self.workers if worker.worker_id == job.worker_id]
        return (named or self.workers)[0]

    def _finish(
        self,
        job_id: str,
        attempt: int,
        worker: WorkerRecord,
        cause: Cause,
        wall_s: float,
        stored_end: int,
    ) -> None:
        before = self.db.run(views.get_job, job_id)
        told = report(job_id, attempt, cause, wall_s=wall_s, stream_bytes=4, result=b"r")
        is_repeat = (job_id, attempt) in self.accepted and self.accepted[job_id, attempt][
            1
        ] == worker
        try:
            done = self.db.run(finish, self.db.settings, told, worker, stored_end, None, b"abcd")
        except StaleLease:
            assert not is_repeat
            return
        if is_repeat:
            assert done.outcome is Outcome.REPEATED
            return
        assert before.state is JobState.RUNNING
        assert before.attempt == attempt
        assert before.worker_id == worker.worker_id
        if done.outcome is Outcome.MORE:
            assert stored_end < 4
            assert done.job == before
            return
        self.accepted[job_id, attempt] = (told, worker)
        assert done.job.cost_ucr <= before.hold_ucr
        if before.user == worker.owner:
            assert done.job.cost_ucr == 0
        if done.outcome is Outcome.SETTLED and before.hold_ucr:
            assert done.balance == self.db.run(views.get_balance, before.user)
        self.keep(done.job)

    @precondition(lambda self: bool(self.accepted))
    @rule(data=st.data())
    def finish_again(self, data: st.DataObject) -> None:
        told, worker = self.accepted[data.draw(st.sampled_from(sorted(self.accepted)))]
        done = self.db.run(finish, self.db.settings, told, worker, 4)
        assert done.outcome is Outcome.REPEATED

    @rule(which=which_job, lag=lag, is_frozen=st.booleans())
    def freeze(self, which: int, lag: int, is_frozen: bool) -> None:
        before = self.job(which)
        worker = self.worker_of(before)
        attempt = before.attempt - lag
        try:
            after = self.db.run(
                note_frozen,
                self.db.settings,
                before.job_id,
                attempt,
                worker,
                is_frozen=is_frozen,
            )
        except StaleLease:
            return
        assert (before.state, lag) == (JobState.RUNNING, 0)
        if not is_frozen or before.started_us is None:
            assert not after.is_frozen
        else:
            assert after.is_frozen
        self.keep(after)

    @rule(which=which_job, lag=lag, by_its_worker=st.booleans(), is_polite=st.booleans())
    def hand_back(self, which: int, lag: int, by_its_worker: bool, is_polite: bool) -> None:
        before = self.job(which)
        attempt = before.attempt - lag
        worker = self.worker_of(before) if by_its_worker else self.workers[0]
        try:
            ended = self.db.run(
                hand_back, self.db.settings, before.job_id, attempt, worker, is_polite=is_polite
            )
        except StaleLease:
            return
        assert before.state is JobState.RUNNING
        assert (before.attempt, before.worker_id) == (attempt, worker.worker_id)
        assert ended.job.tries == before.tries
        assert ended.job.spared - before.spared in (0, int(is_polite))
        assert ended.job.cost_ucr == 0
        self.keep(ended.job)

    @rule(which=which_job)
    def cancel(self, which: int) -> None:
        before = self.job(which)
        done = self.db.run(cancel, self.db.settings, before.job_id, before.user)
        assert done.changed == (not before.is_final and before.cancel_us is None)
        if done.changed:
            assert done.job.is_final or done.stop
        self.keep(done.job)

    @rule(seconds=st.sampled_from((0.0, 0.7, 5.0, 30.0, 61.0, 200.0, 4000.0)))
    def time_passes(self, seconds: float) -> None:
        self.db.pass_time(seconds)
        is_due = self.db.run(find_due)
        ended = self.db.run(expire, self.db.settings)
        assert bool(ended) == is_due
        assert not self.db.run(find_due)
        for each in ended:
            self.keep(each.job)

    @rule(worker=which_worker)
    def disconnect(self, worker: int) -> None:
        self.db.run(disconnect, self.db.settings, self.workers[worker], self.db.now_us)

    @rule(worker=which_worker, forgets=st.booleans(), claims_all=st.booleans())
    def hello(self, worker: int, forgets: bool, claims_all: bool) -> None:
        me = self.workers[worker]
        mine = [
            AttemptRef(job_id=live.job_id, attempt=live.attempt)
            for live in self.db.run(views.list_live)
            if live.worker_id == me.worker_id
        ]
        said = mine[1:] if forgets else mine
        if claims_all:
            said = said + [
                AttemptRef(job_id=made.job_id, attempt=n) for made in self.orders for n in (1, 2, 3)
            ]
        adopted = self.db.run(adopt, self.db.settings, me, said)
        expected = mine if claims_all else said
        assert {(a.job_id, a.attempt) for a in adopted.adopted} == {
            (ref.job_id, ref.attempt) for ref in expected if ref in said
        }
        for each in adopted.ended:
            self.keep(each.job)

    @rule(which=which_job, lag=lag, worker=which_worker)
    def lose(self, which: int, lag: int, worker: int) -> None:
        job, by = self.job(which), self.workers[worker]
        ended = self.db.run(lose, self.db.settings, job.job_id, job.attempt - lag, by)
        if ended is not None:
            assert job.state is JobState.RUNNING
            assert (lag, job.worker_id) == (0, by.worker_id)
            self.keep(ended.job)

    @rule()
    def restart(self) -> None:
        found = self.db.run(recover, self.db.settings)
        counts = self.db.run(views.count_jobs)
        assert (len(found.queued), len(found.live)) == (counts.queued, counts.running)
        assert all(live.lease_us is not None for live in found.live)

    @invariant()
    def nothing_is_lost_or_created(self) -> None:
        if not hasattr(self, "db"):
            return
        with self.db.engine.connect() as tx:
            assert audit(tx) == ()

    @invariant()
    def what_is_final_stays(self) -> None:
        for made in getattr(self, "orders", ())[-8:]:
            job = self.db.run(views.get_job, made.job_id)
            if job.job_id in self.final:
                assert job == self.final[job.job_id]
            elif job.is_final:
                self.final[job.job_id] = job
            if job.state is JobState.QUEUED and job.cell is not None:
                assert self.db.run(views.find_payload, job.job_id, "inputs") == b"in"


ServicesMachine.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=80,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestJobsInAnyOrder = ServicesMachine.TestCase
