"""Completion after ``%gridx`` and ``%%gridx``: subcommands, options, their values, variables.

Nothing here asks the coordinator: the cursor must not wait for a network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gridx.schemas import LANGUAGES

from .line import COMMANDS
from .options import BY_NAME, ON_INTERRUPT, PROGRESS, SETTABLE, SHOW, option_names

if TYPE_CHECKING:
    from .notebook import Notebook

_TAKES_VARIABLES: Final = ("--needs", "--without", "--out", "-o")
_TAKES_JOB: Final = ("attach", "cancel", "logs", "result", "retry", "why", "show")
_TAKES_WORKER: Final = ("trust", "untrust")
_MAX_JOBS: Final = 50


def complete(line: str, word: str, notebook: Notebook) -> list[str]:
    """Return what may follow in ``line``, the text up to the cursor, for its last ``word``."""
    before = line[: len(line) - len(word)].split()
    if before and before[0] == "%gridx":
        return _after_line_magic(before[1:], notebook)
    if line.startswith("%gridx"):
        return sorted(COMMANDS)
    if before and before[-1] in _TAKES_VARIABLES:
        head = word.rpartition(",")[0]
        names = _variables(notebook)
        return [f"{head},{name}" for name in names] if head else names
    values = _values(before[-1].removeprefix("--"), notebook) if before else []
    return values if before and before[-1] in BY_NAME and values else option_names()


def _after_line_magic(words: list[str], notebook: Notebook) -> list[str]:
    match words:
        case []:
            return sorted(COMMANDS)
        case ["help"]:
            from .line_help import TOPICS

            return [*TOPICS, *COMMANDS]
        case ["set"]:
            return list(SETTABLE)
        case ["set", key]:
            return _values(key, notebook)
        case ["session"]:
            return ["list", "stop", "attach"]
        case ["session", "stop" | "attach"]:
            return _values("session", notebook)
        case ["cache"]:
            return ["clear"]
        case ["prelude"]:
            return ["add", "clear", "--state"]
        case ["on", *_]:
            return option_names()
        case [command] if command in _TAKES_JOB:
            return notebook.journal.job_ids()[:_MAX_JOBS]
        case [command] if command in _TAKES_WORKER:
            return notebook.connection.worker_names
    return []


def _values(key: str, notebook: Notebook) -> list[str]:
    """Return the values that an option may have, where they can be listed."""
    match key:
        case "profile":
            return notebook.defaults.profiles()
        case "session":
            return notebook.session_names()
        case "on-interrupt":
            return list(ON_INTERRUPT)
        case "progress":
            return list(PROGRESS)
        case "show":
            return list(SHOW)
        case "language":
            return list(LANGUAGES)
        case "image":
            return notebook.connection.known_families()
        case "gpu":
            return notebook.connection.known_gpus()
        case "quiet":
            return ["on", "off"]
    return []


def _variables(notebook: Notebook) -> list[str]:
    return [name for name in notebook.shell.user_ns if not name.startswith("_")]


def install_completion(notebook: Notebook) -> None:
    """Teach IPython's completer the two magics."""
    set_hook: Any = notebook.shell.set_hook

    def completer(self: object, event: Any) -> list[str]:
        try:
            return complete(event.line, event.symbol, notebook)
        except Exception:  # a broken settings file is no reason to break the cursor
            return []

    for magic in ("%gridx", "%%gridx"):
        set_hook("complete_command", completer, str_key=magic)
