"""``%gridx`` on this kernel: its defaults, its prelude, its sessions, its kept results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gridx.errors import GridXError
from gridx.quantities import format_duration, parse_duration
from gridx.resources import format_bytes
from gridx.terminal import table

from .line import Parser, words_of
from .options import SETTABLE, nearest, usage_error

if TYPE_CHECKING:
    from .notebook import Notebook


def show_set(notebook: Notebook, rest: str) -> None:
    """Print the defaults of this kernel, or change one."""
    key, _, text = rest.partition(" ")
    defaults = notebook.defaults
    if not key:
        rows = [(name, value, source) for name, value, source in defaults.rows() if source]
        if rows:
            print(table(("SETTING", "VALUE", "FROM"), rows))
        print("Settings: " + ", ".join(SETTABLE) + ". `%gridx set KEY VALUE`; see help settings.")
        return
    if key not in SETTABLE:
        raise usage_error(
            f"There is no setting {key!r}.{nearest(key, SETTABLE)}", "%gridx set KEY VALUE", ""
        )
    text = text.strip()
    if text == "default":
        defaults.unset(key)
    elif text:
        defaults.set(key, text)
    found = {name: (value, source) for name, value, source in defaults.rows()}
    value, source = found[key]
    print(f"{key} = {value}, from {source}" if source else f"{key} has its default.")


def show_prelude(notebook: Notebook, rest: str) -> None:
    """Print or change the lines that run first in every remote cell."""
    command, _, line = rest.partition(" ")
    prelude = notebook.prelude
    if command == "add" and line.strip():
        try:
            prelude.add(line.strip())
        except SyntaxError as exc:
            raise usage_error(f"This is not Python: {exc.msg}.", line.strip(), "") from None
    elif command == "clear":
        prelude.clear()
    elif command == "--state":
        prelude.take_state(notebook.shell.user_ns)
        print(f"{len(prelude.state)} lines of seeds and settings as they are now.")
    elif command not in ("", "show"):
        raise usage_error(
            f"%gridx prelude: {command!r} is not known.{nearest(command, _PRELUDE)}",
            "Usage: %gridx prelude [add LINE | clear | --state]",
            "",
        )
    shown = [line if len(line) < 200 else f"{line[:200]} …" for line in prelude.text.splitlines()]
    print("\n".join(shown) or "The prelude is empty. `%gridx prelude add LINE` adds to it.")


_PRELUDE = ("add", "clear", "show", "--state")


def show_cache(notebook: Notebook, rest: str) -> None:
    """Print how much is kept for --cache, or drop it."""
    parser = Parser("cache")
    parser.add_argument("what", nargs="?", choices=("clear",))
    cache = notebook.cache()
    if parser.parse_args(words_of(rest)).what == "clear":
        count, size = cache.clear()
        print(f"{count} results dropped, {format_bytes(size)}.")
    else:
        count, size = cache.size()
        print(f"{count} results kept, {format_bytes(size)}. `%gridx cache clear` drops them.")


def show_on(notebook: Notebook, rest: str) -> None:
    """Make every following cell remote."""
    notebook.options(rest)  # refused now, not at each cell
    notebook.every_cell.switch_on(rest)
    print(
        "Every following cell runs on the grid. %%local on a cell's first line runs it here; "
        "`%gridx off` ends it."
    )


def show_off(notebook: Notebook, rest: str) -> None:
    """Let cells run here again."""
    Parser("off").parse_args(words_of(rest))
    notebook.every_cell.switch_off()
    print("Cells run here again.")


def show_notify(notebook: Notebook, rest: str) -> None:
    """Print or change after how long the end of a cell is signalled."""
    if rest == "off":
        notebook.notify_after_s = None
    elif rest:
        try:
            notebook.notify_after_s = parse_duration(rest)
        except GridXError as exc:
            raise usage_error(str(exc), "Usage: %gridx notify [TIME | off]", "") from None
    after_s = notebook.notify_after_s
    if after_s is None:
        print("The end of a cell is not signalled.")
    else:
        print(f"A cell that took longer than {format_duration(after_s)} says when it ends.")


def show_session(notebook: Notebook, rest: str) -> None:
    """Print the open sessions, close one, or go on with one of an earlier kernel."""
    parser = Parser("session")
    parser.add_argument("what", nargs="?", choices=("list", "stop", "attach"), default="list")
    parser.add_argument("name", nargs="?", metavar="NAME")
    given = parser.parse_args(words_of(rest))
    sessions = notebook.sessions
    if given.what == "list":
        print(sessions.list_text())
        return
    if given.name is None:
        parser.error(f"{given.what} needs the NAME of a session")
    print(sessions.stop(given.name) if given.what == "stop" else sessions.attach(given.name))
