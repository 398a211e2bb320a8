"""Make .venv with everything for development: `make setup`. Needs only Python and pip's index.

Runs under the machine's own Python, whichever it is, so this file keeps to old syntax, and
re-executes itself under a newer one where the first is too old.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

REPOSITORY = Path(__file__).resolve().parent.parent
VENV = REPOSITORY / ".venv"
STAMP = VENV / ".gridx-setup"
OLDEST = (3, 11)
TRIED = ("python3.13", "python3.12", "python3.11")


def say(line: str) -> None:
    """Show progress."""
    print("setup: " + line, file=sys.stderr)
    sys.stderr.flush()


def stop(sentence: str) -> NoReturn:
    """Say what is wrong and what to type, and end."""
    say(sentence)
    sys.exit(1)


def runs(words: "list[str]") -> bool:
    """Return whether the command ends well; what it says is of no interest."""
    quiet = subprocess.DEVNULL
    return subprocess.call(words, stdin=quiet, stdout=quiet, stderr=quiet) == 0


def find_newer() -> "str | None":
    """Return a Python on PATH that is new enough; a name alone does not show that it runs."""
    for name in TRIED:
        found = shutil.which(name)
        if found and runs([found, "-c", ""]):
            return found
    return None


def may_install() -> bool:
    """Return whether apt-get may be used here."""
    return (
        os.environ.get("GRIDX_NO_INSTALL") != "1"
        and os.geteuid() == 0
        and shutil.which("apt-get") is not None
    )


def make_venv() -> None:
    """Create .venv; Debian's Python needs the package python3-venv for it."""
    if not runs([sys.executable, "-c", "import ensurepip"]):
        package = "python{}.{}-venv".format(*sys.version_info[:2])
        if not may_install():
            stop("this Python cannot make environments. Type: sudo apt-get install -y " + package)
        say("installing " + package + " by apt-get")
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        for words in (["update"], ["install", "-y", "--no-install-recommends", package]):
            subprocess.check_call(
                ["apt-get", "-qq", *words], env=environment, stdout=sys.stderr.fileno()
            )
    say("making .venv with Python {}.{}.{}".format(*sys.version_info[:3]))
    subprocess.check_call([sys.executable, "-m", "venv", str(VENV)])


def main() -> None:
    """Make or refresh .venv."""
    if sys.version_info < OLDEST:
        newer = find_newer()
        if newer is None:
            stop(
                "Python 3.11 or newer is needed; python3 here is {}.{}. ".format(*sys.version_info)
                + "Install one and type: make setup PYTHON=python3.12"
            )
        os.execv(newer, [newer, __file__])
    began = time.monotonic()
    python = VENV / "bin" / "python"
    if not python.exists() or not runs([str(python), "-m", "pip", "--version"]):
        make_venv()
    say("installing the pinned packages (one or two minutes the first time)")
    done = subprocess.call(
        [
            *(str(python), "-m", "pip", "install", "-qq", "--no-compile"),
            "--disable-pip-version-check",
            *("-c", str(REPOSITORY / "constraints.txt"), "-e", str(REPOSITORY) + "[dev]"),
        ],
        stdin=subprocess.DEVNULL,
    )
    if done != 0:
        stop("pip could not install them; the lines above say why. Mend it and type: make setup")
    STAMP.touch()
    say(f"done in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
