"""What users and workers are told of a session's calls."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from gridx.protocol import CallChanged, Position
from gridx.schemas import BlobRef
from gridx.states import CallState

from ..store import blobs, calls, jobs
from ..store.records import CallRecord, JobRecord


class CallEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A call as it stands, with its result where it has ended with one."""

    call: CallRecord
    result: bytes | None = None
    result_blobs: tuple[BlobRef, ...] = ()


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """What a session's worker may not have heard: its open call, and that it has to end."""

    call: CallRecord | None
    inputs: bytes
    blobs: tuple[BlobRef, ...]
    is_ending: bool


def find_newest(tx: Connection, now_us: int, job_row_id: int) -> CallEvent | None:
    """Return the newest call of a session with its result; None: the job is no session."""
    call = calls.find_newest(tx, job_row_id)
    return None if call is None else _event(tx, call)


def find_call(tx: Connection, now_us: int, job_row_id: int, n: int) -> CallEvent | None:
    """Return call ``n`` of a session with its result, which only the newest call still has."""
    found = calls.find(tx, job_row_id, n)
    return None if found is None else _event(tx, found[0])


def _event(tx: Connection, call: CallRecord) -> CallEvent:
    if not call.is_final:
        return CallEvent(call=call)
    _, result = calls.find_payloads(tx, call)
    refs = () if result is not None else blobs.list_refs(tx, call.job_row_id, call.n, "result")
    return CallEvent(call=call, result=result, result_blobs=refs)


def list_ends(tx: Connection, now_us: int, job_row_id: int) -> tuple[tuple[int, int], ...]:
    """Return (number, end of its output) of each call that has ended."""
    return calls.list_ends(tx, job_row_id)


def find_pending(tx: Connection, now_us: int, job_id: str) -> Pending | None:
    """Return what a session's worker has to be told again; None: the job is no open session."""
    job = jobs.find_record(tx, job_id)
    opened = None if job is None else calls.find_open(tx, job.row_id)
    if job is None or opened is None:
        return None
    call = calls.find_newest(tx, job.row_id)
    if call is None or call.is_final:
        return Pending(call=None, inputs=b"", blobs=(), is_ending=opened.end_us is not None)
    inputs, _ = calls.find_payloads(tx, call)
    return Pending(
        call=call,
        inputs=inputs or b"",
        blobs=blobs.list_refs(tx, job.row_id, call.n, "inputs"),
        is_ending=opened.end_us is not None,
    )


def call_changed(job: JobRecord, event: CallEvent, started_us: int | None = None) -> CallChanged:
    """Return a call as clients get it; ``started_us`` where its start is not written yet."""
    call = event.call
    status = call.state
    if status is CallState.QUEUED and started_us is not None:
        status = CallState.RUNNING
    if call.started_us is not None:
        started_us = call.started_us
    elapsed_s = None
    if started_us is not None and call.finished_us is not None:
        elapsed_s = max(0, call.finished_us - started_us) / 1_000_000
    return CallChanged(
        job_id=call.job_id,
        call=call.n,
        status=status.value,
        reason=call.reason,
        exit_code=call.exit_code,
        elapsed_s=elapsed_s,
        cost_ucr=call.cost_ucr,
        result=event.result,
        result_blobs=event.result_blobs,
        begin=Position(attempt=job.attempt, offset=call.begin_bytes),
        end=None
        if call.end_bytes is None
        else Position(attempt=job.attempt, offset=call.end_bytes),
    )
