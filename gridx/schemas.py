"""REST bodies, in and out, and the parts that the sockets share with them.

Bodies that come in refuse unknown fields by name. Credits in bodies that go out are numbers in
credits (6.0), times are ISO 8601 in UTC.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from .credits import Rates
from .resources import GIB, MIB, Capability, Load, ResourceRequest, Usage

MAX_CODE_BYTES = MIB
MAX_TIMEOUT_S = 24 * 3600.0
MAX_RETRIES = 10
LANGUAGES = ("python", "bash", "node")
LANGUAGE_ALIASES = {"javascript": "node", "js": "node", "sh": "bash", "shell": "bash"}
MAX_REQUIREMENTS = 50

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=MAX_TIMEOUT_S)]
_Cores = Annotated[float, msgspec.Meta(gt=0, le=1024)]
_Memory = Annotated[int, msgspec.Meta(ge=64 * MIB, le=4096 * GIB)]
_Retries = Annotated[int, msgspec.Meta(ge=0, le=MAX_RETRIES)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Gpus = Annotated[int, msgspec.Meta(ge=0, le=64)]
_Disk = Annotated[int, msgspec.Meta(ge=MIB, le=4096 * GIB)]
_Model = Annotated[str, msgspec.Meta(max_length=64)]
_Family = Annotated[str, msgspec.Meta(pattern=r"^([a-z0-9][a-z0-9_.-]{0,63})?$")]
_Requirement = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a job may use. The hold is the rate of these resources times ``timeout_s``.

    ``disk_bytes`` is the job's folder; it lies in the memory, so both together have to fit.
    ``gpu_model`` is a part of the name that its GPUs must have, in any case of letters.
    """

    timeout_s: _Seconds = 60.0
    cpus: _Cores = 1.0
    memory_bytes: _Memory = GIB
    gpus: _Gpus = 0
    # Left out where they are not asked for: a worker of the release before refuses the words.
    gpu_model: _Model | msgspec.UnsetType = msgspec.UNSET
    disk_bytes: _Disk | msgspec.UnsetType = msgspec.UNSET

    def request(self) -> ResourceRequest:
        """Return the resources of one sandbox."""
        return ResourceRequest(
            cores=self.cpus,
            memory_bytes=self.memory_bytes,
            gpus=self.gpus,
            gpu_model=self.gpu_model or "",
            disk_bytes=self.disk_bytes or None,
        )


class JobRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The body of ``POST /jobs``. ``job_id`` is the idempotency key; without one it gets one.

    A default is left out on the wire: who does not know a field refuses the whole request.
    """

    code: str
    user_id: str | None = None
    language: str = "python"
    limits: Limits = Limits()
    job_id: str | None = None
    retries: _Retries | None = None  # on lost workers only
    image: _Family = ""  # a family of images that workers offer; "": the language's own
    # Distributions that are installed into an image for it, as ("polars==1.20", "tqdm>=4"):
    # names with versions from the package index, nothing else (PEP 508 without URLs).
    pip: Annotated[tuple[_Requirement, ...], msgspec.Meta(max_length=MAX_REQUIREMENTS)] = ()


class BlobRef(msgspec.Struct, frozen=True, kw_only=True):
    """Names a blob: up to 8 MiB of raw bytes, by their digest (gridx.blobs).

    Blobs belong to a user: the same bytes of another user are another blob.
    """

    digest: Digest  # BLAKE3 of the raw bytes
    size: Annotated[int, msgspec.Meta(ge=0, le=8 * MIB)]


class WantedBlobs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /blobs/missing``."""

    digests: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=10_000)]
    user_id: str | None = None


class MissingBlobs(msgspec.Struct, frozen=True, kw_only=True):
    """Those of the digests that were asked for which the user has not put, in their order."""

    missing: tuple[str, ...]


class FileSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A file that travels with a cell: ``data`` when it is small, else its blobs in order.

    ``path`` is relative, with ``/`` between its parts, below the job's folder; a ``module`` lies
    below a folder that is put on ``sys.path``.
    """

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    kind: Literal["work", "module"] = "work"
    data: bytes = b""
    blobs: tuple[BlobRef, ...] = ()


class SessionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a job a session: a sandbox that is kept between the calls of one user.

    The job's ``limits.timeout_s`` is how long the session may be open; each call has a time
    limit of its own. It is charged while it is open and never retried.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    idle_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 600.0  # it ends after so long unused


class CellSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a job a notebook cell: run by IPython, with variables in and results out."""

    python: str  # "3.11": the captured code objects need this minor version
    expected: tuple[str, ...] = ()  # the only names that the result may touch
    inputs: tuple[str, ...] = ()  # captured data names, watched for changes in place
    out: tuple[str, ...] | None = None  # bring home only these; None: all of ``expected``
    cell_id: str = ""
    files: tuple[FileSpec, ...] = ()  # laid out before the cell begins
    fetch: tuple[str, ...] = ()  # patterns of files that come home with the result
    prelude: str = ""  # lines run before the cell, in its namespace


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job ended as it did, or why it waits."""

    code: str
    message: str
    hint: str = ""


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the API shows it."""

    job_id: str
    user_id: str
    status: str
    language: str
    kind: str  # "script" | "cell" | "session"
    limits: Limits
    reserved: float  # credits held while the job lives
    cost: float  # credits charged so far
    attempt: int  # number of the newest attempt, 0 before the first
    worker_id: str | None = None
    worker_name: str | None = None
    worker_key: str = ""  # the worker's public key, Ed25519 in base64; "": it has none
    exit_code: int | None = None
    reason: Reason | None = None
    waiting: str | None = None  # while it does not run, or stands still: why
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    elapsed_s: float | None = None  # started to finished, by the coordinator's clock
    session: str | None = None  # the name, of a session


class JobDetail(JobView, frozen=True, kw_only=True):
    """``GET /jobs/{job_id}``: the job, and its output as a terminal would show it."""

    code: str
    stdout: str
    stderr: str
    output_truncated: bool = False
    usage: Usage | None = None  # once it has ended: as its worker metered it, inside what can be


class JobList(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /jobs``: newest first. ``next`` is the id to pass as ``before`` for the next page."""

    jobs: tuple[JobView, ...]
    next: str | None = None


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as the API shows it."""

    worker_id: str
    name: str
    owner: str
    public_key: str = ""  # Ed25519 in base64; "": it has none
    status: str  # "online" | "paused" | "offline"
    capability: Capability
    load: Load | None = None
    running: int = 0
    free_cores: float = 0.0
    free_memory_bytes: int = 0
    seen_at: datetime | None = None


class WorkerList(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /workers``."""

    workers: tuple[WorkerView, ...]


class AccountView(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /credits/{user_id}``, all amounts in credits: balance = available + held."""

    user_id: str
    balance: float
    available: float
    held: float


class GridStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /status``: the grid in numbers."""

    version: str
    protocol: int
    auth: str  # "open" | "accounts"
    workers_online: int  # without those that are paused
    cores: float
    jobs_queued: int
    jobs_running: int
    rates: Rates
    worker_share: float
    uptime_s: float
    workers_paused: int = 0


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /health``."""

    status: str
    version: str


class Credentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /auth/register`` and ``POST /auth/login``."""

    user_id: str
    password: str


class TokenView(msgspec.Struct, frozen=True, kw_only=True):
    """A token, shown once."""

    user_id: str
    token: str
    expires_at: datetime


class ErrorEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every error: ``detail`` repeats the message for clients that look there."""

    error: dict[str, Any]
    detail: str
