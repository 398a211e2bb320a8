"""The output of attempts in segment files, one file an attempt.

An append is a write to the file, without fsync: the worker still has what is not synced. Files
are opened for each append, so that ten thousand live attempts hold no descriptors; what was
appended last stays in memory for those who watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gridx.errors import InvalidRequest, PayloadTooLarge, TransportError
from gridx.events import split_events
from gridx.resources import KIB, MIB, format_bytes

from . import records
from .base import Piece

T = TypeVar("T")

_TAIL_BYTES = 256 * KIB  # of an attempt, kept in memory
_INDEX_BYTES = MIB  # a place to begin reading is remembered each so many bytes
_THREADS = 2


class _Segment:
    """What is known in memory of one attempt's file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.end = 0  # stream bytes
        self.size = 0  # file bytes
        self.exists = False
        self.name_is_synced = True
        self.tail: deque[Piece] = deque()
        self.tail_bytes = 0
        self.index: list[tuple[int, int]] = [(0, 0)]  # (stream offset, file position)

    def load(self) -> None:
        """Read the file, and cut what is not a valid prefix of it."""
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            for record in records.scan(file):
                self._remember(record.offset, self.size)
                self.end, self.size = record.offset + len(record.data), record.next_at
            file.truncate(self.size)
        self.exists = True

    def append(self, offset: int, data: bytes) -> None:
        """Write a record; on an error the file is as before."""
        header = records.encode(offset, time.time(), data)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self.path, flags, 0o600)
        try:
            position = self.size
            for part in (header, data):
                view = memoryview(part)
                while view:
                    written = os.pwrite(fd, view, position)
                    position += written
                    view = view[written:]
        except OSError:
            os.ftruncate(fd, self.size)
            raise
        finally:
            os.close(fd)
        if not self.exists:
            self.exists, self.name_is_synced = True, False
        self._remember(offset, self.size)
        self.size = position
        self.end = offset + len(data)
        self.tail.append(Piece(offset, data))
        self.tail_bytes += len(data)
        while self.tail_bytes > _TAIL_BYTES and len(self.tail) > 1:
            self.tail_bytes -= len(self.tail.popleft().data)

    def sync(self) -> None:
        if not self.exists:
            return
        _fdatasync(self.path)
        if not self.name_is_synced:
            _fsync(self.path.parent)
            self.name_is_synced = True

    def read_tail(self, offset: int) -> list[Piece] | None:
        """Return the pieces from ``offset``, or None where memory does not reach back so far."""
        if offset >= self.end:
            return []
        if not self.tail or self.tail[0].offset > offset:
            return None
        return [p for p in self.tail if p.offset + len(p.data) > offset]

    def start_for(self, offset: int) -> tuple[int, int]:
        """Return the last remembered (stream offset, file position) at or before ``offset``."""
        low, high = 0, len(self.index)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.index[middle][0] <= offset else (low, middle)
        return self.index[low]

    def _remember(self, offset: int, position: int) -> None:
        if offset - self.index[-1][0] >= _INDEX_BYTES:
            self.index.append((offset, position))


