"""Wheels as the files that they install, read straight into a build's context.

A wheel is a zip archive of the files of site-packages (PEP 427). Nothing is written to this
machine's disk under a name that a package chose, and no installer's code runs.
"""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from gridx.errors import SandboxError
from gridx.resources import GIB, format_bytes

from .build import ContextFile
from .wheels import is_left_out

MAX_UNPACKED_BYTES: Final = 2 * GIB
MAX_FILES: Final = 200_000
_DATA: Final = re.compile(r"^[^/]+\.data/(?P<kind>[^/]+)/(?P<rest>.+)$")


def unpacked(
    wheels: Iterable[Path], *, under: str, limit_bytes: int = MAX_UNPACKED_BYTES
) -> Iterator[ContextFile]:
    """Yield the files that ``wheels`` install, as ``under``/NAME.

    Scripts, headers and data are left out: a job imports packages, it starts none of their
    programs.

    Raises:
        SandboxError: a wheel is broken, has a name that leads elsewhere, or is too large.
    """
    left_bytes, files = limit_bytes, 0
    for path in wheels:
        try:
            with zipfile.ZipFile(path) as wheel:
                for entry in wheel.infolist():
                    name = placed(entry.filename)
                    if entry.is_dir() or name is None or is_left_out(name):
                        continue
                    left_bytes -= entry.file_size
                    files += 1
                    if left_bytes < 0 or files > MAX_FILES:
                        raise SandboxError(
                            f"The packages are larger than {format_bytes(limit_bytes)} or have"
                            f" more than {MAX_FILES} files when unpacked.",
                            hint="List fewer or smaller packages.",
                        )
                    mode = entry.external_attr >> 16
                    # No link is made: what a link holds becomes a file of these words.
                    yield ContextFile(
                        f"{under}/{name}", wheel.read(entry), bool(mode & stat.S_IXUSR)
                    )
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise SandboxError(
                f"The wheel {path.name} is broken: {error}.", hint="Leave that package out."
            ) from error


def placed(name: str) -> str | None:
    """Return where a wheel's file goes below site-packages; None when it is left out.

    Raises:
        SandboxError: it would lie outside.
    """
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in PurePosixPath(name).parts:
        raise SandboxError(
            f"A wheel has a file outside of its own folder: {name[:100]!a}.",
            hint="Leave that package out.",
        )
    if match := _DATA.match(name):
        return match["rest"] if match["kind"] in ("purelib", "platlib") else None
    # Read by nobody here, because site does not start; left out so that no one relies on them.
    return None if "/" not in name and name.endswith(".pth") else name
