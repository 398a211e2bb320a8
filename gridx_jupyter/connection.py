"""One client a kernel, made when a magic needs it first, and replaced by a login."""

from __future__ import annotations

import getpass
import time
from typing import TYPE_CHECKING, Final

from gridx.errors import InvalidRequest, TransportError
from gridx.settings import ConnectionSettings, load, save

if TYPE_CHECKING:
    from gridx.blocking import BlockingClient
    from gridx.protocol import ClientWelcome
    from gridx.schemas import WorkerView
    from gridx.ship.offers import Offers, Wish

_SEEN_S: Final = 30.0
_EVER_S: Final = 1e9


class Connection:
    """The kernel's way to its coordinator."""

    def __init__(self) -> None:
        self._client: BlockingClient | None = None
        self._seen: tuple[WorkerView, ...] = ()
        self._seen_at_s = float("-inf")
        self.worker_names: list[str] = []  # as they were seen last, for completion

    @property
    def settings(self) -> ConnectionSettings:
        """Where the next call goes, and as whom. Raises SettingsError."""
        return self._client.settings if self._client is not None else load()

    @property
    def client(self) -> BlockingClient:
        """The client; made on first use, connected by its first call. Raises SettingsError."""
        if self._client is None:
            from gridx.blocking import BlockingClient

            self._client = BlockingClient(load())
        return self._client

    def welcome(self) -> ClientWelcome:
        """Return prices and limits, connecting first when there is no connection yet.

        Raises:
            TransportError: nothing answers; the hint says what to type.
            AuthError: the coordinator does not accept who we are.
        """
        client = self.client
        try:
            return client.welcome or client.connect()
        except TransportError as exc:
            raise unreachable(client.settings, exc) from None

    def seen(self, max_age_s: float = _SEEN_S) -> tuple[WorkerView, ...]:
        """Return the workers as they were at most so long ago."""
        if time.monotonic() - self._seen_at_s > max_age_s:
            self.workers()
        return self._seen

    def offers(self, wish: Wish) -> Offers:
        """Return what the grid has for a job of ours.

        Raises:
            InvalidRequest: nothing that it asks for by name.
            TransportError: nothing answers.
        """
        from gridx.ship.offers import offers

        try:
            found = offers(self.seen(), self.settings.user, wish)
        except InvalidRequest:
            return offers(self.seen(0.0), self.settings.user, wish)
        if found.notice:  # nobody is told of what was so half a minute ago
            return offers(self.seen(0.0), self.settings.user, wish)
        return found

    def python_for(self, own: str, family: str = "") -> str:
        """Return the Python that a cell has to be made for: ours where a worker has it.

        Without any worker connected the cell waits, and says so.
        """
        from gridx.ship.offers import pythons

        # Once seen it is taken for granted: no cell waits for a list of workers.
        for max_age_s in (_EVER_S, 0.0):
            offered = pythons(self.seen(max_age_s), self.settings.user, family)
            if own in offered:
                return own
        return max(offered, key=_as_numbers, default=own)

    def workers(self) -> tuple[WorkerView, ...]:
        """Return the workers that the coordinator knows."""
        workers = self.client.workers()
        self.worker_names = sorted({worker.name for worker in workers})
        self._seen, self._seen_at_s = workers, time.monotonic()
        return workers

    def image_digests(self, wish: Wish) -> dict[str, str]:
        """Return what each worker connected would start from, by the worker's id."""
        from gridx.ship.offers import digests

        return digests(self.workers(), wish)

    def known_families(self) -> list[str]:
        """Return the families of Python images that were seen last, for completion."""
        from gridx.ship.offers import families

        return families(self._seen)

    def known_gpus(self) -> list[str]:
        """Return the models of GPUs that were seen last, for completion."""
        return sorted({gpu.name for worker in self._seen for gpu in worker.capability.gpus})

    def login(self, url: str | None, user: str | None, token: str | None) -> ConnectionSettings:
        """Change to another coordinator or user, try it, and remember it in the settings file.

        In accounts mode without a token the password is asked for.

        Raises:
            TransportError: nothing answers there; the connection before stays.
            AuthError: the password or the token is wrong.
        """
        from gridx.blocking import BlockingClient

        settings = load(url, user, token)
        client = BlockingClient(settings)
        try:
            if client.status().auth != "open" and not settings.token:
                password = getpass.getpass(f"Password of {settings.user} at {settings.url}: ")
                given = client.login(settings.user, password)
                client.close()
                settings = load(settings.url, given.user_id, given.token)
                client = BlockingClient(settings)
            client.connect()
        except TransportError as exc:
            client.close()
            raise unreachable(settings, exc) from None
        except BaseException:
            client.close()
            raise
        save(url=settings.url, user=settings.user, token=settings.token)
        self.close()
        self._client = client
        return settings

    def close(self) -> None:
        """Close the connection; jobs go on."""
        client, self._client = self._client, None
        self._seen_at_s = float("-inf")
        if client is not None:
            client.close()


def _as_numbers(python: str) -> tuple[int, ...]:
    return tuple(int(part) for part in python.split(".") if part.isdecimal())


def unreachable(settings: ConnectionSettings, error: TransportError) -> TransportError:
    """Return ``error`` with what to type in a notebook."""
    return TransportError(
        error.message or f"Nothing answers at {settings.url}.",
        hint="Start a grid on this machine with `gridx up` in a terminal, "
        "or go to another one with `%gridx login URL`.",
        **error.details,
    )
