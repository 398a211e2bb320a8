"""A user id for each live container, taken from a range that no other worker here uses.

Kernel per-user limits count across containers, so two live containers never share a uid. The
ranges are files in one folder of the machine; a worker holds a lock on its own for as long as
it lives, and the kernel lets go of it when the worker dies.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections import deque
from pathlib import Path
from types import TracebackType

from gridx.errors import SandboxError

FIRST_UID = 200_000
UIDS_IN_RANGE = 1000
RANGES = 200


class UidRange:
    """Hands out the uids of one locked range; a returned one is used again last."""

    def __init__(self, first_uid: int, lock_fd: int) -> None:
        self._free = deque(range(first_uid, first_uid + UIDS_IN_RANGE))
        self._lock_fd: int | None = lock_fd
        self.first_uid = first_uid

    @classmethod
    def lock(cls, folder: Path | None = None) -> UidRange:
        """Return the first range that is free on this machine.

        Raises:
            SandboxError: every range is taken.
        """
        folder = folder or Path(tempfile.gettempdir()) / "gridx-uids"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            folder.chmod(0o1777)  # workers of several users share the machine, hence the folder
        except PermissionError:
            pass  # another user made it
        for number in range(RANGES):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                fd = os.open(folder / f"{number}.lock", flags, 0o600)
            except PermissionError:
                continue  # another user's range, live or not: leave it
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            return cls(FIRST_UID + number * UIDS_IN_RANGE, fd)
        raise SandboxError(
            f"All {RANGES} ranges of user ids in {folder} are taken.",
            hint="Stop a worker on this machine, or remove that folder when none runs.",
        )

    def take(self) -> int:
        """Return a uid that no live container of this machine has."""
        if not self._free:
            raise SandboxError(f"More than {UIDS_IN_RANGE} containers are alive at once.")
        return self._free.popleft()

    def give_back(self, uid: int) -> None:
        """Take ``uid`` back. Its container is gone."""
        self._free.append(uid)

    def close(self) -> None:
        """Unlock the range."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> UidRange:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
