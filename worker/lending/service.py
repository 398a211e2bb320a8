"""`gridx-worker service`: the worker as a service of this user, started at login or at boot."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from gridx.errors import SettingsError

from ..settings import default_data_dir

UNIT: Final = "gridx-worker.service"
EXAMPLE_COMMAND: Final = ("/usr/bin/env", "gridx-worker")  # what deploy/ has, before an install

_TEXT: Final = """\
# A Grid-X worker as a service of one user. `gridx-worker service --install` writes this file with
# the paths of this machine to ~/.config/systemd/user; its settings are in worker.toml in the data
# folder. docs/howto/lend.md explains both.
[Unit]
Description=Grid-X worker: lends this machine when its owner does not need it
After=network-online.target docker.service
StartLimitIntervalSec=10min
StartLimitBurst=5

[Service]
Type=simple
ExecStart={start}
# A stop gives jobs --drain-s (10 s) to end and hands the rest back: nobody loses a try.
# `gridx-worker drain` lets them all end first; it leaves with 0, and is not restarted.
KillSignal=SIGTERM
KillMode=mixed
TimeoutStopSec=60
Restart=on-failure
RestartSec=10
# The coordinator refuses this worker: the same again would be refused again.
RestartPreventExitStatus=2
{environment}
# The worker itself gives way to everything else. Its containers are the engine's, and have the
# processor share and memory that each job was given.
Nice=10
CPUWeight=idle
IOSchedulingClass=idle
OOMScoreAdjust=300

# What a worker that talks to the Docker socket can still do without. The socket itself is as good
# as root: this narrows mistakes, not a break-out.
NoNewPrivileges=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
UMask=0077

[Install]
WantedBy=default.target
"""


def unit(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Return the unit file.

    Args:
        command: starts the worker: a path and its arguments.
        environment: what it needs beside.
    """
    lines = [
        f"Environment={_quoted(f'{key}={value}')}" for key, value in (environment or {}).items()
    ]
    return _TEXT.format(
        start=" ".join(_quoted(word) for word in command), environment="\n".join(lines)
    )


def _quoted(word: str) -> str:
    # systemd has its own marks: % begins a specifier, and $ a variable
    safe = word.replace("%", "%%").replace("$", "$$")
    if safe and all(letter.isalnum() or letter in "/._-=:,@%$+" for letter in safe):
        return safe
    return '"' + safe.replace("\\", "\\\\").replace('"', '\\"') + '"'


def own_command() -> tuple[str, ...]:
    """Return how this very program is started, by absolute paths."""
    script = Path(sys.argv[0])
    if script.name == "gridx-worker":
        found = shutil.which(str(script)) or str(script)
        return (str(Path(found).absolute()),)
    return (sys.executable, "-m", "worker.main")


def folder_of_units(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where systemd looks for this user's units."""
    config = environment.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "systemd" / "user"


def install(text: str, folder: Path) -> Path:
    """Write the unit and return where it is.

    Raises:
        SettingsError: the folder cannot be written.
    """
    path = folder / UNIT
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written: {error.strerror}.",
            hint="Print it with `gridx-worker service` and put it where your units are.",
        ) from error
    return path


def main(arguments: Sequence[str]) -> int:
    """Print the unit, or install it."""
    made = argparse.ArgumentParser(
        prog="gridx-worker service",
        description="Print a systemd unit that runs this worker for this user, or install it.",
        epilog="What follows -- are options of the worker, kept in the unit; worker.toml in the"
        " data folder is the better place for most.",
    )
    made.add_argument("--install", action="store_true", help="write it and reload systemd")
    made.add_argument("--data-dir", type=Path, metavar="DIR", help="of the worker")
    made.add_argument("options", nargs="*", metavar="-- OPTION", help="of the worker")
    given = made.parse_args(arguments)
    command = list(own_command())
    if given.data_dir is not None:
        command += ["--data-dir", str(given.data_dir.absolute())]
    command += given.options
    host = os.environ.get("DOCKER_HOST")
    text = unit(command, {"DOCKER_HOST": host} if host else None)
    if not given.install:
        print(text, end="")
        return 0
    try:
        path = install(text, folder_of_units())
    except SettingsError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        return 1
    data_dir = given.data_dir or default_data_dir()
    print(f"wrote {path}")
    if shutil.which("systemctl") is not None:
        subprocess.run(
            ["systemctl", "--user", "daemon-reload"], check=False, stderr=subprocess.DEVNULL
        )
    print(
        f"1. Start the worker once at a terminal, so that it gets its token: {shlex.join(command)}\n"
        f"2. Put its settings into {data_dir / 'worker.toml'}.\n"
        "3. systemctl --user enable --now gridx-worker\n"
        "4. To go on when you are logged out: loginctl enable-linger"
    )
    return 0
