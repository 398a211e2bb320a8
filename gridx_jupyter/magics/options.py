"""The options of every magic: one table, one parser, one place for help and completion.

``{expression}`` is expanded in the values of options only, in the notebook's namespace; the
body of a cell is never touched.
"""

from __future__ import annotations

import builtins
import difflib
import keyword
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from IPython.core.error import UsageError

from gridx.errors import GridXError, NotBuilt
from gridx.quantities import format_duration, parse_duration, parse_size
from gridx.resources import GIB, format_bytes
from gridx.schemas import MAX_TIMEOUT_S, Limits

DEFAULT_TIMEOUT_S: Final = 300.0


@dataclass(frozen=True)
class CellOptions:
    """What ``%%gridx`` was asked for. None in ``out`` brings everything home, () nothing."""

    cpus: float = 1.0
    mem_bytes: int = GIB
    gpus: int = 0
    timeout_s: float = DEFAULT_TIMEOUT_S
    needs: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    everything: bool = False
    out: tuple[str, ...] | None = None
    background: bool = False
    store_as: str | None = None
    quiet: bool = False
    dry_run: bool = False

    def limits(self) -> Limits:
        """Return the limits of the job."""
        return Limits(
            timeout_s=self.timeout_s,
            cpus=self.cpus,
            memory_bytes=self.mem_bytes,
            gpus=self.gpus,
        )


def _cores(text: str) -> float:
    cores = float(text)
    if not 0 < cores <= 1024:
        raise ValueError("must be above 0 and at most 1024")
    return cores


def _memory(text: str) -> int:
    size = parse_size(text)
    if size < 64 * 1024 * 1024:
        raise ValueError(f"is {format_bytes(size)}; at least 64M is needed")
    return size


def _gpus(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("must be a number; choosing a model is not in this release")
    if int(text) > 64:
        raise ValueError("must be at most 64")
    return int(text)


def _timeout(text: str) -> float:
    seconds = parse_duration(text)
    if seconds > MAX_TIMEOUT_S:
        raise ValueError(f"must be at most {format_duration(MAX_TIMEOUT_S)}")
    return seconds


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ValueError("names no variable")
    for name in names:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"holds {name!r}, which is not a variable's name")
    return names


def _name(text: str) -> str:
    (name,) = _names(text) if "," not in text else ("",)
    if not name or name.startswith("_") or hasattr(builtins, name):
        raise ValueError("is not a name that can be given to a result")
    return name


@dataclass(frozen=True)
class Option:
    """One row of the table. An option without ``parse`` is a switch and sets ``constant``."""

    names: tuple[str, ...]
    field: str
    help: str
    value: str = ""
    parse: Callable[[str], Any] | None = None
    constant: Any = True
    bare: Any = None  # value when none is given; None: a value is needed

    @property
    def title(self) -> str:
        """The option as the help shows it."""
        return ", ".join(self.names) + (f" {self.value}" if self.value else "")


CELL_OPTIONS: Final = (
    Option(("--cpus",), "cpus", "cores of the sandbox (1)", "N", _cores),
    Option(("--mem",), "mem_bytes", "memory of the sandbox (1G)", "SIZE", _memory),
    Option(("--gpu",), "gpus", "a GPU, or N of them", "[N]", _gpus, bare=1),
    Option(("--timeout",), "timeout_s", "longest run time (5m)", "TIME", _timeout),
    Option(("--needs",), "needs", "send these variables too", "a,b", _names),
    Option(("--without",), "without", "do not send these", "a,b", _names),
    Option(("--all",), "everything", "send every variable that can travel"),
    Option(("-o", "--out"), "out", "bring home only these", "a,b", _names),
    Option(("--no-out",), "out", "bring no variable home", constant=()),
    Option(("--bg",), "background", "return at once; the result lands when it is ready"),
    Option(("--as",), "store_as", "keep the CellResult under this name", "NAME", _name),
    Option(("--quiet",), "quiet", "no progress line and no footer"),
    Option(("--dry-run",), "dry_run", "show what would be sent and what it costs; run nothing"),
)

NOT_BUILT: Final = {
    "--disk": "disk sizes",
    "--image": "choosing an image",
    "--pip": "installing packages for a cell",
    "--profile": "profiles",
    "--max-cost": "a cap on the cost",
    "--retries": "retries",
    "--verify": "running on several workers and comparing",
    "--cache": "reusing earlier results",
    "--fresh": "reusing earlier results",
    "--session": "sessions that keep a sandbox between cells",
    "--files": "sending files",
    "--fetch": "fetching files",
    "--local": "running here through the same runner",
    "--on": "choosing the worker",
    "--on-interrupt": "choosing what an interrupt does",
    "--progress": "choosing the kind of progress line",
    "--language": "other languages",
}

