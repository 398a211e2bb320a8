"""What a job's ``--pip`` lists, on an image: resolved and fetched once, then installed offline.

    1. gridx/requirements.py reads the list: names with versions, and nothing else
    2. pip resolves and downloads wheels on the host (resolve.py): no package's code runs
    3. the engine builds an image from the wheels' files, without a network (unpack.py)

The tag is made of the image below and of the wheels with their hashes, so that two lists that
come to the same are one image. What a list came to is remembered for a day. The files lie in a
folder that only a job's own process has on its path: nothing in them reaches PID 1.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from gridx.errors import EnvironmentFailed, InvalidRequest, SandboxError
from gridx.requirements import parse_requirements
from gridx.resources import GIB, Image, format_bytes

from .build import ContextFile, build, cache_dir, lock
from .cleaning import LOG_BYTES, cleaned
from .engine import REFUSALS, find_image, inspect
from .manifest import LABEL, ImageInfo, Kind
from .names import recipe, version_of
from .resolve import Limits, PipFailed, Resolved, fetched, resolve, secrets
from .unpack import unpacked

_log = logging.getLogger(__name__)

ENVIRONMENT_DIR: Final = "/opt/gridx/env"  # first on the child's path, after the interpreter's
REPOSITORY: Final = "gridx/env"
BELOW_LABEL: Final = "gridx.below"  # the id of the image that an environment is built on

LIMITS: Final = Limits(timeout_s=300.0, download_bytes=GIB, memory_bytes=2 * GIB)
BUILD_TIMEOUT_S: Final = 300.0
BUILD_MEMORY_BYTES: Final = 2 * GIB
MAX_GROWTH_BYTES: Final = 2 * GIB
REMEMBERED_S: Final = 24 * 3600.0

_NO_WHEEL: Final = (
    "Look at the name that the last lines have. A package without a wheel for this Python on Linux"
    " cannot be installed: building one would run its code."
)

_TURNS: Final = threading.BoundedSemaphore(2)

Say = Callable[[str], None]


def build_environment(
    api: Any,
    requirements: Sequence[str],
    *,
    base: Image,
    say: Say,
    allowed: frozenset[str] | None = None,
    max_bytes: int | None = None,
    limits: Limits = LIMITS,
) -> ImageInfo:
    """Return ``base`` with ``requirements``, built now when this engine lacks it.

    Blocking, for minutes at worst. One build of a list at a time: a second caller waits for it.

    Args:
        api: a low-level docker-py client, used by this thread only.
        requirements: names with versions.
        base: the image below, of Python; it stays as it is.
        say: called with one line a step, for the user.
        allowed: normalised names (PEP 503) that the lender lets jobs install, those that they
            need in turn among them; None: all.
        max_bytes: of all environments together; those used longest ago are removed first.
        limits: of the download.

    Raises:
        EnvironmentFailed: they cannot be installed; it ends with the log's last lines.
        SandboxError: the engine does not answer, or has no such image.
    """
    found = find_image(api, base.digest)
    if found is None or found.manifest.language != "python":
        raise SandboxError(f"This engine has no image {base.name} to install packages on.")
    below = msgspec.structs.replace(found, tag=base.name)
    try:
        asked = parse_requirements(requirements)
    except InvalidRequest as error:
        raise EnvironmentFailed(error.message, hint=error.hint) from None
    if not asked:
        return below
    key = version_of([("base", below.id.encode()), ("asked", "\n".join(asked).encode())])
    waiting = "another job has the same packages installed; waiting for it"
    with lock(f"environment-{key}", say, waiting=waiting):
        if there := _remembered(api, key):
            _used(there)
            return there
        with _turn(say):
            say("resolving")
            try:
                with resolve(asked, below.manifest, limits=limits) as resolved:
                    _check_allowed(resolved.versions, allowed)
                    built = _built(api, below, resolved, say) if resolved.missing else below
            except PipFailed as error:
                raise _refused(error.sentence, error.log) from None
        _remember(key, built)
        if built is not below:
            _used(built)
            if max_bytes is not None:
                evict(api, max_bytes, keep=built.id)
        return built


@contextmanager
def _turn(say: Say) -> Iterator[None]:
    """Let two lists be built at a time: the lender's machine has other things to do."""
    if not _TURNS.acquire(blocking=False):
        say("waiting for the packages of other jobs")
        _TURNS.acquire()
    try:
        yield
    finally:
        _TURNS.release()


def _built(api: Any, below: ImageInfo, found: Resolved, say: Say) -> ImageInfo:
    if all(pin.sha256 for pin in found.missing) and (there := _find(api, below, _hashes(found))):
        return there
    count = f"{len(found.missing)} wheel{'s' if len(found.missing) > 1 else ''}"
    say(f"downloading {count}: {_named(found)}")
    wheels = fetched(found)
    hashes = sorted(wheel.sha256 for wheel in wheels)
    if there := _find(api, below, hashes):
        return there
    size_bytes = sum(wheel.path.stat().st_size for wheel in wheels)
    say(f"installing {count}, {format_bytes(size_bytes)}")
    tag = _tag(below, hashes)
    try:
        built = build(
            api,
            tag,
            files=[
                ContextFile("Dockerfile", recipe("environment.Dockerfile")),
                *unpacked((wheel.path for wheel in wheels), under="more"),
            ],
            manifest=msgspec.structs.replace(
                below.manifest, packages={**below.manifest.packages, **found.versions}
            ),
            kind=Kind.ENVIRONMENT,
            labels={BELOW_LABEL: below.id},
            buildargs={"BASE": below.id, "FOLDER": ENVIRONMENT_DIR},
            timeout_s=BUILD_TIMEOUT_S,
            memory_bytes=BUILD_MEMORY_BYTES,
        )
    except SandboxError as error:
        if isinstance(error.__cause__, REFUSALS):
            raise  # the engine's trouble, not the packages'
        raise _refused("These packages could not be installed.", error.message) from error
    growth_bytes = _size(api, built.id) - _size(api, below.id)
    if growth_bytes > MAX_GROWTH_BYTES:
        api.remove_image(built.tag)
        raise EnvironmentFailed(
            f"The packages take {format_bytes(growth_bytes)} when installed; a job may have"
            f" {format_bytes(MAX_GROWTH_BYTES)}.",
            hint="List fewer or smaller packages.",
        )
    return built


