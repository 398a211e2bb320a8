"""What a job asks for and what a worker offers."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

import msgspec

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class ResourceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What one sandbox of a job needs."""

    cores: float = 1.0
    memory_bytes: int = GIB
    gpus: int = 0
    gpu_model: str = ""  # part of the name that each of its GPUs must have; "": any
    disk_bytes: int | None = None  # of /work, which lies inside the memory; None: half of it


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One graphics processor as NVML names it."""

    uuid: str
    name: str
    memory_bytes: int


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image that a worker can start now.

    ``packages`` maps distribution names (normalised, PEP 503) to versions: the manifest.
    """

    name: str
    digest: str
    language: str
    python: str  # "3.11"; empty where the language is another one
    packages: dict[str, str] = {}

    @property
    def family(self) -> str:
        """What ``--image`` calls it: the name without its registry part and its tag.

        >>> Image(name="gridx/torch:3.11-0a1b", digest="", language="python", python="3.11").family
        'torch'
        """
        return self.name.rpartition("/")[2].partition(":")[0]


def serving_image(
    images: Iterable[Image], *, language: str, python: str = "", family: str = ""
) -> Image | None:
    """Return the first of ``images`` that serves such a job; None when none does.

    Args:
        images: what one worker offers, its favourites first.
        language: "python", "bash" or "node".
        python: minor version, as "3.11"; "" where any will do.
        family: the image's ``family``; "" is the one that is named like the language.
    """
    for image in images:
        if (
            image.language == language
            and (not python or image.python == python)
            and image.family == (family or language)
        ):
            return image
    return None


class PauseReason(StrEnum):
    """Why a worker takes no job for now."""

    ASKED = "asked"  # its owner said so
    DRAINING = "draining"  # it stops when what runs has ended
    HOURS = "hours"  # outside the hours in which it is lent
    ACTIVE = "owner_active"  # its owner is using the machine
    BATTERY = "on_battery"
    CPU_HOT = "cpu_hot"
    GPU_HOT = "gpu_hot"
    ENGINE = "sandbox_engine"  # containers cannot be started


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that takes no job for now, and why, in words that both sides are shown."""

    reason: PauseReason
    message: str = ""  # "The owner is using the machine."
    until: datetime | None = None  # UTC, where that is known


class Accepts(StrEnum):
    """Whose jobs a worker takes."""

    ANYONE = "anyone"
    USERS = "users"  # those that its owner names, and its owner
    MINE = "mine"  # its owner's alone


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One limit that jobs are promised, tried in a container when the worker started."""

    name: str
    kept: bool
    detail: str = ""


class Isolation(msgspec.Struct, frozen=True, kw_only=True):
    """What stands between jobs and a worker's machine."""

    runtime: str  # "runc", "runsc", "crun"; "" where there is no container
    engine: str = ""  # "20.10.24"
    cgroup: str = ""  # "1" | "2"
    rootless: bool = False
    userns: bool = False  # root in a container is nobody on the machine
    checks: tuple[Check, ...] = ()


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker offers, in total. ``sandbox`` "process" takes its own owner's jobs only.

    A paused worker has no ``slots`` either, so that a coordinator of the release before sends
    it nothing.
    """

    cores: float
    memory_bytes: int
    slots: int
    sandbox: str  # "docker" | "process"
    images: tuple[Image, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    cpu_model: str = ""
    platform: str = ""
    pause: Pause | None = None
    accepts: Accepts = Accepts.ANYONE
    users: tuple[str, ...] = ()  # of Accepts.USERS
    environments: bool = False  # it builds an image for what ``--pip`` lists
    isolation: Isolation | None = None

    @property
    def own_jobs_only(self) -> bool:
        """Whether it takes no job but its owner's: nothing isolates the machine from them, or
        its owner wishes so."""
        return self.sandbox != "docker" or self.accepts is Accepts.MINE

    def takes_jobs_of(self, user: str, *, owner: str) -> bool:
        """Return whether a worker of ``owner`` may run a job of ``user``."""
        if user == owner:
            return True
        if self.own_jobs_only:
            return False
        return self.accepts is Accepts.ANYONE or user in self.users


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A worker machine's live readings, each a fraction in [0, 1] or bytes."""

    cpu: float = 0.0
    memory_used_bytes: int = 0
    memory_total_bytes: int = 0
    gpu: tuple[float, ...] = ()
    gpu_memory_used_bytes: tuple[int, ...] = ()
    gpu_temperature_c: tuple[float, ...] = ()
    warm_sandboxes: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one call used, as its worker metered it."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    out_of_memory: bool = False
    input_bytes: int = 0
    output_bytes: int = 0
    dropped_bytes: int = 0
    gpu_s: float = 0.0  # seconds times the share of time in which its GPUs were at work
    gpu_memory_peak_bytes: int = 0  # over its GPUs together
    frozen_s: float = 0.0  # it stood still for so long; not part of wall_s
    # Where time and memory are from: "host" (the machine's own cgroup files), "cgroup" (read by
    # the supervisor inside), "stats" (the engine), "rusage" (wait4), "none".
    source: str = "none"


def format_bytes(size: float) -> str:
    """Return ``size`` bytes for people, in binary units.

    >>> format_bytes(1536), format_bytes(8 * GIB)
    ('1.5 KiB', '8 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < KIB:
            return (
                f"{size:.0f} {unit}" if unit == "B" or size == int(size) else f"{size:.1f} {unit}"
            )
        size /= KIB
    return f"{size:.0f} TiB" if size == int(size) else f"{size:.1f} TiB"
