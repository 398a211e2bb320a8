"""The Docker engine that the tests and the demo use: the one that answers, else a private one.

    python scripts/docker_engine.py run -- COMMAND...   COMMAND with DOCKER_HOST set; what was
                                                        started for it is stopped after it
    python scripts/docker_engine.py start               leave a private engine running
    python scripts/docker_engine.py env                 its DOCKER_HOST line, for `eval`
    python scripts/docker_engine.py stop                end it

A private engine has its own socket, data and state, no bridge and no firewall rule, and touches
no engine of the system. Debian and Ubuntu, as root: missing packages are installed by apt-get,
and their services are kept from starting. ``GRIDX_NO_INSTALL=1`` forbids both installing and
starting; then, and on every other system, this says what to type and fails.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import docker.errors
import requests

from gridx.errors import SandboxError
from worker.images import engine_client

REPOSITORY: Final = Path(__file__).resolve().parent.parent
PROGRAMS: Final = {  # Debian's package: the program that shows that it is there
    "docker.io": "dockerd",
    "debootstrap": "debootstrap",  # makes the image where no registry answers
    "procps": "ps",  # the engine lists a container's processes with it
}
# A runtime with a kernel of its own for each container: docs/howto/gvisor.md. It is offered where
# Debian's package is there. Always ptrace: KVM has been seen to hang inside a virtual machine.
GVISOR: Final = "runsc"
GVISOR_OPTIONS: Final = ("--platform=ptrace", "--network=none")
ANSWER_TIMEOUT_S: Final = 5.0
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
_started: Final[dict[Path, subprocess.Popen[bytes]]] = {}  # children of this process, to reap
EX_UNAVAILABLE: Final = 69  # sysexits.h: a service that is needed is not there


class EngineUnavailable(Exception):
    """No engine answers and none may be started; the text says what to type."""


@dataclass(frozen=True)
class Private:
    """Where the private engine of this clone lives."""

    data: Path  # images and layers, kept from run to run
    state: Path  # socket, pid and what vanishes with the engine; a short path, for the sockets

    @classmethod
    def of(cls, repository: Path = REPOSITORY) -> Private:
        """Return the places for the clone in ``repository``: the same ones at each call."""
        name = hashlib.blake2b(str(repository).encode(), digest_size=4).hexdigest()
        run = Path("/run") if os.access("/run", os.W_OK) else Path(tempfile.gettempdir())
        return cls(data=repository / ".cache" / "docker", state=run / f"gridx-docker-{name}")

    @property
    def host(self) -> str:
        return f"unix://{self.state}/docker.sock"

    @property
    def pidfile(self) -> Path:
        return self.state / "docker.pid"

    @property
    def log(self) -> Path:
        return self.state / "dockerd.log"

    @property
    def config(self) -> Path:
        """What the engine's command line cannot say: a runtime with options."""
        return self.state / "daemon.json"

    @property
    def kept(self) -> Path:
        """There while the engine was asked for by ``start``: then ``run`` does not end it."""
        return self.state / "kept"

    def lock(self, name: str) -> IO[str]:
        """Open a lock file beside the state, which itself goes and comes with the engine."""
        return self.state.with_name(f"{self.state.name}.{name}").open("w")

    def command(self) -> list[str]:
        # Sandboxes and builds have no network, so the engine needs neither bridge nor firewall.
        return [
            "dockerd",
            f"--config-file={self.config}",
            f"--host={self.host}",
            f"--data-root={self.data}",
            f"--exec-root={self.state}/exec",
            f"--pidfile={self.pidfile}",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
        ]

    def pid(self) -> int | None:
        """Return the running engine's pid; None where it is gone or the number is another's."""
        try:
            pid = int(self.pidfile.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if f"--pidfile={self.pidfile}".encode() in words else None


def say(line: str) -> None:
    """Show progress where it does not mix with output that somebody reads."""
    print(f"engine: {line}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- an engine that answers


def why_unusable(host: str | None) -> str | None:
    """Return why the engine at ``host`` (None: as the environment says) will not do; None: it does.

    Asks within ``ANSWER_TIMEOUT_S``; an engine that answers but cannot isolate is refused too.
    """
    try:
        api = engine_client(timeout_s=ANSWER_TIMEOUT_S, host=host)
    except SandboxError as error:
        return error.message.rstrip(".")
    try:
        info = api.info()
    except (docker.errors.DockerException, requests.RequestException) as error:
        return f"the engine does not say what it is ({error})"
    finally:
        api.close()
    if info.get("OSType") != "linux":
        return f"the engine runs {info.get('OSType')} containers; Linux ones are needed"
    missing = [
        words
        for field, words in (
            ("MemoryLimit", "memory"),
            ("PidsLimit", "number of processes"),
            ("CpuCfsQuota", "CPU share"),
        )
        if not info.get(field)
    ]
    if missing:
        return f"the engine answers, but cannot limit {', '.join(missing)} of a container"
    return None


def what_to_type(reason: str) -> str:
    """Return a sentence for people: what is wrong, and the commands that mend it here."""
    if platform.system() == "Darwin":
        how = "Install and start Docker Desktop or Colima, then try again."
    elif platform.system() == "Windows":
        how = "Install Docker Desktop with the WSL 2 backend, then try again inside WSL."
    elif shutil.which("apt-get"):
        how = (
            "Type:\n  sudo apt-get install -y docker.io debootstrap\n"
            "  sudo usermod -aG docker $USER   # then log in again\n"
            "or run the same command as root, without GRIDX_NO_INSTALL: it then starts a private "
            "engine and ends it after."
        )
    else:
        how = "Install Docker Engine with your system's packages and start it, then try again."
    return f"{reason[0].upper()}{reason[1:]}.\n{how}\nMore: docs/howto/install-docker.md"


# ---------------------------------------------------------------- a private one


def may_start() -> bool:
    """Return whether this process may install packages and start an engine."""
    return (
        os.environ.get("GRIDX_NO_INSTALL") != "1"
        and platform.system() == "Linux"
        and os.geteuid() == 0
        and shutil.which("apt-get") is not None
    )


def install() -> None:
    """Install what is missing by apt-get, with its progress shown; start no service of it.

    gVisor is installed where the system has a package of it, and done without elsewhere.
    """
    missing = [name for name, program in PROGRAMS.items() if shutil.which(program) is None]
    wants_gvisor = platform.machine() == "x86_64" and shutil.which(GVISOR) is None
    if not missing and not wants_gvisor:
        return
    with _no_service_starts():
        updated = _apt_get("update")
        if missing:
            say(f"installing {' and '.join(missing)} by apt-get")
            if failed := updated or _apt_get("install", *missing):
                raise EngineUnavailable(what_to_type(failed))
        if wants_gvisor and (failed := _apt_get("install", GVISOR)):
            say(f"going on without gVisor: {failed}")


def _apt_get(command: str, *packages: str) -> str:
    """Run one command of apt-get; return what failed, or nothing."""
    words = ["apt-get", "-qq", command]
    if packages:
        words += ["-y", "--no-install-recommends", *packages]
    done = subprocess.run(
        words,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        check=False,
    )
    if done.returncode == 0:
        return ""
    return f"`{' '.join(words)}` failed (exit code {done.returncode})"


def configuration() -> dict[str, object]:
    """Return the engine's daemon.json: gVisor as a runtime beside the default, where it is."""
    program = shutil.which(GVISOR)
    if program is None:
        return {}
    return {"runtimes": {GVISOR: {"path": program, "runtimeArgs": list(GVISOR_OPTIONS)}}}


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Let Debian's packages install without starting their services (policy-rc.d, exit 101)."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


def start_private(private: Private) -> None:
    """Start the private engine and return when it answers.

    Raises:
        EngineUnavailable: it ended or did not answer in time; the text ends with its log.
    """
    install()
    private.data.mkdir(parents=True, exist_ok=True)
    private.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    private.config.write_text(json.dumps(configuration()))
    say(f"starting a private engine ({private.host})")
    began = time.monotonic()
    with private.log.open("wb") as log:
        # Its own session: Ctrl-C reaches the command that uses it, and the engine ends last.
        process = subprocess.Popen(
            private.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _started[private.state] = process
    while (reason := why_unusable(private.host)) is not None:
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            if time.monotonic() - began < START_TIMEOUT_S:
                continue
            stop_private(private)
        tail = "\n".join(private.log.read_text(errors="replace").splitlines()[-8:])
        raise EngineUnavailable(
            what_to_type(f"the private engine did not start ({reason})") + f"\nIts log:\n{tail}"
        )
    say(f"ready after {time.monotonic() - began:.1f} s")


def stop_private(private: Private) -> None:
    """End the private engine with all its containers; nothing happens where it does not run."""
    if private.pid() is None:
        return
    _remove_containers(private)
    end_private(private, signal.SIGTERM, signal.SIGKILL)
    if private.pid() is None:
        shutil.rmtree(private.state, ignore_errors=True)


def end_private(private: Private, *numbers: int) -> None:
    """End the engine by these signals, the next when one did not; its containers are its own."""
    pid = private.pid()
    if pid is None:
        return
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number in numbers:
            signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], STOP_TIMEOUT_S)[0]:
                break
    except ProcessLookupError:
        pass  # it ended between the two lines
    finally:
        os.close(handle)
    if child := _started.pop(private.state, None):
        child.wait()


def _remove_containers(private: Private) -> None:
    """Kill what still runs, so that the engine does not wait ten seconds for each."""
    try:
        api = engine_client(timeout_s=10, host=private.host)
        for container in api.containers(all=True, quiet=True):
            api.remove_container(container["Id"], force=True)
        api.close()
    except (SandboxError, docker.errors.DockerException, requests.RequestException) as error:
        say(f"containers were left to the engine's own stop ({error})")


# ---------------------------------------------------------------- using one


@contextmanager
def using_engine(private: Private | None = None) -> Iterator[str | None]:
    """Yield the DOCKER_HOST to use (None: the default socket) while an engine answers there.

    Starts a private engine where none answers and that is allowed. The last user of a private
    engine ends it, unless ``start`` had asked for it to stay.

    Raises:
        EngineUnavailable: none answers and none may be started.
    """
    own = private or Private.of()
    reason = why_unusable(None)
    if reason is None:
        yield os.environ.get("DOCKER_HOST")
        return
    if not may_start():
        raise EngineUnavailable(what_to_type(reason))
    with own.lock("users") as users:
        # Shared while in use. Whoever stops the engine holds it alone, and is waited for here.
        fcntl.flock(users, fcntl.LOCK_SH)
        with own.lock("start") as start:
            fcntl.flock(start, fcntl.LOCK_EX)
            if why_unusable(own.host) is not None:
                start_private(own)
        try:
            yield own.host
        finally:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # another command uses it still, and will end it
            else:
                if not own.kept.exists():
                    stop_private(own)


def run(command: Sequence[str]) -> int:
    """Run ``command`` with an engine and return its exit code (128 + n for a signal)."""
    with using_engine() as host:
        environment = {**os.environ, **({"DOCKER_HOST": host} if host else {})}
        process = subprocess.Popen(command, env=environment)
        # Ctrl-C reaches the command as well: wait for its own orderly end, then end the engine.
        before = {
            number: signal.signal(number, lambda n, _: process.send_signal(n))
            for number in (signal.SIGTERM, signal.SIGHUP)
        }
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line described at the head of this file."""
    parser = argparse.ArgumentParser(
        description="The Docker engine for tests and demo: the one that answers, else a private one."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("start", help="make sure that an engine answers, and leave it running")
    commands.add_parser("stop", help="end the private engine")
    commands.add_parser("env", help="print the line that sets DOCKER_HOST")
    runner = commands.add_parser("run", help="run a command with an engine")
    runner.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    options = parser.parse_args(argv)
    private = Private.of()
    try:
        if options.command == "run":
            words = options.words[1:] if options.words[:1] == ["--"] else options.words
            if not words:
                parser.error("run needs a command: run -- COMMAND...")
            return run(words)
        if options.command == "start":
            if why_unusable(None) is None:
                say("an engine answers already; nothing to start")
                return 0
            private.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            private.kept.touch()
            with using_engine(private) as host:
                print(f"export DOCKER_HOST={host}")
            return 0
        if options.command == "stop":
            private.kept.unlink(missing_ok=True)
            stop_private(private)
            return 0
        if private.pid() is not None:
            print(f"export DOCKER_HOST={private.host}")
        return 0
    except EngineUnavailable as error:
        print(error, file=sys.stderr)
        return EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
