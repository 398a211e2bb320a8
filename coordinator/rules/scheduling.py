"""Which worker gets which job, and why a job waits.

Jobs that need the same thing share a **shape**, workers that offer the same thing share a
**class**, and whether a class can ever run a shape is worked out once for the pair. Inside a shape
jobs stand in the order of their fair tag (a number fixed at submission, smallest first), and a
worker never holds more than its capability minus its live attempts.

The two ways to a match:

- a worker has room: the smallest tag over the shapes that it can run and that fit now;
- a job arrives: the best of a bounded number of workers with room, so that the cost does not
  grow with the number of workers.

Everything here lives in memory and can be rebuilt from the database at any moment; nothing here
reads a clock, a socket or chance.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from gridx.protocol import PROTOCOL
from gridx.resources import Capability, Load, ResourceRequest, format_bytes
from gridx.schemas import CellSpec

CANDIDATES = 16  # workers looked at when a job arrives
_COMPACT_ABOVE = 64  # dead heap entries that are tolerated beside the live ones


class Shape(NamedTuple):
    """What a job needs of a worker.

    ``python`` is a minor version such as "3.11", or empty; ``protocol`` the oldest in which the
    worker can be told of everything that belongs to the job.
    """

    cores: float
    memory_bytes: int
    gpus: int
    language: str
    python: str
    protocol: int = 1

    @classmethod
    def of(
        cls, request: ResourceRequest, language: str, python: str = "", protocol: int = 1
    ) -> Shape:
        """Return the shape of a job that asks for ``request`` and speaks ``language``."""
        return cls(request.cores, request.memory_bytes, request.gpus, language, python, protocol)


def needed_protocol(cell: CellSpec | None, *, has_blobs: bool, is_session: bool = False) -> int:
    """Return the oldest protocol number of a worker that can run this.

    An older one would ignore what it does not know, and run something else than was asked for.
    """
    has_files = cell is not None and bool(cell.files or cell.fetch or cell.prelude)
    return 2 if has_blobs or has_files or is_session else 1


class WorkerClass(NamedTuple):
    """What workers that can run the same shapes have in common."""

    cores: float
    memory_bytes: int
    gpus: int
    languages: frozenset[tuple[str, str]]  # (language, Python minor version)
    protocol: int = PROTOCOL  # that was agreed on with it


@dataclass(slots=True, eq=False)
class QueuedJob:
    """A job that waits for a worker. ``avoid`` names workers that handed it back just now."""

    job_id: str
    user: str
    shape: Shape
    tag: float
    avoid: frozenset[str] = frozenset()
    is_waiting: bool = True


@dataclass(slots=True, eq=False)
class WorkerRoom:
    """A worker that is online and what it has left: capability minus live attempts."""

    worker_id: str
    owner: str
    capability: Capability
    worker_class: WorkerClass
    warm_sandboxes: int = 0
    held: dict[str, Shape] = field(default_factory=dict)  # job id -> what it takes
    free_cores: float = 0.0
    free_memory_bytes: int = 0
    free_gpus: int = 0
    free_slots: int = 0
    place: int = -1  # index in the list of workers with room, -1 when it has none

    def has_room(self, shape: Shape) -> bool:
        """Return whether one more attempt of ``shape`` fits now."""
        return (
            self.free_slots > 0
            and self.free_cores + 1e-9 >= shape.cores
            and self.free_memory_bytes >= shape.memory_bytes
            and self.free_gpus >= shape.gpus
        )

    def takes_jobs_of(self, user: str) -> bool:
        """Return whether this worker may run a job of ``user``."""
        return not self.capability.own_jobs_only or self.owner == user

    def recount(self) -> None:
        """Work out what is free from the capability and the attempts held."""
        taken = self.held.values()
        self.free_cores = self.capability.cores - sum(shape.cores for shape in taken)
        self.free_memory_bytes = self.capability.memory_bytes - sum(s.memory_bytes for s in taken)
        self.free_gpus = len(self.capability.gpus) - sum(shape.gpus for shape in taken)
        self.free_slots = self.capability.slots - len(self.held)


def class_of(capability: Capability, protocol: int = PROTOCOL) -> WorkerClass:
    """Return the class of a worker that offers ``capability`` and speaks ``protocol``."""
    return WorkerClass(
        cores=capability.cores,
        memory_bytes=capability.memory_bytes,
        gpus=len(capability.gpus),
        languages=frozenset((image.language, image.python) for image in capability.images),
        protocol=protocol,
    )


def speaks(worker_class: WorkerClass, language: str, python: str) -> bool:
    """Return whether an image of the class runs ``language`` (and that Python, when one is named)."""
    return any(
        have == language and (not python or version == python)
        for have, version in worker_class.languages
    )


def is_feasible(shape: Shape, worker_class: WorkerClass) -> bool:
    """Return whether an idle worker of the class could run the shape."""
    return (
        worker_class.cores >= shape.cores
        and worker_class.memory_bytes >= shape.memory_bytes
        and worker_class.gpus >= shape.gpus
        and worker_class.protocol >= shape.protocol
        and speaks(worker_class, shape.language, shape.python)
    )


class _Line:
    """Jobs of one shape (and of one user, in the second of the two sets of lines), by tag."""

    __slots__ = ("dead", "heap")

    def __init__(self) -> None:
        self.heap: list[tuple[float, str, QueuedJob]] = []
        self.dead = 0

    def push(self, job: QueuedJob) -> None:
        heapq.heappush(self.heap, (job.tag, job.job_id, job))

    def head(self) -> QueuedJob | None:
        while self.heap and not self.heap[0][2].is_waiting:
            heapq.heappop(self.heap)
            self.dead -= 1
        return self.heap[0][2] if self.heap else None

    def first_not_avoiding(self, worker_id: str, limit: int = 8) -> QueuedJob | None:
        """Return the smallest of the first ``limit`` tags whose job does not avoid the worker."""
        head = self.head()
        if head is None or worker_id not in head.avoid:
            return head
        smallest = heapq.nsmallest(limit + self.dead, self.heap)
        waiting = (job for _, _, job in smallest if job.is_waiting)
        return next((job for job in waiting if worker_id not in job.avoid), None)

    def note_removed(self) -> bool:
        """Count one dead entry; return whether the line is empty now."""
        self.dead += 1
        live = len(self.heap) - self.dead
        if self.dead > live + _COMPACT_ABOVE:
            self.heap = [entry for entry in self.heap if entry[2].is_waiting]
            heapq.heapify(self.heap)
            self.dead = 0
        return live <= 0


class Scheduler:
    """The queue and the room on the workers, in memory.

    ``take`` and ``give_back`` keep the room right; ``place`` answers for a job that arrives,
    ``next_for`` for a worker that has room. Neither changes anything: the caller takes the room
    first, then asks the database, which decides.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, QueuedJob] = {}
        self._lines: dict[Shape, _Line] = {}
        self._lines_by_user: dict[tuple[Shape, str], _Line] = {}
        self._workers: dict[str, WorkerRoom] = {}
        self._with_room: list[WorkerRoom] = []
        self._own_with_room: dict[str, list[WorkerRoom]] = {}
        self._feasible: dict[tuple[Shape, WorkerClass], bool] = {}
        self._next_candidate = 0
        self.virtual_time = 0.0

    def note_dispatched(self, tag: float) -> None:
        """Move the virtual time on: the highest tag dispatched so far. New jobs start from it."""
        self.virtual_time = max(self.virtual_time, tag)

    # --- the queue ---------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """The number of jobs that wait."""
        return len(self._jobs)

    def enqueue(self, job: QueuedJob) -> None:
        """Let ``job`` wait. A job that waits already is replaced."""
        self.dequeue(job.job_id)
        self._jobs[job.job_id] = job
        self._lines.setdefault(job.shape, _Line()).push(job)
        self._lines_by_user.setdefault((job.shape, job.user), _Line()).push(job)

    def dequeue(self, job_id: str) -> QueuedJob | None:
        """Take a job out of the queue; None when it does not wait."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return None
        job.is_waiting = False
        if self._lines[job.shape].note_removed():
            del self._lines[job.shape]
        key = (job.shape, job.user)
        if self._lines_by_user[key].note_removed():
            del self._lines_by_user[key]
        return job

    def queued_ids(self, limit: int) -> list[str]:
        """Return the ids of the jobs that have waited longest, at most ``limit``."""
        return list(itertools.islice(self._jobs, limit))

    # --- the workers -------------------------------------------------------------------------

    def add_worker(
        self,
        worker_id: str,
        owner: str,
        capability: Capability,
        held: Iterable[tuple[str, Shape]],
        protocol: int = PROTOCOL,
    ) -> None:
        """Add a worker that came online, with the attempts that it runs already."""
        self.remove_worker(worker_id)
        worker = WorkerRoom(worker_id, owner, capability, class_of(capability, protocol))
        worker.held.update(held)
        self._workers[worker_id] = worker
        self._recount(worker)

    def remove_worker(self, worker_id: str) -> None:
        """Forget a worker that went away."""
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            self._list(worker, has_room=False)

    def change_worker(self, worker_id: str, capability: Capability) -> None:
        """Set what a worker offers from now on."""
        if worker := self._workers.get(worker_id):
            self._list(worker, has_room=False)
            worker.capability = capability
            worker.worker_class = class_of(capability, worker.worker_class.protocol)
            self._recount(worker)

    def note_load(self, worker_id: str, load: Load) -> None:
        """Remember how many sandboxes a worker has waiting."""
        if worker := self._workers.get(worker_id):
            worker.warm_sandboxes = load.warm_sandboxes

    def find_worker(self, worker_id: str) -> WorkerRoom | None:
        """Return the room of one worker, or None when it is not online."""
        return self._workers.get(worker_id)

    def workers(self) -> Collection[WorkerRoom]:
        """Return the room of every worker that is online."""
        return self._workers.values()

    def take(self, worker_id: str, job_id: str, shape: Shape) -> None:
        """Set room aside for an attempt of ``job_id``."""
        if worker := self._workers.get(worker_id):
            worker.held[job_id] = shape
            self._recount(worker)

    def give_back(self, worker_id: str, job_id: str) -> None:
        """Free the room of an attempt that ended, or that was not granted after all."""
        worker = self._workers.get(worker_id)
        if worker is not None and worker.held.pop(job_id, None) is not None:
            self._recount(worker)

    # --- matching ----------------------------------------------------------------------------

    def place(
        self, shape: Shape, user: str, avoid: Collection[str] = frozenset()
    ) -> WorkerRoom | None:
        """Return the best worker for a job that arrives, or None when it has to wait.

        Preferred in this order: a sandbox waiting warm, few attempts on it, a tight fit.
        """
        best: WorkerRoom | None = None
        best_score = (-1.0, 0.0, 0.0)
        for worker in self._candidates(user):
            if (
                worker.worker_id in avoid
                or not worker.has_room(shape)
                or not worker.takes_jobs_of(user)
                or not self._is_feasible(shape, worker.worker_class)
            ):
                continue
            score = (
                1.0 if worker.warm_sandboxes > len(worker.held) else 0.0,
                -len(worker.held) / max(1, worker.capability.slots),
                shape.cores - worker.free_cores,
            )
            if best is None or score > best_score:
                best, best_score = worker, score
        return best

    def next_for(self, worker_id: str) -> QueuedJob | None:
        """Return the waiting job with the smallest tag that the worker can start now."""
        worker = self._workers.get(worker_id)
        if worker is None or worker.place < 0:
            return None
        best: QueuedJob | None = None
        for shape in list(self._lines):
            if not (worker.has_room(shape) and self._is_feasible(shape, worker.worker_class)):
                continue
            if worker.capability.own_jobs_only:
                line = self._lines_by_user.get((shape, worker.owner))
            else:
                line = self._lines.get(shape)
            job = line.first_not_avoiding(worker_id) if line else None
            if job is not None and (
                best is None or (job.tag, job.job_id) < (best.tag, best.job_id)
            ):
                best = job
        return best

    def explain(self, job_id: str) -> str | None:
        """Return why a job waits, or None when it does not wait."""
        job = self._jobs.get(job_id)
        return None if job is None else explain(job.shape, job.user, self._workers.values())

    # --- inside ------------------------------------------------------------------------------

    def _is_feasible(self, shape: Shape, worker_class: WorkerClass) -> bool:
        key = (shape, worker_class)
        known = self._feasible.get(key)
        if known is None:
            if len(self._feasible) > 100_000:  # a client that asks for a new shape each time
                self._feasible.clear()
            known = self._feasible[key] = is_feasible(shape, worker_class)
        return known

    def _recount(self, worker: WorkerRoom) -> None:
        worker.recount()
        self._list(worker, has_room=worker.free_slots > 0 and worker.free_cores > 1e-9)

    def _room_list(self, worker: WorkerRoom) -> list[WorkerRoom]:
        if worker.capability.own_jobs_only:
            return self._own_with_room.setdefault(worker.owner, [])
        return self._with_room

    def _list(self, worker: WorkerRoom, *, has_room: bool) -> None:
        """Keep the lists of workers with room; both ways in constant time."""
        if has_room == (worker.place >= 0):
            return
        listed = self._room_list(worker)
        if has_room:
            worker.place = len(listed)
            listed.append(worker)
            return
        last = listed.pop()
        if last is not worker:
            listed[worker.place] = last
            last.place = worker.place
        worker.place = -1
        if not listed and worker.capability.own_jobs_only:
            del self._own_with_room[worker.owner]

    def _candidates(self, user: str) -> Iterator[WorkerRoom]:
        """Yield up to CANDIDATES of the user's own process workers, then of everybody's.

        The start moves on with each call, so that no worker is passed over for ever.
        """
        yield from self._own_with_room.get(user, [])[:CANDIDATES]
        total = len(self._with_room)
        if total <= CANDIDATES:
            yield from self._with_room
            return
        start = self._next_candidate = (self._next_candidate + CANDIDATES) % total
        for step in range(CANDIDATES):
            yield self._with_room[(start + step) % total]


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def explain(shape: Shape, user: str, workers: Iterable[WorkerRoom]) -> str:
    """Return why no worker takes a job of this shape now, in one line.

    Each worker is counted once, under the first thing that stands in the way. For example:
    "3 workers online: 2 lack 8 GiB, 1 busy".
    """
    own = other_language = older = cores = memory = gpus = busy = total = free = 0
    for worker in workers:
        total += 1
        if not worker.takes_jobs_of(user):
            own += 1
        elif not speaks(worker.worker_class, shape.language, shape.python):
            other_language += 1
        elif worker.worker_class.protocol < shape.protocol:
            older += 1
        elif worker.worker_class.gpus < shape.gpus:
            gpus += 1
        elif worker.worker_class.memory_bytes < shape.memory_bytes:
            memory += 1
        elif worker.worker_class.cores < shape.cores:
            cores += 1
        elif not worker.has_room(shape):
            busy += 1
        else:
            free += 1
    if total == 0:
        return "No worker is online: it starts as soon as one joins."
    language = f"Python {shape.python}" if shape.python else shape.language
    lacks = [
        (own, _count(own, "takes only its owner's jobs", "take only their owners' jobs")),
        (other_language, _count(other_language, "lacks", "lack") + f" {language}"),
        (
            older,
            _count(older, "is", "are") + " of an older release, without large data and sessions",
        ),
        (gpus, _count(gpus, "lacks", "lack") + " " + _count(shape.gpus, "GPU", "GPUs")),
        (memory, _count(memory, "lacks", "lack") + f" {format_bytes(shape.memory_bytes)}"),
        (
            cores,
            _count(cores, "lacks", "lack")
            + f" {shape.cores:g} core{'' if shape.cores == 1 else 's'}",
        ),
        (busy, f"{busy} busy"),
        (free, f"{free} about to start it"),
    ]
    reasons = ", ".join(text for number, text in lacks if number)
    return f"{_count(total, 'worker', 'workers')} online: {reasons}"
