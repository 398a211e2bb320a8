"""What the queries return: frozen values, nothing of the database in them.

``_us`` are microseconds since 1970 UTC, ``_ucr`` whole micro-credits.
"""

from __future__ import annotations

import msgspec

from gridx.resources import Capability, ResourceRequest
from gridx.schemas import CellSpec, JobRequest, Reason, SessionSpec
from gridx.states import (
    FINAL_CALL_STATES,
    FINAL_JOB_STATES,
    AttemptState,
    CallState,
    JobState,
)

from ..rules.shapes import Shape


class UserRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A person. ``pw_hash`` is None until somebody set a password for the name."""

    user_id: int
    name: str
    pw_hash: str | None
    created_us: int


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a token stands for, and what it may do."""

    user_id: int
    user: str
    scopes: frozenset[str]
    worker_id: str | None
    expires_us: int


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """A user's credits: ``posted_ucr`` in all, ``held_ucr`` of them set aside for jobs."""

    user: str
    posted_ucr: int
    held_ucr: int

    @property
    def available_ucr(self) -> int:
        """What no hold has set aside."""
        return self.posted_ucr - self.held_ucr


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A lender's machine, as it last said hello."""

    row_id: int
    worker_id: str
    name: str
    owner: str
    owner_id: int
    capability: Capability
    seen_us: int
    public_key: str = ""  # Ed25519, base64; it never changes once there is one


class QueuedJob(msgspec.Struct, frozen=True, kw_only=True):
    """What the dispatcher needs to know of a job that waits."""

    job_id: str
    user: str
    user_id: int
    tag: float
    shape: Shape
    own_only: bool
    created_us: int


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A job and its newest attempt."""

    row_id: int
    job_id: str
    user_id: int
    user: str
    state: JobState
    job: JobRequest
    cell: CellSpec | None
    own_only: bool
    tag: float
    rate_ucr_per_s: int
    hold_ucr: int  # 0 where the job needs none
    cost_ucr: int
    tries: int
    max_tries: int
    created_us: int
    cancel_us: int | None = None
    finished_us: int | None = None
    exit_code: int | None = None
    reason: Reason | None = None
    # the newest attempt
    attempt: int = 0
    worker_id: str | None = None
    worker_name: str | None = None
    worker_key: str = ""
    claimed_us: int | None = None
    started_us: int | None = None
    stream_bytes: int | None = None  # length of its output, once its report was accepted
    is_frozen: bool = False  # it stands still since its lender paused
    spared: int = 0  # attempts that were given back politely, and are not counted
    blob_count: int = 0  # what it was submitted with, beside the message
    # of a session
    session: SessionSpec | None = None
    call_timeout_s: float | None = None  # of its call 0

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self.state in FINAL_JOB_STATES

    def to_queued(self) -> QueuedJob:
        """Return what the dispatcher needs."""
        return QueuedJob(
            job_id=self.job_id,
            user=self.user,
            user_id=self.user_id,
            tag=self.tag,
            shape=self.shape,
            own_only=self.own_only,
            created_us=self.created_us,
        )

    @property
    def shape(self) -> Shape:
        """What it needs of a worker."""
        return Shape.of_job(
            self.job,
            self.cell,
            has_blobs=self.blob_count > 0,
            is_session=self.session is not None,
        )


class LiveAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that stands."""

    job_id: str
    attempt: int
    worker_id: str
    user: str
    state: AttemptState
    request: ResourceRequest
    claimed_us: int
    started_us: int | None
    lease_us: int | None  # None: its worker is connected
    cancel_wanted: bool
    timeout_s: float
    is_session: bool = False


class CallSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What one call of a session asks for. The code and cell of call 0 are those of its job."""

    timeout_s: float
    code: str = ""
    cell: CellSpec | None = None


class CallRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a session. Its output lies from ``begin_bytes`` to ``end_bytes`` of the attempt's."""

    row_id: int
    job_row_id: int
    job_id: str
    attempt: int  # the job's newest
    n: int
    state: CallState
    spec: CallSpec
    begin_bytes: int
    created_us: int
    end_bytes: int | None = None
    started_us: int | None = None
    finished_us: int | None = None
    due_us: int | None = None
    interrupt_us: int | None = None
    reason: Reason | None = None
    exit_code: int | None = None
    cost_ucr: int = 0
    frozen_us: int = 0  # it stood still for so long

    @property
    def is_final(self) -> bool:
        """Whether the call has ended."""
        return self.state in FINAL_CALL_STATES


class JobCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs live."""

    queued: int
    running: int
