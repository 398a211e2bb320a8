"""Files of a job: laid out before its cell begins, gathered for the way home after it.

Paths are checked on every side that they pass, and here once more: they are relative, and what
they name lies below the job's own folder. Links are neither followed nor sent.
"""

from __future__ import annotations

import errno
import fnmatch
import importlib
import mmap
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from gridx.resources import MIB, format_bytes
from gridx.schemas import FileSpec

MAX_FILES: Final = 1000  # that one cell brings home
MAX_ENTRIES: Final = 50_000  # that are looked at for them
MAX_NOTES: Final = 20
_COPIED_BYTES: Final = MIB
_FULL: Final = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)

_modules_folder = ""
_laid_out: dict[str, tuple[bytes | str, ...]] = {}  # what each module file holds now


class FilesError(Exception):
    """A file that came with the cell cannot be laid out; nothing of the cell has run."""


# ---------------------------------------------------------------- before the cell


def lay_out(files: Sequence[FileSpec], *, work: str, blobs: str) -> None:
    """Write each of ``files`` below ``work``, or below a folder on ``sys.path`` when it is a
    module.

    Args:
        files: as they came.
        work: the job's own folder.
        blobs: the folder of the blobs that they refer to, each under its digest.

    Raises:
        FilesError: a path leads elsewhere, a blob is missing, or the sandbox has no room.
    """
    has_modules = False
    edited: set[str] = set()
    for file in files:
        is_module = file.kind == "module"
        has_modules |= is_module
        _write(file, root=_modules() if is_module else work, blobs=blobs)
        contents: tuple[bytes | str, ...] = (file.data, *(ref.digest for ref in file.blobs))
        if is_module and _laid_out.setdefault(file.path, contents) != contents:
            _laid_out[file.path] = contents
            edited.add(file.path.partition("/")[0].partition(".")[0])
    if edited:
        _forget_modules(edited)
    if has_modules:
        importlib.invalidate_caches()


def _forget_modules(roots: set[str]) -> None:
    """Let the next import of each of ``roots`` find the files of now: a session goes on with it."""
    folder = _modules()
    for name, module in list(sys.modules.items()):
        place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")
        if name.partition(".")[0] in roots and str(place).startswith(f"{folder}/"):
            del sys.modules[name]
    # Two edits within a second look alike to whoever compares times.
    for found in Path(folder).rglob("__pycache__"):
        shutil.rmtree(found, ignore_errors=True)


def _modules() -> str:
    """Return the folder of shipped modules, which this process and those it starts look into."""
    global _modules_folder
    if not _modules_folder:
        _modules_folder = tempfile.mkdtemp(prefix=".gridx-modules-")
        # After the working folder, where a module beside the notebook is found at home.
        sys.path.insert(1 if sys.path[:1] == [""] else 0, _modules_folder)
        others = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{_modules_folder}:{others}" if others else _modules_folder
    return _modules_folder


