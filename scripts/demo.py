"""`make demo` and `make lab`: a coordinator, a worker and a notebook on them, all real.

Two accounts, a lender's and a user's, so that credits move. Docker where an engine answers or may
be started (see docker_engine.py), else the process sandbox with its notice and one account.
Everything lies in a temporary folder and ends with this program.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Final

import nbformat
from docker_engine import EngineUnavailable, using_engine
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from gridx.errors import SandboxError
from worker.images import engine_client, ensure_image

REPOSITORY: Final = Path(__file__).resolve().parent.parent
NOTEBOOK: Final = REPOSITORY / "examples" / "01_first_cell.ipynb"
RESULT_DIR: Final = REPOSITORY / ".cache" / "demo"
READY_WITHIN_S: Final = 60.0
STOP_WITHIN_S: Final = 30.0
CELL_TIMEOUT_S: Final = 120
LENDER: Final = "lender"
USER: Final = "scientist"
SIGNUP_GRANT: Final = 100.0  # of a new account in open mode
PASSWORD: Final = "only-for-this-demo"


class DemoFailed(Exception):
    """Something did not do what it must; the text says what, with the last lines of its log."""


# ---------------------------------------------------------------- the programs


class Program:
    """A daemon of ours in a child process, ready when its ready line has come."""

    def __init__(self, name: str, words: list[str], logs: Path) -> None:
        self.name = name
        self._log = logs / f"{name}.log"
        self._lines: Queue[str | None] = Queue()
        with self._log.open("wb") as log:
            # Its own session: Ctrl-C reaches this program first, which ends them in order.
            self._process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env={**os.environ, "GRIDX_PASSWORD": PASSWORD},
            )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def ready(self) -> dict[str, str]:
        """Return the fields of the line ``ready key=value …``."""
        deadline_s = time.monotonic() + READY_WITHIN_S
        with contextlib.suppress(Empty):
            while (
                line := self._lines.get(timeout=max(0.01, deadline_s - time.monotonic()))
            ) is not None:
                if line.startswith("ready "):
                    return dict(re.findall(r"(\w+)=(\S+)", line))
        raise DemoFailed(f"The {self.name} did not become ready.\n{self.tail()}")

    def tail(self) -> str:
        """Return the last lines of the program's log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])

    def stop(self) -> None:
        """End it in order, by force when it does not obey."""
        self._process.terminate()
        try:
            code = self._process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise DemoFailed(
                f"The {self.name} did not stop when asked to.\n{self.tail()}"
            ) from None
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()
        if code != 0:
            raise DemoFailed(f"The {self.name} ended with exit code {code}.\n{self.tail()}")


@dataclass(frozen=True)
class Grid:
    """A running coordinator with one worker."""

    url: str
    worker_id: str
    sandbox: str
    user: str
    lender: str

    def get(self, path: str) -> Any:
        """Return the JSON answer of ``GET path``."""
        with urllib.request.urlopen(self.url + path, timeout=10) as reply:
            return json.load(reply)

    def balance(self, user: str) -> float | None:
        """Return the user's balance in credits; None while nobody of that name has come by."""
        try:
            return float(self.get(f"/credits/{user}")["balance"])
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise


@contextmanager
def running_grid(sandbox: str, scratch: Path) -> Iterator[Grid]:
    """Start coordinator and worker on free ports; end both, worker first."""
    lender = LENDER if sandbox == "docker" else USER
    with ExitStack() as stack:
        coordinator = Program(
            "coordinator",
            [
                *("coordinator.main", "--http-port", "0", "--ws-port", "0"),
                *("--data-dir", str(scratch / "coordinator")),
            ],
            scratch,
        )
        stack.callback(coordinator.stop)
        addresses = coordinator.ready()
        say(f"coordinator at {addresses['http']}")
        worker = Program(
            "worker",
            [
                *("worker.main", "--coordinator", addresses["ws"], "--sandbox", sandbox),
                *("--user", lender),
                *("--data-dir", str(scratch / "worker")),
            ],
            scratch,
        )
        stack.callback(worker.stop)
        ready = worker.ready()
        say(f"worker {ready['worker']}, lent by {lender}, sandbox: {ready['sandbox']}")
        yield Grid(addresses["http"], ready["worker"], sandbox, USER, lender)


