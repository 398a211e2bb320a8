"""A job comes in: written once, its hold placed, and given to a worker that was kept free for it.

The job's id is the idempotency key: the same id with the same body is the first job again.
"""

from __future__ import annotations

import blake3
import msgspec
from sqlalchemy import Connection

from gridx.credits import format_credits
from gridx.errors import AuthError, Conflict, InsufficientCredits
from gridx.ids import new_job_id, parse_job_id, parse_user_name
from gridx.schemas import BlobRef, CellSpec, JobRequest, SessionSpec
from gridx.states import JobState

from ..ledger import accounts as ledger_accounts
from ..ledger import escrow
from ..rules import jobs as job_rules
from ..rules import pricing
from ..rules.jobs import JobEvent
from ..settings import Settings
from ..store import calls, jobs
from ..store.records import Balance, CallSpec, JobRecord, WorkerRecord
from . import accounts, blobs
from .claim import lease, refuse_strangers


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A job that is to be submitted; made by ``make_order``."""

    user: str
    job: JobRequest
    cell: CellSpec | None
    inputs: bytes
    own_only: bool
    job_id: str
    body_digest: bytes
    blobs: tuple[BlobRef, ...] = ()
    session: SessionSpec | None = None
    call_timeout_s: float | None = None


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """The job, new or known. ``claimed``: its attempt 1 is leased to the worker that was given."""

    job: JobRecord
    is_new: bool
    claimed: bool
    balance: Balance


def make_order(
    user: str,
    job: JobRequest,
    cell: CellSpec | None = None,
    inputs: bytes = b"",
    *,
    own_only: bool = False,
    blobs: tuple[BlobRef, ...] = (),
    session: SessionSpec | None = None,
    call_timeout_s: float | None = None,
) -> Order:
    """Check the names, give the job an id if it has none, and digest the body.

    Args:
        own_only: only the user's own workers may run it; then it needs no hold.
        blobs: what ``inputs`` and the cell's files refer to, each once.
        session: the job is a session, and the cell its call 0 with a limit of its own.

    Raises:
        InvalidRequest: the id or the user's name is malformed.
    """
    job_id = new_job_id() if job.job_id is None else parse_job_id(job.job_id)
    job = msgspec.structs.replace(job, job_id=job_id, user_id=None)
    head = msgspec.msgpack.encode(
        (parse_user_name(user), own_only, job, cell, blobs, session, call_timeout_s)
    )
    digest = blake3.blake3(head).update(inputs).digest()
    return Order(
        user=user,
        job=job,
        cell=cell,
        inputs=inputs,
        own_only=own_only,
        job_id=job_id,
        body_digest=digest,
        blobs=blobs,
        session=session,
        call_timeout_s=call_timeout_s,
    )


def submit(
    tx: Connection,
    now_us: int,
    settings: Settings,
    order: Order,
    virtual_time: float,
    claim: WorkerRecord | None = None,
) -> Submitted:
    """Write the job and place its hold; with ``claim``, lease it to that worker as well.

    Args:
        virtual_time: the dispatcher's, the highest tag that it has dispatched.
        claim: a worker that the dispatcher keeps free for this job.

    Raises:
        InsufficientCredits: the account cannot cover the hold.
        Conflict: the id is another job's.
        AuthError: nobody has this name, and unknown users are not created here.
        BlobsMissing: the user has not put all of the blobs.
    """
    known = jobs.find(tx, order.job_id)
    if known is not None:
        return _same_job(tx, known, order)
    price = pricing.price(settings.rates, order.job.limits)
    hold_ucr = 0 if order.own_only else price.hold_ucr
    placed = _set_aside(tx, now_us, settings, order.user, hold_ucr, virtual_time, price.hold_ucr)
    state = JobState.QUEUED
    if claim is not None:
        state = job_rules.advance(state, JobEvent.CLAIMED).state
    job = JobRecord(
        row_id=0,
        job_id=order.job_id,
        user_id=placed.user_id,
        user=order.user,
        state=state,
        job=order.job,
        cell=order.cell,
        own_only=order.own_only,
        tag=placed.tag,
        rate_ucr_per_s=price.rate_ucr_per_s,
        hold_ucr=hold_ucr,
        cost_ucr=0,
        tries=0,
        max_tries=1 if order.session else tries_of(settings, order.job),
        created_us=now_us,
        attempt=0 if claim is None else 1,
        worker_id=None if claim is None else claim.worker_id,
        worker_name=None if claim is None else claim.name,
        worker_key="" if claim is None else claim.public_key,
        claimed_us=None if claim is None else now_us,
        blob_count=len(order.blobs),
        session=order.session,
        call_timeout_s=order.call_timeout_s,
    )
    row_id = jobs.insert(tx, job, order.body_digest)
    job = msgspec.structs.replace(job, row_id=row_id)
    if hold_ucr:
        escrow.place(tx, placed.account_id, row_id, hold_ucr, now_us)
    if order.inputs:
        jobs.insert_payload(tx, row_id, "inputs", order.inputs)
    if order.blobs:
        blobs.require(tx, placed.user_id, order.blobs)
        blobs.refer(tx, placed.user_id, row_id, order.blobs, "inputs")
    if order.session is not None:
        calls.open_session(tx, row_id)
        calls.insert(
            tx,
            job_row_id=row_id,
            n=0,
            spec=CallSpec(timeout_s=order.call_timeout_s or order.job.limits.timeout_s),
            body_digest=order.body_digest,
            inputs=None,
            begin_bytes=0,
            now_us=now_us,
            due_us=None,
        )
    if claim is not None:
        refuse_strangers(job, claim)
        lease(tx, now_us, settings, job, claim)
    balance = Balance(user=order.user, posted_ucr=placed.posted_ucr, held_ucr=placed.held_ucr)
    return Submitted(job=job, is_new=True, claimed=claim is not None, balance=balance)


def tries_of(settings: Settings, job: JobRequest) -> int:
    """Return how often a job may be tried: the rule of the house, or one more than its retries."""
    if job.retries is None:
        return settings.max_tries
    return min(1 + job.retries, settings.most_tries)


def _same_job(tx: Connection, known: jobs.Found, order: Order) -> Submitted:
    if known.job.user != order.user or known.body_digest != order.body_digest:
        raise Conflict(
            f"{order.job_id} is another job's id.",
            hint="Each job needs an id of its own; leave job_id out to get one.",
            job_id=order.job_id,
        )
    balance = ledger_accounts.find_balance(tx, order.user)
    assert balance is not None
    return Submitted(job=known.job, is_new=False, claimed=False, balance=balance)


def _set_aside(
    tx: Connection,
    now_us: int,
    settings: Settings,
    user: str,
    hold_ucr: int,
    virtual_time: float,
    cost: float,
) -> escrow.Placed:
    placed = escrow.set_aside(tx, user, hold_ucr, virtual_time=virtual_time, cost=cost)
    if placed is not None:
        return placed
    balance = ledger_accounts.find_balance(tx, user)
    if balance is None:
        if not settings.is_open:
            raise AuthError(f"There is no user {user} here.", hint="Register first.", user=user)
        accounts.ensure_user(tx, now_us, settings, user)
        placed = escrow.set_aside(tx, user, hold_ucr, virtual_time=virtual_time, cost=cost)
        if placed is not None:
            return placed
        balance = ledger_accounts.find_balance(tx, user)
        assert balance is not None
    missing_ucr = hold_ucr - balance.available_ucr
    raise InsufficientCredits(
        f"{user} has {format_credits(balance.available_ucr)} credits free; this job needs a hold"
        f" of {format_credits(hold_ucr)}: {format_credits(missing_ucr)} are missing.",
        user=user,
        needed_ucr=hold_ucr,
        available_ucr=balance.available_ucr,
        missing_ucr=missing_ucr,
    )
