"""Who can see which blob, after any sequence of puts, jobs, leases, reports and cancels.

The model knows three things: what each owner has, what each job was submitted with while it
lives, and what its accepted result is. Everything that the services answer follows from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from coordinator.services import blobs, views
from coordinator.services.cancel import cancel
from coordinator.services.claim import claim
from coordinator.services.expire import lose
from coordinator.services.finish import finish
from coordinator.services.submit import make_order, submit
from coordinator.settings import Settings
from gridx.blobs import to_blob
from gridx.errors import BlobsMissing, NotFound
from gridx.protocol import AttemptFinished
from gridx.resources import Usage
from gridx.schemas import BlobRef, CellSpec, JobRequest, Limits
from gridx.states import Cause
from tests.support.database import Database

USERS = ("ada", "ben")
BLOBS = tuple(to_blob(memoryview(bytes([number]))).ref for number in range(4))
CELL = CellSpec(python="3.11")
some_blobs = st.lists(st.sampled_from(BLOBS), max_size=3)
which_worker = st.integers(0, 1)
which_job = st.integers(0, 2)


@dataclass
class ModelJob:
    """One job, as the test knows it."""

    job_id: str
    user: str
    inputs: set[BlobRef]
    results: set[BlobRef] = field(default_factory=set)
    attempt: int = 0
    worker: int | None = None  # that holds it
    is_final: bool = False


class BlobRights(RuleBasedStateMachine):
    """Two users with the same four blobs between them, two workers, three jobs in view."""

    @initialize()
    def open(self) -> None:
        self.db = Database(settings=Settings(max_tries=2))
        self.owner_ids = {user: self.db.add_user(user) for user in USERS}
        self.workers = [self.db.add_worker("lee"), self.db.add_worker("mia")]
        self.has: dict[str, set[BlobRef]] = {user: set() for user in USERS}
        self.jobs: list[ModelJob] = []

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()

    def job(self, which: int) -> ModelJob | None:
        newest = self.jobs[-3:]
        return newest[which] if which < len(newest) else None

    def end(self, job: ModelJob) -> None:
        job.is_final, job.worker, job.inputs = True, None, set()

    @rule(user=st.sampled_from(USERS), ref=st.sampled_from(BLOBS))
    def put(self, user: str, ref: BlobRef) -> None:
        owned = self.db.run(blobs.look_up, user, ref)
        assert owned.owner_id == self.owner_ids[user]
        assert owned.is_known == (ref in self.has[user])
        self.db.run(blobs.keep, self.owner_ids[user], ref, ref.size)
        self.has[user].add(ref)

    @rule(which=which_job, worker=which_worker, ref=st.sampled_from(BLOBS))
    def put_as_a_worker(self, which: int, worker: int, ref: BlobRef) -> None:
        if (job := self.job(which)) is None:
            return
        worker_id = self.workers[worker].worker_id
        try:
            owner_id = self.db.run(blobs.find_owner, job.job_id, None, worker_id)
        except NotFound:
            assert job.worker != worker
            return
        assert job.worker == worker
        assert owner_id == self.owner_ids[job.user]
        self.db.run(blobs.keep, owner_id, ref, ref.size)
        self.has[job.user].add(ref)

    @rule(user=st.sampled_from(USERS), refs=st.sets(st.sampled_from(BLOBS), max_size=3))
    def submit(self, user: str, refs: set[BlobRef]) -> None:
        if sum(not job.is_final for job in self.jobs) >= 3:
            return
        request = JobRequest(code="1", limits=Limits(timeout_s=0.001))
        order = make_order(user, request, CELL, blobs=tuple(refs))
        try:
            self.db.run(submit, self.db.settings, order, 0.0)
        except BlobsMissing as exc:
            assert exc.details["missing"] == len(refs - self.has[user]) > 0
            return
        assert refs <= self.has[user]
        self.jobs.append(ModelJob(order.job_id, user, set(refs)))

    @rule(which=which_job, worker=which_worker)
    def claim(self, which: int, worker: int) -> None:
        if (job := self.job(which)) is None:
            return
        claimed = self.db.run(claim, self.db.settings, job.job_id, self.workers[worker])
        assert (claimed is None) == (job.is_final or job.worker is not None)
        if claimed is not None:
            assert set(claimed.blobs) == job.inputs
            job.attempt, job.worker = claimed.attempt, worker

    @rule(which=which_job, results=some_blobs)
    def finish(self, which: int, results: list[BlobRef]) -> None:
        if (job := self.job(which)) is None or job.worker is None:
            return
        report = AttemptFinished(
            job_id=job.job_id,
            attempt=job.attempt,
            cause=Cause.COMPLETED,
            stream_bytes=0,
            result_blobs=tuple(results),
            usage=Usage(wall_s=1.0),
        )
        done = self.db.run(finish, self.db.settings, report, self.workers[job.worker], 0)
        if set(results) <= self.has[job.user]:
            assert done.job.is_final
            assert done.result_blobs == tuple(results)
            assert self.db.run(views.find_result, done.job) == (None, tuple(results))
            job.results = set(results)
        else:
            assert done.result_blobs == ()
        job.worker = None
        if done.job.is_final:
            self.end(job)

    @rule(which=which_job)
    def lose(self, which: int) -> None:
        if (job := self.job(which)) is None or job.worker is None:
            return
        worker = self.workers[job.worker]
        ended = self.db.run(lose, self.db.settings, job.job_id, job.attempt, worker)
        assert ended is not None
        job.worker = None
        if ended.job.is_final:
            self.end(job)

    @rule(which=which_job)
    def cancel_while_it_waits(self, which: int) -> None:
        job = self.job(which)
        if job is not None and not job.is_final and job.worker is None:
            assert self.db.run(cancel, self.db.settings, job.job_id, job.user).job.is_final
            self.end(job)

    def can_read(self, job: ModelJob, ref: BlobRef, **who: str) -> bool:
        try:
            found = self.db.run(blobs.find_readable, job.job_id, ref.digest, **who)
        except NotFound:
            return False
        assert found == (self.owner_ids[job.user], ref)
        return True

    @invariant()
    def what_is_missing_is_what_its_owner_has_not_put(self) -> None:
        digests = tuple(ref.digest for ref in BLOBS)
        for user in USERS:
            lacking = {ref.digest for ref in BLOBS if ref not in self.has[user]}
            assert set(self.db.run(blobs.missing, user, digests)) == lacking

    @invariant()
    def a_blob_is_read_through_a_job_and_by_nobody_else(self) -> None:
        for job in self.jobs[-3:]:
            for ref in BLOBS:
                for user in USERS:
                    may = user == job.user and ref in job.inputs | job.results
                    assert self.can_read(job, ref, user=user) == may
                for number, worker in enumerate(self.workers):
                    may = number == job.worker and ref in job.inputs
                    assert self.can_read(job, ref, worker_id=worker.worker_id) == may


TestBlobRights = BlobRights.TestCase
TestBlobRights.settings = settings(
    max_examples=30,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
