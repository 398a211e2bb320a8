"""The programs that the tests need beside Docker: `make test` calls this first.

    python scripts/test_programs.py

Chromium, which the tests of the notebook's page drive, and Node, from which the image for
JavaScript is made. Silent where both are there and Playwright's own program, which drives Chromium,
starts. Debian and Ubuntu, as root: what is missing is installed by apt-get; ``GRIDX_NO_INSTALL=1``
forbids that. Then, and on every other system, this says what to type and fails: the tests
themselves never skip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Final

BROWSERS: Final = ("chromium", "chromium-browser")
PACKAGES: Final = ("chromium", "libatomic1", "nodejs")  # a small system lacks the second, too
EX_UNAVAILABLE: Final = 69  # sysexits.h: a service that is needed is not there


def has_browser() -> bool:
    """Return whether there is a Chromium."""
    return any(map(shutil.which, BROWSERS))


def can_drive() -> bool:
    """Return whether Playwright's program starts: it lacks a library on a small system."""
    from playwright._impl._driver import compute_driver_executable

    node, _ = compute_driver_executable()
    done = subprocess.run([node, "--version"], capture_output=True, check=False)
    return done.returncode == 0


def missing() -> list[str]:
    """Return what the tests would miss, in words."""
    there = {
        "Chromium": has_browser(),
        "libatomic": can_drive(),
        "Node": shutil.which("node") is not None,
    }
    return [name for name, is_there in there.items() if not is_there]


def may_install() -> bool:
    """Return whether apt-get may be used here."""
    return (
        os.environ.get("GRIDX_NO_INSTALL") != "1"
        and os.geteuid() == 0
        and shutil.which("apt-get") is not None
    )


def main() -> int:
    """Make sure that all of them are there; return the exit code."""
    if not missing():
        return 0
    if may_install():
        print(
            f"programs: installing {' and '.join(missing())} by apt-get",
            file=sys.stderr,
            flush=True,
        )
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            subprocess.run(
                ["apt-get", "-qq", *words], env=environment, stdout=sys.stderr, check=False
            )
    if not (lacks := missing()):
        return 0
    print(
        f"programs: the tests need {' and '.join(lacks)}.\n"
        f"programs: on Debian or Ubuntu type: sudo apt-get install -y {' '.join(PACKAGES)}",
        file=sys.stderr,
    )
    return EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
