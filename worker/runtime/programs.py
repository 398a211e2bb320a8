"""Runs a script of another language: what a terminal would show for ``bash job.sh``.

The program is a process of its own below the job's, with the pipes of the job on descriptors 1
and 2: whoever reads those reads what it says, piece by piece. Names and line numbers in its
messages are its own, and so is its exit code.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from .records import Done

EXIT_NOT_FOUND: Final = 127  # as a shell says it
_ENDED_BY_ITSELF_S: Final = 5.0


class Program(NamedTuple):
    """What runs the scripts of one language."""

    names: tuple[str, ...]  # the first that the image has
    file: str  # what the script is called, in the job's folder


PROGRAMS: Final[Mapping[str, Program]] = {
    "bash": Program(("bash",), "job.sh"),
    "node": Program(("node", "nodejs"), "job.js"),
}


class NoSuchProgram(Exception):
    """The image cannot run that language; the text is a sentence for the job's user."""


def program_of(language: str) -> str:
    """Return the path of what runs scripts of ``language``.

    Raises:
        NoSuchProgram: this image has none.
    """
    known = PROGRAMS.get(language)
    for name in () if known is None else known.names:
        if found := shutil.which(name):
            return found
    raise NoSuchProgram(f"This image has no {language}, so it cannot run the script.")


def run_program(language: str, code: str, *, folder: str) -> int:
    """Run ``code`` to its end; return its exit code, or the negative number of the signal.

    Args:
        language: "bash" or "node".
        code: the script. It is a file of ``folder``, so that its length has no limit but the
            folder's, and its own name and place are what they are for a script of a person.
        folder: the job's own, where it runs.

    Raises:
        NoSuchProgram: the image has no such program.
        OSError: the folder has no room, or the program cannot be started.
    """
    program, file = program_of(language), PROGRAMS[language].file
    Path(folder, file).write_bytes(code.encode("utf-8", "surrogatepass"))
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    with subprocess.Popen(
        [program, file],
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env=environment,
        # `kill 0` in the script means what it has started, not this process.
        process_group=0,
    ) as process:
        return process.wait()


def done_of(exit_code: int) -> Done:
    """Return how a script went that left with ``exit_code``."""
    message = "" if exit_code == 0 else f"The script left with exit code {exit_code}."
    return Done(completed=exit_code == 0, exit_code=exit_code, message=message)


def end_by(number: int) -> NoReturn:
    """End this process by the signal that has ended the script, so that its end tells of it."""
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    time.sleep(_ENDED_BY_ITSELF_S)  # it is on its way to this very thread
    os._exit(128 + number)
