"""The lender's word to a worker that runs: a Unix socket in its data folder, one line each way.

The socket is open to the worker's own user alone, as the folder is. A line is a JSON object with
a ``command``; so is its answer, which has ``status`` or ``error``. The path of a folder may be
longer than the address of a socket: it is then reached through the folder's descriptor.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from gridx.errors import ErrorBody, GridXError, InvalidRequest, SettingsError
from gridx.protocol import AttemptRef
from gridx.resources import Accepts, Gpu, Pause

from .policy import OnPause, Readings

SOCKET: Final = "control.sock"
MAX_LINE_BYTES: Final = 64 * 1024
ANSWER_WITHIN_S: Final = 10.0
MAX_ADDRESS_BYTES: Final = 100  # of a Unix socket, on every system


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One wish of the lender."""

    command: str  # "status", "pause", "resume", "drain", "snooze" or "wake"
    for_s: float | None = None
    jobs: OnPause | None = None
    gpu: str | None = None  # UUID or index


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One job that the worker has."""

    ref: AttemptRef
    user: str
    running_s: float
    is_session: bool = False
    is_frozen: bool = False


class GpuStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU of the machine that is lent, or snoozes."""

    gpu: Gpu
    is_snoozed: bool = False
    snoozed_until: datetime | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker is."""

    worker_id: str
    name: str
    user: str
    coordinator: str
    is_connected: bool
    version: str
    pid: int
    pause: Pause | None = None
    is_draining: bool = False
    next_change: datetime | None = None  # known already: hours, or the end of a pause
    hours: str = "always"
    on_pause: OnPause = OnPause.FREEZE
    accepts: Accepts = Accepts.ANYONE
    users: tuple[str, ...] = ()
    cores: float = 0.0
    memory_bytes: int = 0
    slots: int = 0
    warm_sandboxes: int = 0
    jobs: tuple[JobStatus, ...] = ()
    gpus: tuple[GpuStatus, ...] = ()
    readings: Readings = Readings()
    note: str = ""  # what the command did, or why it changed nothing


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What comes back: one of the two."""

    status: Status | None = None
    error: ErrorBody | None = None


Obey = Callable[[Ask], Status]


class ControlSocket:
    """The worker's end."""

    def __init__(self, folder: Path, obey: Obey) -> None:
        """
        Args:
            folder: the worker's data folder, locked by it.
            obey: does what is asked and returns how things are; raises GridXError to refuse.
        """
        self._folder = folder
        self._obey = obey
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen; only this user can connect.

        Raises:
            SettingsError: the folder cannot hold a socket.
        """
        (self._folder / SOCKET).unlink(missing_ok=True)  # of a worker that was killed
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _address(self._folder) as address:
                mask = os.umask(0o177)
                try:
                    listening.bind(address)
                finally:
                    os.umask(mask)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=listening, limit=MAX_LINE_BYTES
            )
        except OSError as error:
            listening.close()
            raise SettingsError(
                f"No control socket can be made in {self._folder}: {error.strerror}.",
                hint="Give the worker a --data-dir on a local disk.",
            ) from error

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            (self._folder / SOCKET).unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(msgspec.json.encode(self._answer(line)) + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):  # gone, or a line without an end
            pass
        finally:
            writer.close()

    def _answer(self, line: bytes) -> Answer:
        try:
            return Answer(status=self._obey(msgspec.json.decode(line, type=Ask)))
        except msgspec.MsgspecError as error:
            return Answer(error=InvalidRequest(f"The request is malformed: {error}.").to_body())
        except GridXError as error:
            return Answer(error=error.to_body())


def ask_worker(folder: Path, ask: Ask) -> Status:
    """Ask the worker whose data folder that is.

    Raises:
        GridXError: none runs there, or it refuses; the sentence says why.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire, _address(folder) as address:
            wire.settimeout(ANSWER_WITHIN_S)
            wire.connect(address)
            wire.sendall(msgspec.json.encode(ask) + b"\n")
            with wire.makefile("rb") as lines:
                line = lines.readline()
    except (FileNotFoundError, NotADirectoryError, ConnectionError):
        raise SettingsError(
            f"No worker runs with the data folder {folder}.",
            hint="Start one with gridx-worker, or name the folder of yours with --data-dir.",
        ) from None
    except TimeoutError:
        raise SettingsError(
            f"The worker of {folder} does not answer.",
            hint="Its machine may be very busy; try again, or look at its log.",
        ) from None
    except OSError as error:
        raise SettingsError(
            f"The worker of {folder} cannot be asked: {error.strerror}.",
            hint="Only the user who started it may.",
        ) from None
    if not line:
        raise SettingsError(f"The worker of {folder} is stopping.", hint="Start it again.")
    answer = msgspec.json.decode(line, type=Answer)
    if answer.error is not None:
        from gridx.errors import from_body

        raise from_body(answer.error)
    assert answer.status is not None
    return answer.status


@contextmanager
def _address(folder: Path) -> Iterator[str]:
    path = str(folder / SOCKET)
    if len(os.fsencode(path)) <= MAX_ADDRESS_BYTES:
        yield path
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
