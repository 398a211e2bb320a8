"""Which images on the grid could serve a job, and what to say where none does.

The coordinator decides who runs it, when it runs. This is the look before anything is sent: an
image of another family, of a worker that takes nobody's jobs but its owner's, or of one that is
paused, is no image that has what a cell needs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import InvalidRequest
from ..resources import Accepts, Image, serving_image
from ..schemas import WorkerView


@dataclass(frozen=True, slots=True)
class Wish:
    """What a job asks of an image. Empty: any, and of families the one named like the language."""

    language: str = "python"
    python: str = ""
    family: str = ""
    installs: bool = False

    @property
    def words(self) -> str:
        """As a sentence names it: ``Python 3.12``, ``the image torch for Python 3.12``."""
        if self.family and self.family != self.language:
            return f"the image {self.family}" + (f" for Python {self.python}" * bool(self.python))
        if self.language == "python":
            return f"Python {self.python}".rstrip()
        return self.language


@dataclass(frozen=True, slots=True)
class Offers:
    """What the grid has for a wish."""

    images: tuple[Image, ...] = ()
    """That would serve it: of workers that are not paused, where there are any."""
    workers: tuple[str, ...] = ()
    """The names of their workers."""
    others: tuple[Image, ...] = ()
    """Of other families, that could be asked for instead."""
    builds: bool = False
    """Whether one of those workers installs packages."""
    notice: str = ""
    """Why the job will wait, as far as that is known; empty: it need not."""


def is_paused(worker: WorkerView) -> bool:
    """Return whether ``worker`` is connected and takes no job for now."""
    return worker.status == "paused" or (
        worker.status == "online" and worker.capability.pause is not None
    )


def offers(workers: Iterable[WorkerView], user: str, wish: Wish) -> Offers:
    """Return what ``workers`` have for a job of ``user``.

    Raises:
        InvalidRequest: no worker has an image of that family, or none that could run the job
            installs packages; nothing was sent. Who may still come online is not waited for.
    """
    connected = [worker for worker in workers if worker.status in ("online", "paused")]
    serving = [(worker, image) for worker in connected if (image := _image_of(worker, wish))]
    if connected and not serving and wish.family:
        _refuse_family(connected, wish)
    able = [(worker, image) for worker, image in serving if _takes(worker, user)]
    if wish.installs and able:
        able = [pair for pair in able if pair[0].capability.environments]
        if not able:
            raise InvalidRequest(
                f"No worker with {wish.words} that takes your jobs installs packages.",
                hint="Leave --pip out. A pure-Python package beside the notebook travels with the "
                "cell: `pip install --no-deps --target . NAME`. Workers with Docker install "
                "packages where their owner allows it.",
            )
    ready = [(worker, image) for worker, image in able if not is_paused(worker)]
    chosen = ready or able
    return Offers(
        images=tuple(image for _, image in chosen),
        workers=tuple(worker.name for worker, _ in chosen),
        others=_others([worker for worker in connected if _takes(worker, user)], wish),
        builds=any(worker.capability.environments for worker, _ in able),
        notice=_notice(connected, [w for w, _ in serving], [w for w, _ in able], bool(ready), wish),
    )


def families(workers: Iterable[WorkerView], language: str = "python") -> list[str]:
    """Return the families of images that connected workers have for ``language``."""
    return sorted(
        {
            image.family
            for worker in workers
            if worker.status in ("online", "paused")
            for image in worker.capability.images
            if image.language == language
        }
    )


def _image_of(worker: WorkerView, wish: Wish) -> Image | None:
    return serving_image(
        worker.capability.images,
        language=wish.language,
        python=wish.python,
        family=wish.family,
    )


def _takes(worker: WorkerView, user: str) -> bool:
    offer = worker.capability
    if offer.accepts is Accepts.USERS and not offer.users and not offer.own_jobs_only:
        return True  # whom its owner has named is his business: the coordinator decides
    return offer.takes_jobs_of(user, owner=worker.owner)


def _others(workers: Iterable[WorkerView], wish: Wish) -> tuple[Image, ...]:
    wanted = wish.family or wish.language
    return tuple(
        image
        for worker in workers
        for image in worker.capability.images
        if image.language == wish.language
        and image.family != wanted
        and (not wish.python or image.python == wish.python)
    )


def _refuse_family(workers: Sequence[WorkerView], wish: Wish) -> None:
    known = families(workers, wish.language)
    if wish.family in known:
        pythons = sorted(
            {
                image.python
                for worker in workers
                for image in worker.capability.images
                if image.family == wish.family and image.language == wish.language
            }
        )
        raise InvalidRequest(
            f"The image {wish.family} is there for Python {' and '.join(pythons)}, and this cell "
            f"needs {wish.python}.",
            hint="Leave --image out, or use a kernel with that Python.",
        )
    near = difflib.get_close_matches(wish.family, known, n=1, cutoff=0.5)
    raise InvalidRequest(
        f"No worker has an image {wish.family!r} for {wish.language}. "
        f"There is: {', '.join(known) or 'none'}.",
        hint=f"Did you mean --image {near[0]}?" if near else "`%gridx workers` shows who has what.",
    )


def _notice(
    connected: Sequence[WorkerView],
    serving: Sequence[WorkerView],
    able: Sequence[WorkerView],
    is_ready: bool,
    wish: Wish,
) -> str:
    if is_ready or not connected:
        return ""  # who waits for the first worker is told so by the coordinator
    what = wish.words
    if able:
        one = able[0]
        pause = one.capability.pause
        why = f": {pause.message.rstrip('.')}" if pause is not None and pause.message else ""
        if len(able) == 1:
            return f"{one.name}, the only worker with {what}, is paused{why}; the job waits"
        return f"all {len(able)} workers with {what} are paused ({one.name}{why}); the job waits"
    if serving:
        one = serving[0]
        if len(serving) == 1:
            return f"{one.name}, the only worker with {what}, takes {_whose(one)}; the job waits"
        return f"the {len(serving)} workers with {what} take the jobs of others; the job waits"
    return f"no worker online has {what}; the job waits for one"


def _whose(worker: WorkerView) -> str:
    if worker.capability.accepts is Accepts.USERS:
        return "jobs of users that its owner names"
    return "jobs of its owner alone"


def pythons(workers: Iterable[WorkerView], user: str, family: str = "") -> set[str]:
    """Return the Python versions that a cell of ``user`` may be made for, paused or not."""
    return {
        image.python
        for worker in workers
        if worker.status in ("online", "paused") and _takes(worker, user)
        for image in worker.capability.images
        if image.language == "python" and image.family == (family or "python")
    }


def digests(workers: Iterable[WorkerView], wish: Wish) -> dict[str, str]:
    """Return what each connected worker would start from, by the worker's id."""
    return {
        worker.worker_id: image.digest
        for worker in workers
        if worker.status in ("online", "paused") and (image := _image_of(worker, wish))
    }
