"""``%gridx`` on the grid as a whole: who is there, what it costs, who we are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gridx.credits import format_credits, from_credits
from gridx.display import clean_line
from gridx.settings import normalise_url
from gridx.terminal import plain_text

from .line import Parser, words_of

if TYPE_CHECKING:
    from gridx.doctor import Row
    from gridx.schemas import AccountView, WorkerView

    from .notebook import Notebook


def credits_text(amount: float) -> str:
    """Return an amount in credits for people."""
    return format_credits(from_credits(amount))


def workers_text(workers: Sequence[WorkerView]) -> str:
    """Return the workers that are connected as a table."""
    from gridx.workers_text import workers_text as table_of

    connected = [worker for worker in workers if worker.status != "offline"]
    if not connected:
        return "No worker is online. Lend this machine with `gridx up` in a terminal."
    return table_of(connected, keys=True)


def balance_text(account: AccountView) -> str:
    """Return whose account has how much: six decimals, which show what one small cell cost."""
    held = f" ({credits_text(account.held)} held for jobs)" if account.held else ""
    return f"{account.user_id}: {account.balance:,.6f} credits{held}"


def show_status(notebook: Notebook, rest: str) -> None:
    """Print the grid in numbers, and who we are there."""
    Parser("status").parse_args(words_of(rest))
    connection = notebook.connection
    settings = connection.settings
    connection.welcome()  # in open mode this opens the account of a new user
    status = connection.client.status()
    account = connection.client.balance()
    print(
        f"{settings.url}, as {settings.user} ({status.auth} mode, version {status.version})\n"
        f"Workers: {status.workers_online} online, {status.cores:g} cores. "
        f"Jobs: {status.jobs_running} running, {status.jobs_queued} queued.\n"
        f"Balance: {credits_text(account.available)} credits free, "
        f"{credits_text(account.held)} held."
    )


def show_login(notebook: Notebook, rest: str) -> None:
    """Go to another coordinator."""
    parser = Parser("login")
    parser.add_argument("url", nargs="?")
    parser.add_argument("--user")
    parser.add_argument("--token")
    given = parser.parse_args(words_of(rest))
    settings = notebook.connection.login(given.url, given.user, given.token)
    account = notebook.connection.client.balance()
    free = credits_text(account.available)
    print(f"Logged in at {settings.url} as {settings.user}: {free} credits free.")
    other = os.environ.get("GRIDX_URL", settings.url)
    if normalise_url(other) != settings.url:
        print(f"GRIDX_URL is set and wins when a kernel starts: {clean_line(other)}")


def show_balance(notebook: Notebook, rest: str) -> None:
    """Print the account."""
    Parser("balance").parse_args(words_of(rest))
    notebook.connection.welcome()  # in open mode this opens the account of a new user
    print(balance_text(notebook.connection.client.balance()))


def show_cost(notebook: Notebook, rest: str) -> None:
    """Print what the newest jobs cost, and which part of it this notebook's jobs did."""
    parser = Parser("cost")
    parser.add_argument("-n", type=int, default=100)
    given = parser.parse_args(words_of(rest))
    connection = notebook.connection
    connection.welcome()
    jobs = connection.client.jobs(limit=given.n).jobs
    ours = {entry.job_id for entry in notebook.journal.mine()}
    here = [job for job in jobs if job.job_id in ours]
    total = sum(job.cost for job in jobs)
    held = sum(job.reserved for job in jobs if job.finished_at is None)
    print(
        f"Your {len(jobs)} newest jobs cost {total:,.6f} credits; of these "
        f"{len(here)} of this notebook {sum(job.cost for job in here):,.6f}.\n"
        f"Held for jobs that run: {credits_text(held)}."
    )
    print(balance_text(connection.client.balance()))


def show_workers(notebook: Notebook, rest: str) -> None:
    """Print who lends what."""
    Parser("workers").parse_args(words_of(rest))
    print(workers_text(notebook.connection.workers()))


def show_trust(notebook: Notebook, rest: str) -> None:
    """Trust a worker's display, or list those that are trusted."""
    from .trusted import trust, trusted_text

    parser = Parser("trust")
    parser.add_argument("worker", nargs="?")
    name = parser.parse_args(words_of(rest)).worker
    print(trusted_text() if name is None else trust(notebook.connection.client, name))


def show_untrust(notebook: Notebook, rest: str) -> None:
    """No longer trust a worker."""
    from .trusted import untrust

    parser = Parser("untrust")
    parser.add_argument("worker", metavar="WORKER")
    print(untrust(parser.parse_args(words_of(rest)).worker))


def show_doctor(notebook: Notebook, rest: str) -> None:
    """Print what is wrong, and what to type."""
    import asyncio
    import threading

    from gridx.doctor import examine

    Parser("doctor").parse_args(words_of(rest))
    settings = notebook.connection.settings
    found: list[Row] = []

    def look() -> None:
        # In a thread of its own: the kernel's loop runs in this one.
        found.extend(asyncio.run(examine(url=settings.url, user=settings.user)))

    thread = threading.Thread(target=look, name="gridx-doctor", daemon=True)
    thread.start()
    thread.join()
    marks = {"ok": "ok  ", "note": "note", "care": "CARE"}
    width = max((len(row.check) for row in found), default=0)
    for row in found:
        print(f"{marks[row.state]}  {row.check:<{width}}  {plain_text(row.found)}")
        if row.advice:
            print(f"{'':4}  {'':<{width}}  -> {plain_text(row.advice)}")
