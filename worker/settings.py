"""What the lender allows: one frozen value, read from arguments and the environment."""

from __future__ import annotations

import argparse
import getpass
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from gridx.errors import GridXError, InvalidRequest, SettingsError
from gridx.ids import parse_user_name
from gridx.quantities import parse_size
from gridx.resources import GIB, MIB

DEFAULT_COORDINATOR: Final = "ws://localhost:8080/ws/worker"
SANDBOXES: Final = ("docker", "process")
PROCESS_NOTICE: Final = (
    "NOTICE: --sandbox process runs jobs as plain processes of this user. It takes only your own"
    " jobs, and it cannot limit total memory, disk, the number of processes or the network."
    " Install Docker to lend this machine to others: docs/howto/install-docker.md."
)


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
    python: str | None = None  # minor version of the sandbox's Python; this process's when None
    cache_bytes: int | None = None  # of jobs' inputs kept on disk; 4 GiB or a tenth of what is free
    max_result_bytes: int = 2 * GIB  # of one call


def default_data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the worker keeps its id, its token and unacknowledged output."""
    home = environment.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "gridx" / "worker"


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``gridx-worker`` without its subcommands."""
    made = argparse.ArgumentParser(
        prog="gridx-worker",
        description="Lend this machine: run jobs of the grid in locked-down containers.",
        epilog="Other commands: `gridx-worker image` builds the sandbox image,"
        " `gridx-worker check` says whether this machine is fit.",
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
    made.add_argument("--warm", type=int, metavar="N", help="sandboxes kept warm")
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
    made.add_argument("--python", metavar="MINOR", help="Python of the sandbox, as 3.11")
    return made


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
    given = parser().parse_args(arguments)
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
    ):
        if value is not None and value < least:
            raise SettingsError(f"{option}: {value} is less than {least}.")
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
        python=given.python,
        cache_bytes=given.cache,
        max_result_bytes=given.max_result,
    )


def ask_password(user: str) -> str | None:
    """Ask at a terminal for the password of ``user``; None where nobody can answer."""
    if not sys.stdin.isatty():
        return None
    return getpass.getpass(f"Password of {user}: ", stream=sys.stderr) or None
