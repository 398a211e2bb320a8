"""One build in the engine: a context in, an image with its manifest out, never with a network."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import msgspec

from gridx.errors import SandboxError

from .engine import REFUSALS, Progress, failed, find_image
from .manifest import LABEL, MANIFEST_LABEL, ImageInfo, ImageManifest

BUILD_TIMEOUT_S: Final = 900.0
_EPOCH: Final = 315_532_800  # 1980-01-01: the same input makes the same layer


class ContextFile(NamedTuple):
    """One file of a build's context. With ``link`` it is a symbolic link to that."""

    name: str
    content: bytes = b""
    is_executable: bool = False
    link: str = ""


def build(
    api: Any,
    tag: str,
    *,
    files: Iterable[ContextFile],
    manifest: ImageManifest,
    kind: str,
    buildargs: Mapping[str, str],
    labels: Mapping[str, str] = {},
    nocache: bool = False,
    timeout_s: float = BUILD_TIMEOUT_S,
    memory_bytes: int | None = None,
) -> ImageInfo:
    """Build ``tag`` from a context of ``files``, with no network in any step.

    Args:
        api: a low-level docker-py client.
        tag: of the result.
        files: the context, the Dockerfile among them; the manifest is added.
        manifest: label and file of the result.
        kind: one of ``Kind``.
        buildargs: values of its ``ARG``.
        labels: more of them.
        nocache: build every step anew.
        timeout_s: until the engine has to be done.
        memory_bytes: limit of each step.

    Raises:
        SandboxError: a step failed; it ends with the log's last lines.
    """
    as_json = msgspec.json.encode(manifest)
    log: deque[str] = deque(maxlen=20)
    until_s = time.monotonic() + timeout_s
    limits = {} if memory_bytes is None else {"memory": memory_bytes, "memswap": memory_bytes}
    with tempfile.TemporaryFile() as context:
        write_context(context, [ContextFile("manifest.json", as_json)], files)
        context.seek(0)
        try:
            lines = api.build(
                fileobj=context,
                custom_context=True,
                tag=tag,
                buildargs=dict(buildargs),
                labels={LABEL: kind, MANIFEST_LABEL: as_json.decode(), **labels},
                container_limits=limits,
                network_mode="none",
                nocache=nocache,
                rm=True,
                forcerm=True,
                decode=True,
                timeout=timeout_s,
            )
            for line in lines:
                # The engine answers 200 and reports a failed step in the stream.
                if "error" in line:
                    raise failed(f"The image {tag} could not be built: {line['error']}", log)
                log.append(str(line.get("stream", "")).rstrip())
                if time.monotonic() > until_s:
                    # Who leaves closes the stream, and with it the engine ends the build.
                    lines.close()
                    raise failed(f"The image {tag} was not built within {timeout_s:.0f} s.", log)
        except REFUSALS as error:
            raise failed(f"The image {tag} could not be built: {error}", log) from error
    built = find_image(api, tag)
    if built is None:
        raise SandboxError(f"The engine built {tag} but does not have it.")
    return built


def write_context(out: IO[bytes], *parts: Iterable[ContextFile]) -> None:
    """Write a build's context as a tar archive."""
    with tarfile.open(fileobj=out, mode="w") as tar:
        for part in parts:
            for file in part:
                _add(tar, file)


def _add(tar: tarfile.TarFile, file: ContextFile) -> None:
    """Add a file as root's, readable by all and writable by nobody else, with a fixed date."""
    info = tarfile.TarInfo(file.name)
    info.mtime = _EPOCH
    if file.link:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, file.link, 0o777
        tar.addfile(info)
        return
    info.size = len(file.content)
    info.mode = 0o755 if file.is_executable else 0o644
    tar.addfile(info, io.BytesIO(file.content))


def run_logged(
    command: Sequence[str],
    *,
    timeout_s: float,
    what: str,
    hint: str | None = None,
    stdout: IO[bytes] | None = None,
) -> None:
    """Run ``command``; a failure carries the last lines of what it wrote.

    Raises:
        SandboxError: it failed, could not start, or took longer than ``timeout_s``.
    """
    with tempfile.TemporaryFile() as log:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout or log,
                stderr=log,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise failed(f"{what} took more than {timeout_s:.0f} s.", (), hint) from error
        except OSError as error:
            raise failed(f"{what} could not start: {error}", (), hint) from error
        if done.returncode != 0:
            log.seek(max(0, log.tell() - 4096))
            tail = log.read().decode(errors="replace").splitlines()[-15:]
            raise failed(f"{what} failed with exit code {done.returncode}.", tail, hint)


@contextmanager
def lock(name: str, say: Progress, *, waiting: str) -> Iterator[Path]:
    """Let one process of this user be inside at a time; the others say ``waiting`` and wait.

    Returns:
        The lock's file, whose date is when it was last inside.
    """
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield path


def cache_dir() -> Path:
    """Return where this user keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gridx"


def progress_to_stderr() -> Progress:
    """Return a ``say`` that prints to stderr, with the seconds since now."""
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"image [{time.monotonic() - began:5.1f} s] {line}", file=sys.stderr, flush=True)

    return say
