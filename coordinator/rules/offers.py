"""What a worker says of itself: bounded, and made fit to be shown, before anybody relies on it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from gridx.display.text import clean_line
from gridx.errors import InvalidRequest
from gridx.resources import Capability, Gpu, Image, Isolation, Load, Pause

MAX_IMAGES: Final = 64
MAX_GPUS: Final = 64
MAX_PACKAGES: Final = 2000  # of one image
MAX_CHECKS: Final = 64
MAX_USERS: Final = 200
MAX_NAME_CHARS: Final = 200
MAX_TEXT_CHARS: Final = 500
MAX_BYTES: Final = 1 << 50

_MINOR = re.compile(r"(3\.[0-9]{1,2})?\Z")


def checked_capability(capability: Capability) -> Capability:
    """Return an offer with its sentences made fit to be shown, or say what no machine can offer.

    Raises:
        InvalidRequest: a number is out of range, a list or a name too long.
    """
    if not (math.isfinite(capability.cores) and 0 < capability.cores <= 4096):
        raise InvalidRequest("A worker offers between 0 and 4096 cores.")
    if not 0 < capability.memory_bytes <= MAX_BYTES:
        raise InvalidRequest("A worker offers between 1 byte and 1 PiB of memory.")
    if not 0 <= capability.slots <= 4096:
        raise InvalidRequest("A worker offers between 0 and 4096 slots.")
    if capability.sandbox not in ("docker", "process"):
        raise InvalidRequest(f"{capability.sandbox[:40]!r} is not a kind of sandbox.")
    _at_most(MAX_IMAGES, capability.images, "images")
    _at_most(MAX_GPUS, capability.gpus, "GPUs")
    _at_most(MAX_USERS, capability.users, "named users")
    for image in capability.images:
        _check_image(image)
    for gpu in capability.gpus:
        _check_gpu(gpu)
    _check_names(capability.users, "user")
    return msgspec.structs.replace(
        capability,
        users=tuple(dict.fromkeys(capability.users)),
        cpu_model=clean_line(capability.cpu_model, MAX_NAME_CHARS),
        platform=clean_line(capability.platform, MAX_NAME_CHARS),
        pause=_shown_pause(capability.pause),
        isolation=_shown_isolation(capability.isolation),
    )


def checked_load(load: Load) -> Load:
    """Return live readings inside what is possible: they are only shown, and never refused."""
    return Load(
        cpu=_fraction(load.cpu),
        memory_used_bytes=_size(load.memory_used_bytes),
        memory_total_bytes=_size(load.memory_total_bytes),
        gpu=tuple(_fraction(value) for value in load.gpu[:MAX_GPUS]),
        gpu_memory_used_bytes=tuple(_size(n) for n in load.gpu_memory_used_bytes[:MAX_GPUS]),
        gpu_temperature_c=tuple(
            value if math.isfinite(value) else 0.0 for value in load.gpu_temperature_c[:MAX_GPUS]
        ),
        warm_sandboxes=max(0, min(load.warm_sandboxes, 4096)),
    )


def _fraction(value: float) -> float:
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0


def _size(value: int) -> int:
    return max(0, min(value, MAX_BYTES))


def _check_image(image: Image) -> None:
    _check_names((image.name, image.digest, image.language), "image")
    if not _MINOR.match(image.python):
        raise InvalidRequest(f"{image.python[:20]!r} is not a Python version such as '3.11'.")
    if len(image.packages) > MAX_PACKAGES:
        raise InvalidRequest(
            f"An image has {len(image.packages):,} packages; at most {MAX_PACKAGES:,} may be"
            " announced.",
            hint="Announce the packages that are asked for, and leave the rest out.",
        )
    for name, version in image.packages.items():
        _check_names((name, version), "package")


def _check_gpu(gpu: Gpu) -> None:
    _check_names((gpu.uuid, gpu.name), "GPU")
    if not 0 <= gpu.memory_bytes <= MAX_BYTES:
        raise InvalidRequest("A GPU has between 0 bytes and 1 PiB of memory.")


def _check_names(names: Iterable[str], what: str) -> None:
    for name in names:
        if len(name) > MAX_NAME_CHARS or not name.isprintable():
            raise InvalidRequest(
                f"The name {name[:40]!a} of a worker's {what} is none: names have at most"
                f" {MAX_NAME_CHARS} printable characters."
            )


def _at_most(limit: int, found: tuple[Any, ...], what: str) -> None:
    if len(found) > limit:
        raise InvalidRequest(f"A worker offers at most {limit} {what}; this one says {len(found)}.")


def _shown_pause(pause: Pause | None) -> Pause | None:
    if pause is None:
        return None
    return msgspec.structs.replace(pause, message=clean_line(pause.message, MAX_NAME_CHARS))


def _shown_isolation(isolation: Isolation | None) -> Isolation | None:
    if isolation is None:
        return None
    _at_most(MAX_CHECKS, isolation.checks, "checks")
    _check_names((isolation.runtime, isolation.engine, isolation.cgroup), "isolation")
    checks = tuple(
        msgspec.structs.replace(
            check,
            name=clean_line(check.name, MAX_NAME_CHARS),
            detail=clean_line(check.detail, MAX_TEXT_CHARS),
        )
        for check in isolation.checks
    )
    return msgspec.structs.replace(isolation, checks=checks)
