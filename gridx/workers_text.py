"""Who lends what, as a table of at most 100 columns for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .display.text import clean_line
from .identity import fingerprint
from .resources import GIB, MIB, Accepts, Capability, Image, format_bytes
from .schemas import WorkerView
from .terminal import table

_HEAD = ("WORKER", "OWNER", "STATUS", "TAKES", "RUNS", "CORES", "MEMORY", "GPUS", "SANDBOX", "JOBS")
# Together with two columns between each they are 100 wide at most.
_WIDTHS = (12, 8, 7, 7, 18, 5, 8, 6, 7, 4)
_RUNS = _HEAD.index("RUNS")


def workers_text(workers: Sequence[WorkerView], *, keys: bool = False) -> str:
    """Return ``workers`` as a table, those that are online first, and why some take no job.

    Args:
        workers: as the coordinator lists them.
        keys: with one more column, the fingerprints that tell workers of one name apart.
    """
    order = {"online": 0, "paused": 1}
    listed = sorted(workers, key=lambda worker: (order.get(worker.status, 2), worker.name))
    rows = [
        (
            *(_cut(cell, width) for cell, width in zip(_cells(worker), _WIDTHS, strict=True)),
            *((fingerprint(worker.public_key) if worker.public_key else "",) if keys else ()),
        )
        for worker in listed
    ]
    lines = [table((*_HEAD, "KEY") if keys else _HEAD, rows, right=(9,))]
    lines += [
        clean_line(f"{worker.name} runs {runs}.", 300)
        for worker in listed
        if len(runs := _cells(worker)[_RUNS]) > _WIDTHS[_RUNS]
    ]
    lines += [text for worker in listed if (text := pause_text(worker))]
    return "\n".join(lines)


def pause_text(worker: WorkerView) -> str:
    """Return why ``worker`` takes no job for now, in a sentence; nothing when it does."""
    pause = worker.capability.pause
    if pause is None or worker.status == "offline":
        return ""
    why = pause.message or pause.reason.value.replace("_", " ")
    until = f" Until {pause.until:%Y-%m-%d %H:%M} UTC." if pause.until is not None else ""
    return clean_line(f"{worker.name} is paused: {why.rstrip('.')}.{until}", 300)


def runs_text(images: Iterable[Image]) -> str:
    """Return what a worker runs: ``python 3.11 3.12, torch 3.12, bash``."""
    pythons: dict[str, list[str]] = {}
    for image in images:
        minors = pythons.setdefault(image.family, [])
        if image.python and image.python not in minors:
            minors.append(image.python)
    return ", ".join(" ".join((family, *minors)) for family, minors in pythons.items())


def _cells(worker: WorkerView) -> tuple[str, ...]:
    offer, is_connected = worker.capability, worker.status != "offline"
    whole = format_bytes(offer.memory_bytes)
    return (
        worker.name,
        worker.owner,
        worker.status,
        _takes(offer),
        runs_text(offer.images) + (" +pip" if offer.environments else ""),
        f"{worker.free_cores:.3g}/{offer.cores:.3g}" if is_connected else f"{offer.cores:g}",
        _share(worker.free_memory_bytes, offer.memory_bytes) if is_connected else whole,
        _gpus(offer),
        _sandbox(offer),
        str(worker.running) if is_connected else "",
    )


def _takes(offer: Capability) -> str:
    if offer.own_jobs_only:
        return "own"
    return f"{len(offer.users)} users" if offer.accepts is Accepts.USERS else "anyone"


def _share(free_bytes: int, all_bytes: int) -> str:
    if all_bytes < GIB:
        return f"{free_bytes / MIB:.0f}/{all_bytes / MIB:.0f}M"
    free, whole = free_bytes / GIB, all_bytes / GIB
    return f"{free:.2g}/{whole:.2g}G" if whole < 10 else f"{free:.0f}/{whole:.0f}G"


def _gpus(offer: Capability) -> str:
    models: dict[str, int] = {}
    for gpu in offer.gpus:
        name = re.sub(r"^(NVIDIA |GeForce |Tesla |RTX )*|-.*$", "", gpu.name)
        models[name] = models.get(name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in models.items()) or "-"


def _sandbox(offer: Capability) -> str:
    isolation = offer.isolation
    return (isolation.runtime if isolation is not None else "") or offer.sandbox


def _cut(text: str, width: int) -> str:
    text = clean_line(text, 200)
    return text if len(text) <= width else text[: width - 1] + "…"
