"""What a job asks for and what a worker offers."""

from __future__ import annotations

import msgspec

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class ResourceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What one sandbox of a job needs."""

    cores: float = 1.0
    memory_bytes: int = GIB
    gpus: int = 0


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


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker offers, in total. ``sandbox`` "process" takes its own owner's jobs only."""

    cores: float
    memory_bytes: int
    slots: int
    sandbox: str  # "docker" | "process"
    images: tuple[Image, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    cpu_model: str = ""
    platform: str = ""

    @property
    def own_jobs_only(self) -> bool:
        """Whether it takes no job but its owner's: nothing isolates the machine from them."""
        return self.sandbox != "docker"


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
    source: str = "none"  # "cgroup" | "rusage" | "none"


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