class SegmentLog:
    """An EventLog in a folder of its own.

    Args:
        max_bytes: what an attempt may have; workers stop before that by themselves.
    """

    def __init__(self, folder: Path, *, max_bytes: int = 72 * MIB) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._segments: dict[tuple[str, int], _Segment] = {}
        self._opening = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="eventlog")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def append(self, job_id: str, attempt: int, offset: int, data: bytes) -> int:
        """Add whole events at ``offset``; return the stored end. See EventLog."""
        return await self._in_thread(self._append, job_id, attempt, offset, data)

    async def end(self, job_id: str, attempt: int) -> int:
        """Return the stored end, 0 where there is nothing."""
        known = self._segments.get((job_id, attempt))
        if known is not None:
            return known.end
        return await self._in_thread(self._measure, job_id, attempt)

    async def read(self, job_id: str, attempt: int, offset: int = 0) -> AsyncIterator[Piece]:
        """Yield the stream from ``offset`` to its end at this moment. See EventLog."""
        segment = self._segments.get((job_id, attempt))
        end, at, position = None, 0, 0
        if segment is not None:
            end = segment.end
            if offset > end:
                raise _no_event_at(job_id, offset)
            pieces = segment.read_tail(offset)
            if pieces is not None:
                for piece in pieces:
                    yield _from(job_id, piece, offset)
                return
            at, position = segment.start_for(offset)
        path = self._path(job_id, attempt)
        while end is None or at < end:
            found = await self._in_thread(_read_some, path, at, position, offset, end)
            for piece in found.pieces:
                yield _from(job_id, piece, offset)
            if found.at == at:
                break
            at, position = found.at, found.position
        if at < offset:
            raise _no_event_at(job_id, offset)

    async def sync(self, job_id: str, attempt: int) -> None:
        """Make what was appended outlive the machine."""
        segment = self._segments.get((job_id, attempt))
        if segment is not None:
            await self._in_thread(segment.sync)

    def close_attempt(self, job_id: str, attempt: int) -> None:
        """Forget what is in memory of an attempt that has ended."""
        self._segments.pop((job_id, attempt), None)

    async def delete(self, job_id: str, attempt: int) -> None:
        """Remove an attempt's output."""
        self.close_attempt(job_id, attempt)
        await self._in_thread(self._path(job_id, attempt).unlink, True)

    async def close(self) -> None:
        """End the threads; what was appended stays."""
        await asyncio.to_thread(self._threads.shutdown)
        self._segments.clear()

    @property
    def open_attempts(self) -> int:
        """How many attempts are kept in memory."""
        return len(self._segments)

    # --- in the threads ---------------------------------------------------------------------

    def _append(self, job_id: str, attempt: int, offset: int, data: bytes) -> int:
        segment = self._open(job_id, attempt)
        with segment.lock:
            if offset > segment.end:
                return segment.end
            known = segment.end - offset
            if known >= len(data):
                return segment.end
            fresh = data[known:] if known else data
            for _ in split_events(fresh):
                pass
            if segment.end + len(fresh) > self._max_bytes:
                raise PayloadTooLarge(
                    f"Attempt {attempt} of {job_id} sent more than"
                    f" {format_bytes(self._max_bytes)} of output.",
                    hint="A worker leaves out what is above 64 MiB; this one did not.",
                    job_id=job_id,
                    attempt=attempt,
                )
            try:
                segment.append(segment.end, fresh)
            except OSError as exc:
                raise TransportError(
                    f"The output of {job_id} could not be written: {exc}.",
                    hint="Look at the free space of the coordinator's disk.",
                ) from exc
            return segment.end

    def _measure(self, job_id: str, attempt: int) -> int:
        with self._opening:
            known = self._segments.get((job_id, attempt))
            if known is not None:
                return known.end
            end = 0
            with (
                contextlib.suppress(FileNotFoundError),
                self._path(job_id, attempt).open("rb") as f,
            ):
                for record in records.scan(f):
                    end = record.offset + len(record.data)
            return end

    def _open(self, job_id: str, attempt: int) -> _Segment:
        key = (job_id, attempt)
        # One at a time: a second reader of the same file would cut what the first one appends.
        with self._opening:
            segment = self._segments.get(key)
            if segment is None:
                segment = _Segment(self._path(job_id, attempt))
                segment.load()
                self._segments[key] = segment
            return segment

    def _path(self, job_id: str, attempt: int) -> Path:
        return self._folder / f"{job_id}.{attempt}"

    async def _in_thread(self, fn: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, fn, *args)


_READ_BYTES = MIB


class _Found(NamedTuple):
    pieces: list[Piece]
    at: int  # stream offset after them
    position: int  # and file position


def _read_some(path: Path, at: int, position: int, wanted: int, end: int | None) -> _Found:
    """Read about 1 MiB from a known place on; the pieces are those that reach past ``wanted``."""
    pieces: list[Piece] = []
    size = 0
    try:
        with path.open("rb") as file:
            for record in records.scan(file, at=position, offset=at, end=end):
                at, position = record.offset + len(record.data), record.next_at
                if at > wanted:
                    pieces.append(Piece(record.offset, record.data))
                size += len(record.data)
                if size >= _READ_BYTES:
                    break
    except FileNotFoundError:
        pass
    return _Found(pieces, at, position)


def _from(job_id: str, piece: Piece, offset: int) -> Piece:
    """Return ``piece`` without the events before ``offset``."""
    if piece.offset >= offset:
        return piece
    at = piece.offset
    for event in split_events(piece.data):
        if at == offset:
            return Piece(offset, piece.data[offset - piece.offset :])
        at += len(event)
    raise _no_event_at(job_id, offset)


def _no_event_at(job_id: str, offset: int) -> InvalidRequest:
    return InvalidRequest(
        f"No event of {job_id} begins at byte {offset}.",
        hint="Go on from a position that the coordinator sent, or from 0.",
        job_id=job_id,
        offset=offset,
    )


def _fdatasync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(fd)
    finally:
        os.close(fd)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
