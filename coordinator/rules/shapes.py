"""What a job needs of a worker, what a worker offers, and whether the two can ever go together.

Jobs that need the same thing share a **shape**, workers that offer the same thing share a
**class**: whether a class can ever run a shape is worked out once for the pair.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from gridx.protocol import PROTOCOL
from gridx.resources import Capability, ResourceRequest
from gridx.schemas import CellSpec, JobRequest


class Shape(NamedTuple):
    """What a job needs of a worker.

    ``python`` is a minor version such as "3.11", or empty; ``protocol`` the oldest in which the
    worker can be told of everything that belongs to the job. ``gpu_model`` is in small letters.
    """

    cores: float
    memory_bytes: int
    gpus: int
    language: str
    python: str
    protocol: int = 1
    gpu_model: str = ""
    family: str = ""  # of the image; "": the one that is named like the language
    needs_environment: bool = False  # packages have to be installed for it

    @classmethod
    def of_request(cls, request: ResourceRequest) -> Shape:
        """Return the room that a sandbox takes which is there already, whatever runs in it."""
        model = request.gpu_model.casefold()
        return cls(request.cores, request.memory_bytes, request.gpus, "", "", gpu_model=model)

    @classmethod
    def of_job(
        cls,
        job: JobRequest,
        cell: CellSpec | None = None,
        *,
        has_blobs: bool = False,
        is_session: bool = False,
    ) -> Shape:
        """Return the shape of a job; ``has_blobs``: it was submitted with some."""
        return cls.of_request(job.limits.request())._replace(
            language=job.language,
            python="" if cell is None else cell.python,
            protocol=needed_protocol(job, cell, has_blobs=has_blobs, is_session=is_session),
            family=job.image,
            needs_environment=bool(job.pip),
        )


def needed_protocol(
    job: JobRequest,
    cell: CellSpec | None = None,
    *,
    has_blobs: bool = False,
    is_session: bool = False,
) -> int:
    """Return the oldest protocol number of a worker that can run this.

    An older one would ignore what it does not know, and run something else than was asked for.
    """
    request = job.limits.request()
    if (
        job.image
        or job.pip
        or job.language != "python"
        or request.gpu_model
        or request.disk_bytes is not None
    ):
        return 3
    has_files = cell is not None and bool(cell.files or cell.fetch or cell.prelude)
    return 2 if has_blobs or has_files or is_session else 1


class WorkerClass(NamedTuple):
    """What workers that can run the same shapes have in common."""

    cores: float
    memory_bytes: int
    gpus: tuple[tuple[str, int], ...]  # (name in small letters, how many), by name
    images: frozenset[tuple[str, str, str]]  # (language, Python minor version, family)
    environments: bool = False  # it installs packages
    protocol: int = PROTOCOL  # that was agreed on with it

    def count_gpus(self, model: str = "", other: str = "") -> int:
        """Return how many of its GPUs have both words in their names."""
        return sum(count for name, count in self.gpus if model in name and other in name)

    def has_family(self, language: str, family: str) -> bool:
        """Return whether it has an image of ``family`` in which ``language`` runs, of any version."""
        return any(have[0] == language and have[2] == family for have in self.images)

    def serves(self, shape: Shape) -> bool:
        """Return whether it has an image in which a job of the shape runs.

        The same choice as ``gridx.resources.serving_image``, which the worker makes.
        """
        family = shape.family or shape.language
        return any(
            language == shape.language
            and have == family
            and (not shape.python or python == shape.python)
            for language, python, have in self.images
        )


def class_of(capability: Capability, protocol: int = PROTOCOL) -> WorkerClass:
    """Return the class of a worker that offers ``capability`` and speaks ``protocol``."""
    return WorkerClass(
        cores=capability.cores,
        memory_bytes=capability.memory_bytes,
        gpus=tuple(sorted(Counter(gpu.name.casefold() for gpu in capability.gpus).items())),
        images=frozenset(
            (image.language, image.python, image.family) for image in capability.images
        ),
        environments=capability.environments,
        protocol=protocol,
    )


def is_feasible(shape: Shape, worker_class: WorkerClass) -> bool:
    """Return whether an idle worker of the class could run the shape."""
    return (
        worker_class.cores >= shape.cores
        and worker_class.memory_bytes >= shape.memory_bytes
        and worker_class.protocol >= shape.protocol
        and (worker_class.environments or not shape.needs_environment)
        and (not shape.gpus or worker_class.count_gpus(shape.gpu_model) >= shape.gpus)
        and worker_class.serves(shape)
    )