# ---------------------------------------------------------------- Docker or not


@contextmanager
def sandbox_choice(scratch: Path) -> Iterator[str]:
    """Yield "docker" while an engine with the image is at hand, else "process" with its notice."""
    with ExitStack() as stack:
        try:
            host = stack.enter_context(using_engine())
            if host:
                os.environ["DOCKER_HOST"] = host
            info = ensure_image(engine_client())
            say(f"sandbox image {info.tag}")
        except EngineUnavailable as unavailable:
            reason = str(unavailable)
        except SandboxError as error:
            reason = str(error)
        else:
            yield "docker"
            return
        notice = "\n".join(f"  | {line}" for line in reason.splitlines())
        say(
            f"no container for this demo:\n{notice}\n"
            "  | It goes on with `--sandbox process`: a plain process of yours, which isolates\n"
            "  | nothing, so it takes only your own jobs, and those cost nothing."
        )
        yield "process"


# ---------------------------------------------------------------- the notebook


class ShownNotebook(NotebookClient):
    """A notebook whose outputs are printed while they come."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._changed: dict[str, str] = {}

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        """Take a message of the kernel, and print what a person would see of it."""
        content = msg["content"]
        match msg["msg_type"]:
            case "execute_input":
                print(f"\n{_quoted(cell.source, '    ')}", flush=True)
            case "stream":
                print(content["text"], end="", flush=True)
            case "display_data" | "execute_result":
                print(_shown(content["data"]), flush=True)
            case "update_display_data":
                # A progress line changes many times; what it says in the end is worth a line.
                key = content.get("transient", {}).get("display_id", "")
                self._changed[key] = _shown(content["data"])
            case "status" if content["execution_state"] == "idle":
                for text in self._changed.values():
                    print(text, flush=True)
                self._changed.clear()
            case "error":
                lines = content["traceback"] or [f"{content['ename']}: {content['evalue']}"]
                print("\n".join(lines), flush=True)
        return super().process_message(msg, cell, cell_index)


def _quoted(text: str, mark: str) -> str:
    return "\n".join(mark + line for line in text.splitlines())


def _shown(data: dict[str, Any]) -> str:
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f"[{kind}, {len(data[kind]) * 3 // 4:,} bytes]"
    return str(data.get("text/plain", f"[{', '.join(data)}]"))


def run_notebook(grid: Grid) -> Path:
    """Run the example for the demo's user and return where the executed copy lies."""
    os.environ.update(GRIDX_URL=grid.url, GRIDX_USER=grid.user)
    os.environ.pop("GRIDX_TOKEN", None)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = ShownNotebook(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        extra_arguments=["--log-level=40"],  # errors only
    )
    try:
        client.execute(cwd=str(NOTEBOOK.parent))
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise DemoFailed(f"A cell of the notebook failed.\n{error}") from error
    RESULT_DIR.mkdir(parents=True, exist_ok=True)
    result = RESULT_DIR / NOTEBOOK.name
    nbformat.write(notebook, result)
    return result


def run_lab(grid: Grid, scratch: Path) -> None:
    """Open JupyterLab on a copy of the examples until Ctrl-C."""
    copy = scratch / "examples"
    shutil.copytree(NOTEBOOK.parent, copy)
    words = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--notebook-dir={copy}"]
    if os.geteuid() == 0:
        words.append("--allow-root")
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or _is_mac()):
        words.append("--no-browser")
    say("JupyterLab starts; open 01_first_cell.ipynb. Ctrl-C twice ends everything.")
    environment = {**os.environ, "GRIDX_URL": grid.url, "GRIDX_USER": grid.user}
    lab = subprocess.Popen(words, env=environment)
    try:
        while lab.poll() is None:
            # JupyterLab asks for a second Ctrl-C itself; it is the one that decides to end.
            with contextlib.suppress(KeyboardInterrupt):
                lab.wait()
    finally:
        if lab.poll() is None:
            lab.terminate()
            lab.wait(STOP_WITHIN_S)


