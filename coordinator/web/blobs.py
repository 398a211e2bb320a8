"""Blobs over REST: which are missing, put one, read one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import msgspec

from gridx.blobs import CHUNK_BYTES, OCTETS, ZSTD, unpack
from gridx.errors import AuthError, InvalidRequest, NotFound, PayloadTooLarge
from gridx.ids import parse_job_id, parse_user_name
from gridx.resources import format_bytes
from gridx.schemas import BlobRef, MissingBlobs, WantedBlobs

from ..rules.access import Caller, acting_user
from ..services import accounts, blobs
from .base import Call, Reply
from .guard import UnsupportedContent

if TYPE_CHECKING:
    from .context import Context


class PutQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``PUT /blobs/{digest}``: its raw size; a worker names the job (and attempt) that it runs."""

    size: Annotated[int, msgspec.Meta(ge=0)]
    user_id: str | None = None
    job_id: str | None = None
    attempt: int | None = None


class ReadQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``GET /blobs/{digest}``: the job that refers to it; a worker may name its attempt."""

    job_id: str
    user_id: str | None = None
    attempt: int | None = None


async def list_missing(context: Context, call: Call) -> Reply:
    """Say which blobs the user has not put."""
    body: WantedBlobs = call.body
    user = _named_user(call.caller, body.user_id)
    missing = await context.store.read(blobs.missing, user, body.digests)
    return Reply(value=MissingBlobs(missing=missing))


async def put_blob(context: Context, call: Call) -> Reply:
    """Keep a blob for its owner.

    The answer is the same whether it was there before or not: a worker that puts a result must
    not learn what its user has.
    """
    query: PutQuery = call.query
    ref = _ref(call.path["digest"], query.size)
    if call.encoding not in (None, "identity", ZSTD):
        raise UnsupportedContent(
            f"The body is encoded as {call.encoding[:40]!r}.",
            hint=f"Send it as it is, or as one {ZSTD} frame.",
        )
    is_known = False
    if call.caller.worker_id is not None:
        owner_id = await _owner_for_worker(context, call.caller.worker_id, query)
        context.dispatcher.note_transfer(query.job_id, call.caller.worker_id)
    else:
        owner_id, is_known = await _owner_for_user(context, call.caller, query, ref)
    context.counters.blob_bytes_in += sum(map(len, call.pieces))
    if not (is_known and await context.store.run(blobs.touch, owner_id, ref)):
        is_zstd = call.encoding == ZSTD
        stored_bytes = await context.blobs.put(owner_id, ref, call.pieces, is_zstd=is_zstd)
        await context.store.run(blobs.keep, owner_id, ref, stored_bytes)
    return Reply(value=ref)


async def read_blob(context: Context, call: Call) -> Reply:
    """Send a blob to somebody whose job refers to it."""
    query: ReadQuery = call.query
    digest = _ref(call.path["digest"], 0).digest
    job_id = parse_job_id(query.job_id)
    caller = call.caller
    user = None
    if caller.worker_id is None:
        user = acting_user(caller, query.user_id)
        if user is not None:
            parse_user_name(user)
    owner_id, ref = await context.store.read(
        blobs.find_readable,
        job_id,
        digest,
        user=user,
        worker_id=caller.worker_id,
        attempt=query.attempt,
    )
    if caller.worker_id is not None:
        context.dispatcher.note_transfer(job_id, caller.worker_id)
    stored = await context.blobs.get(owner_id, digest)
    if stored is None:
        raise NotFound(
            f"The bytes of blob {digest[:16]} are lost here.",
            hint="Put it again, or run the job again that made it.",
        )
    context.counters.blob_bytes_out += len(stored.body)
    if not stored.is_zstd:
        return Reply(data=stored.body, content_type=OCTETS)
    if ZSTD in call.accepts:
        return Reply(data=stored.body, content_type=OCTETS, encoding=ZSTD)
    raw = await asyncio.to_thread(unpack, stored.body, ref, is_zstd=True)
    return Reply(data=raw, content_type=OCTETS)


def _ref(digest: str, size: int) -> BlobRef:
    if size > CHUNK_BYTES:
        raise PayloadTooLarge(
            f"A blob has at most {format_bytes(CHUNK_BYTES)}; this one would have {size:,} bytes.",
            hint="Cut it: larger things are a sequence of blobs.",
            size_bytes=size,
            limit_bytes=CHUNK_BYTES,
        )
    try:
        return msgspec.convert({"digest": digest, "size": size}, BlobRef)
    except msgspec.ValidationError:
        raise InvalidRequest(
            f"{digest[:80]!r} is not a digest.",
            hint="A blob's name is the BLAKE3 digest of its raw bytes: 64 hexadecimal digits.",
        ) from None


def _named_user(caller: Caller, named: str | None) -> str:
    user = acting_user(caller, named)
    if user is None:
        raise InvalidRequest(
            "The request does not say whose blobs these are: user_id is missing.",
            hint='Add user_id: "your-name".',
        )
    return parse_user_name(user)


async def _owner_for_user(
    context: Context, caller: Caller, query: PutQuery, ref: BlobRef
) -> tuple[int, bool]:
    if query.job_id is not None or query.attempt is not None:
        raise InvalidRequest(
            "job_id and attempt are for workers, which say who they are by their token.",
            hint="Name the owner as user_id; a worker sends 'Authorization: Bearer TOKEN'.",
        )
    user = _named_user(caller, query.user_id)
    owned = await context.store.read(blobs.look_up, user, ref)
    if owned.owner_id is not None:
        return owned.owner_id, owned.is_known
    if not context.settings.is_open:
        raise AuthError(f"There is no user {user} here.", hint="Register first.", user=user)
    created = await context.store.run(accounts.ensure_user, context.settings, user)
    return created.user_id, False


async def _owner_for_worker(context: Context, worker_id: str, query: PutQuery) -> int:
    if query.job_id is None or query.user_id is not None:
        raise InvalidRequest(
            "A worker puts blobs for a job that it runs: job_id says which.",
            hint="Name the job as job_id, and leave user_id out.",
        )
    return await context.store.read(
        blobs.find_owner, parse_job_id(query.job_id), query.attempt, worker_id
    )
