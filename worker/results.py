"""Results on their way home: a small one inside its report, a large one as blobs before it.

A result comes out of its sandbox in pieces. Up to 15 MiB it is kept in memory and travels in
the report. Above that it is cut into blobs, each written beside the attempt's output in the
outbox and put to the coordinator while the next is still coming; its file is removed when the
coordinator has it. What an earlier run of the worker has not put is put by the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from gridx.blobs import CHUNK_BYTES, digest
from gridx.errors import SandboxError
from gridx.protocol import MAX_PAYLOAD_BYTES, AttemptRef
from gridx.resources import GIB, format_bytes
from gridx.schemas import BlobRef

from .transfers import BlobTransfers

DEFAULT_LIMIT_BYTES: Final = 2 * GIB


class Results:
    """The results of every attempt that has not been settled."""

    def __init__(
        self,
        transfers: BlobTransfers,
        *,
        folder: Callable[[AttemptRef], Path],
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
    ) -> None:
        """
        Args:
            transfers: the way to the coordinator.
            folder: makes and returns the folder where an attempt's blobs wait.
            limit_bytes: of one result.
        """
        self._transfers = transfers
        self._folder = folder
        self._uploads: dict[AttemptRef, dict[int, _Upload]] = {}
        self.limit_bytes = limit_bytes

    def spool(self, attempt: AttemptRef, call: int) -> ResultSpool:
        """Return what takes the result of this call."""
        return ResultSpool(lambda: self._upload(attempt, call), limit_bytes=self.limit_bytes)

    async def deliver(self, attempt: AttemptRef, call: int, refs: Sequence[BlobRef]) -> None:
        """Return when the coordinator has all of these blobs, however long that takes.

        Raises:
            GridXError: it refuses one.
        """
        await self._upload(attempt, call).finish(refs)

    def drop(self, attempt: AttemptRef, call: int) -> None:
        """Put no more of this call's result."""
        upload = self._uploads.get(attempt, {}).pop(call, None)
        if upload is not None:
            upload.cancel()

    def forget(self, attempt: AttemptRef) -> None:
        """Put nothing more of this attempt. Its files are removed with its folder."""
        for upload in self._uploads.pop(attempt, {}).values():
            upload.cancel()

    async def close(self) -> None:
        """Stop every upload; what is left on disk is for the next run."""
        uploads = [upload for calls in self._uploads.values() for upload in calls.values()]
        self._uploads.clear()
        await asyncio.gather(*(upload.stop() for upload in uploads))

    def _upload(self, attempt: AttemptRef, call: int) -> _Upload:
        calls = self._uploads.setdefault(attempt, {})
        if call not in calls:
            calls[call] = _Upload(self._transfers, attempt, self._folder(attempt))
        return calls[call]


class ResultSpool:
    """Takes one result in pieces."""

    def __init__(
        self,
        upload: Callable[[], _Upload],
        *,
        limit_bytes: int,
        inline_bytes: int = MAX_PAYLOAD_BYTES,
    ) -> None:
        self._open_upload = upload
        self._upload: _Upload | None = None
        self._limit_bytes = limit_bytes
        self._inline_bytes = inline_bytes
        self._waiting = bytearray()
        self._refs: list[BlobRef] = []
        self.size_bytes = 0

    async def add(self, data: bytes) -> None:
        """Take the next piece. Returns when the disk has what no longer fits in memory.

        Raises:
            SandboxError: the result is larger than it may be, or the disk is full.
        """
        self.size_bytes += len(data)
        if self.size_bytes > self._limit_bytes:
            raise SandboxError(
                f"The sandbox sent a result of more than {format_bytes(self._limit_bytes)}."
            )
        self._waiting += data
        if self.size_bytes > self._inline_bytes:
            while len(self._waiting) >= CHUNK_BYTES:
                await self._cut()

    async def finish(self) -> tuple[bytes | None, tuple[BlobRef, ...]]:
        """Return the whole result, or the blobs that it is; (None, ()) when there was none.

        Raises:
            SandboxError: the disk is full.
        """
        if self.size_bytes <= self._inline_bytes:
            return (bytes(self._waiting) if self.size_bytes else None), ()
        if self._waiting:
            await self._cut()
        return None, tuple(self._refs)

    async def _cut(self) -> None:
        upload = self._upload = self._upload or self._open_upload()
        chunk = bytes(memoryview(self._waiting)[:CHUNK_BYTES])
        del self._waiting[:CHUNK_BYTES]
        try:
            ref = await asyncio.to_thread(upload.store, chunk)
        except OSError as error:
            raise SandboxError(
                f"This worker's disk cannot take the result: {error.strerror}."
            ) from error
        self._refs.append(ref)
        upload.begin(ref)


class _Upload:
    """The blobs of one result, each put by a task of its own."""

    def __init__(self, transfers: BlobTransfers, attempt: AttemptRef, folder: Path) -> None:
        self._transfers = transfers
        self._attempt = attempt
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._folder = folder

    def store(self, chunk: bytes) -> BlobRef:
        """Write a blob that is not on its way already. In a thread."""
        ref = BlobRef(digest=digest(chunk), size=len(chunk))
        if ref.digest not in self._tasks:
            self._path(ref).write_bytes(chunk)
        return ref

    def begin(self, ref: BlobRef) -> None:
        if ref.digest not in self._tasks:
            self._tasks[ref.digest] = asyncio.create_task(self._put(ref))
            # A refusal is told by ``finish``; nobody may be waiting yet.
            self._tasks[ref.digest].add_done_callback(_look_at)

    async def finish(self, refs: Sequence[BlobRef]) -> None:
        for ref in refs:
            # After a restart: what has no file was put by the run before.
            if ref.digest not in self._tasks and self._path(ref).exists():
                self.begin(ref)
        await asyncio.gather(*self._tasks.values())

    def cancel(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def stop(self) -> None:
        self.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _put(self, ref: BlobRef) -> None:
        path = self._path(ref)
        await self._transfers.put(ref, self._attempt, path.read_bytes)
        path.unlink(missing_ok=True)

    def _path(self, ref: BlobRef) -> Path:
        return self._folder / f"{ref.digest}.blob"


def _look_at(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()
