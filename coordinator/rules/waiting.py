"""Why a job waits, in one line that names what to change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from gridx.display.text import clean_line
from gridx.resources import PauseReason, format_bytes

from .room import WorkerRoom
from .shapes import Shape

NOBODY_ONLINE: Final = "No worker is online: it starts as soon as one joins."
_MAX_MESSAGE_CHARS: Final = 200

# one worker, several workers
_PAUSED: Final = {
    PauseReason.ASKED: ("its owner paused it", "their owners paused them"),
    PauseReason.DRAINING: ("it is being stopped", "they are being stopped"),
    PauseReason.HOURS: ("outside its hours", "outside their hours"),
    PauseReason.ACTIVE: ("its owner is using it", "their owners are using them"),
    PauseReason.BATTERY: ("on battery", "on battery"),
    PauseReason.CPU_HOT: ("its processor is hot", "their processors are hot"),
    PauseReason.GPU_HOT: ("its GPU is hot", "their GPUs are hot"),
    PauseReason.ENGINE: (
        "its engine starts no containers",
        "their engines start no containers",
    ),
}
_OLDER: Final = {2: "without large data and sessions"}
_OLDER_THAN_3: Final = "without images, packages, disks and models of GPUs"


def standing_still(reason: PauseReason | None = None, message: str = "") -> str:
    """Return what is shown of a job that stands still: what its lender says, or why it pauses."""
    why = clean_line(message, _MAX_MESSAGE_CHARS).rstrip(".")
    if why:
        why = why[:1].lower() + why[1:]
    elif reason is not None:
        why = _PAUSED[reason][0]
    return f"Paused by its lender{': ' if why else ''}{why}. Time and cost stand still."


def getting_ready(message: str) -> str:
    """Return what is shown of a job whose worker prepares it, in the worker's words."""
    return clean_line(message, _MAX_MESSAGE_CHARS)


def explain(shape: Shape, user: str, workers: Iterable[WorkerRoom]) -> str:
    """Return why no worker takes a job of this shape now, in one line.

    Each worker is counted once, under the first thing that stands in the way. For example:
    "4 workers online: 1 lacks 8 GiB, 1 paused (its owner is using it), 2 busy".
    """
    found: Counter[tuple[int, str, str]] = Counter()
    total = 0
    for worker in workers:
        total += 1
        found[_obstacle(shape, user, worker)] += 1
    if total == 0:
        return NOBODY_ONLINE
    reasons = [
        f"{count} {one if count == 1 else many}" for (_, one, many), count in sorted(found.items())
    ]
    return f"{total} {'worker' if total == 1 else 'workers'} online: {', '.join(reasons)}"


def _obstacle(shape: Shape, user: str, worker: WorkerRoom) -> tuple[int, str, str]:
    """Return what stands in the way: its rank, and the words for one worker and for several.

    What never fits comes first, then what may pass.
    """
    kind = worker.worker_class
    if not worker.takes_jobs_of(user):
        if worker.capability.own_jobs_only:
            return 0, "takes only its owner's jobs", "take only their owners' jobs"
        return 1, "takes only named users' jobs", "take only named users' jobs"
    if not kind.serves(shape):
        return _lacks(2, _missing_image(shape, worker))
    if kind.protocol < shape.protocol:
        without = _OLDER.get(shape.protocol, _OLDER_THAN_3)
        return 3, f"is of an older release, {without}", f"are of an older release, {without}"
    if shape.needs_environment and not kind.environments:
        return 4, "installs no packages", "install no packages"
    if shape.gpus and kind.count_gpus(shape.gpu_model) < shape.gpus:
        return _lacks(5, _gpus(shape))
    if kind.memory_bytes < shape.memory_bytes:
        return _lacks(6, format_bytes(shape.memory_bytes))
    if kind.cores < shape.cores:
        return _lacks(7, f"{shape.cores:g} core{'' if shape.cores == 1 else 's'}")
    if (pause := worker.capability.pause) is not None:
        one, many = _PAUSED[pause.reason]
        return 8, f"paused ({one})", f"paused ({many})"
    if not worker.has_room(shape):
        return 9, "busy", "busy"
    return 10, "about to start it", "about to start it"


def _lacks(rank: int, what: str) -> tuple[int, str, str]:
    return rank, f"lacks {what}", f"lack {what}"


def _missing_image(shape: Shape, worker: WorkerRoom) -> str:
    """Return what of an image a worker lacks: the family, or its Python or language."""
    if shape.family and not worker.worker_class.has_family(shape.language, shape.family):
        return f"an image called {shape.family}"
    return f"Python {shape.python}" if shape.python else _NAMES.get(shape.language, shape.language)


_NAMES: Final = {"python": "Python"}


def _gpus(shape: Shape) -> str:
    if not shape.gpu_model:
        return "1 GPU" if shape.gpus == 1 else f"{shape.gpus} GPUs"
    called = f"called {shape.gpu_model.upper()}"
    return f"a GPU {called}" if shape.gpus == 1 else f"{shape.gpus} GPUs {called}"
