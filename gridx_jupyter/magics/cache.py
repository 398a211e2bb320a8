"""Results of cells marked ``--cache``, kept on this machine.

A result is reused for the same code, inputs and image; nothing else is looked at, so a cell
that reads a clock or a random source is the user's to mark. One folder a coordinator and user:
what one user computed never answers another. What is kept is what the worker sent, and goes
through the same codec and the same display rules when it is used again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from gridx.events import Stream, decode_events
from gridx.protocol import Position
from gridx.resources import GIB, MIB
from gridx.schemas import BlobRef, JobView
from gridx.updates import EventArrived, Finished, Update

from .order import Order

if TYPE_CHECKING:
    from .notebook import Notebook

MAX_BYTES: Final = GIB
MAX_OUTPUT_BYTES: Final = 32 * MIB


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One cell that has completed: its state, its output stream, its result."""

    view: JobView
    stream: bytes  # encoded events (gridx.events)
    result: bytes | None


class Cache:
    """The results of one user at one coordinator.

    Args:
        folder: the data folder.
        url, user: whose results.
        max_bytes: above this the results used longest ago go.
    """

    def __init__(self, folder: Path, url: str, user: str, max_bytes: int = MAX_BYTES) -> None:
        owner = hashlib.blake2b(f"{url}\0{user}".encode(), digest_size=16).hexdigest()
        self._folder = folder / "results" / owner
        self._max_bytes = max_bytes

    def find(self, key: str) -> Kept | None:
        """Return what is kept under ``key``, and count it as used now."""
        path = self._path(key)
        try:
            kept = msgspec.msgpack.decode(path.read_bytes(), type=Kept)
            os.utime(path)
        except (OSError, msgspec.MsgspecError):
            return None
        return kept

    def keep(self, key: str, kept: Kept) -> bool:
        """Keep a result; return whether there is room for it."""
        data = msgspec.msgpack.encode(kept)
        if len(data) > self._max_bytes:
            return False
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(key)
        half = path.with_suffix(f".{os.getpid()}")
        handle = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        half.replace(path)
        self._make_room()
        return True

    def clear(self) -> tuple[int, int]:
        """Drop every result; return how many there were, and their bytes."""
        count, size = self.size()
        for path in self._paths():
            path.unlink(missing_ok=True)
        return count, size

    def size(self) -> tuple[int, int]:
        """Return how many results are kept, and their bytes."""
        sizes = [path.stat().st_size for path in self._paths()]
        return len(sizes), sum(sizes)

    def _make_room(self) -> None:
        by_age = sorted((path.stat().st_mtime_ns, path) for path in self._paths())
        total = sum(path.stat().st_size for _, path in by_age)
        for _, path in by_age:
            if total <= self._max_bytes:
                return
            total -= path.stat().st_size
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return list(self._folder.glob("*.result"))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.result"


def key_of(order: Order, image_digest: str) -> str:
    """Return what the result of ``order`` is kept under.

    With a key of the user's own it stands for the inputs.
    """
    captured, options, spec = order.captured, order.options, order.spec
    assert options.cache is not None
    files = [(f.path, f.kind, f.data, [blob.digest for blob in f.blobs]) for f in spec.files]
    digest = hashlib.blake2b(digest_size=16)
    for part in (
        order.body,
        spec.prelude,
        spec.python,
        image_digest,
        repr((spec.out, spec.fetch, files)),
        repr((options.language, options.image, options.pip, options.gpu_model)),
    ):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    if options.cache:
        digest.update(b"key\0" + options.cache.encode())
    elif captured is not None:
        digest.update(b"inputs\0" + captured.payload)
        digest.update("".join(sorted(blob.ref.digest for blob in captured.blobs)).encode())
    return digest.hexdigest()


class CachedJob:
    """A cell that has completed before, watched as a job of the grid is."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self.view = kept.view
        self.finished: Finished | None = None

    @property
    def id(self) -> str:
        """The id of the job that computed it."""
        return self.view.job_id

    @property
    def stdout(self) -> str:
        """What it printed."""
        return "".join(self._texts["stdout"])

    @property
    def stderr(self) -> str:
        """What it wrote on stderr."""
        return "".join(self._texts["stderr"])

    def updates(self, *, idle_s: float) -> Iterator[Update | None]:
        """Yield what happened then, ``Finished`` last."""
        for event in decode_events(self._kept.stream):
            if isinstance(event, Stream):
                self._texts[event.name].append(event.text)
            yield EventArrived(event, Position())
        self.finished = Finished(self.view, 0, None, None, self._kept.result)
        yield self.finished

    def download(self, refs: Sequence[BlobRef], on_progress: object = None) -> bytearray:
        """Everything is here already."""
        return bytearray()

    def cancel(self, timeout_s: float = 2.0) -> Finished | None:
        """There is nothing to stop."""
        return self.finished

    def footer(self, finished: Finished) -> str:
        """Return the line that stays."""
        at = finished.view.finished_at
        when = "" if at is None else f" of {at:%Y-%m-%d %H:%M} UTC"
        return f"from cache · result{when} · cost 0 · {self.id}"


class CachedRun:
    """Looks for the result of one cell, and keeps a new one."""

    def __init__(self, notebook: Notebook, order: Order) -> None:
        self._cache = notebook.cache()
        self._digests = notebook.connection.image_digests(order.wish)
        self._order = order

    def find(self) -> CachedJob | None:
        """Return the kept result, of any image that a worker online has."""
        for digest in sorted(set(self._digests.values())):
            kept = self._cache.find(self._key(digest))
            if kept is not None:
                return CachedJob(kept)
        return None

    def keep(self, view: JobView, stream: bytes, result: bytes | None) -> bool:
        """Keep the result of a job that has completed; return whether it could be."""
        digest = self._digests.get(view.worker_id or "")
        if digest is None or len(stream) > MAX_OUTPUT_BYTES:
            return False
        return self._cache.keep(self._key(digest), Kept(view=view, stream=stream, result=result))

    def _key(self, image_digest: str) -> str:
        return key_of(self._order, image_digest)
