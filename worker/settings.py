"""What the lender allows: one frozen value, read from arguments, a file and the environment.

The file is ``worker.toml`` in the data folder, or what ``--config`` names; its keys are the
options without their dashes. What is said on the command line goes before what it says.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import socket
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import msgspec

from gridx.errors import GridXError, InvalidRequest, SettingsError
from gridx.ids import parse_user_name
from gridx.quantities import format_duration, parse_duration, parse_size
from gridx.resources import GIB, MIB, Accepts, Check, Gpu
from gridx.schemas import LANGUAGE_ALIASES, LANGUAGES

from .lending.hours import Hours, parse_hours
from .lending.policy import (
    DEFAULT_CPU_CEILING_C,
    DEFAULT_GPU_CEILING_C,
    DEFAULT_IDLE_FOR_S,
    OnPause,
)

DEFAULT_COORDINATOR: Final = "ws://localhost:8080/ws/worker"
DEFAULT_LANGUAGES: Final = ("python", "bash")
LONGEST_FREEZE_S: Final = 50 * 60.0
SANDBOXES: Final = ("docker", "process")


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that ``gridx-worker`` can be told. None: measured on this machine."""

    user: str
    password: str | None = None  # needed until a token is stored
    coordinator: str = DEFAULT_COORDINATOR
    data_dir: Path
    sandbox: str = "docker"
    name: str = ""
    cores: float | None = None
    memory_bytes: int | None = None
    slots: int | None = None
    warm: int | None = None
    drain_s: float = 10.0
    runtime: str | None = None  # another OCI runtime of the engine, "runsc"
    pythons: tuple[str, ...] = ()  # minor versions of sandboxes; this process's alone when empty
    languages: tuple[str, ...] = DEFAULT_LANGUAGES
    families: tuple[str, ...] = ()  # images of the lender's own, by name
    pip: bool = True  # build an image for what jobs list under --pip
    pip_allowed: frozenset[str] | None = None  # the only packages that such a list may come to
    environments_max_bytes: int | None = None
    cache_bytes: int | None = None  # of jobs' inputs kept on disk; 4 GiB or a tenth of what is free
    max_result_bytes: int = 2 * GIB  # of one call
    disk_bytes: int | None = None  # of inputs and built environments together
    gpus: tuple[str, ...] | None = None  # to lend, by UUID or index; None: all
    hours: Hours | None = None  # None: always
    pause_when_active: bool | None = None  # None: where somebody has a desktop
    idle_for_s: float = DEFAULT_IDLE_FOR_S
    pause_on_battery: bool = True
    max_cpu_temp_c: float | None = DEFAULT_CPU_CEILING_C
    max_gpu_temp_c: float | None = DEFAULT_GPU_CEILING_C
    on_pause: OnPause = OnPause.FREEZE
    freeze_for_s: float = 600.0
    accepts: Accepts = Accepts.ANYONE
    users: tuple[str, ...] = ()

    @property
    def environments_bytes(self) -> int | None:
        """Return what built environments may take of the disk that is lent; None: no limit."""
        if self.environments_max_bytes is not None:
            return self.environments_max_bytes
        return None if self.disk_bytes is None else self.disk_bytes // 2

    @property
    def python(self) -> str | None:
        """Return the minor version of the default sandbox's Python; None: this process's."""
        return self.pythons[0] if self.pythons else None

    def lent_gpus(self, gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
        """Return those of this machine's ``gpus`` that are lent.

        Raises:
            SettingsError: one is named that is not there.
        """
        if self.gpus is None:
            return tuple(gpus)
        lent = []
        for name in self.gpus:
            found = [gpu for at, gpu in enumerate(gpus) if name in (gpu.uuid, str(at))]
            if not found:
                there = ", ".join(f"{at} {gpu.uuid} ({gpu.name})" for at, gpu in enumerate(gpus))
                raise SettingsError(
                    f"--gpus: this machine has no GPU {name!r}.",
                    hint=f"It has {there}." if there else "It has none: leave --gpus out.",
                )
            lent += found
        return tuple(gpu for gpu in gpus if gpu in lent)


def default_data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the worker keeps its id, its token and unacknowledged output."""
    home = environment.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "gridx" / "worker"


class _Refusing(argparse.ArgumentParser):
    """Says what is wrong with an error instead of with the end of the process."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def parser(
    kind: type[argparse.ArgumentParser] = argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    """Return the parser of ``gridx-worker`` without its subcommands."""
    made = kind(
        prog="gridx-worker",
        description="Lend this machine: run jobs of the grid in locked-down containers.",
        epilog="Other commands: `gridx-worker image` builds the sandbox image,"
        " `gridx-worker check` says whether this machine is fit, `gridx-worker service` makes it"
        " a service; `status`, `pause`, `resume`, `drain`, `snooze` and `wake` speak to one that"
        " runs.",
    )
    made.add_argument("--user", default=os.environ.get("GRIDX_USER"), help="whose credits it earns")
    made.add_argument("--password", help="better in GRIDX_PASSWORD; asked for at a terminal")
    made.add_argument("--coordinator", default=DEFAULT_COORDINATOR, metavar="URL")
    made.add_argument("--data-dir", type=Path, metavar="DIR", help=f"default: {default_data_dir()}")
    made.add_argument(
        "--sandbox",
        choices=SANDBOXES,
        default="docker",
        help="'process' works without Docker, for your own jobs only",
    )
    made.add_argument("--name", default=socket.gethostname().split(".")[0][:64])
    made.add_argument("--cores", type=float, help="cores to lend; default: all")
    made.add_argument("--memory", type=_size, metavar="SIZE", help="memory to lend, as 4G")
    made.add_argument("--slots", type=int, help="jobs at a time; default: two for each core")
    made.add_argument("--warm", type=int, metavar="N", help="sandboxes kept warm at most")
    made.add_argument(
        "--drain-s", type=float, default=10.0, help="how long a stop waits for running jobs"
    )
    made.add_argument(
        "--cache",
        type=_size,
        metavar="SIZE",
        help="disk for inputs that jobs brought, kept for the next job of the same user;"
        " default: 4G, or a tenth of the free disk where that is less",
    )
    made.add_argument(
        "--max-result",
        type=_size,
        default=2 * GIB,
        metavar="SIZE",
        help="of the variables and files that one cell brings home; default: 2G",
    )
    made.add_argument("--runtime", help="another OCI runtime of the engine, such as runsc")
    _add_images(made)
    _add_lending(made)
    return made


def _add_images(made: argparse.ArgumentParser) -> None:
    """Add what sandboxes start from; docs/howto/images.md explains each."""
    images = made.add_argument_group("what jobs find in their sandbox")
    images.add_argument(
        "--python",
        type=_minors,
        default=(),
        metavar="MINORS",
        help="Pythons of sandboxes, the default one first, as 3.11,3.12; default: this one's",
    )
    images.add_argument(
        "--languages",
        type=_languages,
        default=DEFAULT_LANGUAGES,
        metavar="LIST",
        help="of python, bash, node; default: python,bash",
    )
    images.add_argument(
        "--images",
        type=_listed,
        default=(),
        metavar="NAMES",
        help="images of your own, built with `gridx-worker image --name NAME --add FILE`",
    )
    images.add_argument(
        "--pip",
        type=_switch,
        default=True,
        metavar="on|off",
        help="install what jobs list under --pip, in images of their own; default: on",
    )
    images.add_argument(
        "--pip-allow",
        type=_listed,
        metavar="NAMES",
        help="the only packages that jobs may have installed, those that they need among them",
    )
    images.add_argument(
        "--environments-max",
        type=_size,
        metavar="SIZE",
        help="disk for what --pip built; those used longest ago go first; default: half of --disk",
    )


def _listed(text: str) -> tuple[str, ...]:
    """Return the words of a list with commas, each once."""
    return tuple(dict.fromkeys(word for part in text.split(",") if (word := part.strip())))


def _minors(text: str) -> tuple[str, ...]:
    words = _listed(text)
    if wrong := [word for word in words if not re.fullmatch(r"3\.\d{1,2}", word)]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is no minor version such as 3.11")
    return words


def _languages(text: str) -> tuple[str, ...]:
    words = tuple(LANGUAGE_ALIASES.get(word, word) for word in _listed(text.lower()))
    if wrong := [word for word in words if word not in LANGUAGES]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(LANGUAGES)}")
    if not words:
        raise argparse.ArgumentTypeError("it names no language")
    return words


