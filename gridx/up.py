"""``gridx up``: a coordinator and one worker in one terminal.

Both are started by their module names in processes of their own; nothing of them is imported
here. They run in their own sessions, so that Ctrl-C reaches this process alone and both are
ended in order: the worker first, which hands its jobs back, then the coordinator.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .engine import find_engine
from .errors import ProgramEnded, SettingsError, TransportError
from .terminal import plain_text

_WORKER_STOP_S: Final = 30.0
_COORDINATOR_STOP_S: Final = 15.0
_KILLED_S: Final = 5.0
_LAST_LINES: Final = 15
_LONGEST_LINE_BYTES: Final = 1 << 20
_FIELD = re.compile(r"(\w+)=(\S+)")
_CAUSES: Final = ("error", "reason")
_LEVELS_SHOWN: Final = ("warning", "error", "critical")


@dataclass(frozen=True)
class UpOptions:
    """What ``gridx up`` was told."""

    http_port: int
    ws_port: int
    data_dir: Path | None
    sandbox: str  # "auto" | "docker" | "process"
    user: str
    password: str | None
    verbose: bool = False


class _Program:
    """One child: its ready line, its last lines, its end."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, *, verbose: bool) -> None:
        self.name = name
        self.process = process
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self.ready: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        self._verbose = verbose
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = asyncio.gather(
            self._read(process.stdout, self._out), self._read(process.stderr, self._err)
        )
        self.ended = asyncio.create_task(self._wait(), name=f"gridx up: {name}")

    @classmethod
    async def start(
        cls, name: str, arguments: list[str], *, verbose: bool, environ: Mapping[str, str]
    ) -> _Program:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(environ),
            start_new_session=True,
            limit=_LONGEST_LINE_BYTES,
        )
        return cls(name, process, verbose=verbose)

    async def _wait(self) -> int:
        code = await self.process.wait()
        await self._readers  # its last words
        return code

    async def _read(self, stream: asyncio.StreamReader, take: Callable[[str], None]) -> None:
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # longer than the limit, and dropped
                continue
            if not line:
                return
            take(line.decode(errors="replace").rstrip("\n"))

    def _out(self, line: str) -> None:
        if line.startswith("ready ") and not self.ready.done():
            self.ready.set_result(dict(_FIELD.findall(line)))
        else:
            self._err(line)

    def _err(self, line: str) -> None:
        level, text = _log_line(line)
        self.last_lines.append(text)
        is_progress = not self.ready.done() and not line.startswith("{")
        if self._verbose or is_progress or level in _LEVELS_SHOWN:
            say(f"{self.name}: {text}")

    async def until_ready(self) -> dict[str, str]:
        """Return the fields of its ready line.

        Raises:
            ProgramEnded: it ended before.
        """
        either: set[asyncio.Future[Any]] = {self.ready, self.ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self.ready.done():
            raise self.has_ended()
        return self.ready.result()

    def has_ended(self) -> ProgramEnded:
        """Show its last lines; return the error that tells of its end."""
        say(f"the last lines of the {self.name}:")
        for line in self.last_lines:
            print(f"    {line}", file=sys.stderr)
        code = self.process.returncode
        return ProgramEnded(f"The {self.name} ended by itself ({_how(code)}).", exit_code=code)

    async def stop(self, within_s: float) -> None:
        """End it in order; kill it when that takes longer than ``within_s``."""
        for number, patience_s in ((signal.SIGTERM, within_s), (signal.SIGKILL, _KILLED_S)):
            if self.ended.done():
                return
            try:
                self.process.send_signal(number)
            except ProcessLookupError:
                pass  # it ended between the look and the signal
            await asyncio.wait({self.ended}, timeout=patience_s)


def _log_line(line: str) -> tuple[str, str]:
    """Return level and text of a line of a daemon's log, which is JSON, or of any other line."""
    try:
        record = json.loads(line)
        parts = [str(record["message"]), *(str(record[key]) for key in _CAUSES if record.get(key))]
        if traceback := str(record.get("traceback", "")).strip():
            parts.append(traceback.rpartition("\n")[2])
        return str(record["level"]).lower(), plain_text(": ".join(parts))
    except (ValueError, TypeError, KeyError):
        return "", plain_text(line)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def say(text: str) -> None:
    """Write one line of progress on stderr."""
    print(f"gridx up: {text}", file=sys.stderr, flush=True)


def kept_password(user: str, folder: Path) -> str:
    """Return the password that ``gridx up`` made for ``user`` the first time, from a 0600 file.

    The account belongs to whoever owns this folder; the worker logs in with it.
    """
    path = folder / "up-passwords.json"
    try:
        known = json.loads(path.read_text()) if path.exists() else {}
        if user not in known:
            known[user] = secrets.token_urlsafe(24)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                json.dump(known, stream)
            part.replace(path)
        return str(known[user])
    except (OSError, ValueError, TypeError) as exc:
        raise SettingsError(
            f"{path} cannot be used: {exc}.", hint="Pass --password, or another --data-dir."
        ) from None


def choose_sandbox(wanted: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return "docker" or "process"; "auto" takes Docker when an engine answers."""
    if wanted != "auto":
        return wanted
    engine = find_engine(environ)
    if engine.answers:
        return "docker"
    say(
        f"NOTICE: no Docker engine here ({engine.reason} at {engine.address}). Your jobs run as"
        " plain processes of this user: only your own, and less limited. With Docker running,"
        " start again to have containers."
    )
    return "process"


def data_home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return ``$XDG_DATA_HOME/gridx``, by default under ``~/.local/share``."""
    base = environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "gridx"


async def run(options: UpOptions, environ: Mapping[str, str] = os.environ) -> int:
    """Start both, print the ready line, and stay until a signal or the end of one of them."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    running = asyncio.current_task()

    def stop() -> None:
        if stopping.is_set() and running is not None:
            running.cancel()  # asked twice: do not wait for an orderly end
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    programs: list[_Program] = []
    work = asyncio.create_task(_start_and_watch(options, programs, environ))
    told = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({work, told}, return_when=asyncio.FIRST_COMPLETED)
        if stopping.is_set():
            say("stopping")
        await _end(work)
        for program, within_s in zip(
            reversed(programs),
            (_WORKER_STOP_S, _COORDINATOR_STOP_S)[-len(programs) :],
            strict=False,
        ):
            await program.stop(within_s)
        if not work.cancelled() and (error := work.exception()) is not None:
            raise error
        return 0
    except asyncio.CancelledError:
        return 130
    finally:
        told.cancel()
        for program in programs:
            if not program.ended.done():
                await asyncio.shield(program.stop(0))


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def _start_and_watch(
    options: UpOptions, programs: list[_Program], environ: Mapping[str, str]
) -> None:
    sandbox = await asyncio.to_thread(choose_sandbox, options.sandbox, environ)
    folder = options.data_dir or data_home(environ)
    password = options.password or kept_password(options.user, folder)
    ports = [*("--http-port", str(options.http_port)), *("--ws-port", str(options.ws_port))]
    coordinator = await _Program.start(
        "coordinator",
        ["coordinator.main", *ports, *_data(options.data_dir, "coordinator")],
        verbose=options.verbose,
        environ=environ,
    )
    programs.append(coordinator)
    addresses = await coordinator.until_ready()
    if "http" not in addresses or "ws" not in addresses:
        raise TransportError("The coordinator's ready line names no addresses.")
    say(f"coordinator at {addresses['http']}; starting its first worker ({sandbox} sandbox)")
    worker = await _Program.start(
        "worker",
        [
            *("worker.main", "--coordinator", addresses["ws"], "--sandbox", sandbox),
            *("--user", options.user, *_data(options.data_dir, "worker")),
        ],
        verbose=options.verbose,
        environ={**environ, "GRIDX_PASSWORD": password},  # not where `ps` shows it
    )
    programs.append(worker)
    ready = asyncio.create_task(worker.until_ready())
    await asyncio.wait({ready, coordinator.ended}, return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        ready.cancel()
        raise coordinator.has_ended()
    ready.result()
    print(f"ready http={addresses['http']} ws={addresses['ws']}", flush=True)
    say(f"your jobs run as {options.user}; Ctrl-C stops everything")
    await asyncio.wait({coordinator.ended, worker.ended}, return_when=asyncio.FIRST_COMPLETED)
    raise (coordinator if coordinator.ended.done() else worker).has_ended()


def _data(folder: Path | None, name: str) -> list[str]:
    return [] if folder is None else ["--data-dir", str(folder / name)]
