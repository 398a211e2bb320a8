"""Folders of the host through which sandboxes get files: one each, read-only on their side.

    <folder>/                 0700: nobody else on this machine comes this far
        <random name>/        0755, mounted as /in of one container, which runs as another user
            <digest>          0444, a link to the cached blob, or a copy across file systems

A mount cannot be added to a container that runs, so each has its folder from the beginning,
empty until its job is known. The container sees its own folder and no way to another.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_NO_LINK: Final = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP)


class Slots:
    """The folders of one worker's sandboxes."""

    def __init__(self, folder: Path | None = None) -> None:
        """
        Args:
            folder: for these alone; a new one of the system's, removed by ``close``, when None.
        """
        self._is_ours = folder is None
        self._folder = None if folder is None else folder.absolute()

    def make(self) -> Path:
        """Return a new, empty folder."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="gridx-slots-"))
        made = self._folder / secrets.token_hex(8)
        made.mkdir()
        made.chmod(0o755)  # whatever the umask is: the container's user has to read it
        return made

    def sweep(self) -> None:
        """Remove the folders of an earlier run. Before the first ``make``."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(mode=0o700, parents=True)

    def close(self) -> None:
        """Remove what is left, when the folder is nobody else's."""
        if self._is_ours and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def fill(folder: Path, files: Mapping[str, Path]) -> None:
    """Make each of ``files`` readable in ``folder`` under its name. What is there stays.

    Raises:
        OSError: the disk is full or gone, or a file is.
    """
    for name, source in files.items():
        target = folder / name
        if target.exists():
            continue
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            part = folder / f"{name}.part"
            shutil.copyfile(source, part)
            part.chmod(0o444)
            part.rename(target)
