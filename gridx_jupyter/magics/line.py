"""``%gridx``: the grid from a notebook, in one line each."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NoReturn

from IPython.core.magic import Magics, line_magic, magics_class, no_var_expand

from gridx.credits import format_credits, from_credits
from gridx.display import TextCleaner, clean_line, clean_text
from gridx.errors import GridXError, NotBuilt, TransportError
from gridx.events import ErrorOutput, OutputDropped, Stream
from gridx.quantities import format_duration
from gridx.resources import format_bytes
from gridx.settings import normalise_url
from gridx.states import FINAL_JOB_STATES
from gridx.terminal import table
from gridx.updates import EventArrived

from ..connection import Connection, unreachable
from .failures import shown_as_sentence
from .options import nearest, options_help, usage_error

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from gridx.schemas import AccountView, JobView, WorkerView

COMMANDS: Final = {
    "status": "the grid, and who you are there",
    "login": "login [URL] [--user NAME] [--token TOKEN]: go to a coordinator and remember it",
    "jobs": "jobs [-n COUNT]: your jobs, newest first",
    "logs": "logs JOB [--to FILE]: the whole output of a job",
    "cancel": "cancel JOB: stop a job; the time it ran is charged",
    "balance": "your credits",
    "workers": "who lends what",
    "help": "help [cell|TOPIC]: this list, or the options of %%gridx",
}
NOT_BUILT: Final = (
    "attach", "result", "retry", "why", "needs", "cost", "cache", "session", "trust", "prelude",
    "on", "off", "set", "doctor",
)  # fmt: skip
USAGE: Final = "Usage: %gridx " + " | ".join(COMMANDS) + "."
TOPICS: Final = {
    "cell": "%%gridx [options] on the first line of a cell runs it on a worker.\n{options}\n"
    "Sizes are 512M or 8G, times 90, 10m or 1h30m. {{expression}} is expanded in values.",
    "secrets": "Variables that look like secrets (key, token, password) and os.environ never "
    "travel unasked.\n--needs NAME sends one; whoever owns the worker can read it.",
    "credits": "A cell holds its price for its whole --timeout and pays for the time that it "
    "ran;\nthe rest comes back at once. Lending a machine earns credits: `gridx up`.",
    "results": "Names that the cell binds come home as data. What is not plain data (sockets,\n"
    "models of libraries) comes home unopened, as an Opaque. --out a,b brings only these.",
    "interrupt": "The stop button stops the cell on the worker; the time it ran is charged.\n"
    "A second press leaves at once and names the job: `%gridx cancel JOB`.",
}


class _Parser(argparse.ArgumentParser):
    """Raises a one-line UsageError instead of ending the kernel."""

    def error(self, message: str) -> NoReturn:
        raise usage_error(f"%gridx {self.prog}: {message}.", USAGE, "")


def _credits(amount: float) -> str:
    return format_credits(from_credits(amount))


def jobs_text(jobs: Sequence[JobView]) -> str:
    """Return jobs as a table."""
    if not jobs:
        return "No jobs yet. Put %%gridx on the first line of a cell to run it on the grid."
    head = ("JOB", "STATUS", "WORKER", "TIME", "COST", "CREATED (UTC)")
    rows = [
        (
            job.job_id,
            job.status,
            job.worker_name or "",
            "" if job.elapsed_s is None else format_duration(job.elapsed_s),
            _credits(job.cost),
            f"{job.created_at:%Y-%m-%d %H:%M:%S}",
        )
        for job in jobs
    ]
    return table(head, rows, right=(3, 4))


def workers_text(workers: Sequence[WorkerView]) -> str:
    """Return workers as a table."""
    online = [worker for worker in workers if worker.status == "online"]
    if not online:
        return "No worker is online. Lend this machine with `gridx up` in a terminal."
    head = ("WORKER", "OWNER", "FREE CORES", "FREE MEMORY", "GPUS", "RUNNING", "SANDBOX", "PYTHON")
    rows = [
        (
            worker.name,
            worker.owner,
            f"{worker.free_cores:g} of {offer.cores:g}",
            f"{format_bytes(worker.free_memory_bytes)} of {format_bytes(offer.memory_bytes)}",
            str(len(offer.gpus)),
            str(worker.running),
            offer.sandbox,
            ", ".join(sorted({image.python for image in offer.images if image.python})),
        )
        for worker in online
        for offer in (worker.capability,)
    ]
    return table(head, rows, right=(4, 5))


def balance_text(account: AccountView) -> str:
    """Return whose account has how much: six decimals, which show what one small cell cost."""
    held = f" ({_credits(account.held)} held for jobs)" if account.held else ""
    return f"{account.user_id}: {account.balance:,.6f} credits{held}"


@magics_class
class LineMagic(Magics):
    """``%gridx SUBCOMMAND``."""

    def __init__(self, shell: InteractiveShell, connection: Connection) -> None:
        super().__init__(shell=shell)
        self._connection = connection

    @no_var_expand
    @line_magic
    def gridx(self, line: str) -> None:
        """Look after the grid: %gridx status | login | jobs | logs | cancel | balance | workers

        %gridx help lists them; %%gridx on the first line of a cell runs the cell on a worker.
        """
        words = line.split()
        if not words:
            print("Put %%gridx on the first line of a cell to run it on the grid. " + USAGE)
            return
        command = words[0]
        if command in NOT_BUILT:
            raise shown_as_sentence(
                NotBuilt(f"%gridx {command} is not in this release.", hint=USAGE)
            )
        if command not in COMMANDS:
            self._refuse(command)
        action: Callable[[list[str]], None] = getattr(self, f"_{command}")
        try:
            action(words[1:])
        except TransportError as exc:
            error: GridXError = unreachable(self._connection.settings, exc)
        except GridXError as exc:
            error = exc
        else:
            return
        raise shown_as_sentence(error) from None

    @staticmethod
    def _refuse(command: str) -> NoReturn:
        if command.startswith("--"):
            raise usage_error(
                f"{command} is an option of %%gridx: two percent signs, on the first line of a cell.",
                USAGE,
                "",
            )
        raise usage_error(
            f"%gridx has no {command!r}.{nearest(command, [*COMMANDS, *NOT_BUILT])} "
            f"To run code on the grid put it below a line %%gridx.",
            USAGE,
            "",
        )

    def _status(self, words: list[str]) -> None:
        _Parser("status", add_help=False).parse_args(words)
        settings = self._connection.settings
        self._connection.welcome()  # in open mode this opens the account of a new user
        status = self._connection.client.status()
        account = self._connection.client.balance()
        print(
            f"{settings.url}, as {settings.user} ({status.auth} mode, version {status.version})\n"
            f"Workers: {status.workers_online} online, {status.cores:g} cores. "
            f"Jobs: {status.jobs_running} running, {status.jobs_queued} queued.\n"
            f"Balance: {_credits(account.available)} credits free, {_credits(account.held)} held."
        )

    def _login(self, words: list[str]) -> None:
        parser = _Parser("login", add_help=False)
        parser.add_argument("url", nargs="?")
        parser.add_argument("--user")
        parser.add_argument("--token")
        given = parser.parse_args(words)
        settings = self._connection.login(given.url, given.user, given.token)
        account = self._connection.client.balance()
        free = _credits(account.available)
        print(f"Logged in at {settings.url} as {settings.user}: {free} credits free.")
        other = os.environ.get("GRIDX_URL", settings.url)
        if normalise_url(other) != settings.url:
            print(f"GRIDX_URL is set and wins when a kernel starts: {clean_line(other)}")

    def _jobs(self, words: list[str]) -> None:
        parser = _Parser("jobs", add_help=False)
        parser.add_argument("-n", type=int, default=20)
        given = parser.parse_args(words)
        print(jobs_text(self._connection.client.jobs(limit=given.n).jobs))

    def _job_id(self, command: str, words: list[str]) -> str:
        parser = _Parser(command, add_help=False)
        parser.add_argument("job", metavar="JOB")
        return str(parser.parse_args(words).job)

    def _logs(self, words: list[str]) -> None:
        parser = _Parser("logs", add_help=False)
        parser.add_argument("job", metavar="JOB")
        parser.add_argument("--to", metavar="FILE", type=Path)
        given = parser.parse_args(words)
        view = self._connection.client.job(given.job)
        if view.status not in FINAL_JOB_STATES:  # what there is so far
            sys.stdout.write(clean_text(view.stdout))
            sys.stderr.write(clean_text(view.stderr))
            print(f"[{view.job_id} is {clean_line(view.status, 20)}]")
        elif given.to is None:
            self._replay(given.job, {"stdout": sys.stdout, "stderr": sys.stderr})
        else:
            with given.to.open("w", encoding="utf-8") as file:
                self._replay(given.job, {"stdout": file, "stderr": file})
            print(f"{format_bytes(given.to.stat().st_size)} in {given.to}")

    def _replay(self, job_id: str, targets: Mapping[str, IO[str]]) -> None:
        """Write the stored output of a job that has ended, all of it, in its order."""
        cleaners = {name: TextCleaner() for name in targets}
        for update in self._connection.client.attach(job_id).updates():
            if not isinstance(update, EventArrived):
                continue
            event = update.event
            if isinstance(event, Stream):
                targets[event.name].write(cleaners[event.name].feed(event.text))
            elif isinstance(event, OutputDropped):
                size = format_bytes(max(0, event.dropped_bytes))
                targets["stdout"].write(f"\n[{size} were over the limit and are not kept]\n")
            elif isinstance(event, ErrorOutput):
                from gridx.remote_error import format_plain

                targets["stderr"].write(clean_text(format_plain(event.error, line_offset=1)))
        for name, cleaner in cleaners.items():
            targets[name].write(cleaner.finish())

    def _cancel(self, words: list[str]) -> None:
        view = self._connection.client.cancel(self._job_id("cancel", words))
        print(f"{view.job_id}: {clean_line(view.status, 20)}, cost {_credits(view.cost)}")

    def _balance(self, words: list[str]) -> None:
        _Parser("balance", add_help=False).parse_args(words)
        self._connection.welcome()  # in open mode this opens the account of a new user
        account = self._connection.client.balance()
        print(balance_text(account))

    def _workers(self, words: list[str]) -> None:
        _Parser("workers", add_help=False).parse_args(words)
        print(workers_text(self._connection.client.workers()))

    def _help(self, words: list[str]) -> None:
        topic = words[0] if words else ""
        if topic in TOPICS:
            print(TOPICS[topic].format(options=options_help()))
        elif topic in COMMANDS:
            print(f"%gridx {topic}: {COMMANDS[topic]}")
        elif topic:
            raise usage_error(
                f"There is no help on {topic!r}.{nearest(topic, [*TOPICS, *COMMANDS])}", USAGE, ""
            )
        else:
            print("\n".join(f"%gridx {name:<8} {text}" for name, text in COMMANDS.items()))
            print("Topics: " + ", ".join(TOPICS) + ". %gridx help TOPIC shows one.")
