"""What the handlers share: built once by ``app.py`` and passed down, typed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gridx.schemas import BlobRef, JobView
from gridx.states import JobState

from ..blobs import Blobs
from ..bus.base import Bus, job_subject
from ..eventlog.base import EventLog
from ..rules.scheduling import Scheduler
from ..rules.waiting import standing_still
from ..services.session_views import CallEvent
from ..services.sign_in import Passwords
from ..services.views import job_view
from ..settings import Settings
from ..store.engine import Store
from ..store.records import Balance, JobRecord
from .connections import Connections
from .counters import Counters
from .output import AttemptOutput, Outputs
from .watch import CallNews, JobEvent

if TYPE_CHECKING:
    from .dispatcher import Dispatcher
    from .sessions import Sessions


@dataclass(kw_only=True, slots=True)
class Context:
    """Every part that a handler may need. ``dispatcher`` and ``sessions`` are set later: they
    need the rest."""

    settings: Settings
    store: Store
    log: EventLog
    blobs: Blobs
    bus: Bus
    passwords: Passwords
    scheduler: Scheduler
    connections: Connections
    outputs: Outputs
    counters: Counters
    http_url: str
    started_s: float  # monotonic
    spawn: Callable[[Coroutine[Any, Any, Any]], None]
    dispatcher: Dispatcher = field(init=False)
    sessions: Sessions = field(init=False)

    def view(self, job: JobRecord) -> JobView:
        """Return a job as the API shows it, with why it waits and since when it runs."""
        live = self.outputs.find(job.job_id, job.attempt)
        return job_view(
            job,
            waiting=None if job.is_final else self._waiting(job, live),
            started_us=None if live is None else live.started_us,
        )

    def _waiting(self, job: JobRecord, live: AttemptOutput | None) -> str | None:
        """Return why a job does not run, or stands still."""
        if job.state is JobState.QUEUED:
            return self.scheduler.explain(job.job_id)
        if job.is_frozen:
            return (live.frozen if live else "") or standing_still()
        if live is None or live.started_us is not None:
            return None
        return live.preparing or None

    def publish_change(
        self,
        job: JobRecord,
        *,
        balance: Balance | None = None,
        result: bytes | None = None,
        result_blobs: tuple[BlobRef, ...] = (),
        stream_bytes: int | None = None,
    ) -> None:
        """Tell everybody who watches the job about its new state."""
        event = JobEvent(job, balance, result, result_blobs, stream_bytes)
        self.bus.publish(job_subject(job.job_id), event)

    def publish_call(self, job: JobRecord, event: CallEvent) -> None:
        """Tell everybody who watches the session how a call of it stands."""
        self.bus.publish(job_subject(job.job_id), CallNews(job, event))
