"""A user id for each live container, taken from a range that no other worker of the engine uses.

Kernel per-user limits count across containers, so two live containers never share a uid. Two
things keep the ranges apart. A file in one folder of the machine, which a worker locks for as
long as it lives, and the kernel unlocks when it dies: enough where all workers see the same
folder. And the engine itself, because workers of other users, or in containers of their own, do
not: every container carries its worker's range as a label, a new worker leaves out the ranges
that are there, and looks again after its first container (``DockerEngine.start``).
"""

from __future__ import annotations

import fcntl
import os
import random
import stat
import tempfile
from collections import deque
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

from gridx.errors import SandboxError

UIDS_IN_RANGE: Final = 1000


class UidSpace(NamedTuple):
    """The uids that containers of one engine can have."""

    first_uid: int
    ranges: int


MACHINE: Final = UidSpace(200_000, 200)
# A rootless engine, or one with userns-remap, maps 65,536 ids and no others.
REMAPPED: Final = UidSpace(1_000, 64)


def space_of(info: Mapping[str, Any]) -> UidSpace:
    """Return which uids the engine that answered ``docker info`` so can start containers with."""
    security = " ".join(str(option) for option in info.get("SecurityOptions") or ())
    is_mapped = "name=rootless" in security or "name=userns" in security
    return REMAPPED if is_mapped else MACHINE


class UidRange:
    """Hands out the uids of one range; a returned one is used again last."""

    def __init__(self, first_uid: int, lock_fd: int) -> None:
        self._free = deque(range(first_uid, first_uid + UIDS_IN_RANGE))
        self._lock_fd: int | None = lock_fd
        self.first_uid = first_uid

    @classmethod
    def lock(
        cls,
        folder: Path | None = None,
        *,
        space: UidSpace = MACHINE,
        taken: Collection[int] = (),
        by_chance: bool = False,
    ) -> UidRange:
        """Return a range that is free on this machine.

        Args:
            folder: of the locks; one of the system's that all its users share when None.
            space: where the ranges lie.
            taken: first uids of ranges that others have.
            by_chance: any free one instead of the first, so that two who met part for good.

        Raises:
            SandboxError: every range is taken.
        """
        inside = _open(folder or Path(tempfile.gettempdir()) / "gridx-uids")
        try:
            numbers = list(range(space.ranges))
            if by_chance:
                random.shuffle(numbers)
            for number in numbers:
                first_uid = space.first_uid + number * UIDS_IN_RANGE
                if first_uid in taken:
                    continue
                fd = _locked(f"{first_uid}.lock", inside)
                if fd is not None:
                    return cls(first_uid, fd)
        finally:
            os.close(inside)
        raise SandboxError(
            f"All {space.ranges} ranges of user ids are taken.",
            hint="Stop a worker of this engine, or remove the folder gridx-uids in"
            f" {tempfile.gettempdir()} when none runs.",
        )

    def __contains__(self, uid: int) -> bool:
        return 0 <= uid - self.first_uid < UIDS_IN_RANGE

    def take(self) -> int:
        """Return a uid that no live container of this machine has."""
        if not self._free:
            raise SandboxError(f"More than {UIDS_IN_RANGE} containers are alive at once.")
        return self._free.popleft()

    def give_back(self, uid: int) -> None:
        """Take ``uid`` back, unless it is of another range. Its container is gone."""
        if uid in self:
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


def _open(shared: Path) -> int:
    """Return an open descriptor of the folder of locks, or of one of this user's alone.

    The shared one lies where everybody may write. When somebody has put a link there, or a
    folder that is not for all, the engine's labels are left to keep the ranges apart.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    for folder in (shared, shared.with_name(f"{shared.name}-{os.getuid()}")):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(folder, flags)
        except OSError:
            continue
        found = os.fstat(fd)
        is_mine = found.st_uid == os.getuid()
        if is_mine:
            # Workers of several users share the machine, hence the folder. Sticky: nobody takes
            # away what is another's.
            os.fchmod(fd, 0o1777 if folder == shared else 0o700)
        if is_mine or (folder == shared and stat.S_IMODE(found.st_mode) == 0o1777):
            return fd
        os.close(fd)
    raise SandboxError(
        f"No folder for the locks of user ids can be made beside {shared}.",
        hint=f"Remove {shared.name}* in {shared.parent}, or set TMPDIR to a folder of your own.",
    )


def _locked(name: str, folder: int) -> int | None:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(name, flags, 0o600, dir_fd=folder)
    except OSError:
        return None  # another user's range, live or not: leave it
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd
