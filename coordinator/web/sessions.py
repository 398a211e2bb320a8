"""Sessions between their users and their workers: calls in, calls on, calls out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gridx.errors import StaleLease
from gridx.protocol import (
    AttemptFinished,
    CallFinished,
    CallSettled,
    EndAttempt,
    InterruptCall,
    OutputResend,
    StartCall,
    StopAttempt,
)
from gridx.schemas import BlobRef

from ..services import end_session, finish_call, interrupt, session_views, start, submit_call
from ..services.end_session import Ending
from ..services.interrupt import Interrupted
from ..services.outcome import Outcome
from ..services.session_views import CallEvent
from ..services.submit_call import CallOrder, CallSubmitted
from ..store.records import CallRecord, LiveAttempt
from .connections import WorkerLink

if TYPE_CHECKING:
    from .context import Context


class Sessions:
    """The one place where calls are sent on to workers, and their ends taken in."""

    def __init__(self, context: Context) -> None:
        self._context = context

    # --- what users wish ---------------------------------------------------------------------

    async def submit_call(self, order: CallOrder) -> CallSubmitted:
        """Take the next call of a session in and send it to its worker."""
        context = self._context
        done = await context.store.run(submit_call.submit_call, context.settings, order)
        if done.is_new:
            link = context.connections.find(done.job.worker_id)
            if link is not None and link.attempts.get(order.job_id) == done.job.attempt:
                _send_call(link, done.call, order.inputs, order.blobs)
            # else its worker is away: it is told when it comes back
            context.publish_call(done.job, CallEvent(call=done.call))
        return done

    async def interrupt(self, job_id: str, call: int, user: str | None) -> Interrupted:
        """Interrupt a call; a session that waits for a worker is cancelled."""
        context = self._context
        done = await context.store.run(interrupt.interrupt, context.settings, job_id, call, user)
        if done.cancelled is not None:
            context.dispatcher.note_cancelled(done.cancelled)
        elif done.send and (link := context.connections.find(done.job.worker_id)):
            link.send(InterruptCall(job_id=job_id, attempt=done.job.attempt, call=call))
        return done

    async def end(self, job_id: str, user: str | None) -> Ending:
        """Close a session."""
        context = self._context
        done = await context.store.run(end_session.end_session, context.settings, job_id, user)
        self._note(done)
        return done

    def _note(self, ending: Ending) -> None:
        context, job = self._context, ending.job
        if ending.cancelled is not None:
            context.dispatcher.note_cancelled(ending.cancelled)
        elif ending.ended is not None:
            context.dispatcher.note_ended(ending.ended)
        elif ending.tell and (link := context.connections.find(job.worker_id)):
            link.send(EndAttempt(job_id=job.job_id, attempt=job.attempt))

    # --- what workers say --------------------------------------------------------------------

    async def resume(self, link: WorkerLink, adopted: Iterable[LiveAttempt]) -> None:
        """Tell a worker that came back what it may not have heard. Each can be said twice."""
        context = self._context
        for attempt in adopted:
            if not attempt.is_session:
                continue
            job_id, n = attempt.job_id, attempt.attempt
            found = await context.store.read(session_views.find_pending, job_id)
            if found is None or link.attempts.get(job_id) != n:
                continue
            call = found.call
            if call is not None and call.n > 0:  # call 0 came with the attempt
                _send_call(link, call, found.inputs, found.blobs)
            if call is not None and call.interrupt_us is not None:
                link.send(InterruptCall(job_id=job_id, attempt=n, call=call.n))
            if found.is_ending:
                link.send(EndAttempt(job_id=job_id, attempt=n))

    async def finish_call(self, link: WorkerLink, report: CallFinished) -> None:
        """Take in the end of a call in one commit, then tell the watchers and the worker."""
        context = self._context
        output = context.outputs.find(report.job_id, report.attempt)
        async with asyncio.Lock() if output is None else output.reports:
            await self._finish_call(link, report)

    async def _finish_call(self, link: WorkerLink, report: CallFinished) -> None:
        context, job_id, attempt = self._context, report.job_id, report.attempt
        output = context.outputs.find(job_id, attempt)
        if output is not None and output.worker_id != link.worker.worker_id:
            link.send(StopAttempt(job_id=job_id, attempt=attempt, fenced=True))
            return
        started_us = None
        if output is None:
            stored_end = await context.log.end(job_id, attempt)
        elif output.end < report.stream_bytes:
            link.send(OutputResend(job_id=job_id, attempt=attempt, offset=output.stored_end))
            return
        else:
            await output.store()
            await context.log.sync(job_id, attempt)
            stored_end, started_us = output.stored_end, output.call_starts.get(report.call)
        try:
            done = await context.store.run(
                finish_call.finish_call,
                context.settings,
                report,
                link.worker,
                stored_end,
                started_us,
            )
        except StaleLease:
            link.send(StopAttempt(job_id=job_id, attempt=attempt, fenced=True))
            return
        if done.outcome is Outcome.MORE:
            link.send(OutputResend(job_id=job_id, attempt=attempt, offset=stored_end))
            return
        if output is not None:
            output.call_starts.pop(report.call, None)
        if done.outcome is Outcome.SETTLED:
            # The person who waits comes first, then the worker.
            event = CallEvent(call=done.call, result=report.result, result_blobs=done.result_blobs)
            context.publish_call(done.job, event)
        link.send(CallSettled(job_id=job_id, attempt=attempt, call=report.call))

    async def finish(self, link: WorkerLink, report: AttemptFinished) -> None:
        """Settle the last report of a session, behind the reports of its calls."""
        output = self._context.outputs.find(report.job_id, report.attempt)
        async with asyncio.Lock() if output is None else output.reports:
            await self._context.dispatcher.finish(link, report)

    # --- once in a while ---------------------------------------------------------------------

    async def tick(self) -> None:
        """Once a second: calls that have started, and sessions that have to end."""
        context = self._context
        await self.record_starts()
        if await context.store.read(end_session.has_ending):
            for ending in await context.store.run(end_session.end_due, context.settings):
                self._note(ending)

    async def record_starts(self) -> None:
        """Write, in one go, which calls have started."""
        context = self._context
        fresh = [
            (output, call, started_us)
            for output in context.outputs.live()
            if output.is_session and not output.is_finishing
            for call, started_us in output.call_starts.items()
            if call > output.recorded_call
        ]
        if not fresh:
            return
        started = [
            start.CallStarted(job_id=output.job_id, call=call, started_us=started_us)
            for output, call, started_us in fresh
        ]
        await context.store.run(start.mark_calls_started, context.settings, started)
        for output, call, _ in fresh:
            output.recorded_call = max(output.recorded_call, call)


def _send_call(
    link: WorkerLink, call: CallRecord, inputs: bytes, blobs: tuple[BlobRef, ...]
) -> None:
    assert call.spec.cell is not None, "only call 0 has none of its own"
    link.send(
        StartCall(
            job_id=call.job_id,
            attempt=call.attempt,
            call=call.n,
            code=call.spec.code,
            timeout_s=call.spec.timeout_s,
            cell=call.spec.cell,
            inputs=inputs,
            blobs=blobs,
        )
    )
