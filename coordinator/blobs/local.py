"""Blobs as files of a local folder: ``OWNER/DI/DIGEST``, with ``.zst`` where they are packed.

A blob is written under another name, flushed, and renamed; then its folder is flushed. So a file
that has its name is whole, after a power cut too. What was being written when the process died
lies in ``incoming`` and is removed at the next start.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from gridx.blobs import check, unpack
from gridx.errors import StorageError
from gridx.schemas import BlobRef

from .base import Stored

T = TypeVar("T")

_THREADS: Final = 4  # hashing and disk work release the interpreter lock
_PACKED: Final = ".zst"


class LocalBlobs:
    """The blobs of one coordinator in ``folder``, which belongs to this process alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        self._numbers = itertools.count()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="blobs")

    async def open(self) -> None:
        """Make the folder, and remove what an earlier process left half written."""
        await self._do(self._prepare)

    async def put(
        self, owner_id: int, ref: BlobRef, pieces: Sequence[bytes], *, is_zstd: bool
    ) -> int:
        """See Blobs."""
        return await self._do(lambda: self._put(owner_id, ref, pieces, is_zstd=is_zstd))

    async def get(self, owner_id: int, digest: str) -> Stored | None:
        """See Blobs."""
        return await self._do(lambda: self._get(owner_id, digest))

    async def close(self) -> None:
        """See Blobs."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _do(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except OSError as exc:
            raise StorageError(
                f"The coordinator's blobs cannot be written or read: {exc.strerror or exc}."
            ) from exc

    # --- in a thread -------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self._incoming.iterdir():
            path.unlink()

    def _path(self, owner_id: int, digest: str, *, is_zstd: bool) -> Path:
        name = digest + _PACKED if is_zstd else digest
        return self._folder / str(owner_id) / digest[:2] / name

    def _put(self, owner_id: int, ref: BlobRef, pieces: Sequence[bytes], *, is_zstd: bool) -> int:
        if is_zstd:
            body = b"".join(pieces)
            raw = unpack(body, ref, is_zstd=True)
            is_zstd = len(body) < len(raw)  # else packed by somebody who did not look
            pieces = (body,) if is_zstd else (raw,)
        else:
            check(pieces, ref)
        target = self._path(owner_id, ref.digest, is_zstd=is_zstd)
        self._make_folder(target.parent)
        part = self._incoming / f"{next(self._numbers)}"
        try:
            _write(part, pieces)
            part.rename(target)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
        return sum(map(len, pieces))

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        for each in (folder.parent, folder):
            each.mkdir(exist_ok=True, mode=0o700)
            _sync_folder(each.parent)

    def _get(self, owner_id: int, digest: str) -> Stored | None:
        for is_zstd in (False, True):
            try:
                body = self._path(owner_id, digest, is_zstd=is_zstd).read_bytes()
            except FileNotFoundError:
                continue
            return Stored(body, is_zstd)
        return None


def _write(path: Path, pieces: Sequence[bytes]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folder(folder: Path) -> None:
    """Flush the names in ``folder``: after a power cut the renamed file is found under its own."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