def _named(found: Resolved) -> str:
    names = [f"{pin.name} {pin.version}" for pin in found.missing[:4]]
    more = len(found.missing) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _hashes(found: Resolved) -> list[str]:
    return sorted(pin.sha256 for pin in found.missing)


def _tag(below: ImageInfo, hashes: Sequence[str]) -> str:
    """Return the tag: the image below is the base, the Python, the platform and the runtime."""
    parts = [("base", below.id.encode()), ("wheels", "\n".join(hashes).encode())]
    return f"{REPOSITORY}:{version_of(parts)}"


def _find(api: Any, below: ImageInfo, hashes: Sequence[str]) -> ImageInfo | None:
    return find_image(api, _tag(below, hashes))


def _check_allowed(names: Iterable[str], allowed: frozenset[str] | None) -> None:
    if allowed is None:
        return
    others = sorted(name for name in names if name not in allowed)
    if others:
        raise EnvironmentFailed(
            f"The lender of this worker does not let jobs install {', '.join(others[:5])}.",
            hint="Leave them out, or run the job on another worker.",
        )


def _refused(sentence: str, log: str) -> EnvironmentFailed:
    room = LOG_BYTES - len(sentence) - 1
    tail = cleaned(log, secrets(), limit_bytes=room)
    return EnvironmentFailed(
        f"{sentence}\n{tail}" if tail else sentence,
        hint=_NO_WHEEL if "(from versions: none)" in tail else None,
    )


def _size(api: Any, image: str) -> int:
    return int((inspect(api, image) or {}).get("Size") or 0)


# ---------------------------------------------------------------- what was built before


class _Memory(msgspec.Struct, frozen=True):
    tag: str
    id: str
    resolved_at: float  # seconds since 1970, by this machine's clock


def _folder() -> Path:
    folder = cache_dir() / "environments"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _remember(key: str, image: ImageInfo) -> None:
    now = time.time()
    for old in _folder().glob("asked-*"):
        if now - old.stat().st_mtime > 2 * REMEMBERED_S:
            old.unlink(missing_ok=True)
    memory = _Memory(image.tag, image.id, now)
    path = _folder() / f"asked-{key}.json"
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_bytes(msgspec.json.encode(memory))
    scratch.replace(path)


def _remembered(api: Any, key: str) -> ImageInfo | None:
    """Return what a list came to within the last day, when the engine still has it."""
    path = _folder() / f"asked-{key}.json"
    try:
        memory = msgspec.json.decode(path.read_bytes(), type=_Memory)
    except (OSError, msgspec.MsgspecError):
        return None
    if not 0 <= time.time() - memory.resolved_at < REMEMBERED_S:
        path.unlink(missing_ok=True)
        return None
    there = find_image(api, memory.tag)
    return there if there is not None and there.id == memory.id else None


def _used(image: ImageInfo) -> None:
    """Write down that ``image`` was used now."""
    (_folder() / f"used-{image.tag.rpartition(':')[2]}").touch()


class Environment(NamedTuple):
    """An environment on this engine's disk."""

    tag: str
    id: str
    size_bytes: int  # what it adds to the image below
    used_at: float  # seconds since 1970; 0.0: not known
    is_live: bool  # a container was made of it


def environments(api: Any) -> Iterator[Environment]:
    """Yield the environments that the engine has, those used longest ago first."""
    try:
        listed = api.images(name=REPOSITORY, filters={"label": f"{LABEL}={Kind.ENVIRONMENT}"})
        live = {entry["ImageID"] for entry in api.containers(all=True)}
    except REFUSALS as error:
        raise SandboxError(f"The engine does not list its images: {error}") from error
    found = []
    for entry in listed:
        for tag in entry.get("RepoTags") or ():
            below = str((entry.get("Labels") or {}).get(BELOW_LABEL))
            size_bytes = int(entry["Size"]) - _size(api, below)
            found.append(
                Environment(tag, entry["Id"], size_bytes, _used_at(tag), entry["Id"] in live)
            )
    yield from sorted(found, key=lambda one: one.used_at)


def _used_at(tag: str) -> float:
    try:
        return (_folder() / f"used-{tag.rpartition(':')[2]}").stat().st_mtime
    except OSError:
        return 0.0


def evict(api: Any, max_bytes: int, *, keep: str = "") -> list[str]:
    """Remove environments until all together take at most ``max_bytes``.

    Those used longest ago go first; never ``keep``, and never one with a container.

    Returns:
        The tags that were removed.
    """
    there = list(environments(api))
    total_bytes = sum(one.size_bytes for one in there)
    removed = []
    for one in there:
        if total_bytes <= max_bytes:
            break
        if one.is_live or one.id == keep:
            continue
        try:
            api.remove_image(one.tag)
        except REFUSALS:  # a container was made of it just now
            continue
        (_folder() / f"used-{one.tag.rpartition(':')[2]}").unlink(missing_ok=True)
        total_bytes -= one.size_bytes
        removed.append(one.tag)
    if removed:
        _log.info("removed environments", extra={"action": "evict", "images": len(removed)})
    return removed