def checked_parts(path: str) -> list[str]:
    """Return the parts of a relative path.

    Raises:
        FilesError: it is absolute, empty, or leads up.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise FilesError(f"{path!r} is not a path below the job's folder.")
    return parts


def _write(file: FileSpec, *, root: str, blobs: str) -> None:
    *above, name = checked_parts(file.path)
    folder = root
    try:
        for part in above:
            folder = os.path.join(folder, part)
            try:
                os.mkdir(folder)
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(folder).st_mode):
                    raise FilesError(
                        f"{file.path!r} cannot be laid out: {part!r} is no folder."
                    ) from None
        part_name = os.path.join(folder, f".{os.getpid()}.gridx-part")
        try:
            _copy(file, part_name, blobs)
            os.replace(part_name, os.path.join(folder, name))  # a link there is not followed
        except BaseException:
            if os.path.lexists(part_name):
                os.unlink(part_name)
            raise
    except OSError as error:
        if error.errno in _FULL:
            size = len(file.data) + sum(ref.size for ref in file.blobs)
            raise FilesError(
                f"{file.path!r} ({format_bytes(size)}) does not fit into the sandbox, whose files"
                " are part of its memory. Ask for more with --mem, or send less."
            ) from None
        raise FilesError(f"{file.path!r} cannot be laid out: {error.strerror}.") from None


def _copy(file: FileSpec, path: str, blobs: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "wb", buffering=0) as target:
        _write_all(target.fileno(), file.data)
        for ref in file.blobs:
            copied = 0
            try:
                source = os.open(os.path.join(blobs, ref.digest), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise FilesError(f"A part of {file.path!r} has not arrived.") from None
            try:
                while data := os.read(source, _COPIED_BYTES):
                    _write_all(target.fileno(), data)
                    copied += len(data)
            finally:
                os.close(source)
            if copied != ref.size:
                raise FilesError(f"A part of {file.path!r} has not arrived whole.")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


# ---------------------------------------------------------------- after the cell


class Gathered(NamedTuple):
    """What goes home, and what the user should hear about the rest."""

    files: list[tuple[str, bytes | memoryview]]
    notes: list[str]


def gather(patterns: Sequence[str], *, work: str, max_bytes: int) -> Gathered:
    """Return the regular files below ``work`` that match one of ``patterns``.

    ``*`` and ``?`` stay within a folder, ``**`` stands for any number of folders, and a name
    that begins with a dot is matched by a pattern that does. A pattern that names a folder
    means all that is below it. The contents are mapped, not copied: they must not change before
    they are sent.

    Args:
        patterns: relative, with ``/`` between the parts.
        work: the job's own folder.
        max_bytes: of all contents together.
    """
    found = Gathered([], [])
    wanted: dict[str, list[list[str]]] = {}
    for pattern in patterns:
        try:
            parts = checked_parts(pattern.removeprefix("./").rstrip("/"))
        except FilesError:
            found.notes.append(f"{pattern!r} is not a pattern below the job's folder.")
            continue
        wanted[pattern] = [parts]
        if not any(sign in parts[-1] for sign in "*?["):
            wanted[pattern].append([*parts, "**"])
    without = set(wanted)
    total = 0
    for path, is_regular in _below(work):
        parts = path.split("/")
        matching = {p for p, forms in wanted.items() if any(_matches(parts, f) for f in forms)}
        if not matching:
            continue
        without -= matching
        if not is_regular:
            found.notes.append(f"{path!r} was left out: it is no regular file.")
            continue
        problem = "" if len(found.files) < MAX_FILES else f"{MAX_FILES} files can come home"
        contents: bytes | memoryview | None = None
        if not problem:
            contents, problem = _contents(os.path.join(work, path), max_bytes - total)
        if contents is None:
            found.notes.append(f"{_shown(path)} was left out: {problem}.")
            continue
        if not _is_nameable(path):
            found.notes.append(f"{_shown(path)} was left out: its name cannot be written down.")
            continue
        total += len(contents)
        found.files.append((path, contents))
    found.notes.extend(f"No file matches {pattern!r}." for pattern in wanted if pattern in without)
    if len(found.notes) > MAX_NOTES:
        more = len(found.notes) - MAX_NOTES
        found.notes[MAX_NOTES:] = [f"And {more} more."]
    return found


def _below(work: str) -> Iterator[tuple[str, bool]]:
    """Yield (path below ``work``, whether it is a regular file) for all but folders, in order."""
    waiting, left = [""], MAX_ENTRIES
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(os.path.join(work, folder)) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError:  # removed meanwhile, not readable, or too deep for a path
            continue
        deeper = []
        for entry in listed:
            left -= 1
            if left < 0:
                return
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                deeper.append(path)
            else:
                yield path, entry.is_file(follow_symlinks=False)
        waiting += reversed(deeper)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if len(pattern) == 1:
            return not any(part.startswith(".") for part in parts)
        if _matches(parts, pattern[1:]):
            return True
        return bool(parts) and not parts[0].startswith(".") and _matches(parts[1:], pattern)
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _contents(path: str, left_bytes: int) -> tuple[bytes | memoryview | None, str]:
    """Return the contents, or why not."""
    try:
        # Not blocking: what was a file a moment ago may be a pipe now.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return None, error.strerror or "it cannot be read"
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            return None, "it is no regular file"
        if state.st_size > left_bytes:
            return None, f"its {format_bytes(state.st_size)} are more than may still come home"
        if not state.st_size:
            return b"", ""
        return memoryview(mmap.mmap(fd, state.st_size, prot=mmap.PROT_READ)), ""
    except (OSError, ValueError) as error:
        return None, str(error)
    finally:
        os.close(fd)


def _is_nameable(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return path.isprintable()


def _shown(path: str) -> str:
    return repr(path.encode(errors="backslashreplace").decode())
