"""Which worker gets which job.

Inside a shape jobs stand in the order of their fair tag (a number fixed at submission, smallest
first), and a worker never holds more than its capability minus its live attempts.

The two ways to a match:

- a worker has room: the smallest tag over the shapes that it can run and that fit now;
- a job arrives: the best of a bounded number of workers with room, so that the cost does not
  grow with the number of workers.

A worker that takes only some users' jobs stands in the lists of those users and not in that of
everybody, so that nobody's candidates are workers which would refuse.

Everything here lives in memory and can be rebuilt from the database at any moment; nothing here
reads a clock, a socket or chance.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from gridx.protocol import PROTOCOL
from gridx.resources import Capability, Load

from .room import ANYBODY, WorkerRoom
from .shapes import Shape, WorkerClass, class_of, is_feasible
from .waiting import explain

CANDIDATES = 16  # workers looked at when a job arrives
_COMPACT_ABOVE = 64  # dead heap entries that are tolerated beside the live ones


@dataclass(slots=True, eq=False)
class QueuedJob:
    """A job that waits for a worker. ``avoid`` names workers that handed it back just now."""

    job_id: str
    user: str
    shape: Shape
    tag: float
    avoid: frozenset[str] = frozenset()
    is_waiting: bool = True


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
        self._lines_by_user: dict[str, dict[Shape, _Line]] = {}
        self._workers: dict[str, WorkerRoom] = {}
        # by whose jobs they take: ANYBODY's, or one user's
        self._with_room: dict[str | None, list[WorkerRoom]] = {}
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
        self._lines_by_user.setdefault(job.user, {}).setdefault(job.shape, _Line()).push(job)

    def dequeue(self, job_id: str) -> QueuedJob | None:
        """Take a job out of the queue; None when it does not wait."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return None
        job.is_waiting = False
        if self._lines[job.shape].note_removed():
            del self._lines[job.shape]
        lines = self._lines_by_user[job.user]
        if lines[job.shape].note_removed():
            del lines[job.shape]
            if not lines:
                del self._lines_by_user[job.user]
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
        if worker is None or not worker.is_listed:
            return None
        best: QueuedJob | None = None
        for lines in self._lines_for(worker):
            for shape, line in list(lines.items()):
                if not (worker.has_room(shape) and self._is_feasible(shape, worker.worker_class)):
                    continue
                job = line.first_not_avoiding(worker_id)
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

    def _lines_for(self, worker: WorkerRoom) -> Iterator[dict[Shape, _Line]]:
        """Yield the lines of those whose jobs the worker takes, and that have any."""
        for taker in worker.takers:
            if taker is ANYBODY:
                yield self._lines
            elif (lines := self._lines_by_user.get(taker)) is not None:
                yield lines

    def _list(self, worker: WorkerRoom, *, has_room: bool) -> None:
        """Keep the lists of workers with room; each both ways in constant time."""
        if has_room == worker.is_listed:
            return
        if has_room:
            for taker in worker.takers:
                listed = self._with_room.setdefault(taker, [])
                worker.places[taker] = len(listed)
                listed.append(worker)
            return
        for taker, place in worker.places.items():
            listed = self._with_room[taker]
            last = listed.pop()
            if last is not worker:
                listed[place] = last
                last.places[taker] = place
            if not listed:
                del self._with_room[taker]
        worker.places.clear()

    def _candidates(self, user: str) -> Iterator[WorkerRoom]:
        """Yield up to CANDIDATES of the workers that take only some users' jobs and this one's,
        then up to CANDIDATES of everybody's.

        The start moves on with each call, so that no worker is passed over for ever.
        """
        self._next_candidate += CANDIDATES
        for taker in (user, ANYBODY):
            listed = self._with_room.get(taker, ())
            total = len(listed)
            if total <= CANDIDATES:
                yield from listed
                continue
            for step in range(CANDIDATES):
                yield listed[(self._next_candidate + step) % total]
