"""Blobs that jobs have brought, kept on disk for the next job of the same user.

    <data dir>/blobs/<hash of the owner's name>/<digest>

Nobody's blobs are another's: the same bytes of two users are fetched and kept twice, so that no
job can tell by its speed what others have sent. A file is checked by its digest before it is
there, and once more when an earlier run of the worker has left it. It is never written to
again: sandboxes map it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import blake3

from gridx.blobs import digest
from gridx.errors import SandboxError
from gridx.protocol import AttemptRef
from gridx.resources import GIB, MIB, format_bytes
from gridx.schemas import BlobRef

from .transfers import BlobTransfers

_log = logging.getLogger(__name__)

DEFAULT_LIMIT_BYTES: Final = 4 * GIB
DEFAULT_SHARE: Final = 0.1  # of the disk's free space, where that is less
RESERVE_BYTES: Final = 256 * MIB  # of the disk stay free, whatever a job brings
_OWNER_BYTES: Final = 16


class _Key(NamedTuple):
    owner: str  # hashed
    digest: str


class _Kept:
    """A blob on disk."""

    def __init__(self, size_bytes: int, *, is_checked: bool) -> None:
        self.size_bytes = size_bytes
        self.is_checked = is_checked


def default_limit_bytes(folder: Path) -> int:
    """Return how much the cache may hold where the lender has not said: 4 GiB, or a tenth of
    the free disk where that is less."""
    while not folder.exists():
        folder = folder.parent
    return min(DEFAULT_LIMIT_BYTES, int(shutil.disk_usage(folder).free * DEFAULT_SHARE))


class BlobCache:
    """The blobs of every user of this worker. What no job uses goes first when room is needed,
    the least recently used before the others."""

    def __init__(self, folder: Path, transfers: BlobTransfers, *, limit_bytes: int) -> None:
        """
        Args:
            folder: for this cache alone; what an earlier run left there is taken up.
            transfers: fetches what is missing.
            limit_bytes: of all blobs together. What running jobs use may be more.
        """
        self._folder = folder
        self._transfers = transfers
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()  # least recently used first
        self._pins: dict[_Key, int] = {}
        self._fetching: dict[_Key, asyncio.Lock] = {}
        self.used_bytes = 0
        self._take_up()
        self._make_room()

    def loan(self, owner: str, attempt: AttemptRef) -> Loan:
        """Return what an attempt of ``owner`` borrows; ``end`` it with the attempt."""
        hashed = blake3.blake3(owner.encode()).hexdigest(length=_OWNER_BYTES)
        return Loan(self, hashed, attempt)

    # ---- for Loan

    async def lend(self, owner: str, attempt: AttemptRef, refs: Sequence[BlobRef]) -> int:
        """Have these pinned blobs on disk; return how many bytes were fetched for it.

        Raises:
            GridXError: one of them cannot be had.
        """
        missing = [ref for ref in refs if not await self._has(_Key(owner, ref.digest), ref)]
        missing_bytes = sum(ref.size for ref in missing)
        if not missing:
            return 0
        self._make_room(missing_bytes)
        free_bytes = shutil.disk_usage(self._folder).free
        if missing_bytes + RESERVE_BYTES > free_bytes:
            raise SandboxError(
                f"The job brings {format_bytes(missing_bytes)}, and this worker's disk has "
                f"{format_bytes(free_bytes)} left.",
                hint="Free some disk space, or choose another --data-dir.",
            )
        tasks = [asyncio.create_task(self._fetch(owner, attempt, ref)) for ref in missing]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return missing_bytes

    def pin(self, owner: str, digests: Iterable[str]) -> None:
        """Keep these whatever room is needed, until ``unpin``."""
        for name in digests:
            key = _Key(owner, name)
            self._pins[key] = self._pins.get(key, 0) + 1

    def unpin(self, owner: str, digests: Iterable[str]) -> None:
        """Let these go when room is needed."""
        for name in digests:
            key = _Key(owner, name)
            self._pins[key] -= 1
            if not self._pins[key]:
                del self._pins[key]
        self._make_room()

    def path(self, owner: str, name: str) -> Path:
        """Return where a blob lies, or will."""
        return self._folder / owner / name

    # ---- one blob

    async def _has(self, key: _Key, ref: BlobRef) -> bool:
        kept = self._kept.get(key)
        if kept is None:
            return False
        path = self.path(*key)
        is_good = kept.size_bytes == ref.size and path.exists()
        if is_good and not kept.is_checked:
            is_good = await asyncio.to_thread(_is_named_right, path, key.digest)
        if self._kept.get(key) is not kept:  # somebody else has looked, too
            return await self._has(key, ref)
        if not is_good:
            self._drop(key)
            return False
        kept.is_checked = True
        self._kept.move_to_end(key)
        os.utime(path)  # the next run reads from it what was used last
        return True

    async def _fetch(self, owner: str, attempt: AttemptRef, ref: BlobRef) -> None:
        key = _Key(owner, ref.digest)
        lock = self._fetching.setdefault(key, asyncio.Lock())
        async with lock:  # two jobs of one user that need the same blob fetch it once
            if await self._has(key, ref):
                return
            path = self.path(*key)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            await self._transfers.get(ref, attempt, lambda data: _keep(path, data))
            self._kept[key] = _Kept(ref.size, is_checked=True)
            self.used_bytes += ref.size
        if self._fetching.get(key) is lock and not lock.locked():
            del self._fetching[key]

    # ---- room

    def _make_room(self, needed_bytes: int = 0) -> None:
        if self.used_bytes + needed_bytes <= self._limit_bytes:
            return
        for key in [key for key in self._kept if key not in self._pins]:
            self._drop(key)
            if self.used_bytes + needed_bytes <= self._limit_bytes:
                return

    def _drop(self, key: _Key) -> None:
        self.used_bytes -= self._kept.pop(key).size_bytes
        self.path(*key).unlink(missing_ok=True)

    def _take_up(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found: list[tuple[float, _Key, int]] = []
        for owner in self._folder.iterdir():
            for path in owner.iterdir() if owner.is_dir() else ():
                if path.name.endswith(".part"):
                    path.unlink(missing_ok=True)
                    continue
                state = path.stat()
                found.append((state.st_mtime, _Key(owner.name, path.name), state.st_size))
        for _, key, size in sorted(found):
            self._kept[key] = _Kept(size, is_checked=False)
            self.used_bytes += size


class Loan:
    """The blobs that one attempt uses. They stay until it ends."""

    def __init__(self, cache: BlobCache, owner: str, attempt: AttemptRef) -> None:
        self._cache = cache
        self._owner = owner
        self._attempt = attempt
        self._pinned: set[str] = set()
        self.fetched_bytes = 0  # what had to come over the network

    async def take(self, refs: Sequence[BlobRef]) -> dict[str, Path]:
        """Return, by digest, the files of these blobs. Cancelling ends the transfer.

        Raises:
            GridXError: one of them cannot be had; the sentence says why.
        """
        sizes = {ref.digest: ref for ref in refs}
        if any(sizes[ref.digest].size != ref.size for ref in refs):
            raise SandboxError("The job names one blob with two sizes.")
        new = sizes.keys() - self._pinned
        self._cache.pin(self._owner, new)
        self._pinned |= new
        fetched = await self._cache.lend(self._owner, self._attempt, list(sizes.values()))
        self.fetched_bytes += fetched
        _log.info(
            "blobs are there",
            extra={
                "action": "blobs",
                "job_id": self._attempt.job_id,
                "blobs": len(sizes),
                "bytes": sum(ref.size for ref in sizes.values()),
                "fetched_bytes": fetched,
            },
        )
        return {name: self._cache.path(self._owner, name) for name in sizes}

    def end(self) -> None:
        """Use them no more."""
        self._cache.unpin(self._owner, self._pinned)
        self._pinned.clear()


def _keep(path: Path, data: bytes) -> None:
    """Put a whole file there, or none."""
    part = path.with_name(f"{secrets.token_hex(8)}.part")
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            # A container reads it as another user; the folders above let nobody else come near.
            os.fchmod(file.fileno(), 0o444)
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _is_named_right(path: Path, name: str) -> bool:
    try:
        return digest(path.read_bytes()) == name
    except OSError:
        return False
