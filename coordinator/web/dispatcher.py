"""Brings jobs and workers together: takes room in memory first, then lets the database decide.

Between a Submit and its StartAttempt stands one commit and nothing else: when a worker has room,
the submission itself claims it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

import msgspec

from gridx.clock import monotonic_s
from gridx.errors import GridXError, StaleLease
from gridx.protocol import (
    AttemptFinished,
    AttemptFrozen,
    HandBack,
    OutputResend,
    Preparing,
    Settled,
    StartAttempt,
    StopAttempt,
)
from gridx.schemas import BlobRef
from gridx.states import JobState

from ..bus.base import job_subject
from ..rules.scheduling import QueuedJob as WaitingJob
from ..rules.shapes import Shape
from ..rules.waiting import getting_ready, standing_still
from ..services import (
    cancel,
    claim,
    connect,
    expire,
    finish,
    freeze,
    hand_back,
    recover,
    start,
    submit,
    transfer,
    views,
)
from ..services.cancel import Cancelled
from ..services.outcome import Ended, Outcome
from ..services.session_views import CallEvent
from ..services.submit import Order, Submitted
from ..store.records import Balance, CallRecord, JobRecord, LiveAttempt, QueuedJob, WorkerRecord
from .connections import WorkerLink
from .context import Context
from .output import AttemptOutput

MAX_TOLD = 200  # waiting jobs whose reason is looked at each second
AVOID_S = 5.0  # a worker that handed a job back is kept off it for so long
MOVED_EVERY_S = 5.0  # less than the shortest limit, so that a slow line keeps its job
TOLD_EVERY_S = 0.5  # how often the watchers of a job hear how far its preparation is
_RETRY_S = 1.0

_log = logging.getLogger(__name__)


def _waiting(job: QueuedJob, avoid: Iterable[str] = ()) -> WaitingJob:
    return WaitingJob(job.job_id, job.user, job.shape, job.tag, frozenset(avoid))


class Dispatcher:
    """The one place where attempts are granted, ended and requeued."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._scheduler = context.scheduler
        self._avoided_until_s: dict[str, float] = {}
        self._finishing: set[tuple[str, int]] = set()
        self._said_waiting: dict[str, str] = {}
        self._moved_s: dict[str, float] = {}  # when blobs of a running job were moved last

    # --- jobs come in ------------------------------------------------------------------------

    async def recover(self) -> None:
        """Rebuild the queue from the database. Workers add themselves as they come back."""
        context = self._context
        found = await context.store.run(recover.recover, context.settings)
        self._scheduler.note_dispatched(found.virtual_time)
        for job in found.queued:
            self._scheduler.enqueue(_waiting(job))

    async def submit(self, order: Order) -> Submitted:
        """Take a job in, and start it in the same commit when a worker has room for it."""
        context, scheduler = self._context, self._scheduler
        received_s = monotonic_s()
        job_id = order.job_id
        shape = Shape.of_job(
            order.job,
            order.cell,
            has_blobs=bool(order.blobs),
            is_session=order.session is not None,
        )
        room = scheduler.place(shape, order.user)
        link = context.connections.find(room.worker_id) if room else None
        if link is not None:
            scheduler.take(link.worker.worker_id, job_id, shape)
        try:
            submitted = await context.store.run(
                submit.submit,
                context.settings,
                order,
                scheduler.virtual_time,
                claim=None if link is None else link.worker,
            )
        except BaseException:
            if link is not None:
                self._free(link.worker.worker_id, job_id)
            raise
        if submitted.claimed and link is not None:
            self._begin(link.worker, submitted.job, order.inputs, order.blobs, shape)
            context.counters.placed_at_once += 1
            context.counters.submit_to_start_s += monotonic_s() - received_s
        else:
            if link is not None:
                self._free(link.worker.worker_id, job_id)
            if submitted.is_new:
                self._enqueue(submitted.job)
        context.counters.submitted += submitted.is_new
        return submitted

    async def cancel(self, job_id: str, user: str | None) -> Cancelled:
        """Stop a job: at once while it waits, through its worker while it runs."""
        context = self._context
        done = await context.store.run(cancel.cancel, context.settings, job_id, user)
        self.note_cancelled(done)
        return done

    def note_cancelled(self, done: Cancelled) -> None:
        """Act on the wish to stop a job, once it is written."""
        context, job_id = self._context, done.job.job_id
        self._scheduler.dequeue(job_id)
        if done.stop and (link := context.connections.find(done.job.worker_id)):
            link.send(StopAttempt(job_id=job_id, attempt=done.job.attempt))
        if done.changed:
            if done.job.is_final:
                context.outputs.close(job_id, done.job.attempt)
                context.counters.ended[done.job.state.value] += 1
            self._publish_end(done.job, done.balance, done.call)

    def _publish_end(
        self, job: JobRecord, balance: Balance | None, call: CallRecord | None
    ) -> None:
        """Tell the watchers; of a session, first how the call ended that ended with it."""
        if call is not None:
            self._context.publish_call(job, CallEvent(call=call))
        self._context.publish_change(job, balance=balance)

    # --- workers have room -------------------------------------------------------------------

    def pull(self, worker_id: str) -> None:
        """Give a worker every waiting job that it can start now, the smallest tag first."""
        link = self._context.connections.find(worker_id)
        while link is not None and (job := self._scheduler.next_for(worker_id)):
            self._scheduler.dequeue(job.job_id)
            self._scheduler.take(worker_id, job.job_id, job.shape)
            self._context.spawn(self._claim(job, link.worker))

    async def _claim(self, job: WaitingJob, worker: WorkerRecord) -> None:
        context = self._context
        try:
            claimed = await context.store.run(claim.claim, context.settings, job.job_id, worker)
        except Exception:
            _log.exception(
                "A claim failed", extra={"action": "dispatch.claim_failed", "job_id": job.job_id}
            )
            self._scheduler.give_back(worker.worker_id, job.job_id)
            await asyncio.sleep(_RETRY_S)
            self._place_or_wait(WaitingJob(job.job_id, job.user, job.shape, job.tag, job.avoid))
            return
        if claimed is None:  # cancelled meanwhile
            self._free(worker.worker_id, job.job_id)
            return
        self._begin(worker, claimed.job, claimed.inputs, claimed.blobs, job.shape)
        context.publish_change(claimed.job)

    def _enqueue(self, job: JobRecord, avoid: Iterable[str] = ()) -> None:
        self._place_or_wait(_waiting(job.to_queued(), avoid))

    def _place_or_wait(self, job: WaitingJob) -> None:
        room = self._scheduler.place(job.shape, job.user, job.avoid)
        link = self._context.connections.find(room.worker_id) if room else None
        if link is None:
            self._scheduler.enqueue(job)
            return
        self._scheduler.take(link.worker.worker_id, job.job_id, job.shape)
        self._context.spawn(self._claim(job, link.worker))

    def _begin(
        self,
        worker: WorkerRecord,
        job: JobRecord,
        inputs: bytes,
        blobs: tuple[BlobRef, ...],
        shape: Shape,
    ) -> None:
        """Send an attempt that was granted. Nothing may come between the commit and this."""
        context = self._context
        self._scheduler.note_dispatched(job.tag)
        context.counters.dispatched += 1
        link = context.connections.find(worker.worker_id)
        if link is None:
            # It went away while the commit ran: the grace begins now, and it may come back.
            context.spawn(self._note_gone(worker))
            return
        asked = job.job
        if asked.retries is not None:
            # No worker's business, and one of the release before does not know the word.
            asked = msgspec.structs.replace(asked, retries=None)
        link.send(
            StartAttempt(
                job_id=job.job_id,
                attempt=job.attempt,
                user=job.user,
                job=asked,
                cell=job.cell,
                inputs=inputs,
                blobs=blobs,
                session=job.session,
                call_timeout_s=job.call_timeout_s,
            )
        )
        link.attempts[job.job_id] = job.attempt
        link.unnamed[job.job_id] = -1  # an attempt sent just now may be missing in one beat
        # A worker that said hello again meanwhile was counted anew, without this attempt.
        self._scheduler.take(worker.worker_id, job.job_id, shape)
        output = context.outputs.open(job.job_id, job.attempt, worker.worker_id)
        output.timeout_s = job.job.limits.timeout_s
        output.is_session = job.session is not None

    async def _note_gone(self, worker: WorkerRecord) -> None:
        context = self._context
        if not context.connections.is_present(worker.worker_id):
            await context.store.run(
                connect.disconnect, context.settings, worker, context.store.now_us()
            )

    def _free(self, worker_id: str, job_id: str) -> None:
        self._scheduler.give_back(worker_id, job_id)
        self.pull(worker_id)

    # --- workers come and go -----------------------------------------------------------------

    def join(
        self, link: WorkerLink, adopted: Sequence[LiveAttempt], ended: Sequence[Ended]
    ) -> None:
        """Count a worker that said hello, with the attempts that it goes on with."""
        held = []
        for attempt in adopted:
            held.append((attempt.job_id, Shape.of_request(attempt.request)))
            link.attempts[attempt.job_id] = attempt.attempt
        worker = link.worker
        self._scheduler.add_worker(
            worker.worker_id, worker.owner, worker.capability, held, link.protocol
        )
        for one in ended:
            self.note_ended(one)

    def leave(self, link: WorkerLink) -> None:
        """Forget a connection that ended; what it ran stays leased for the grace."""
        context = self._context
        link.is_open = False
        if not context.connections.drop(link):
            return  # a newer connection of the same worker has taken over
        self._scheduler.remove_worker(link.worker.worker_id)
        context.spawn(self._disconnect(link))

    async def _disconnect(self, link: WorkerLink) -> None:
        context = self._context
        for job_id, attempt in link.attempts.items():
            if output := context.outputs.find(job_id, attempt):
                await output.store()
        if not context.connections.is_present(link.worker.worker_id):
            await context.store.run(
                connect.disconnect, context.settings, link.worker, link.heard_us
            )

    # --- attempts end ------------------------------------------------------------------------

    async def finish(self, link: WorkerLink, report: AttemptFinished) -> None:
        """Settle a report in one commit, then answer the worker and tell the watchers."""
        context, key = self._context, (report.job_id, report.attempt)
        received_s = monotonic_s()
        if key in self._finishing:
            return  # it is being settled; a resent report changes nothing
        output = context.outputs.find(*key)
        if output is not None and output.end < report.stream_bytes:
            # Asking from the stored end: the worker may let go of what is before it.
            link.send(_resend(output, output.stored_end))
            return
        self._finishing.add(key)
        try:
            stream = None
            if output is not None:
                output.is_finishing = True
                stream = await output.complete(context.settings.inline_stream_bytes)
                stored_end = output.end if stream is not None else output.stored_end
            else:
                stored_end = await context.log.end(*key)
            done = await context.store.run(
                finish.finish,
                context.settings,
                report,
                link.worker,
                stored_end,
                None if output is None else output.started_us,
                stream,
                None if output is None else output.call_starts.get(report.call),
            )
        except StaleLease:
            link.send(StopAttempt(job_id=key[0], attempt=key[1], fenced=True))
            self._forget(link.worker.worker_id, *key)
            return
        finally:
            self._finishing.discard(key)
            if output is not None:
                output.is_finishing = False
        if done.outcome is Outcome.MORE:
            link.send(OutputResend(job_id=key[0], attempt=key[1], offset=stored_end))
            return
        if done.outcome is Outcome.SETTLED:
            # The person who waits comes first, then the worker.
            is_session = done.job.session is not None
            if done.call is not None:
                event = CallEvent(
                    call=done.call, result=report.result, result_blobs=done.result_blobs
                )
                context.publish_call(done.job, event)
            context.publish_change(
                done.job,
                balance=done.balance,
                result=None if is_session else report.result,
                result_blobs=() if is_session else done.result_blobs,
                stream_bytes=report.stream_bytes,
            )
            context.counters.settled += 1
            context.counters.ended[done.job.state.value] += 1
            context.counters.report_to_settled_s += monotonic_s() - received_s
        link.send(Settled(job_id=key[0], attempt=key[1], call=report.call))
        self._forget(link.worker.worker_id, *key)
        if done.outcome is Outcome.REQUEUED:
            self._requeue(done.job, {link.worker.worker_id})

    async def hand_back(self, link: WorkerLink, message: HandBack) -> None:
        """Queue an attempt again that its worker will not run."""
        context = self._context
        job_id, attempt = message.job_id, message.attempt
        output = context.outputs.find(job_id, attempt)
        is_polite = link.worker.capability.pause is not None
        try:
            done = await context.store.run(
                hand_back.hand_back,
                context.settings,
                job_id,
                attempt,
                link.worker,
                message.message[:500],
                has_started=output is not None and output.started_us is not None,
                is_polite=is_polite,
            )
        except StaleLease:
            link.send(StopAttempt(job_id=job_id, attempt=attempt, fenced=True))
            self._forget(link.worker.worker_id, job_id, attempt)
            return
        link.send(Settled(job_id=job_id, attempt=attempt))
        self._forget(link.worker.worker_id, job_id, attempt)
        # One that pauses has no room as long as it does, and is welcome as soon as it has again.
        self._after_end(done, set() if is_polite else {link.worker.worker_id})

    def note_preparing(self, link: WorkerLink, message: Preparing) -> None:
        """Show what an attempt waits for that has not started."""
        output = self._find_output(link, message.job_id, message.attempt)
        text = getting_ready(message.message)
        if output is None or output.started_us is not None or output.preparing == text:
            return
        output.preparing = text
        if not output.is_told_soon:
            # The newest is told when the time comes, however many come until then.
            output.is_told_soon = True
            asyncio.get_running_loop().call_later(TOLD_EVERY_S, self._tell_preparing, output)

    def _tell_preparing(self, output: AttemptOutput) -> None:
        context = self._context
        output.is_told_soon = False
        is_live = context.outputs.find(output.job_id, output.attempt) is output
        if (
            is_live
            and output.started_us is None
            and context.bus.has_subscribers(job_subject(output.job_id))
        ):
            context.spawn(self._publish_live(output))

    async def _publish_live(self, output: AttemptOutput) -> None:
        job = await self._context.store.read(views.get_job, output.job_id)
        if not job.is_final and job.attempt == output.attempt:
            self._context.publish_change(job)

    async def note_frozen(self, link: WorkerLink, message: AttemptFrozen) -> None:
        """Let the clocks of an attempt stand still, or go on."""
        context, job_id, attempt = self._context, message.job_id, message.attempt
        output = self._find_output(link, job_id, attempt)
        if output is None:
            return
        text = standing_still(message.reason, message.message) if message.frozen else ""
        if output.frozen == text:
            return
        # The starts first: what the database takes for not started cannot stand still.
        await self._record_starts()
        await context.sessions.record_starts()
        try:
            job = await context.store.run(
                freeze.note_frozen,
                context.settings,
                job_id,
                attempt,
                link.worker,
                is_frozen=message.frozen,
            )
        except StaleLease:
            link.send(StopAttempt(job_id=job_id, attempt=attempt, fenced=True))
            self._forget(link.worker.worker_id, job_id, attempt)
            return
        output.frozen = text if job.is_frozen else ""
        if not job.is_final:
            context.publish_change(job)

    def _find_output(self, link: WorkerLink, job_id: str, attempt: int) -> AttemptOutput | None:
        """Return what is kept of an attempt of this worker; one that is not live is fenced off."""
        output = self._context.outputs.find(job_id, attempt)
        if output is not None and output.worker_id == link.worker.worker_id:
            return output
        link.send(StopAttempt(job_id=job_id, attempt=attempt, fenced=True))
        return None

    def note_transfer(self, job_id: str | None, worker_id: str) -> None:
        """Note that a worker moves the blobs of a job: not each time, a write is not free."""
        now_s = monotonic_s()
        if job_id is None or now_s - self._moved_s.get(job_id, -MOVED_EVERY_S) < MOVED_EVERY_S:
            return
        self._moved_s[job_id] = now_s
        context = self._context
        context.spawn(
            context.store.run(transfer.note_transfer, context.settings, job_id, worker_id)
        )

    def note_ended(self, ended: Ended, *, is_worker_to_blame: bool = False) -> None:
        """Act on an attempt that the coordinator itself gave up.

        A worker that is there and did not do its part is kept off the job for a moment; one that
        was away may have it again as soon as it is back.
        """
        job_id, attempt, worker_id = ended.job.job_id, ended.attempt, ended.worker_id
        _log.warning(
            "An attempt was given up",
            extra={
                "action": "attempt.lost",
                "job_id": job_id,
                "attempt": attempt,
                "worker_id": worker_id,
            },
        )
        if link := self._context.connections.find(worker_id):
            link.send(StopAttempt(job_id=job_id, attempt=attempt, fenced=True))
        self._forget(worker_id, job_id, attempt)
        avoid = {worker_id} if is_worker_to_blame else set()
        self._after_end(ended, avoid)

    def _after_end(self, ended: Ended, avoid: set[str]) -> None:
        if ended.outcome is Outcome.REQUEUED:
            self._requeue(ended.job, avoid)
            return
        self._context.counters.ended[ended.job.state.value] += 1
        self._publish_end(ended.job, ended.balance, ended.call)

    def _requeue(self, job: JobRecord, avoid: set[str]) -> None:
        self._context.counters.requeued += 1
        if avoid:
            self._avoided_until_s[job.job_id] = monotonic_s() + AVOID_S
        self._enqueue(job, avoid)
        self._context.publish_change(job)

    def _forget(self, worker_id: str, job_id: str, attempt: int) -> None:
        """Close everything that was kept for a live attempt, and use its room."""
        context = self._context
        context.outputs.close(job_id, attempt)
        self._moved_s.pop(job_id, None)
        link = context.connections.find(worker_id)
        if link is not None and link.attempts.get(job_id) == attempt:
            del link.attempts[job_id]
            link.unnamed.pop(job_id, None)
            self._free(worker_id, job_id)

    # --- once in a while ---------------------------------------------------------------------

    def reconcile(self, link: WorkerLink, named: dict[str, int]) -> None:
        """Compare what a worker says it runs with what it was told to run.

        An attempt that two beats in a row do not name is lost: the worker does not have it.
        """
        for job_id, attempt in list(link.attempts.items()):
            if named.get(job_id) == attempt or (job_id, attempt) in self._finishing:
                link.unnamed[job_id] = 0
                continue
            link.unnamed[job_id] = link.unnamed.get(job_id, 0) + 1
            if link.unnamed[job_id] >= 2:
                self.give_up(link, job_id, attempt)
        for job_id, attempt in named.items():
            if job_id not in link.attempts and (job_id, attempt) not in self._finishing:
                self._context.spawn(self._check_unknown(link, job_id, attempt))

    def give_up(self, link: WorkerLink, job_id: str, attempt: int) -> None:
        """End an attempt whose worker does not keep to what was agreed; the job goes elsewhere."""
        self._context.spawn(self._lose(link, job_id, attempt))

    async def _lose(self, link: WorkerLink, job_id: str, attempt: int) -> None:
        context = self._context
        ended = await context.store.run(expire.lose, context.settings, job_id, attempt, link.worker)
        if ended is not None:
            self.note_ended(ended, is_worker_to_blame=True)
        elif link.attempts.get(job_id) == attempt:
            self._forget(link.worker.worker_id, job_id, attempt)

    async def _check_unknown(self, link: WorkerLink, job_id: str, attempt: int) -> None:
        """Stop an attempt that a worker runs and should not; one that ends just now is left."""
        try:
            job = await self._context.store.read(views.get_job, job_id)
        except GridXError:
            is_live = False
        else:
            is_live = not job.is_final and job.attempt == attempt
        if not is_live and job_id not in link.attempts:
            link.send(StopAttempt(job_id=job_id, attempt=attempt, fenced=True))

    async def tick(self) -> None:
        """Once a second: what is due in the database, and jobs that no longer avoid a worker."""
        context = self._context
        now_s = monotonic_s()
        for job_id in [j for j, until_s in self._avoided_until_s.items() if until_s <= now_s]:
            del self._avoided_until_s[job_id]
            if job := self._scheduler.dequeue(job_id):
                self._place_or_wait(WaitingJob(job.job_id, job.user, job.shape, job.tag))
        await self._record_starts()
        await self._tell_waiting()
        if await context.store.read(expire.find_due):
            for ended in await context.store.run(expire.expire, context.settings):
                is_there = context.connections.find(ended.worker_id) is not None
                self.note_ended(ended, is_worker_to_blame=is_there)

    async def _tell_waiting(self) -> None:
        """Tell whoever watches a waiting job when the reason has changed."""
        context, said = self._context, {}
        for job_id in self._scheduler.queued_ids(MAX_TOLD):
            reason = self._scheduler.explain(job_id)
            if reason is None or not context.bus.has_subscribers(job_subject(job_id)):
                continue
            said[job_id] = reason
            if self._said_waiting.get(job_id) != reason:
                job = await context.store.read(views.get_job, job_id)
                if job.state is JobState.QUEUED:
                    context.publish_change(job)
        self._said_waiting = said

    async def _record_starts(self) -> None:
        """Write, in one go, which attempts have started; one that has ended already needs none."""
        context = self._context
        fresh = [
            (output, link)
            for output in context.outputs.live()
            if output.started_us is not None
            and not (output.is_start_recorded or output.is_finishing)
            and (link := context.connections.find(output.worker_id))
        ]
        if not fresh:
            return
        started = [
            start.Started(
                job_id=output.job_id,
                attempt=output.attempt,
                worker_row_id=link.worker.row_id,
                started_us=output.started_us or 0,
                timeout_s=output.timeout_s,
                is_session=output.is_session,
            )
            for output, link in fresh
        ]
        await context.store.run(start.mark_started, context.settings, started)
        for output, _ in fresh:
            output.is_start_recorded = True


def _resend(output: AttemptOutput, offset: int) -> OutputResend:
    return OutputResend(job_id=output.job_id, attempt=output.attempt, offset=offset)
