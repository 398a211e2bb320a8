"""``%gridx``: the grid from a notebook, in one line each."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from IPython.core.magic import Magics, line_magic, magics_class, no_var_expand

from gridx.errors import GridXError, TransportError

from ..connection import unreachable
from .failures import shown_as_name, shown_as_sentence
from .options import expanded, nearest, usage_error

if TYPE_CHECKING:
    from .notebook import Notebook


@dataclass(frozen=True)
class Command:
    """One row of the table: what may follow the name, what it does, and which module has it."""

    arguments: str
    help: str
    home: str


COMMANDS: Final = {
    "status": Command("", "the grid, and who you are there", "line_grid"),
    "login": Command(
        "[URL] [--user NAME] [--token TOKEN]", "go to a coordinator and remember it", "line_grid"
    ),
    "balance": Command("", "your credits", "line_grid"),
    "cost": Command("[-n COUNT]", "what your jobs and those of this notebook cost", "line_grid"),
    "workers": Command("", "who lends what", "line_grid"),
    "trust": Command(
        "[WORKER]",
        "show the interactive output of a worker unasked, by its key; alone: which are trusted",
        "line_grid",
    ),
    "untrust": Command("WORKER", "no longer trust a worker", "line_grid"),
    "doctor": Command("", "what is wrong, and what to type", "line_grid"),
    "jobs": Command(
        "[-a] [-n COUNT]",
        "your jobs, newest first; -a: more of them, those of this notebook marked",
        "line_jobs",
    ),
    "attach": Command(
        "JOB [--new] [--replace] [--as NAME]",
        "show the output of a job and bring its values home, after a restart too; --new: only "
        "what was not shown yet; --replace: over variables that exist",
        "line_jobs",
    ),
    "result": Command(
        "JOB [--raw FILE] [--replace] [--as NAME]",
        "bring the values of a job that has ended home; --raw: as it came, into a file",
        "line_jobs",
    ),
    "retry": Command(
        "JOB", "run a cell of this notebook again, with today's variables", "line_jobs"
    ),
    "logs": Command("JOB [--to FILE]", "the whole output of a job", "line_jobs"),
    "show": Command("JOB [--interactive | --text]", "what a job displayed, once more", "line_jobs"),
    "cancel": Command("JOB", "stop a job; the time it ran is charged", "line_jobs"),
    "why": Command("[JOB]", "what the last cell captured and why; why its job waits", "line_jobs"),
    "needs": Command("CODE", "what this code would take along; nothing is sent", "line_jobs"),
    "session": Command(
        "[list | stop NAME | attach NAME]",
        "your open sessions; close one; use one again after a restart",
        "line_kernel",
    ),
    "cache": Command("[clear]", "the results kept for --cache; drop them", "line_kernel"),
    "set": Command(
        "[KEY [VALUE]]",
        "a default for the options of this kernel; `default` unsets it",
        "line_kernel",
    ),
    "on": Command(
        "[OPTIONS]", "every following cell is remote, and stays plain Python", "line_kernel"
    ),
    "off": Command("", "cells run here again", "line_kernel"),
    "prelude": Command(
        "[add LINE | clear | --state]",
        "lines that run first in every remote cell; --state: seeds and settings as they are now",
        "line_kernel",
    ),
    "notify": Command(
        "[TIME | off]", "a signal when a cell ends that took longer than TIME", "line_kernel"
    ),
    "help": Command("[TOPIC]", "this list, or one topic", "line_help"),
}
USAGE: Final = "Usage: %gridx " + " | ".join(COMMANDS) + "."
_TAKES_CODE: Final = ("needs", "prelude")  # in these, braces are braces
_EXPRESSION_HINT: Final = "To run code on the grid put it below a line %%gridx."


class Parser(argparse.ArgumentParser):
    """Raises a one-line UsageError instead of ending the kernel."""

    def __init__(self, command: str) -> None:
        super().__init__(command, add_help=False)

    def error(self, message: str) -> NoReturn:
        arguments = COMMANDS[self.prog].arguments if self.prog in COMMANDS else ""
        raise usage_error(
            f"%gridx {self.prog}: {message}.", f"Usage: %gridx {self.prog} {arguments}", ""
        )


@magics_class
class LineMagic(Magics):
    """``%gridx SUBCOMMAND``."""

    def __init__(self, notebook: Notebook) -> None:
        super().__init__(shell=notebook.shell)
        self._notebook = notebook

    @no_var_expand
    @line_magic
    def gridx(self, line: str) -> None:
        """Look after the grid: %gridx status | jobs | attach | logs | session | balance | help …

        %gridx help lists every subcommand, %gridx help TOPIC shows one.
        %%gridx on the first line of a cell runs the cell on a worker.
        """
        command, _, rest = line.strip().partition(" ")
        if not command:
            print("Put %%gridx on the first line of a cell to run it on the grid. " + USAGE)
            return
        if command not in COMMANDS:
            _refuse(command)
        try:
            if command not in _TAKES_CODE:
                rest = expanded(rest, self._notebook.shell.ev)
            action_of(command)(self._notebook, rest.strip())
        except KeyboardInterrupt as exc:
            shown_as_name(exc)
            raise
        except TransportError as exc:
            error: GridXError = unreachable(self._notebook.connection.settings, exc)
        except GridXError as exc:
            error = exc
        else:
            return
        if not hasattr(error, "_render_traceback_"):
            shown_as_sentence(error)
        raise error from None


def action_of(command: str) -> Callable[[Notebook, str], None]:
    """Return the function of ``command``: its module is loaded when it is asked for."""
    module = importlib.import_module(f".{COMMANDS[command].home}", __package__)
    action: Callable[[Notebook, str], None] = getattr(module, f"show_{command}")
    return action


def commands_help() -> str:
    """Return the table of subcommands as text."""
    titles = {name: f"{name} {row.arguments}".rstrip() for name, row in COMMANDS.items()}
    return "\n".join(f"%gridx {titles[name]}\n    {row.help}" for name, row in COMMANDS.items())


def words_of(rest: str) -> Sequence[str]:
    """Return the words after a subcommand; quotes hold one together."""
    from .options import split_words

    return split_words(rest)


def _refuse(command: str) -> NoReturn:
    if command.startswith("--"):
        raise usage_error(
            f"{command} is an option of %%gridx: two percent signs, on the first line of a cell.",
            USAGE,
            "",
        )
    raise usage_error(
        f"%gridx has no {command!r}.{nearest(command, COMMANDS)} {_EXPRESSION_HINT}", USAGE, ""
    )
