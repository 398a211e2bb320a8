"""The worker's data folder: who it is, and that it is the only one there."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from gridx.errors import SettingsError
from gridx.ids import new_worker_id


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What makes this worker the same after a restart. ``token`` logs ``user`` in at
    ``coordinator`` and nowhere else."""

    worker_id: str
    user: str = ""
    coordinator: str = ""
    token: str | None = None


class Home:
    """The folder, locked for as long as this process lives."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            SettingsError: another worker uses the folder, or it cannot be written.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SettingsError(
                f"The data folder {folder} cannot be used: {error.strerror}.",
                hint="Give another one with --data-dir.",
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise SettingsError(
                f"Another worker uses the data folder {folder}.",
                hint="Stop it, or give this one its own with --data-dir.",
            ) from None
        self.folder = folder
        try:
            self.identity = self._load()
        except SettingsError:
            self.close()
            raise

    @property
    def outbox(self) -> Path:
        """Where unacknowledged output lies."""
        return self.folder / "outbox"

    @property
    def blobs(self) -> Path:
        """Where the blobs of its users lie."""
        return self.folder / "blobs"

    @property
    def slots(self) -> Path:
        """Where the folders lie that containers see as theirs."""
        return self.folder / "slots"

    def token_for(self, user: str, coordinator: str) -> str | None:
        """Return the stored token when it was given to ``user`` by ``coordinator``."""
        known = self.identity
        return known.token if (known.user, known.coordinator) == (user, coordinator) else None

    def keep_token(self, user: str, coordinator: str, token: str | None) -> None:
        """Store ``token``, readable by this user only; None forgets the one that is there."""
        self._save(
            msgspec.structs.replace(self.identity, user=user, coordinator=coordinator, token=token)
        )

    def close(self) -> None:
        """Unlock the folder."""
        os.close(self._lock)

    def _load(self) -> Identity:
        path = self.folder / "worker.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Identity)
        except FileNotFoundError:
            identity = Identity(worker_id=new_worker_id())
            self._save(identity)
            return identity
        except (OSError, msgspec.MsgspecError) as error:
            raise SettingsError(
                f"{path} cannot be read: {error}.",
                hint="Move it away; the worker then gets a new id and asks for its password.",
            ) from error

    def _save(self, identity: Identity) -> None:
        part = self.folder / "worker.json.part"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(identity))
            file.flush()
            os.fsync(file.fileno())
        part.rename(self.folder / "worker.json")
        self.identity = identity