USAGE: Final = "Usage: %%gridx [--cpus N] [--mem SIZE] [--gpu [N]] [--timeout TIME] [--needs a,b] …"
HELP: Final = "`%gridx help cell` lists every option."
_BY_NAME: Final = {name: option for option in CELL_OPTIONS for name in option.names}
_EXPRESSION = re.compile(r"\{([^{}]+)\}")
_WORD = re.compile(r"""(?:\{[^{}]*\}|"[^"]*"|'[^']*'|[^\s"'])+""")
_QUOTED = re.compile(r"""(\{[^{}]*\})|"([^"]*)"|'([^']*)'""")


def option_names() -> list[str]:
    """Return the long names of every option, for completion."""
    return [name for option in CELL_OPTIONS for name in option.names if name.startswith("--")]


def options_help() -> str:
    """Return the table of options as text."""
    width = max(len(option.title) for option in CELL_OPTIONS)
    return "\n".join(f"  {option.title:<{width}}  {option.help}" for option in CELL_OPTIONS)


def usage_error(sentence: str, usage: str = USAGE, hint: str = HELP) -> UsageError:
    """Return an error that IPython shows as its text alone."""
    return UsageError(f"{sentence} Nothing was run. {usage} {hint}".rstrip())


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean …?`` with the nearest of ``known``, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""


def _split(line: str) -> list[str]:
    """Return the words of ``line``; spaces and quotes inside ``{}`` belong to the expression."""
    if re.search(r"\S", _WORD.sub("", line)):
        raise usage_error("The options cannot be read: a quote is not closed.")
    return [
        _QUOTED.sub(lambda part: part[1] or part[2] or part[3] or "", word)
        for word in _WORD.findall(line)
    ]


@dataclass
class _Words:
    """The words of one line, read from left to right."""

    words: list[str]
    expand: Callable[[str], object]
    at: int = 0
    seen: set[str] = field(default_factory=set)

    def next(self) -> str | None:
        if self.at >= len(self.words):
            return None
        self.at += 1
        return self.words[self.at - 1]

    def value_of(self, option: Option, name: str, attached: str | None) -> Any:
        """Return the parsed value of ``option``: attached by ``=``, the next word, or bare."""
        if option.parse is None:
            if attached is not None:
                raise usage_error(f"{name} takes no value, but {attached!r} was given.")
            return option.constant
        text = attached
        if text is None:
            following = self.words[self.at] if self.at < len(self.words) else None
            is_value = following is not None and not following.startswith("-")
            if option.bare is not None:
                is_value = is_value and following is not None and following.isdecimal()
            if is_value:
                text = self.next()
            elif option.bare is not None:
                return option.bare
            else:
                raise usage_error(f"{name} needs a value: {option.title}.")
        return self.parsed(option, name, str(text))

    def parsed(self, option: Option, name: str, text: str) -> Any:
        assert option.parse is not None
        try:
            text = _EXPRESSION.sub(lambda match: str(self.expand(match[1])), text)
        except Exception as exc:
            sentence = f"{name} {text}: {type(exc).__name__}: {exc}."
            raise usage_error(sentence) from None
        try:
            return option.parse(text)
        except GridXError as exc:
            raise usage_error(f"{name}: {exc}") from None
        except ValueError as exc:
            reason = str(exc)
            if reason.startswith("could not convert"):
                reason = "is not a number"
            raise usage_error(f"{name} {text!r} {reason}.") from None


def parse_cell_options(line: str, expand: Callable[[str], object]) -> CellOptions:
    """Return the options in ``line``, what stands after ``%%gridx``.

    Args:
        line: as typed.
        expand: evaluates the inside of ``{}`` in the notebook's namespace.

    Raises:
        UsageError: an option is unknown or its value is wrong; the nearest is named.
        NotBuilt: the option belongs to a later release.
    """
    words = _Words(_split(line), expand)
    values: dict[str, Any] = {}
    while (word := words.next()) is not None:
        name, equals, attached = word.partition("=")
        if name in NOT_BUILT:
            raise NotBuilt(
                f"{name} is not in this release: {NOT_BUILT[name]}. Nothing was run.",
                hint=f"Leave {name} out. {HELP}",
            )
        option = _BY_NAME.get(name)
        if option is None:
            if name.startswith("-"):
                known = [*_BY_NAME, *NOT_BUILT]
                raise usage_error(f"Unknown option {name}.{nearest(name, known)}")
            raise usage_error(f"Unexpected {word!r}: the code stands on the lines below.")
        value = words.value_of(option, name, attached if equals else None)
        if option.field in values:
            raise usage_error(f"{name} was given twice, or together with its opposite.")
        values[option.field] = value
    options = CellOptions(**values)
    if options.everything and options.needs:
        raise usage_error("--all and --needs exclude each other.")
    if options.background and options.dry_run:
        raise usage_error("--bg and --dry-run exclude each other.")
    return options
