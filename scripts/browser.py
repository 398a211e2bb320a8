"""The Chromium that the tests of the notebook's page drive: `make test` calls this first.

    python scripts/browser.py

Silent where there is one and Playwright's own program, which drives it, starts. Debian and Ubuntu, as root: it is installed by apt-get;
``GRIDX_NO_INSTALL=1`` forbids that. Then, and on every other system, this says what to type and
fails: the tests themselves never skip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Final

NAMES: Final = ("chromium", "chromium-browser")
PACKAGES: Final = ("chromium", "libatomic1")  # a small system lacks the second, too
EX_UNAVAILABLE: Final = 69  # sysexits.h: a service that is needed is not there


def find_browser() -> str | None:
    """Return the path of a Chromium, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def can_drive() -> bool:
    """Return whether Playwright's program starts: it lacks a library on a small system."""
    from playwright._impl._driver import compute_driver_executable

    node, _ = compute_driver_executable()
    done = subprocess.run([node, "--version"], capture_output=True, check=False)
    return done.returncode == 0


def is_ready() -> bool:
    """Return whether the tests can have their page."""
    return find_browser() is not None and can_drive()


def may_install() -> bool:
    """Return whether apt-get may be used here."""
    return (
        os.environ.get("GRIDX_NO_INSTALL") != "1"
        and os.geteuid() == 0
        and shutil.which("apt-get") is not None
    )


def main() -> int:
    """Make sure that there is a Chromium; return the exit code."""
    if is_ready():
        return 0
    if may_install():
        print("browser: installing Chromium by apt-get", file=sys.stderr, flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            subprocess.run(
                ["apt-get", "-qq", *words], env=environment, stdout=sys.stderr, check=False
            )
        if is_ready():
            return 0
    lacks = "Chromium, and there is none on PATH" if find_browser() is None else "libatomic"
    print(
        f"browser: the tests of the notebook's page need {lacks}.\n"
        f"browser: on Debian or Ubuntu type: sudo apt-get install -y {' '.join(PACKAGES)}",
        file=sys.stderr,
    )
    return EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
