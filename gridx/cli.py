"""The ``gridx`` command, for people without a notebook.

Each command is a function here that imports what it needs when it runs, so that ``gridx --help``
answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from . import __version__
from .errors import GridXError, InvalidRequest

if TYPE_CHECKING:
    from datetime import datetime

    from .blocking import BlockingClient, BlockingJob
    from .schemas import JobView
    from .updates import Finished

EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2
EXIT_TIMEOUT: Final = 124  # as coreutils' timeout
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT
_CANCEL_S: Final = 5.0
_JOBS_SHOWN: Final = 20
_LANGUAGES_BY_SUFFIX: Final = {
    "sh": "bash",
    "bash": "bash",
    "js": "node",
    "mjs": "node",
    "cjs": "node",
}


class _Parser(argparse.ArgumentParser):
    """A parser that names the nearest word to a typing error."""

    def error(self, message: str) -> NoReturn:
        hint = _nearest_word(message, self)
        raise InvalidRequest(
            message[:1].upper() + message[1:] + ("" if message.endswith(".") else "."),
            hint=hint or f"`{self.prog} --help` lists what there is.",
        )


def _nearest_word(message: str, parser: argparse.ArgumentParser) -> str:
    wrong = re.search(r"invalid choice: '([^']*)'|unrecognized arguments: (\S+)", message)
    if wrong is None:
        return ""
    word = (wrong[1] or wrong[2]).partition("=")[0]
    choices = re.findall(r"'([^']+)'", message.partition("choose from")[2])
    known = choices or [name for action in _actions(parser) for name in action.option_strings]
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else ""


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    actions = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                actions += sub._actions
    return actions


def _duration(text: str) -> float:
    from .quantities import parse_duration

    seconds: float = _argument(parse_duration, text)
    return seconds


def _size(text: str) -> int:
    from .quantities import parse_size

    size_bytes: int = _argument(parse_size, text)
    return size_bytes


def _language(text: str) -> str:
    from .schemas import LANGUAGE_ALIASES, LANGUAGES

    language = LANGUAGE_ALIASES.get(text, text)
    if language not in LANGUAGES:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(LANGUAGES)}")
    return language


def _gpus(text: str) -> tuple[int, str]:
    """Return number and model of ``2``, ``A100`` or ``2:A100``."""
    from .quantities import parse_gpus

    gpus: tuple[int, str] = _argument(parse_gpus, text)
    return gpus


def _argument(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except GridXError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; use 0 to 65535")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    where = _Parser(add_help=False)
    group = where.add_argument_group("connection")
    group.add_argument("--url", help="the coordinator (default: GRIDX_URL, the settings file)")
    group.add_argument("--user", help="who you are (default: GRIDX_USER, the settings file)")
    as_json = _Parser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON instead of a table")

    whole = _Parser(
        prog="gridx",
        description="Run code on machines that other people lend, and pay in credits.",
        epilog="Start here: `gridx up` in one terminal, `gridx submit hello.py` in another.",
    )
    whole.add_argument("--version", action="version", version=f"gridx {__version__}")
    commands = whole.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Parser
    )

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, *parents: _Parser
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, description=text[:1].upper() + text[1:] + ".", parents=list(parents)
        )
        made.set_defaults(run=run)
        return made

    up = command("up", _up, "start a coordinator and one worker here")
    up.add_argument("--http-port", type=_port, default=8081, help="0 picks a free one")
    up.add_argument("--ws-port", type=_port, default=8080, help="for workers; 0 picks a free one")
    up.add_argument("--data-dir", metavar="DIR", help="keep everything below this folder")
    up.add_argument(
        "--sandbox",
        choices=("auto", "docker", "process"),
        default="auto",
        help="auto: Docker when an engine answers, else processes, for your own jobs only",
    )
    up.add_argument("--user", help="who lends the worker (default: you)")
    up.add_argument(
        "--password", help="of that account; better in GRIDX_PASSWORD; else one is made"
    )
    up.add_argument("--verbose", action="store_true", help="show every line of both logs")

    login = command("login", _login, "choose a coordinator and remember it")
    login.add_argument("address", nargs="?", metavar="URL", help="http://host:8081")
    login.add_argument("--user", help="who you are")
    login.add_argument("--register", action="store_true", help="make the account first")

    submit = command("submit", _submit, "run a file and show its output as it comes", where)
    submit.add_argument(
        "file", metavar="FILE", help="a file: .py, .sh or .js; - reads standard input"
    )
    submit.add_argument(
        "--language", type=_language, metavar="NAME", help="python, bash or node; default: by FILE"
    )
    submit.add_argument("--timeout", type=_duration, metavar="TIME", help="90, 10m, 1h; default 60")
    submit.add_argument("--cpus", type=float, metavar="N", help="cores; default 1")
    submit.add_argument("--mem", type=_size, metavar="SIZE", help="512M, 2G; default 1G")
    submit.add_argument("--disk", type=_size, metavar="SIZE", help="of its folder; in its memory")
    submit.add_argument(
        "--gpu", "--gpus", type=_gpus, metavar="N|MODEL|N:MODEL", help="1, A100, 2:A100; default 0"
    )
    submit.add_argument("--image", metavar="NAME", help="an image that `gridx workers` shows")
    submit.add_argument(
        "--pip",
        action="extend",
        nargs="+",
        default=[],
        metavar="PKG",
        help="install these for it, as polars==1.20; write FILE before it",
    )
    submit.add_argument("--detach", action="store_true", help="print the job's id and leave")

    jobs = command("jobs", _jobs, "list your jobs, newest first", where, as_json)
    jobs.add_argument("--all", action="store_true", help=f"all, not only the newest {_JOBS_SHOWN}")

    logs = command("logs", _logs, "show the output of a job", where)
    logs.add_argument("job", metavar="JOB")
    logs.add_argument("-f", "--follow", action="store_true", help="stay until the job ends")

    cancel = command("cancel", _cancel, "stop a job", where)
    cancel.add_argument("job", metavar="JOB")

    balance = command("balance", _balance, "show an account", where, as_json)
    balance.add_argument("account", nargs="?", metavar="USER", help="default: yours")

    workers = command("workers", _workers, "list the workers", where, as_json)
    workers.add_argument("--keys", action="store_true", help="with the fingerprints of their keys")
    command("status", _status, "show the grid in numbers", where, as_json)
    doctor = command("doctor", _doctor, "check this machine and its coordinator", where, as_json)
    doctor.add_argument(
        "--lender",
        action="store_true",
        help="try also, in containers, whether this machine keeps what jobs are promised",
    )
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 refused or failed, 2 wrong usage."""
    try:
        options = parser().parse_args(argv)
    except InvalidRequest as exc:
        _complain(exc)
        return EXIT_USAGE
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except GridXError as exc:
        _complain(exc)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left (`| head`); nothing more is to be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_REFUSED