def _is_mac() -> bool:
    return sys.platform == "darwin"


# ---------------------------------------------------------------- what happened


def say(line: str) -> None:
    """Show progress."""
    print(f"demo: {line}", flush=True)


def show_jobs(grid: Grid) -> float:
    """Print the user's jobs, oldest first, and return what they cost together, in credits."""
    jobs = grid.get(f"/jobs?user_id={grid.user}")["jobs"]
    print("\n  job                                        status      seconds    credits")
    for job in reversed(jobs):
        print(
            f"  {job['job_id']:<42} {job['status']:<10} {job['elapsed_s'] or 0:>8.3f} "
            f"{job['cost']:>10.6f}"
        )
    if not jobs:
        raise DemoFailed("The notebook ran, but no job reached the coordinator.")
    return math.fsum(job["cost"] for job in jobs)


def show_balances(grid: Grid, before: dict[str, float], cost: float) -> None:
    """Print every balance before and after, and check that they moved by the cost."""
    print("\n  account         before        after        moved")
    moved = {}
    for user, was in before.items():
        now = grid.balance(user) or 0.0
        moved[user] = now - was
        print(f"  {user:<10} {was:>11.6f}  {now:>11.6f}  {moved[user]:>+11.6f}")
    if grid.sandbox == "process":
        print("  own jobs on one's own machine cost nothing")
    expected = 0.0 if grid.lender == grid.user else -cost
    if not math.isclose(moved[grid.user], expected, abs_tol=1e-9):
        raise DemoFailed(f"The user's balance moved by {moved[grid.user]}, not by {expected}.")
    if grid.lender != grid.user and not (cost > 0 and 0 < moved[grid.lender] < cost):
        raise DemoFailed(
            f"The jobs cost {cost}; the lender's balance moved by {moved[grid.lender]}."
        )


def check_nothing_left(worker_id: str) -> None:
    """Look for containers of the worker that has ended."""
    api = engine_client(timeout_s=10)
    try:
        left = api.containers(all=True, quiet=True, filters={"label": f"gridx.worker={worker_id}"})
    finally:
        api.close()
    if left:
        raise DemoFailed(f"The worker has ended and left {len(left)} containers behind.")


def show(options: argparse.Namespace) -> None:
    """Run the whole demo, or the lab on its grid."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gridx-demo-") as folder:
        scratch = Path(folder)
        with sandbox_choice(scratch) as sandbox:
            with running_grid(sandbox, scratch) as grid:
                if options.lab:
                    run_lab(grid, scratch)
                    return
                # An account is opened, with its grant, by whoever uses its name first.
                before = {
                    user: known if (known := grid.balance(user)) is not None else SIGNUP_GRANT
                    for user in dict.fromkeys((grid.user, grid.lender))
                }
                say(f"this machine is {socket.gethostname()}, this user {getpass.getuser()}")
                say(f"{NOTEBOOK.relative_to(REPOSITORY)}, run for the account {grid.user}")
                result = run_notebook(grid)
                say(f"the notebook is done; with its outputs: {result.relative_to(REPOSITORY)}")
                show_balances(grid, before, show_jobs(grid))
            if sandbox == "docker":
                check_nothing_left(grid.worker_id)
    print()
    say(f"everything is stopped; {time.monotonic() - began:.0f} s in all")


def main() -> int:
    """Run the command line; exit code 0 when everything did what it must."""
    parser = argparse.ArgumentParser(description="A grid on this machine, and a notebook on it.")
    parser.add_argument("--lab", action="store_true", help="open JupyterLab instead")
    options = parser.parse_args()
    # What was started is ended on the way out, so a polite kill must take that way too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: sys.exit(128 + n))
    try:
        show(options)
    except DemoFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
