"""Checks a submission before anything is stored: the same for REST and the client socket."""

from __future__ import annotations

import math
import re

import msgspec

from gridx.blobs import CHUNK_BYTES, MAX_BLOBS
from gridx.disk import check_disk
from gridx.errors import InvalidRequest, PayloadTooLarge, UnknownLanguage
from gridx.ids import new_job_id, parse_job_id, parse_user_name
from gridx.protocol import MAX_PAYLOAD_BYTES, SubmitCall
from gridx.requirements import parse_requirements
from gridx.resources import MIB, format_bytes
from gridx.schemas import (
    LANGUAGE_ALIASES,
    LANGUAGES,
    MAX_CODE_BYTES,
    MAX_TIMEOUT_S,
    BlobRef,
    CellSpec,
    JobRequest,
    Limits,
    SessionSpec,
)

from ..rules.access import Caller, acting_user
from ..services.submit import Order, make_order
from ..services.submit_call import CallOrder, make_call_order

_PYTHON = re.compile(r"3\.[0-9]{1,2}\Z")


def check_job(job: JobRequest, *, must_have_id: bool = False) -> JobRequest:
    """Return ``job`` with an id and with one name for one thing, or say what is wrong with it.

    Raises:
        InvalidRequest, UnknownLanguage, PayloadTooLarge
    """
    job = msgspec.structs.replace(
        job, language=parse_language(job.language), pip=parse_requirements(job.pip)
    )
    if job.pip and job.language != "python":
        raise InvalidRequest(
            f"pip lists Python's packages; this job is in {job.language}.",
            hint="Leave pip out, or choose with image a family of images that has what it needs.",
        )
    check_limits(job.limits)
    check_code(job.code)
    if job.job_id is not None:
        parse_job_id(job.job_id)
        return job
    if must_have_id:
        raise InvalidRequest(
            "The job has no job_id.",
            hint="Make one (gridx.ids.new_job_id): sent again, it names the same job.",
        )
    return msgspec.structs.replace(job, job_id=new_job_id())


def parse_language(name: str) -> str:
    """Return the language that is meant by ``name``, which may be one of its other names.

    Raises:
        UnknownLanguage: no image is of this language.
    """
    language = LANGUAGE_ALIASES.get(name, name)
    if language not in LANGUAGES:
        known = ", ".join((*LANGUAGES, *LANGUAGE_ALIASES))
        raise UnknownLanguage(
            f"No sandbox here speaks {name[:40]!r}. Languages: {known}.",
            hint=f"Send one of: {known}.",
            languages=list(LANGUAGES),
            aliases=LANGUAGE_ALIASES,
        )
    return language


def check_limits(limits: Limits) -> None:
    """Refuse limits that are no numbers, or that no machine can keep together.

    Raises:
        InvalidRequest
    """
    for name, number in (("timeout_s", limits.timeout_s), ("cpus", limits.cpus)):
        if not math.isfinite(number):
            raise InvalidRequest(f"limits.{name} has to be a number.")
    if limits.gpu_model and not limits.gpus:
        raise InvalidRequest(
            f"limits.gpu_model asks for {limits.gpu_model!r}, and limits.gpus for no GPU.",
            hint="Add gpus: 1 to the limits, or leave gpu_model out.",
        )
    if limits.gpu_model and not limits.gpu_model.isprintable():
        raise InvalidRequest("limits.gpu_model has characters that no name of a GPU has.")
    check_disk(limits.memory_bytes, limits.disk_bytes or None, gpus=limits.gpus)


def check_code(code: str) -> None:
    """Refuse code over the limit.

    Raises:
        PayloadTooLarge
    """
    size = len(code.encode("utf-8", "surrogatepass"))
    if size > MAX_CODE_BYTES:
        raise PayloadTooLarge(
            f"The code has {size:,} bytes; the limit is {format_bytes(MAX_CODE_BYTES)},"
            f" {MAX_CODE_BYTES:,} bytes.",
            hint="Move data out of the code: read or create it inside the job.",
            size_bytes=size,
            limit_bytes=MAX_CODE_BYTES,
        )