def _complain(error: GridXError) -> None:
    from .terminal import plain_text

    sys.stdout.flush()
    _note(f"error: {plain_text(error.message)}")
    if error.hint:
        _note(f"       {plain_text(error.hint)}")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _client(options: argparse.Namespace) -> BlockingClient:
    from .blocking import BlockingClient

    return BlockingClient(url=options.url, user=options.user)


def _print_json(value: object) -> int:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
    return 0


# --- the grid -------------------------------------------------------------------------------


def _up(options: argparse.Namespace) -> int:
    import asyncio
    from pathlib import Path

    from .settings import load
    from .up import UpOptions, run

    return asyncio.run(
        run(
            UpOptions(
                http_port=options.http_port,
                ws_port=options.ws_port,
                data_dir=Path(options.data_dir).absolute() if options.data_dir else None,
                sandbox=options.sandbox,
                user=load(user=options.user).user,
                password=options.password or os.environ.get("GRIDX_PASSWORD"),
                verbose=options.verbose,
            )
        )
    )


def _login(options: argparse.Namespace) -> int:
    from .blocking import BlockingClient
    from .settings import load, save

    settings = load(options.address, options.user)
    with BlockingClient(settings) as client:
        status = client.status()
        token = None
        if options.register:
            token = client.register(settings.user, _password(settings.user)).token
        elif status.auth != "open":
            token = client.login(settings.user, _password(settings.user)).token
    with BlockingClient(url=settings.url, user=settings.user, token=token) as client:
        client.connect()  # says at once when this user is not accepted
    path = save(url=settings.url, user=settings.user, token=token)
    print(f"You are {settings.user} at {settings.url}. Remembered in {path}.")
    for name in ("GRIDX_URL", "GRIDX_USER", "GRIDX_TOKEN"):
        if os.environ.get(name):
            _note(f"note: {name} is set and goes before the file.")
    return 0


