"""Who is connected now. Nothing here is a fact of record: a restart forgets it and loses nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gridx.protocol import ToWorker, to_worker
from gridx.resources import Load

from ..store.records import WorkerRecord


@dataclass(eq=False, slots=True)
class WorkerLink:
    """One worker's connection, after its hello.

    ``attempts`` maps the jobs that this connection was told to run (or was found running) to
    their attempt numbers; ``unnamed`` counts how many heartbeats in a row did not name one.
    """

    worker: WorkerRecord
    write: Callable[[bytes], None]
    close: Callable[[int, str], None]
    number: int  # of its hello: the newer connection of a worker wins
    protocol: int  # that was agreed on
    heard_s: float  # monotonic
    heard_us: int
    load: Load | None = None
    attempts: dict[str, int] = field(default_factory=dict)
    unnamed: dict[str, int] = field(default_factory=dict)
    is_open: bool = True

    def send(self, message: ToWorker) -> None:
        """Send at once; a connection that has ended swallows it (the database knows better)."""
        if self.is_open:
            self.write(to_worker.encode(message))


class Connections:
    """The workers that are connected, by id: the newest connection of each."""

    def __init__(self) -> None:
        self._workers: dict[str, WorkerLink] = {}
        self._greeting: Counter[str] = Counter()

    @contextmanager
    def greeting(self, worker_id: str) -> Iterator[None]:
        """Mark a worker as about to be connected: its attempts are being adopted."""
        self._greeting[worker_id] += 1
        try:
            yield
        finally:
            self._greeting[worker_id] -= 1
            if not self._greeting[worker_id]:
                del self._greeting[worker_id]

    def is_present(self, worker_id: str) -> bool:
        """Return whether a worker is connected, or about to be."""
        return worker_id in self._workers or worker_id in self._greeting

    def put(self, link: WorkerLink) -> WorkerLink | None:
        """Make ``link`` its worker's connection; return the one that has to go (or None)."""
        before = self._workers.get(link.worker.worker_id)
        if before is not None and before.number > link.number:
            return link
        self._workers[link.worker.worker_id] = link
        return before

    def drop(self, link: WorkerLink) -> bool:
        """Forget ``link``; False when a newer connection of the same worker stands already."""
        link.is_open = False
        if self._workers.get(link.worker.worker_id) is not link:
            return False
        del self._workers[link.worker.worker_id]
        return True

    def find(self, worker_id: str | None) -> WorkerLink | None:
        """Return the connection of a worker, or None."""
        return self._workers.get(worker_id) if worker_id else None

    def workers(self) -> Collection[WorkerLink]:
        """Return every worker's connection."""
        return tuple(self._workers.values())

    def __len__(self) -> int:
        return len(self._workers)
