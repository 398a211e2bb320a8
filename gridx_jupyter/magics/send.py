"""The way of a prepared cell to the coordinator: files, sizes, the journal, the submission."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gridx.errors import GridXError, PayloadTooLarge, TransportError
from gridx.ids import new_job_id
from gridx.resources import format_bytes

from ..connection import unreachable
from .journal import Entry
from .order import Order
from .render import sending_text

if TYPE_CHECKING:
    from gridx.blocking import BlockingJob

    from .notebook import Notebook
    from .render import StatusLine


def send(order: Order, notebook: Notebook, line: StatusLine) -> BlockingJob:
    """Submit ``order``; return the job.

    Raises:
        GridXError: whatever refuses it; nothing runs.
        KeyboardInterrupt: what was submitted is cancelled.
    """
    connection, limits = notebook.connection, order.options.limits()
    welcome = connection.welcome()
    check_size(order, welcome.max_payload_bytes)
    ask_before_upload(order, notebook)
    job_id = new_job_id()
    notebook.journal.write(entry_of(order, notebook, job_id))
    notebook.latest_job = job_id
    captured = order.captured

    def sending(done_bytes: int, total_bytes: int) -> None:
        line.show(sending_text(done_bytes, total_bytes))

    try:
        job = connection.client.submit(
            order.body,
            timeout_s=limits.timeout_s,
            cpus=limits.cpus,
            memory_bytes=limits.memory_bytes,
            gpus=limits.gpus,
            gpu_model=order.options.gpu_model,
            disk_bytes=order.options.disk_bytes,
            language=order.options.language,
            image=order.options.image,
            pip=order.options.pip,
            cell=None if captured is None else order.spec,
            inputs=b"" if captured is None else captured.payload,
            blobs=order.blobs,
            on_progress=sending,
            retries=order.options.retries,
            job_id=job_id,
        )
    except TransportError as exc:
        raise unreachable(connection.settings, exc) from None
    except GridXError:
        notebook.journal.forget(job_id)
        raise
    notebook.sent_digests.update(blob.ref.digest for blob in order.blobs)
    return job


def with_files(order: Order) -> Order:
    """Return ``order`` with the files that ``--files`` names, read now."""
    if not order.options.files:
        return order
    from .files import find_files, pack_files

    packed = pack_files(find_files(order.options.files, Path.cwd()))
    spec = msgspec.structs.replace(order.spec, files=(*order.spec.files, *packed.specs))
    return dataclasses.replace(
        order, spec=spec, file_blobs=tuple(packed.blobs), sent_files=packed.digests
    )


def entry_of(order: Order, notebook: Notebook, job_id: str, call: int = 0) -> Entry:
    """Return what the journal keeps of ``order``."""
    settings, visible, options = notebook.connection.settings, order.visible, order.options
    return Entry(
        job_id=job_id,
        call=call,
        notebook=notebook.journal.notebook,
        url=settings.url,
        user=settings.user,
        line=order.line,
        body=order.body,
        visible=visible.text,
        line_offset=visible.line_offset,
        spec=msgspec.structs.replace(order.spec, files=()),
        out=order.spec.out,
        store_as=options.store_as,
        session=options.session,
        sent_files=dict(order.sent_files),
        submitted_at=time.time(),
    )


def check_size(order: Order, max_payload_bytes: int) -> None:
    """Refuse inputs that do not fit into one message, naming the largest variables.

    Raises:
        PayloadTooLarge: nothing was sent.
    """
    captured = order.captured
    if captured is None:
        return
    in_message = len(captured.payload) + sum(len(file.data) for file in order.spec.files)
    if in_message <= max_payload_bytes:
        return
    raise PayloadTooLarge(
        f"This cell's variables are {format_bytes(in_message)} and at most "
        f"{format_bytes(max_payload_bytes)} can travel in this release. "
        f"The largest: {_largest(order)}. Nothing was sent.",
        hint="Select or aggregate first, create the data inside the cell, "
        "or leave a variable out with --without NAME.",
    )


def ask_before_upload(order: Order, notebook: Notebook) -> None:
    """Ask before more than ``--max-upload`` is sent; where nobody can be asked, refuse.

    Raises:
        PayloadTooLarge: the answer was no, or there is nobody to ask.
    """
    size, limit = order.size_bytes, order.options.max_upload_bytes
    if size <= limit:
        return
    size -= sum(b.ref.size for b in order.blobs if b.ref.digest in notebook.sent_digests)
    if size <= limit:
        return
    sentence = (
        f"This cell sends {format_bytes(size)}, more than {format_bytes(limit)}. "
        f"The largest: {_largest(order)}."
    )
    if notebook.may_ask():
        answer = input(f"{sentence} Send it? [y]es or [N]o: ")
        if answer.strip().lower() in ("y", "yes"):
            return
    raise PayloadTooLarge(
        f"{sentence} Nothing was sent.",
        hint=f"--max-upload {-(-size >> 20)}M sends it; "
        "`%gridx set max-upload SIZE` does so for every cell.",
    )


def _largest(order: Order) -> str:
    captured = order.captured
    assert captured is not None
    named = [*captured.names.items()]
    named += [
        (file.path, len(file.data) + sum(blob.size for blob in file.blobs))
        for file in order.spec.files
    ]
    largest = sorted(named, key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} ({format_bytes(size)})" for name, size in largest)
