"""The end of a call, and of the session with the call that had not ended: shared by every way."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from gridx.resources import Usage
from gridx.schemas import BlobRef, Reason

from ..rules import calls as call_rules
from ..rules import freezing, metering, pricing
from ..rules.calls import CallEvent
from ..rules.freezing import NOT_FROZEN, Frozen
from ..rules.sessions import Verdict
from ..store import calls, jobs
from ..store.records import CallRecord, JobRecord
from . import blobs

_US_PER_S = 1_000_000


class CallReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of how a call ended; ``cause`` is None without a worker's word."""

    started_us: int | None = None
    end_bytes: int | None = None  # of its output, in the attempt's
    cause: str | None = None
    exit_code: int | None = None
    usage: Usage | None = None
    result: bytes | None = None
    result_blobs: tuple[BlobRef, ...] = ()


def end_call(
    tx: Connection,
    now_us: int,
    job: JobRecord,
    call: CallRecord,
    event: CallEvent,
    reason: Reason | None,
    report: CallReport,
    *,
    is_paid: bool,
    is_own_worker: bool,
    frozen: Frozen = NOT_FROZEN,
) -> CallRecord:
    """End ``call`` and let go of what it was submitted with.

    Its cost is what its time comes to by the session's rate: told to the user, and part of what
    the whole session costs. ``frozen``: how its attempt stands.

    Raises:
        StaleLease: it has ended.
    """
    started_us = report.started_us if call.started_us is None else call.started_us
    frozen_us = call.frozen_us + freezing.stands_us(frozen, now_us, begun_us=started_us)
    usage = report.usage
    if usage is not None:
        usage = metering.bound(
            usage,
            own_s=0.0 if started_us is None else (now_us - started_us - frozen_us) / _US_PER_S,
            own_frozen_s=frozen_us / _US_PER_S,
            request=job.job.limits.request(),
        )
    cost_ucr = 0
    if is_paid and started_us is not None:
        cost_ucr = pricing.charge(
            rate_ucr_per_s=job.rate_ucr_per_s,
            hold_ucr=job.hold_ucr,
            since_us=started_us,
            until_us=now_us - frozen_us,
            metered_s=None if usage is None else usage.wall_s,
            is_own_worker=is_own_worker,
        )
    end_bytes = report.end_bytes
    ended = msgspec.structs.replace(
        call,
        state=call_rules.advance(call.state, event),
        spec=msgspec.structs.replace(call.spec, cell=None),  # its files are of no use any more
        reason=reason,
        exit_code=report.exit_code,
        started_us=started_us,
        finished_us=now_us,
        end_bytes=None if end_bytes is None else max(call.begin_bytes, end_bytes),
        cost_ucr=cost_ucr,
    )
    calls.end(tx, ended, cause=report.cause, usage=usage, result=report.result)
    blobs.refer(tx, job.user_id, job.row_id, report.result_blobs, "result", call.n)
    blobs.release(tx, now_us, job, call.n)
    if call.n == 0:
        jobs.delete_inputs(tx, job)
    return ended


def close_session(
    tx: Connection,
    now_us: int,
    job: JobRecord,
    verdict: Verdict,
    report: CallReport,
    *,
    is_paid: bool,
    is_own_worker: bool,
    frozen: Frozen = NOT_FROZEN,
) -> CallRecord | None:
    """Forget the session of a job that has ended; return the call that ended with it, if one did."""
    calls.close_session(tx, job.row_id)
    call = calls.find_newest(tx, job.row_id)
    if call is None or call.is_final:
        return None
    return end_call(
        tx,
        now_us,
        job,
        call,
        verdict.call_event,
        verdict.call_reason,
        report,
        is_paid=is_paid,
        is_own_worker=is_own_worker,
        frozen=frozen,
    )
