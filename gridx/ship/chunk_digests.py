"""Names of the chunks of memory, remembered for as long as that memory holds the same bytes.

A 400 MB array that a notebook has sent before is looked through with xxh3 (27 GB/s), and hashed
with BLAKE3 (3 GB/s) only where it has changed. An array can be changed in place at any time, so
its address alone says nothing; the seed is this process's own, so that data from elsewhere
cannot have been made to look unchanged.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import xxhash

from ..blobs import Blob, cut, to_blob
from ..schemas import BlobRef

_MAX_BUFFERS: Final = 4_096
_THREADS: Final = min(4, os.cpu_count() or 1)
# A thread costs about 20 us to ask, as much as this many bytes take to hash.
_WORTH_A_THREAD_BYTES: Final = 256 * 1024

_Place = tuple[int, int]  # address and bytes


class _Chunk(NamedTuple):
    quick: bytes
    ref: BlobRef


class ChunkDigests:
    """Cuts buffers into blobs; remembers the digests of the buffers that it was given last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seed = int.from_bytes(os.urandom(8), "big")
        self._known: OrderedDict[_Place, tuple[_Chunk, ...]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None
        self._pid = os.getpid()

    def start(self, buffer: memoryview) -> PendingBlobs:
        """Begin to hash ``buffer``, in threads where it is large."""
        place = _place_of(buffer)
        with self._lock:
            known = self._known.get(place) if place is not None else None
            pool = self._get_pool() if buffer.nbytes >= _WORTH_A_THREAD_BYTES else None
        chunks = list(cut(buffer))
        before = known or (None,) * len(chunks)
        if pool is None:
            done = [self._hash(chunk, old) for chunk, old in zip(chunks, before, strict=True)]
            return PendingBlobs(self, place, chunks, done)
        return PendingBlobs(
            self,
            place,
            chunks,
            [pool.submit(self._hash, c, old) for c, old in zip(chunks, before, strict=True)],
        )

    def keep(self, place: _Place | None, hashed: tuple[_Chunk, ...]) -> None:
        """Remember what the memory at ``place`` holds now."""
        if place is None:
            return
        with self._lock:
            self._known[place] = hashed
            self._known.move_to_end(place)
            while len(self._known) > _MAX_BUFFERS:
                self._known.popitem(last=False)

    def _hash(self, chunk: memoryview, before: _Chunk | None) -> _Chunk:
        quick = xxhash.xxh3_128_digest(chunk, seed=self._seed)
        if before is not None and before.quick == quick:
            return before
        return _Chunk(quick, to_blob(chunk).ref)

    def _get_pool(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pid != os.getpid():  # a fork has none of the threads
            self._pid = os.getpid()
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="gridx-hash")
        return self._pool


class PendingBlobs:
    """The blobs of one buffer, whose digests may still be computed."""

    def __init__(
        self,
        digests: ChunkDigests,
        place: _Place | None,
        chunks: list[memoryview],
        hashed: Sequence[_Chunk | Future[_Chunk]],
    ) -> None:
        self._digests = digests
        self._place = place
        self._chunks = chunks
        self._hashed = hashed

    def result(self) -> list[Blob]:
        """Return the blobs in order, once they are hashed."""
        hashed = tuple(c.result() if isinstance(c, Future) else c for c in self._hashed)
        self._digests.keep(self._place, hashed)
        return [
            Blob(ref=done.ref, data=chunk) for done, chunk in zip(hashed, self._chunks, strict=True)
        ]


def _place_of(buffer: memoryview) -> _Place | None:
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return None
    view = numpy.frombuffer(buffer, dtype=numpy.uint8)
    return view.__array_interface__["data"][0], buffer.nbytes


CHUNK_DIGESTS: Final = ChunkDigests()
"""Shared by all captures of this process."""