def check_cell(cell: CellSpec) -> None:
    """Refuse a cell for no Python that there is.

    Raises:
        InvalidRequest
    """
    if not _PYTHON.match(cell.python):
        raise InvalidRequest(f"{cell.python[:20]!r} is not a Python version such as '3.11'.")


def check_size(code: str, inputs: bytes) -> None:
    """Refuse what does not fit into one message.

    Raises:
        PayloadTooLarge
    """
    size = len(inputs) + len(code.encode("utf-8", "surrogatepass"))
    if size > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(
            f"Code and variables have {format_bytes(size)} together; the limit is"
            f" {MAX_PAYLOAD_BYTES // MIB} MiB.",
            size_bytes=size,
            limit_bytes=MAX_PAYLOAD_BYTES,
        )


def take_order(
    caller: Caller,
    job: JobRequest,
    *,
    cell: CellSpec | None = None,
    inputs: bytes = b"",
    blobs: tuple[BlobRef, ...] = (),
    session: SessionSpec | None = None,
    call_timeout_s: float | None = None,
    must_have_id: bool = False,
) -> Order:
    """Return a checked submission in the name that it may be made in.

    Raises:
        InvalidRequest, UnknownLanguage, PayloadTooLarge, Forbidden
    """
    user = acting_user(caller, job.user_id)
    if user is None:
        raise InvalidRequest(
            "The body does not say whose job this is: user_id is missing.",
            hint='Add "user_id": "your-name" to the body.',
        )
    parse_user_name(user)
    job = check_job(job, must_have_id=must_have_id)
    if cell is not None:
        check_cell(cell)
        if job.language != "python":
            raise InvalidRequest(
                f"A notebook cell is Python, run by IPython; this one says {job.language}.",
                hint="Send it as a script, without `cell`.",
            )
    check_size(job.code, inputs)
    if session is not None:
        if cell is None:
            raise InvalidRequest("A session runs notebook cells: its first call has no cell.")
        check_call_timeout(call_timeout_s)
    return make_order(
        user,
        job,
        cell=cell,
        inputs=inputs,
        blobs=check_blobs(blobs, cell),
        session=session,
        call_timeout_s=call_timeout_s if session is not None else None,
    )


def check_call_timeout(timeout_s: float | None) -> None:
    """Refuse a call's time limit that is no time.

    Raises:
        InvalidRequest
    """
    if timeout_s is not None and not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise InvalidRequest(
            f"A call may take more than 0 and at most {MAX_TIMEOUT_S:g} seconds.",
            hint="Leave the limit out to take the session's.",
        )


def take_call(caller: Caller, message: SubmitCall) -> CallOrder:
    """Return a checked call of a session, in the caller's own name.

    Raises:
        InvalidRequest, PayloadTooLarge
    """
    parse_job_id(message.job_id)
    check_call_timeout(message.timeout_s)
    if not 0 < message.call < 1 << 31:
        raise InvalidRequest("The calls of a session are numbered from 0, which opened it.")
    check_code(message.code)
    check_cell(message.cell)
    check_size(message.code, message.inputs)
    return make_call_order(
        caller.user or "",
        message.job_id,
        message.call,
        code=message.code,
        timeout_s=message.timeout_s,
        cell=message.cell,
        inputs=message.inputs,
        blobs=check_blobs(message.blobs, message.cell),
    )


def check_blobs(refs: tuple[BlobRef, ...], cell: CellSpec | None) -> tuple[BlobRef, ...]:
    """Return the blobs that a submission names, each once.

    Raises:
        PayloadTooLarge: there are more than one message may name.
        InvalidRequest: the cell's files refer to others.
    """
    if len(refs) > MAX_BLOBS:
        raise PayloadTooLarge(
            f"The job names {len(refs):,} blobs; the limit is {MAX_BLOBS:,}"
            f" ({format_bytes(MAX_BLOBS * CHUNK_BYTES)}).",
            named=len(refs),
            limit=MAX_BLOBS,
        )
    named = {ref.digest: ref for ref in refs}
    if cell is not None:
        for file in cell.files:
            if any(ref.digest not in named for ref in file.blobs):
                raise InvalidRequest(
                    f"The file {file.path[:80]!r} refers to a blob that the job does not name.",
                    hint="List every blob of the files in `blobs` too.",
                )
    return tuple(named.values())