def _add_lending(made: argparse.ArgumentParser) -> None:
    """Add what makes lending polite; docs/howto/lend.md explains each."""
    lending = made.add_argument_group("when and to whom this machine is lent")
    lending.add_argument(
        "--config", type=Path, metavar="FILE", help="default: worker.toml in the data folder"
    )
    lending.add_argument(
        "--disk",
        type=_size,
        metavar="SIZE",
        help="disk for inputs and for environments that jobs ask for, half each",
    )
    lending.add_argument(
        "--gpus", default="all", help="all, none, or a list of UUIDs or indices, as 0,2"
    )
    lending.add_argument(
        "--hours", type=_hours, metavar="WHEN", help='as "mon-fri 18:00-08:00, sat, sun"'
    )
    lending.add_argument(
        "--pause-when-active",
        type=_switch,
        metavar="on|off",
        help="pause while the owner uses the machine; default: on where there is a desktop",
    )
    lending.add_argument(
        "--idle-for",
        type=_duration,
        default=DEFAULT_IDLE_FOR_S,
        metavar="TIME",
        help="the owner is away after this long without a touch; default: 5m",
    )
    lending.add_argument(
        "--pause-on-battery", type=_switch, default=True, metavar="on|off", help="default: on"
    )
    lending.add_argument(
        "--max-cpu-temp",
        type=_ceiling,
        default=DEFAULT_CPU_CEILING_C,
        metavar="CELSIUS",
        help="pause above it, or off; default: 90",
    )
    lending.add_argument(
        "--max-gpu-temp",
        type=_ceiling,
        default=DEFAULT_GPU_CEILING_C,
        metavar="CELSIUS",
        help="pause above it, or off; default: 85",
    )
    lending.add_argument(
        "--on-pause",
        type=OnPause,
        choices=list(OnPause),
        default=OnPause.FREEZE,
        metavar="finish|freeze|hand-back",
        help="what becomes of running jobs when a pause begins; default: freeze",
    )
    lending.add_argument(
        "--freeze-for",
        type=_duration,
        default=600.0,
        metavar="TIME",
        help="a job that stood still for so long is handed back; default: 10m",
    )
    lending.add_argument(
        "--accept",
        type=_accept,
        default=(Accepts.ANYONE, ()),
        metavar="WHOM",
        help="anyone, mine, or users:alice,bob",
    )


