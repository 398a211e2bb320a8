"""Files that travel with a cell: ``--files`` up, ``--fetch`` home.

Only files below the notebook's folder travel, under their relative path. A symbolic link is
followed as long as it stays inside. What comes home is a stranger's: its path must match what
was asked for, every folder on its way must be a real folder inside, and a file of the user's
own is never overwritten: only what the same cell sent, or what an earlier fetch wrote, and
only while the user has not changed it since. Else the new file stands beside it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from gridx.errors import InvalidRequest
from gridx.resources import MIB, format_bytes
from gridx.schemas import FileSpec

if TYPE_CHECKING:
    from gridx.blobs import Blob

MAX_FILES: Final = 1_000
MAX_IN_MESSAGE_BYTES: Final = MIB  # of all small files together; the rest travels as blobs
_HINT: Final = "Name files below the notebook's folder, for example --files data/*.csv"


@dataclass(frozen=True)
class Found:
    """One file that matches: its path as the cell will see it, and where it lies."""

    path: str
    source: Path
    size_bytes: int


def find_files(patterns: Iterable[str], folder: Path) -> list[Found]:
    """Return the files below ``folder`` that match; a matching folder stands for all in it.

    Raises:
        InvalidRequest: a pattern matches nothing, or a link leads out of the folder.
    """
    root = folder.resolve()
    found: dict[str, Found] = {}
    for pattern in patterns:
        matches = sorted(folder.glob(pattern))
        if not matches:
            raise InvalidRequest(
                f"--files {pattern}: no file matches. Nothing was sent.", hint=_HINT
            )
        for path in (file for match in matches for file in _files_in(match)):
            source = path.resolve()
            if not source.is_relative_to(root):
                raise InvalidRequest(
                    f"--files {pattern}: {path.relative_to(folder)} leads out of the notebook's "
                    f"folder. Nothing was sent.",
                    hint="Copy it into the folder first.",
                )
            name = path.relative_to(folder).as_posix()
            found[name] = Found(name, source, source.stat().st_size)
        if len(found) > MAX_FILES:
            raise InvalidRequest(
                f"--files: more than {MAX_FILES} files match. Nothing was sent.",
                hint="Pack them into one archive first.",
            )
    return list(found.values())


def _files_in(path: Path) -> Iterator[Path]:
    if path.is_dir():
        for inner in sorted(path.rglob("*")):
            if inner.is_file() and "__pycache__" not in inner.parts:
                yield inner
    elif path.is_file():
        yield path


@dataclass
class Packed:
    """Files as they travel: small ones in the message, large ones as blobs."""

    specs: list[FileSpec] = field(default_factory=list)
    blobs: list[Blob] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes that travel, before compression."""
        return sum(len(spec.data) for spec in self.specs) + sum(b.ref.size for b in self.blobs)


def pack_files(found: Iterable[Found]) -> Packed:
    """Read the files and return them as they travel."""
    from gridx.blobs import LEAST_BLOB_BYTES, cut, to_blob

    packed, in_message = Packed(), 0
    for file in found:
        data = file.source.read_bytes()
        packed.digests[file.path] = _digest(data)
        if len(data) < LEAST_BLOB_BYTES and in_message + len(data) <= MAX_IN_MESSAGE_BYTES:
            in_message += len(data)
            packed.specs.append(FileSpec(path=file.path, data=data))
            continue
        blobs = [to_blob(chunk) for chunk in cut(data)]
        packed.blobs += blobs
        packed.specs.append(FileSpec(path=file.path, blobs=tuple(blob.ref for blob in blobs)))
    return packed


class Fetched:
    """Writes what comes home, and remembers what it wrote, for one kernel."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[str, str] = {}

    def write(
        self,
        files: Iterable[tuple[str, bytes | memoryview]],
        *,
        patterns: Iterable[str],
        sent: Mapping[str, str],
        job_id: str,
    ) -> tuple[dict[str, Path], list[str]]:
        """Write ``files`` below the folder.

        Args:
            files: path and contents, as a stranger's worker sent them.
            patterns: what the cell asked for.
            sent: path and digest of the files that travelled with the cell.
            job_id: names a file that may not take its own place.

        Returns:
            where each file is, and sentences about those that are not where one expects them.
        """
        written: dict[str, Path] = {}
        notes: list[str] = []
        wanted = tuple(patterns)
        for path, data in files:
            reason = self._refusal(path, wanted)
            if reason is not None:
                notes.append(f"a fetched file was left out: {path[:100]!r} {reason}")
                continue
            target = self._folder / path
            if not self._is_the_jobs_own(path, target, sent, data):
                target = _beside(target, job_id)
                notes.append(f"{path} is yours and stays; the fetched one is {target.name}")
            try:
                self._put(target, data)
            except OSError as exc:
                notes.append(f"{path} could not be written: {exc.strerror}")
                continue
            self._written[target.relative_to(self._folder).as_posix()] = _digest(data)
            written[path] = target
        return written, notes

    def _refusal(self, path: str, patterns: tuple[str, ...]) -> str | None:
        parts = PurePosixPath(path).parts
        if (
            not parts
            or path.startswith(("/", "~"))
            or ".." in parts
            or re.search(r"[\x00-\x1f\x7f\\:]", path)
        ):
            return "is not a path below the notebook's folder"
        if not any(matches(path, pattern) for pattern in patterns):
            return "was not asked for"
        folder = self._folder
        for part in parts[:-1]:
            folder = folder / part
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                return "lies behind a link"
        if (self._folder / path).is_dir():
            return "is a folder here"
        return None

    def _is_the_jobs_own(
        self, path: str, target: Path, sent: Mapping[str, str], data: bytes | memoryview
    ) -> bool:
        if target.is_symlink():
            return False
        try:
            now = _digest(target.read_bytes())
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return now in (self._written.get(path), sent.get(path), _digest(data))

    def _put(self, target: Path, data: bytes | memoryview) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".gridx-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            mask = os.umask(0)
            os.umask(mask)
            Path(name).chmod(0o666 & ~mask)
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def matches(path: str, pattern: str) -> bool:
    """Return whether ``path`` is what ``pattern`` asks for; a folder asks for all that is in it."""
    pattern = pattern.rstrip("/")
    if path == pattern or path.startswith(f"{pattern}/"):
        return True
    parts, wanted = path.split("/"), pattern.split("/")
    return _match_parts(parts, wanted)


def _match_parts(parts: list[str], wanted: list[str]) -> bool:
    if not wanted:
        return True  # a folder that matches stands for what is in it
    if wanted[0] == "**":
        return any(_match_parts(parts[n:], wanted[1:]) for n in range(len(parts) + 1))
    if not parts:
        return False
    return fnmatch.fnmatchcase(parts[0], wanted[0]) and _match_parts(parts[1:], wanted[1:])


def _beside(target: Path, job_id: str) -> Path:
    return target.with_name(f"{target.stem}.{job_id[-8:]}{target.suffix}")


def _digest(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def describe(found: Iterable[Found]) -> str:
    """Return files with their sizes, for the dry run."""
    files = list(found)
    total = format_bytes(sum(file.size_bytes for file in files))
    names = ", ".join(file.path for file in files[:5]) + (" …" if len(files) > 5 else "")
    return f"{names} ({total})"
