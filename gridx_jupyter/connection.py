"""One client a kernel, made when a magic needs it first, and replaced by a login."""

from __future__ import annotations

import getpass
import time
from typing import TYPE_CHECKING, Final

from gridx.errors import TransportError
from gridx.settings import ConnectionSettings, load, save

if TYPE_CHECKING:
    from gridx.blocking import BlockingClient
    from gridx.protocol import ClientWelcome
    from gridx.resources import Image
    from gridx.schemas import WorkerView

_IMAGES_S: Final = 30.0
_EVER_S: Final = 1e9


class Connection:
    """The kernel's way to its coordinator."""

    def __init__(self) -> None:
        self._client: BlockingClient | None = None
        self._images: tuple[Image, ...] = ()
        self._images_at_s = float("-inf")
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

    def images(self, max_age_s: float = _IMAGES_S) -> tuple[Image, ...]:
        """Return the Python images of the workers online, as they were at most so long ago."""
        now_s = time.monotonic()
        if now_s - self._images_at_s > max_age_s:
            self._images = tuple(
                image
                for worker in self.workers()
                if worker.status == "online"
                for image in worker.capability.images
                if image.language == "python"
            )
            self._images_at_s = now_s
        return self._images

    def python_for(self, own: str) -> str:
        """Return the Python that a cell has to be made for: ours where a worker online has it.

        Without any worker online the cell waits, and says so.
        """
        # Once seen it is taken for granted: no cell waits for a list of workers.
        for max_age_s in (_EVER_S, 0.0):
            offered = {image.python for image in self.images(max_age_s)}
            if own in offered:
                return own
        return max(offered, key=_as_numbers, default=own)

    def workers(self) -> tuple[WorkerView, ...]:
        """Return the workers that the coordinator knows."""
        workers = self.client.workers()
        self.worker_names = sorted({worker.name for worker in workers})
        return workers

    def image_digests(self, python: str) -> dict[str, str]:
        """Return the image of each worker online that has ``python``, by the worker's id."""
        return {
            worker.worker_id: image.digest
            for worker in self.workers()
            if worker.status == "online"
            for image in worker.capability.images
            if image.language == "python" and image.python == python
        }

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
        self._images_at_s = float("-inf")
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
