"""Workers whose key the user has pinned, in the table ``[trust]`` of his own settings file.

Trust is about display alone: what such a worker shows may run its scripts in a sandboxed frame
without being asked for each job. Its results are data like everybody's, and nothing of it is
ever unpickled.
"""

from __future__ import annotations

import functools
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from .errors import InvalidRequest, NotFound, SettingsError
from .identity import fingerprint
from .settings import config_file, read_tables, write_file


class PinnedWorker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as it was when the user pinned its key; the key alone counts."""

    name: str
    worker_id: str
    public_key: str

    @property
    def fingerprint(self) -> str:
        """The short form of the key."""
        return fingerprint(self.public_key)


def pinned_workers(environ: Mapping[str, str] = os.environ) -> tuple[PinnedWorker, ...]:
    """Return the pinned workers.

    Raises:
        SettingsError: the file is not TOML, or an entry of ``[trust]`` is no worker.
    """
    path = config_file(environ)
    try:
        found = path.stat()
    except OSError:
        return ()
    return _read(path, found.st_mtime_ns, found.st_ino)


@functools.lru_cache(maxsize=4)
def _read(path: Path, _changed_ns: int, _inode: int) -> tuple[PinnedWorker, ...]:
    """Return what stands in the file, read once: each display of each cell asks for it."""
    entries = read_tables(path)["trust"].get("workers", [])
    try:
        pins = msgspec.convert(entries, tuple[PinnedWorker, ...])
        for pin in pins:
            fingerprint(pin.public_key)
    except (msgspec.ValidationError, InvalidRequest) as exc:
        raise SettingsError(
            f"{path}: an entry of [[trust.workers]] is not that of a worker: {exc}.",
            hint="Delete the entry and run `%gridx trust WORKER` again.",
        ) from None
    return pins


def pin_worker(pin: PinnedWorker, environ: Mapping[str, str] = os.environ) -> None:
    """Pin a worker's key, once.

    Raises:
        SettingsError: the file cannot be read or written.
    """
    others = [known for known in pinned_workers(environ) if known.public_key != pin.public_key]
    _write([*others, pin], config_file(environ))


def unpin_worker(name: str, environ: Mapping[str, str] = os.environ) -> tuple[PinnedWorker, ...]:
    """Forget the workers of this name, id or fingerprint, and return them.

    Raises:
        NotFound: no pinned worker is called so.
        SettingsError: the file cannot be read or written.
    """
    pins = pinned_workers(environ)
    gone = tuple(p for p in pins if name in (p.name, p.worker_id, p.fingerprint, p.public_key))
    if not gone:
        known = ", ".join(f"{pin.name} ({pin.fingerprint})" for pin in pins) or "none"
        raise NotFound(f"No worker {name!r} is trusted.", hint=f"Trusted are: {known}.")
    _write([pin for pin in pins if pin not in gone], config_file(environ))
    return gone


def _write(pins: Sequence[PinnedWorker], path: Path) -> None:
    """Write the table anew and leave every other line of the file as it is."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    lines, ours = [], False
    for line in before.splitlines():
        stripped = line.strip()
        if stripped.startswith("["):
            ours = stripped.replace(" ", "").startswith(("[trust]", "[trust.", "[[trust."))
        if not ours:
            lines.append(line)
    text = "\n".join(lines).rstrip("\n") + "\n" if any(lines) else ""
    for pin in pins:
        text += "\n[[trust.workers]]\n" + "".join(
            f"{key} = {_quoted(value)}\n" for key, value in msgspec.to_builtins(pin).items()
        )
    _check_unchanged(path, before, text)
    write_file(path, text)


def _quoted(value: str) -> str:
    # A JSON string is a TOML basic string, once DEL is escaped too.
    return json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f")


def _check_unchanged(path: Path, before: str, after: str) -> None:
    try:
        was, is_now = tomllib.loads(before), tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        was, is_now = {"": 1}, {}
    was.pop("trust", None)
    is_now.pop("trust", None)
    if was != is_now:  # a table of ours inside another one, or a line that looks like one
        raise SettingsError(
            f"{path}: [trust] cannot be changed without changing something else.",
            hint="Put [[trust.workers]] at the end of the file by hand.",
        )
