"""The options of ``%%gridx``: one table, one parser, one place for help, docs and completion.

``{expression}`` is expanded in the values of options only, in the notebook's namespace; the
body of a cell is never touched.
"""

from __future__ import annotations

import builtins
import dataclasses
import difflib
import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from IPython.core.error import UsageError

from gridx.disk import check_disk
from gridx.errors import GridXError, NotBuilt
from gridx.quantities import Gpus, format_duration, parse_duration, parse_gpus, parse_size
from gridx.resources import GIB, MIB, format_bytes
from gridx.schemas import LANGUAGE_ALIASES, LANGUAGES, MAX_TIMEOUT_S, Limits

DEFAULT_TIMEOUT_S: Final = 300.0
ON_INTERRUPT: Final = ("cancel", "detach", "ask")
PROGRESS: Final = ("auto", "text", "html", "widget", "off")
SHOW: Final = ("clean", "interactive", "text")


@dataclass(frozen=True)
class CellOptions:
    """What ``%%gridx`` was asked for. None in ``out`` brings everything home, () nothing."""

    cpus: float = 1.0
    mem_bytes: int = GIB
    gpus: int = 0
    gpu_model: str = ""
    disk_bytes: int | None = None  # None: half of the memory
    language: str = "python"
    image: str = ""
    pip: tuple[str, ...] = ()
    timeout_s: float = DEFAULT_TIMEOUT_S
    retries: int | None = None
    profile: str | None = None
    needs: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    everything: bool = False
    max_upload_bytes: int = 256 * MIB
    out: tuple[str, ...] | None = None
    files: tuple[str, ...] = ()
    fetch: tuple[str, ...] = ()
    background: bool = False
    store_as: str | None = None
    session: str | None = None
    session_time_s: float | None = None  # None: an hour, or what half of the credits pay for
    cache: str | None = None  # "": by the digest of the inputs, else the user's own key
    fresh: bool = False
    local: bool = False
    dry_run: bool = False
    on_interrupt: str = "cancel"
    progress: str = "auto"
    show: str | None = None  # None: clean, or interactive where the worker is trusted
    quiet: bool = False

    def limits(self) -> Limits:
        """Return the limits of the job."""
        return Limits(
            timeout_s=self.timeout_s,
            cpus=self.cpus,
            memory_bytes=self.mem_bytes,
            gpus=self.gpus,
            gpu_model=self.gpu_model or msgspec.UNSET,
            disk_bytes=self.disk_bytes or msgspec.UNSET,
        )

    @property
    def is_script(self) -> bool:
        """Whether the cell's text is a script of another language."""
        return self.language != "python"


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


def _disk(text: str) -> int:
    size = parse_size(text)
    if size < MIB:
        raise ValueError(f"is {format_bytes(size)}; at least 1M is needed")
    return size