def _hours(text: str) -> Hours | str:
    try:
        return parse_hours(text) or "always"
    except SettingsError as error:
        raise argparse.ArgumentTypeError(f"{error.message} {error.hint}") from None


def _switch(text: str) -> bool:
    if text.lower() not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither on nor off")
    return text.lower() == "on"


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(f"{error.message} {error.hint}") from None


def _ceiling(text: str) -> float | None:
    if text.lower() == "off":
        return None
    try:
        ceiling_c = float(text)
    except ValueError:
        ceiling_c = 0.0
    if not 30 <= ceiling_c <= 120:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no temperature from 30 to 120 (degrees Celsius), and not off"
        )
    return ceiling_c


def _accept(text: str) -> tuple[Accepts, tuple[str, ...]]:
    word, _, names = text.partition(":")
    if word in ("anyone", "mine") and not names:
        return Accepts(word), ()
    if word != "users" or not names:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of anyone, mine or users:NAME,NAME")
    try:
        return Accepts.USERS, tuple(parse_user_name(name.strip()) for name in names.split(","))
    except GridXError as error:
        raise argparse.ArgumentTypeError(f"{error.message} {error.hint}") from None


def process_notice(checks: Sequence[Check]) -> str:
    """Return what ``--sandbox process`` limits on this machine, and what it does not.

    Args:
        checks: what was found when it was tried here.
    """
    kept = ", ".join(check.name for check in checks if check.kept)
    open_ones = "; ".join(
        f"{check.name} ({check.detail})" if check.detail else check.name
        for check in checks
        if not check.kept
    )
    return (
        "NOTICE: --sandbox process runs jobs as plain processes of this user, so it takes only"
        f" your own jobs. Held here: the time limit{', ' + kept if kept else ''}."
        f" Not held here: {open_ones or 'nothing that was tried'}."
        " Install Docker to lend this machine to others: docs/howto/install-docker.md."
    )


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(error.message) from None