def _password(user: str) -> str:
    import getpass

    from .errors import AuthError

    if password := os.environ.get("GRIDX_PASSWORD"):
        return password
    if not sys.stdin.isatty():
        raise AuthError(
            f"The password of {user} is needed, and nobody can be asked for it here.",
            hint="Set GRIDX_PASSWORD.",
        )
    return getpass.getpass(f"Password of {user}: ", stream=sys.stderr)


# --- jobs -----------------------------------------------------------------------------------


def _submit(options: argparse.Namespace) -> int:
    from .console import Console

    code = _source(options.file)
    gpus, gpu_model = options.gpu or (None, "")
    with _client(options) as client:
        job = client.submit(
            code,
            timeout_s=options.timeout,
            cpus=options.cpus,
            memory_bytes=options.mem,
            gpus=gpus,
            gpu_model=gpu_model,
            disk_bytes=options.disk,
            language=options.language or _language_of(options.file),
            image=options.image or "",
            pip=_requirements(options.pip),
        )
        if options.detach:
            print(job.id)
            _note(f"See it with `gridx logs -f {job.id}`, stop it with `gridx cancel {job.id}`.")
            job.detach()
            return 0
        console = Console(job.id)
        try:
            for update in job.updates(idle_s=0.2):
                console.show(update)
        except KeyboardInterrupt:
            console.close()
            return _interrupted(job)
        console.close()
        return _ended(job)


def _language_of(name: str) -> str:
    """Return the language that a file's name stands for; Python where it says nothing."""
    stem, _, suffix = name.rpartition(".")
    return _LANGUAGES_BY_SUFFIX.get(suffix.lower(), "python") if stem else "python"


def _requirements(lines: Sequence[str]) -> tuple[str, ...]:
    if not lines:
        return ()
    from .requirements import parse_requirements

    return parse_requirements(lines)


def _source(name: str) -> str:
    from pathlib import Path

    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8-sig")
    except OSError as exc:
        raise InvalidRequest(
            f"{name} cannot be read: {exc.strerror}.", hint="Name a file, or - to read it here."
        ) from None
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"{name} is not UTF-8 text.", hint="Submit source code, saved as UTF-8."
        ) from None


def _interrupted(job: BlockingJob) -> int:
    _note("stopping the job …")
    end = job.cancel(_CANCEL_S)
    if end is None:
        _note(f"asked for the end of {job.id}; see `gridx jobs` for what it cost")
    else:
        _note(_summary(end))
    return EXIT_INTERRUPTED


def _ended(job: BlockingJob) -> int:
    end = job.finished
    assert end is not None
    error = end.error()
    if error is not None:
        _complain(error)
    _note(_summary(end))
    return _exit_code(end.view)


def _exit_code(view: JobView) -> int:
    if view.status == "completed":
        return 0
    if view.reason is not None and view.reason.code == "timeout":
        return EXIT_TIMEOUT
    if view.status == "cancelled":
        return EXIT_INTERRUPTED
    return view.exit_code if view.exit_code and 0 < view.exit_code < 256 else EXIT_REFUSED


def _summary(end: Finished) -> str:
    from .credits import format_credits
    from .quantities import format_duration
    from .terminal import plain_text

    view = end.view
    parts = [view.status]
    if view.worker_name:
        parts.append(f"on {plain_text(view.worker_name)}")
    if view.elapsed_s is not None:
        parts.append(f"in {format_duration(view.elapsed_s)}")
    text = f"{' '.join(parts)}; cost {format_credits(end.cost_ucr)}"
    if end.balance_ucr is not None:
        text += f", balance {format_credits(end.balance_ucr)}"
    return text


def _logs(options: argparse.Namespace) -> int:
    from .console import Console
    from .states import FINAL_JOB_STATES
    from .terminal import plain_text

    with _client(options) as client:
        if not options.follow:
            detail = client.job(options.job)
            if detail.status not in FINAL_JOB_STATES:  # what there is so far
                print(plain_text(detail.stdout), end="", flush=True)
                print(plain_text(detail.stderr), end="", file=sys.stderr)
                waiting = f" ({plain_text(detail.waiting)})" if detail.waiting else ""
                _note(f"{detail.status}{waiting}; `gridx logs -f {detail.job_id}` follows it")
                return 0
        job = client.attach(options.job)
        console = Console(job.id)
        try:
            for update in job.updates(idle_s=0.2):
                console.show(update)
        except KeyboardInterrupt:
            _note("no longer watching; the job goes on")
            return EXIT_INTERRUPTED
        finally:
            console.close()
        return _ended(job) if options.follow else 0