def _family(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", text):
        raise ValueError("is not an image's name, such as torch: no registry, no tag")
    return text


def _requirement(text: str) -> str:
    from gridx.requirements import parse_requirements

    return parse_requirements([text])[0]


def _language(text: str) -> str:
    language = LANGUAGE_ALIASES.get(text, text)
    if language not in LANGUAGES:
        raise ValueError(f"must be one of {', '.join(LANGUAGES)}")
    return language


def _timeout(text: str) -> float:
    seconds = parse_duration(text)
    if seconds > MAX_TIMEOUT_S:
        raise ValueError(f"must be at most {format_duration(MAX_TIMEOUT_S)}")
    return seconds


def _retries(text: str) -> int:
    if not text.isdecimal() or int(text) > 10:
        raise ValueError("must be a number from 0 to 10")
    return int(text)


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


def _label(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", text):
        raise ValueError("is not a name: use letters, digits, '_', '.' or '-'")
    return text


def _key(text: str) -> str:
    if not 0 < len(text) <= 200:
        raise ValueError("must be 1 to 200 characters")
    return text


def _pattern(text: str) -> str:
    if text.startswith(("/", "~", "\\")) or re.match(r"[A-Za-z]:", text):
        raise ValueError("is not relative: files travel from and to the notebook's folder only")
    if ".." in re.split(r"[/\\]", text):
        raise ValueError("leaves the notebook's folder")
    return text


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return parse


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
    many: bool = False  # takes every word up to the next option
    attached: bool = False  # takes a value only behind ``=``
    settable: bool = False  # may have a default: `%gridx set`, the environment, the file

    @property
    def title(self) -> str:
        """The option as the help shows it."""
        joint = "" if self.attached or not self.value else " "
        return ", ".join(self.names) + joint + self.value

    @property
    def key(self) -> str:
        """Its name in `%gridx set` and in the settings file."""
        return self.names[-1].removeprefix("--")

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return "GRIDX_" + self.key.upper().replace("-", "_")


CELL_OPTIONS: Final = (
    Option(("--cpus",), "cpus", "cores of the sandbox (1)", "N", _cores, settable=True),
    Option(("--mem",), "mem_bytes", "memory of the sandbox (1G)", "SIZE", _memory, settable=True),
    Option(
        ("--gpu",),
        "gpus",
        "a GPU, N of them, or of one MODEL: --gpu A100, --gpu 2:A100",
        "[N:MODEL]",
        parse_gpus,
        bare=Gpus(1),
        settable=True,
    ),
    Option(
        ("--disk",),
        "disk_bytes",
        "the cell's folder; it lies in the memory (half of it)",
        "SIZE",
        _disk,
        settable=True,
    ),
    Option(
        ("--image",),
        "image",
        "run in this image: a NAME that `%gridx workers` shows (python)",
        "NAME",
        _family,
        settable=True,
    ),
    Option(
        ("--pip",),
        "pip",
        "install these packages for the cell, as polars==1.20 tqdm",
        "PKG…",
        _requirement,
        many=True,
        settable=True,
    ),
    Option(
        ("--language",),
        "language",
        "the cell is a script: bash or node; no variables travel (python)",
        "NAME",
        _language,
    ),
    Option(("--timeout",), "timeout_s", "longest run time (5m)", "TIME", _timeout, settable=True),
    Option(
        ("--retries",),
        "retries",
        "run again so often when a worker is lost; never after the cell's own error",
        "N",
        _retries,
        settable=True,
    ),
    Option(
        ("--profile",),
        "profile",
        "take the options of [profile.NAME] in the settings file",
        "NAME",
        _label,
        settable=True,
    ),
    Option(("--needs",), "needs", "send these variables too", "a,b", _names),
    Option(("--without",), "without", "do not send these", "a,b", _names),
    Option(("--all",), "everything", "send every variable that can travel"),
    Option(
        ("--max-upload",),
        "max_upload_bytes",
        "ask before more than this is sent (256M)",
        "SIZE",
        parse_size,
        settable=True,
    ),
    Option(("-o", "--out"), "out", "bring home only these", "a,b", _names),
    Option(("--no-out",), "out", "bring no variable home", constant=()),
    Option(
        ("--files",),
        "files",
        "send these files; the cell finds them under the same relative path",
        "GLOB…",
        _pattern,
        many=True,
    ),
    Option(
        ("--fetch",),
        "fetch",
        "bring these files home, into the notebook's folder",
        "GLOB…",
        _pattern,
        many=True,
    ),
    Option(("--bg",), "background", "return at once; the result lands when it is ready"),
    Option(("--as",), "store_as", "keep the CellResult under this name", "NAME", _name),
    Option(
        ("--session",),
        "session",
        "keep the sandbox and its variables for later cells of this name",
        "NAME",
        _label,
        settable=True,
    ),
    Option(
        ("--session-time",),
        "session_time_s",
        "longest time that a session is open (1h, or what half of your free credits pay for)",
        "TIME",
        _timeout,
        settable=True,
    ),
    Option(
        ("--cache",),
        "cache",
        "reuse the result of the same code, inputs and image; KEY stands for the inputs",
        "[=KEY]",
        _key,
        bare="",
        attached=True,
    ),
    Option(("--fresh",), "fresh", "run a cached cell again and keep the new result"),
    Option(("--local",), "local", "run here, in a process of its own, for debugging"),
    Option(("--dry-run",), "dry_run", "show what would be sent and what it costs; run nothing"),
    Option(
        ("--on-interrupt",),
        "on_interrupt",
        "what the stop button does to the job: cancel, detach or ask (cancel)",
        "WHAT",
        _one_of(ON_INTERRUPT),
        settable=True,
    ),
    Option(
        ("--progress",),
        "progress",
        "the progress line: auto, text, html, widget or off (auto)",
        "KIND",
        _one_of(PROGRESS),
        settable=True,
    ),
    Option(
        ("--show",),
        "show",
        "what a worker may show: clean; interactive, in a frame apart; text alone (clean)",
        "HOW",
        _one_of(SHOW),
        settable=True,
    ),
    Option(("--quiet",), "quiet", "no progress line and no footer", settable=True),
)

NOT_BUILT: Final = {
    "--max-cost": "a cap on the cost",
    "--verify": "running on several workers and comparing",
    "--on": "choosing the worker",
}

# Pairs of fields that make no sense together, when both were asked for.
EXCLUDING: Final = (
    ("everything", "needs"),
    ("background", "dry_run"),
    ("background", "local"),
    ("background", "cache"),
    ("session", "local"),
    ("session", "cache"),
    ("session", "retries"),
    ("local", "cache"),
    ("local", "dry_run"),
)

# What makes no sense for a script of another language, and why.
_NO_VARIABLES: Final = "no variables travel to a {} script or come home"
_NO_FILES: Final = "no files travel to a {} script or come home"
NOT_OF_SCRIPTS: Final = {
    "needs": _NO_VARIABLES,
    "without": _NO_VARIABLES,
    "everything": _NO_VARIABLES,
    "max_upload_bytes": _NO_VARIABLES,
    "out": _NO_VARIABLES,
    "files": _NO_FILES,
    "fetch": _NO_FILES,
    "session": "a session is a Python process, and a {} script has one of its own",
    "session_time_s": "a session is a Python process, and a {} script has one of its own",
    "local": "only Python cells are tried here; %%{} in a cell of its own runs it here",
    "pip": "it installs Python packages, and an image for {} has no Python to use them",
    "show": "a {} script shows text alone",
}

USAGE: Final = "Usage: %%gridx [--cpus N] [--mem SIZE] [--gpu [N]] [--timeout TIME] [--needs a,b] …"
HELP: Final = "`%gridx help cell` lists every option."
BY_NAME: Final = {name: option for option in CELL_OPTIONS for name in option.names}
SETTABLE: Final = {option.key: option for option in CELL_OPTIONS if option.settable}
_BY_FIELD: Final = {option.field: option for option in reversed(CELL_OPTIONS)}
_EXPRESSION = re.compile(r"\{([^{}]+)\}")
_WORD = re.compile(r"""(?:\{[^{}]*\}|"[^"]*"|'[^']*'|[^\s"'])+""")
_QUOTED = re.compile(r"""(\{[^{}]*\})|"([^"]*)"|'([^']*)'""")
_ON: Final = {"on": True, "true": True, "yes": True, "1": True}
_OFF: Final = {"off": False, "false": False, "no": False, "0": False}


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


def parse_setting(key: str, text: str) -> tuple[str, Any]:
    """Return the field that a setting stands for, and its value.

    Raises:
        ValueError: no such setting, or a value that the option would refuse; says which.
    """
    option = SETTABLE.get(key.replace("_", "-"))
    if option is None:
        raise ValueError(f"There is no setting {key!r}.{nearest(key, SETTABLE)}")
    if option.parse is None:
        switch = {**_ON, **_OFF}.get(text.strip().lower())
        if switch is None:
            raise ValueError(f"{key} {text!r} must be on or off.")
        return option.field, switch
    parse = option.parse
    try:
        if option.many:
            return option.field, tuple(parse(word) for word in text.split())
        return option.field, parse(text.strip())
    except GridXError as exc:
        raise ValueError(f"{key}: {exc}") from None
    except ValueError as exc:
        raise ValueError(f"{key} {text!r} {_reason(exc)}.") from None


def _reason(error: ValueError) -> str:
    reason = str(error)
    return "is not a number" if reason.startswith("could not convert") else reason


def split_words(line: str) -> list[str]:
    """Return the words of ``line``; spaces and quotes inside ``{}`` belong to the expression."""
    if re.search(r"\S", _WORD.sub("", line)):
        raise usage_error("The options cannot be read: a quote is not closed.")
    return [
        _QUOTED.sub(lambda part: part[1] or part[2] or part[3] or "", word)
        for word in _WORD.findall(line)
    ]


def line_over(line: str, base: str) -> str:
    """Return ``line`` with those options of ``base`` that it does not give itself."""
    given = {_field_of(group[0]) for group in _groups(line)}
    kept = [word for group in _groups(base) if _field_of(group[0]) not in given for word in group]
    return " ".join([*kept, line]).strip()


def _groups(line: str) -> list[list[str]]:
    """Return each option of ``line`` with the words that follow it, quotes and all."""
    groups: list[list[str]] = []
    for word in _WORD.findall(line):
        if word.startswith("-") or not groups:
            groups.append([])
        groups[-1].append(word)
    return groups


def _field_of(word: str) -> str:
    name = word.partition("=")[0]
    return BY_NAME[name].field if name in BY_NAME else name


def expanded(text: str, expand: Callable[[str], object]) -> str:
    """Return ``text`` with each ``{expression}`` replaced by its value.

    Raises:
        UsageError: an expression cannot be evaluated.
    """
    try:
        return _EXPRESSION.sub(lambda match: str(expand(match[1])), text)
    except Exception as exc:
        raise usage_error(f"{text}: {type(exc).__name__}: {exc}.") from None


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

    @property
    def _following(self) -> str | None:
        """The next word, when it can be a value."""
        word = self.words[self.at] if self.at < len(self.words) else None
        return None if word is None or word.startswith("-") else word

    def value_of(self, option: Option, name: str, attached: str | None) -> Any:
        """Return the parsed value of ``option``: attached by ``=``, the next word, or bare."""
        if option.parse is None:
            if attached is not None:
                raise usage_error(f"{name} takes no value, but {attached!r} was given.")
            return option.constant
        if option.many:
            return self._values_of(option, name, attached)
        text = attached
        if text is None:
            following = None if option.attached else self._following
            if option.bare is not None and following is None:
                return option.bare
            if following is None:
                raise usage_error(f"{name} needs a value: {option.title}.")
            text = self.next()
        return self._parsed(option, name, str(text))

    def _values_of(self, option: Option, name: str, attached: str | None) -> tuple[Any, ...]:
        texts = [] if attached is None else [attached]
        while self._following is not None:
            texts.append(str(self.next()))
        if not texts:
            raise usage_error(f"{name} needs a value: {option.title}.")
        return tuple(self._parsed(option, name, text) for text in texts)

    def _parsed(self, option: Option, name: str, text: str) -> Any:
        assert option.parse is not None
        text = expanded(text, self.expand)
        try:
            return option.parse(text)
        except GridXError as exc:
            raise usage_error(f"{name}: {exc}") from None
        except ValueError as exc:
            raise usage_error(f"{name} {text!r} {_reason(exc)}.") from None


def parse_cell_options(
    line: str,
    expand: Callable[[str], object],
    defaults: Callable[[str | None], Mapping[str, Any]] = lambda _profile: {},
) -> CellOptions:
    """Return the options in ``line``, what stands after ``%%gridx``.

    Args:
        line: as typed.
        expand: evaluates the inside of ``{}`` in the notebook's namespace.
        defaults: returns the value of each field that has one, for the profile that was asked
            for by ``--profile``; an option in ``line`` goes before them.

    Raises:
        UsageError: an option is unknown or its value is wrong; the nearest is named.
        NotBuilt: the option belongs to a later release.
    """
    words = _Words(split_words(line), expand)
    values: dict[str, Any] = {}
    while (word := words.next()) is not None:
        name, equals, attached = word.partition("=")
        if name in NOT_BUILT:
            raise NotBuilt(
                f"{name} is not in this release: {NOT_BUILT[name]}. Nothing was run.",
                hint=f"Leave {name} out. {HELP}",
            )
        option = BY_NAME.get(name)
        if option is None:
            if name.startswith("-"):
                known = [*BY_NAME, *NOT_BUILT]
                raise usage_error(f"Unknown option {name}.{nearest(name, known)}")
            raise usage_error(f"Unexpected {word!r}: the code stands on the lines below.")
        value = words.value_of(option, name, attached if equals else None)
        if option.field in values:
            raise usage_error(f"{name} was given twice, or together with its opposite.")
        values[option.field] = value
    return _together(values, dict(defaults(values.get("profile"))))


def _together(values: dict[str, Any], defaults: dict[str, Any]) -> CellOptions:
    """Return options and defaults as one; what a cell says itself goes before a default."""
    _check_script(values, defaults)
    for one, other in EXCLUDING:
        if one in values and other in values:
            raise usage_error(f"{_long(one)} and {_long(other)} exclude each other.")
        if one in values:
            defaults.pop(other, None)
        elif other in values:
            defaults.pop(one, None)
        elif one in defaults and other in defaults:
            defaults.pop(other)
    if values.get("fresh"):
        values.setdefault("cache", "")
    merged = {**defaults, **values}
    if isinstance(gpus := merged.get("gpus"), Gpus):
        merged["gpus"], merged["gpu_model"] = gpus
    options = CellOptions(**merged)
    _check_together(options)
    return dataclasses.replace(options, pip=_whole_list(options.pip)) if options.pip else options


def _check_script(values: dict[str, Any], defaults: dict[str, Any]) -> None:
    language = values.get("language", "python")
    if language == "python":
        return
    for name, why in NOT_OF_SCRIPTS.items():
        if name in values:
            reason = why.format(language)
            raise usage_error(f"{_long(name)} and --language {language}: {reason}.")
        defaults.pop(name, None)


def _check_together(options: CellOptions) -> None:
    try:
        check_disk(options.mem_bytes, options.disk_bytes, gpus=options.gpus)
    except GridXError as exc:
        raise usage_error(f"--disk: {exc}") from None


def _whole_list(requirements: tuple[str, ...]) -> tuple[str, ...]:
    from gridx.requirements import parse_requirements

    try:
        return parse_requirements(requirements)
    except GridXError as exc:
        raise usage_error(f"--pip: {exc}") from None


def _long(name: str) -> str:
    return _BY_FIELD[name].names[-1]
