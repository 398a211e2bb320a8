"""The wheels of runtime/requirements.txt, fetched on the host: no package's code runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.utils import canonicalize_name

from .build import ContextFile, run_logged

PIP_TIMEOUT_S: Final = 900.0

# Never imported by a job, and a third of the files to compile: tests and C headers of the wheels.
_LEFT_OUT: Final = re.compile(
    r"(^|/)__pycache__(/|$)"
    r"|^(numpy|pandas|matplotlib|mpl_toolkits|pyarrow|scipy|sklearn|sympy|mpmath)/(.*/)?tests(/|$)"
    r"|^pyarrow/(include|src)(/|$)"
    r"|^bin(/|$)"
)


def is_left_out(name: str) -> bool:
    """Return whether a wheel's file is of no use in an image."""
    return _LEFT_OUT.search(name) is not None


def wheel_machine(machine: str) -> str:
    """Return what wheels call a machine that the engine calls so."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())


def wheel_platforms(machine: str) -> list[str]:
    """Return the wheel platforms that a Debian 12 or newer image on ``machine`` can load."""
    name = wheel_machine(machine)
    # PEP 600: glibc 2.36 runs every older one, down to the first that has this architecture.
    newer = [f"manylinux_2_{minor}_{name}" for minor in range(36, 16, -1)]
    older = [f"manylinux_2_{minor}_{name}" for minor in (12, 5)] if name == "x86_64" else []
    return [*newer, f"manylinux2014_{name}", *older, f"linux_{name}"]


def target_options(minor: str, machine: str) -> list[str]:
    """Return pip's options for wheels, and wheels only, of another Python or machine."""
    return [
        *("--only-binary=:all:", "--implementation", "cp", "--python-version", minor),
        *(word for name in wheel_platforms(machine) for word in ("--platform", name)),
    ]


def fetch(site: Path, requirements: Sequence[str], minor: str, machine: str) -> None:
    """Unpack the wheels of ``requirements``, each pinned, into the folder ``site``.

    Raises:
        SandboxError: pip failed; it ends with the log's last lines.
    """
    run_logged(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--target", str(site), "--no-deps", "--no-compile"),
            *target_options(minor, machine),
            *requirements,
        ],
        timeout_s=PIP_TIMEOUT_S,
        what="Fetching the image's packages",
        hint="pip needs its package index (`python -m pip --version` must work, too).",
    )


def site_files(site: Path) -> Iterator[ContextFile]:
    """Yield the files of ``site`` that an image gets."""
    for path in sorted(site.rglob("*")):
        name = path.relative_to(site).as_posix()
        if path.is_file() and not is_left_out(name):
            yield ContextFile(f"site/{name}", path.read_bytes())


def packages_in(site: Path) -> dict[str, str]:
    """Return the versions of the distributions in the folder ``site`` by normalised name."""
    found = {
        str(canonicalize_name(dist.metadata["Name"])): dist.version
        for dist in metadata.distributions(path=[str(site)])
    }
    return dict(sorted(found.items()))