def _cancel(options: argparse.Namespace) -> int:
    with _client(options) as client:
        job = client.attach(options.job)
        was_over = job.view.status in ("completed", "failed", "cancelled")
        end = job.wait(_CANCEL_S) if was_over else job.cancel(_CANCEL_S)
    if was_over:
        _note(f"It had ended before: {end.view.status if end else job.view.status}.")
    elif end is None:
        _note("Asked for its end; `gridx jobs` shows when it is reached.")
    else:
        print(_summary(end))
    return 0


def _jobs(options: argparse.Namespace) -> int:
    from .credits import format_credits, from_credits
    from .quantities import format_duration
    from .terminal import table

    with _client(options) as client:
        page = client.jobs(limit=None if options.all else _JOBS_SHOWN)
        jobs = list(page.jobs)
        while options.all and page.next:
            page = client.jobs(before=page.next)
            jobs += page.jobs
    if options.json:
        return _print_json(jobs)
    if not jobs:
        print("No jobs yet. Run one: `gridx submit FILE`.")
        return 0
    rows = [
        (
            job.job_id,
            job.status,
            _age(job.created_at),
            "" if job.elapsed_s is None else format_duration(job.elapsed_s),
            format_credits(from_credits(job.cost)),
            job.worker_name or "",
            (job.reason.message if job.reason else job.waiting) or "",
        )
        for job in jobs
    ]
    print(table(("JOB", "STATUS", "AGE", "TIME", "COST", "WORKER", "WHY"), rows, right=(2, 3, 4)))
    if page.next and not options.all:
        _note(f"the newest {len(jobs)}; --all lists them all")
    return 0


def _age(since: datetime) -> str:
    from .clock import now_us
    from .quantities import format_duration

    return format_duration(max(1.0, now_us() / 1e6 - since.timestamp()))


# --- accounts and workers -------------------------------------------------------------------


def _balance(options: argparse.Namespace) -> int:
    from .credits import format_credits, from_credits

    with _client(options) as client:
        account = client.balance(options.account)
    if options.json:
        return _print_json(account)
    available, held, total = (
        format_credits(from_credits(amount))
        for amount in (account.available, account.held, account.balance)
    )
    print(f"{account.user_id}: {available} free, {held} held, {total} in all")
    return 0


def _workers(options: argparse.Namespace) -> int:
    from .workers_text import workers_text

    with _client(options) as client:
        workers = client.workers()
    if options.json:
        return _print_json(workers)
    if not workers:
        print("No worker yet. Start one: `gridx up`, or `gridx-worker --user NAME`.")
        return 0
    print(workers_text(workers, keys=options.keys))
    return 0


def _status(options: argparse.Namespace) -> int:
    from .credits import format_credits
    from .quantities import format_duration
    from .terminal import plain_text

    with _client(options) as client:
        status = client.status()
        url = client.settings.url
    if options.json:
        return _print_json(status)
    core = format_credits(status.rates.core_ucr_per_s)
    rows = [
        ("coordinator", f"{url}, version {status.version}, protocol {status.protocol}"),
        ("log-in", "a user name is enough" if status.auth == "open" else "account and password"),
        ("workers", f"{status.workers_online} online, {status.cores:g} cores"),
        ("jobs", f"{status.jobs_running} running, {status.jobs_queued} queued"),
        ("price", f"{core} a core-second, {status.worker_share:.0%} of it to the lender"),
        ("up for", format_duration(status.uptime_s)),
    ]
    for name, value in rows:
        print(f"{name:<11}  {plain_text(value)}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    import asyncio

    from .doctor import examine, examine_lending, needs_care
    from .terminal import plain_text

    rows = asyncio.run(examine(url=options.url, user=options.user))
    if options.lender:
        rows += asyncio.run(examine_lending())
    if options.json:
        _print_json(rows)
        return 1 if needs_care(rows) else 0
    marks = {"ok": "ok  ", "note": "note", "care": "CARE"}
    width = max(len(row.check) for row in rows)
    for row in rows:
        print(f"{marks[row.state]}  {row.check:<{width}}  {plain_text(row.found)}")
        if row.advice:
            print(f"{'':4}  {'':<{width}}  -> {plain_text(row.advice)}")
    return 1 if needs_care(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
