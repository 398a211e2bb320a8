"""``%gridx trust``: whose interactive output is shown without being asked for each job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gridx.display import Show, clean_line
from gridx.errors import GridXError, NotFound
from gridx.identity import fingerprint
from gridx.terminal import table
from gridx.trust import PinnedWorker, pin_worker, pinned_workers, unpin_worker

if TYPE_CHECKING:
    from gridx.blocking import BlockingClient
    from gridx.schemas import JobView, WorkerView

_WHAT_IT_MEANS = (
    "Its plots and other HTML with scripts are shown in a sandboxed frame without --show "
    "interactive. Nothing else changes: results stay data, and nothing of it is unpickled."
)


def trust(client: BlockingClient, name: str) -> str:
    """Pin the key of a worker; return what that means.

    Args:
        name: the worker's name, id or fingerprint.

    Raises:
        NotFound: the grid knows no such worker, or it has no key.
        GridXError: two workers have that name.
        SettingsError: the settings file cannot be read or written.
    """
    worker = _find(client.workers(), name)
    pin = PinnedWorker(
        name=clean_line(worker.name, 64), worker_id=worker.worker_id, public_key=worker.public_key
    )
    pin_worker(pin)
    return (
        f"Trusted for display: {pin.name} of {clean_line(worker.owner, 64)}, key "
        f"{pin.fingerprint}.\n{_WHAT_IT_MEANS}\n"
        f"The worker says its key when it registers: ask its owner. `%gridx untrust {pin.name}` undoes it."
    )


def untrust(name: str) -> str:
    """Forget the key of a worker; return what was done.

    Raises:
        NotFound: no trusted worker is called so.
        SettingsError: the settings file cannot be read or written.
    """
    gone = unpin_worker(name)
    return "No longer trusted: " + ", ".join(f"{pin.name} ({pin.fingerprint})" for pin in gone)


def trusted_text() -> str:
    """Return the trusted workers as a table.

    Raises:
        SettingsError: the settings file cannot be read.
    """
    pins = pinned_workers()
    if not pins:
        return "No worker is trusted. `%gridx trust WORKER` pins one's key. " + _WHAT_IT_MEANS
    rows = [(clean_line(pin.name, 64), pin.fingerprint, pin.worker_id) for pin in pins]
    return table(("WORKER", "KEY", "ID"), rows)


def show_for(show: str | None, view: JobView) -> Show:
    """Return how a job's output is shown: as asked, else by whether its worker is trusted.

    The coordinator says which worker's key it has seen; pinning does not make its word truer.
    """
    if show is not None:
        return "interactive" if show == "interactive" else "text" if show == "text" else "clean"
    if not view.worker_key:
        return "clean"
    try:
        is_pinned = any(pin.public_key == view.worker_key for pin in pinned_workers())
    except GridXError:  # a file that cannot be read pins nothing
        is_pinned = False
    return "interactive" if is_pinned else "clean"


def _find(workers: tuple[WorkerView, ...], name: str) -> WorkerView:
    called = [w for w in workers if name in (w.name, w.worker_id, _print_of(w))]
    with_key = [w for w in called if w.public_key]
    if not with_key:
        raise NotFound(
            f"The grid knows no worker {name!r}" + (" that has a key." if called else "."),
            hint="`%gridx workers` lists those that are online; "
            "one of an older release has no key yet.",
        )
    if len(with_key) > 1:
        choices = ", ".join(f"{_print_of(w)} of {clean_line(w.owner, 64)}" for w in with_key[:5])
        raise GridXError(
            f"{len(with_key)} workers are called {name!r}.",
            hint=f"Name one by its key: {choices}.",
        )
    return with_key[0]


def _print_of(worker: WorkerView) -> str:
    return fingerprint(worker.public_key) if worker.public_key else ""