def from_arguments(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> WorkerSettings:
    """Return the settings that a command line and the environment give.

    Raises:
        SettingsError: a value is wrong; the sentence names its option.
    """
    given = parser().parse_args([*_from_file(arguments, environment), *arguments])
    if not given.user:
        raise SettingsError(
            "Whose worker is it?", hint="Add --user NAME; its account earns the credits."
        )
    try:
        user = parse_user_name(given.user)
    except GridXError as error:
        raise SettingsError(f"--user: {error.message}", hint=error.hint) from None
    address = urlsplit(given.coordinator)
    if address.scheme not in ("ws", "wss") or not address.netloc:
        raise SettingsError(
            f"--coordinator: {given.coordinator!r} is not a WebSocket address.",
            hint=f"Write it as {DEFAULT_COORDINATOR}.",
        )
    if not address.path.strip("/"):
        address = address._replace(path=urlsplit(DEFAULT_COORDINATOR).path)
    for option, value in (("--cores", given.cores), ("--memory", given.memory)):
        if value is not None and value <= 0:
            raise SettingsError(f"{option}: {value} is nothing to lend.")
    if given.memory is not None and given.memory < GIB:
        raise SettingsError(
            f"--memory: {given.memory // MIB} MiB is less than one job of the default size.",
            hint="Lend at least 1G.",
        )
    for option, value, least in (
        ("--slots", given.slots, 1),
        ("--warm", given.warm, 1),
        ("--drain-s", given.drain_s, 0),
        ("--max-result", given.max_result, MIB),
        ("--disk", given.disk, 256 * MIB),
    ):
        if value is not None and value < least:
            raise SettingsError(f"{option}: {value} is less than {least}.")
    if given.freeze_for > LONGEST_FREEZE_S:
        raise SettingsError(
            f"--freeze-for: {format_duration(given.freeze_for)} is longer than 50 minutes.",
            hint="A coordinator gives up what stands still for an hour: set 50m or less.",
        )
    return WorkerSettings(
        user=user,
        password=given.password or environment.get("GRIDX_PASSWORD") or None,
        coordinator=address.geturl(),
        data_dir=given.data_dir or default_data_dir(environment),
        sandbox=given.sandbox,
        name=given.name,
        cores=given.cores,
        memory_bytes=given.memory,
        slots=given.slots,
        warm=given.warm,
        drain_s=given.drain_s,
        runtime=given.runtime,
        pythons=given.python,
        languages=given.languages,
        families=given.images,
        pip=given.pip,
        pip_allowed=(
            None
            if given.pip_allow is None
            else frozenset(re.sub(r"[-_.]+", "-", name).lower() for name in given.pip_allow)
        ),
        environments_max_bytes=given.environments_max,
        cache_bytes=given.cache if given.cache or not given.disk else given.disk // 2,
        max_result_bytes=given.max_result,
        disk_bytes=given.disk,
        gpus=_gpus(given.gpus),
        hours=None if given.hours == "always" else given.hours,
        pause_when_active=given.pause_when_active,
        idle_for_s=given.idle_for,
        pause_on_battery=given.pause_on_battery,
        max_cpu_temp_c=given.max_cpu_temp,
        max_gpu_temp_c=given.max_gpu_temp,
        on_pause=given.on_pause,
        freeze_for_s=given.freeze_for,
        accepts=given.accept[0],
        users=given.accept[1],
    )


def _gpus(text: str) -> tuple[str, ...] | None:
    """Return what ``--gpus`` names; None for all."""
    if text.strip().lower() == "all":
        return None
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return () if [name.lower() for name in names] == ["none"] else names


# ---------------------------------------------------------------- the file

NOT_IN_A_FILE: Final = {
    "help": "it is no setting",
    "config": "it names the file itself",
    "data-dir": "the file is looked for there",
    "password": "set GRIDX_PASSWORD once; the worker then keeps a token",
}


def _from_file(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return the options that the lender's file gives.

    Raises:
        SettingsError: it cannot be read, or has a key or a value that is none.
    """
    where = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    where.add_argument("--config", type=Path)
    where.add_argument("--data-dir", type=Path)
    known, _ = where.parse_known_args(arguments)
    path: Path = known.config or (known.data_dir or default_data_dir(environment)) / "worker.toml"
    try:
        found = tomllib.loads(path.read_text())
    except FileNotFoundError:
        if known.config is None:
            return []
        raise SettingsError(f"--config: there is no file {path}.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}.") from None
    return options_of(found, path)


def options_of(found: Mapping[str, Any], path: Path) -> list[str]:
    """Return the options that a file's keys mean.

    Args:
        found: its content.
        path: where it is from, for the sentence of an error.

    Raises:
        SettingsError: a key is unknown, or its value is wrong.
    """
    made = parser(_Refusing)
    known = {
        word.removeprefix("--"): action
        for action in made._actions
        for word in action.option_strings
        if word.startswith("--")
    }
    options: list[str] = []
    for key, value in found.items():
        name = key.replace("_", "-")
        if name not in known:
            raise SettingsError(
                f"{path}: there is no setting {key!r}.",
                hint="There are " + ", ".join(sorted(set(known) - set(NOT_IN_A_FILE))) + ".",
            )
        if name in NOT_IN_A_FILE:
            raise SettingsError(f"{path}: {key} cannot be set there: {NOT_IN_A_FILE[name]}.")
        words = [f"--{name}={word}" for word in _words(value, known[name], f"{path}: {key}")]
        try:
            made.parse_args(words)
        except SettingsError as error:
            raise SettingsError(f"{path}: {error.message}") from None
        options += words
    return options


def _words(value: Any, action: argparse.Action, where: str) -> list[str]:
    if isinstance(value, list) and all(isinstance(one, str | int) for one in value):
        words = [str(one) for one in value]
        return words if isinstance(action, argparse._AppendAction) else [",".join(words)]
    if isinstance(value, bool):
        return ["on" if value else "off"]
    if isinstance(value, str | int | float):
        return [str(value)]
    raise SettingsError(f"{where} is not a text, a number, true, false or a list of them.")


def ask_password(user: str) -> str | None:
    """Ask at a terminal for the password of ``user``; None where nobody can answer."""
    if not sys.stdin.isatty():
        return None
    return getpass.getpass(f"Password of {user}: ", stream=sys.stderr) or None
