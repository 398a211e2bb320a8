"""What a worker has left: its capability minus its live attempts."""

from __future__ import annotations

from dataclasses import dataclass, field

from gridx.resources import Accepts, Capability

from .shapes import Shape, WorkerClass

ANYBODY = None  # the list of workers that take everybody's jobs


@dataclass(slots=True, eq=False)
class WorkerRoom:
    """A worker that is online and what it has left. A paused one has no room at all."""

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
    # its index in each list of workers with room that it stands in; empty when it has none
    places: dict[str | None, int] = field(default_factory=dict)

    @property
    def is_listed(self) -> bool:
        """Whether it stands in the lists of workers with room."""
        return bool(self.places)

    def has_room(self, shape: Shape) -> bool:
        """Return whether one more attempt of ``shape`` fits now."""
        return (
            self.free_slots > 0
            and self.free_cores + 1e-9 >= shape.cores
            and self.free_memory_bytes >= shape.memory_bytes
            and self.free_gpus >= shape.gpus
            and (not shape.gpu_model or self._surely_free_gpus(shape.gpu_model) >= shape.gpus)
        )

    def _surely_free_gpus(self, model: str) -> int:
        """Return how many GPUs of a model are free whichever cards the others were given.

        The worker chooses the cards, so an attempt that may have one of this model is counted
        as if it had it. A job may wait for a card that is free on a machine with different
        ones; the other mistake would send it there to be handed back, again and again.
        """
        kind = self.worker_class
        taken = sum(
            min(shape.gpus, kind.count_gpus(model, shape.gpu_model))
            for shape in self.held.values()
            if shape.gpus
        )
        return kind.count_gpus(model) - taken

    def takes_jobs_of(self, user: str) -> bool:
        """Return whether this worker may run a job of ``user``."""
        return self.capability.takes_jobs_of(user, owner=self.owner)

    @property
    def takers(self) -> tuple[str | None, ...]:
        """Whose jobs it takes: ANYBODY, or these users, each once."""
        if self.capability.own_jobs_only:
            return (self.owner,)
        if self.capability.accepts is Accepts.USERS:
            return tuple(dict.fromkeys((self.owner, *self.capability.users)))
        return (ANYBODY,)

    def recount(self) -> None:
        """Work out what is free from the capability and the attempts held."""
        taken = self.held.values()
        self.free_cores = self.capability.cores - sum(shape.cores for shape in taken)
        self.free_memory_bytes = self.capability.memory_bytes - sum(s.memory_bytes for s in taken)
        self.free_gpus = len(self.capability.gpus) - sum(shape.gpus for shape in taken)
        slots = 0 if self.capability.pause is not None else self.capability.slots
        self.free_slots = slots - len(self.held)
