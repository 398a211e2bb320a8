"""``%gridx`` on single jobs: look at them, go on with them, bring their values home."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from gridx.display import TextCleaner, clean_line, clean_text
from gridx.errors import Conflict, NotFound
from gridx.events import ErrorOutput, OutputDropped, Stream
from gridx.quantities import format_duration
from gridx.resources import format_bytes
from gridx.states import FINAL_JOB_STATES
from gridx.terminal import table
from gridx.updates import EventArrived, Finished, Restarted

from .journal import Entry, order_of
from .line import Parser, words_of
from .line_grid import credits_text
from .options import CellOptions, usage_error
from .visible_cell import visible_again, visible_cell

if TYPE_CHECKING:
    from gridx.schemas import JobView

    from .notebook import Notebook
    from .order import Order
    from .result import Watched

_NOTHING_KNOWN: Final = (
    "Nothing is known of its cell on this machine, so no variable comes home; "
    "`%gridx result JOB --raw FILE` saves the result as it came."
)


def jobs_text(jobs: Sequence[JobView], here: Collection[str] | None = None) -> str:
    """Return jobs as a table; with ``here`` those of this notebook are marked."""
    if not jobs:
        return "No jobs yet. Put %%gridx on the first line of a cell to run it on the grid."
    head = ["JOB", "STATUS", "WORKER", "TIME", "COST", "CREATED (UTC)"]
    rows = [
        [
            job.job_id,
            job.status if job.kind != "session" else f"{job.status}, session",
            job.worker_name or "",
            "" if job.elapsed_s is None else format_duration(job.elapsed_s),
            credits_text(job.cost),
            f"{job.created_at:%Y-%m-%d %H:%M:%S}",
        ]
        for job in jobs
    ]
    if here is not None:
        head.append("NOTEBOOK")
        for row, job in zip(rows, jobs, strict=True):
            row.append("this one" if job.job_id in here else "")
    return table(head, rows, right=(3, 4))


def show_jobs(notebook: Notebook, rest: str) -> None:
    """Print the newest jobs."""
    parser = Parser("jobs")
    parser.add_argument("-a", action="store_true")
    parser.add_argument("-n", type=int)
    given = parser.parse_args(words_of(rest))
    count = given.n or (100 if given.a else 20)
    here = {entry.job_id for entry in notebook.journal.mine()} if given.a else None
    print(jobs_text(notebook.connection.client.jobs(limit=count).jobs, here))


def show_attach(notebook: Notebook, rest: str) -> None:
    """Show a job's output here and bring its values home, as its cell would have."""
    from .foreground import Foreground

    parser = Parser("attach")
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--new", action="store_true")
    parser.add_argument("--replace", action="store_true")
    parser.add_argument("--as", dest="store_as")
    given = parser.parse_args(words_of(rest))
    background = notebook.background_of(given.job)
    if background is not None:
        background.wait(None)
        return
    entry = notebook.journal.find(given.job)
    client = notebook.connection.client
    job: Watched
    if entry is not None and entry.session is not None:
        job = client.attach_session(given.job).newest
    elif given.new:
        job = client.attach(given.job, after=notebook.journal.position(given.job))
    else:
        job = client.attach(given.job)
    order = _order(notebook, entry, given.job, replace=given.replace, store_as=given.store_as)
    left = notebook.left_behind.pop(given.job, None)
    if left is not None and not given.replace:
        order = dataclasses.replace(order, at_submit=left.at_submit)
    if entry is None:
        print(f"{given.job}: {_NOTHING_KNOWN}", file=sys.stderr)
    foreground = Foreground(order, job, notebook)
    if order.options.store_as is not None:
        notebook.shell.user_ns[order.options.store_as] = foreground.result
    foreground.run()


def show_result(notebook: Notebook, rest: str) -> None:
    """Bring the values of a job that has ended home, without its output."""
    from .result import CellResult

    parser = Parser("result")
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--raw", metavar="FILE", type=Path)
    parser.add_argument("--replace", action="store_true")
    parser.add_argument("--as", dest="store_as")
    given = parser.parse_args(words_of(rest))
    view = notebook.connection.client.job(given.job)
    if view.status not in FINAL_JOB_STATES:
        raise Conflict(
            f"{given.job} is {clean_line(view.status, 20)} and has no result yet.",
            hint=f"`%gridx attach {given.job}` waits for it.",
        )
    entry = notebook.journal.find(given.job)
    job = notebook.connection.client.attach(given.job)
    order = _order(notebook, entry, given.job, replace=given.replace, store_as=given.store_as)
    result = CellResult(job, order, notebook)
    for update in job.updates(idle_s=0.25):
        result.kept.note(update)
        if isinstance(update, Finished):
            result.fetch(update)
            result.finish(update)
    if given.raw is not None:
        data = result.raw
        given.raw.write_bytes(data)
        print(f"{format_bytes(len(data))} in {given.raw}, not opened and not to be trusted.")
        return
    if entry is None:
        raise NotFound(f"{given.job}: {_NOTHING_KNOWN}", hint="")
    result.land(result.kept.error)
    if order.options.store_as is not None:
        notebook.shell.user_ns[order.options.store_as] = result
    names = ", ".join(sorted(name for name in result.values if not name.startswith("_")))
    print(f"{given.job}: {names or 'no variable'} came home.")
    for note in result.notes:
        print(f"  {note}")
    if result.error is not None:
        print(f"  the cell had ended with {type(result.error).__name__}: {result.error}")


def _order(
    notebook: Notebook, entry: Entry | None, job_id: str, *, replace: bool, store_as: str | None
) -> Order:
    """Return what is known of the cell; by the conflict rule, what exists here stays."""
    from gridx.schemas import CellSpec

    from .order import Order

    if entry is None:
        visible = visible_again(notebook.shell, f"# {job_id}\n", 0)
        order = Order("", "", CellOptions(out=()), visible, CellSpec(python="", out=()))
    else:
        visible = visible_again(notebook.shell, entry.visible, entry.line_offset)
        order = order_of(entry, visible)
    options = dataclasses.replace(
        order.options, on_interrupt="detach", store_as=store_as or order.options.store_as
    )
    return dataclasses.replace(order, options=options, at_submit=None if replace else {})


def show_retry(notebook: Notebook, rest: str) -> None:
    """Run a cell again."""
    entry = notebook.journal.find(_job_id("retry", rest))
    if entry is None:
        raise NotFound(
            "Nothing is known of that job's cell on this machine.",
            hint="Only cells that were sent from here can be run again; `%gridx jobs -a` marks "
            "those of this notebook.",
        )
    order = order_of(entry, visible_again(notebook.shell, entry.visible, entry.line_offset))
    notebook.run_again(order)


def show_logs(notebook: Notebook, rest: str) -> None:
    """Print the whole output of a job, or write it into a file."""
    parser = Parser("logs")
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--to", metavar="FILE", type=Path)
    given = parser.parse_args(words_of(rest))
    view = notebook.connection.client.job(given.job)
    if view.status not in FINAL_JOB_STATES:  # what there is so far
        sys.stdout.write(clean_text(view.stdout))
        sys.stderr.write(clean_text(view.stderr))
        waiting = f": {clean_line(view.waiting, 200)}" if view.waiting else ""
        print(f"[{view.job_id} is {clean_line(view.status, 20)}{waiting}]")
    elif given.to is None:
        _replay(notebook, given.job, {"stdout": sys.stdout, "stderr": sys.stderr})
    else:
        with given.to.open("w", encoding="utf-8") as file:
            _replay(notebook, given.job, {"stdout": file, "stderr": file})
        print(f"{format_bytes(given.to.stat().st_size)} in {given.to}")


def _replay(notebook: Notebook, job_id: str, targets: Mapping[str, IO[str]]) -> None:
    """Write the stored output of a job that has ended, all of it, in its order."""
    cleaners = {name: TextCleaner() for name in targets}
    for update in notebook.connection.client.attach(job_id).updates():
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


def show_show(notebook: Notebook, rest: str) -> None:
    """Show what a job displayed once more, in another way."""
    from .publish import Publisher
    from .render import StatusLine, worker_of
    from .screen import Screen

    parser = Parser("show")
    parser.add_argument("job", metavar="JOB")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--interactive", action="store_true")
    how.add_argument("--text", action="store_true")
    given = parser.parse_args(words_of(rest))
    screen = Screen(notebook.shell)
    publisher = Publisher(screen, StatusLine(screen, quiet=True), given.job)
    publisher.show = (
        "interactive" if given.interactive else "text" if given.text else publisher.show
    )
    job = notebook.connection.client.attach(given.job)
    publisher.worker = worker_of(job.view)
    for update in job.updates(idle_s=0.25):
        if isinstance(update, EventArrived):
            publisher.publish(update.event)
        elif isinstance(update, Restarted):
            publisher.restart()
    publisher.finish()
    for note in publisher.notes():
        print(note)


def show_cancel(notebook: Notebook, rest: str) -> None:
    """Stop a job."""
    view = notebook.connection.client.cancel(_job_id("cancel", rest))
    print(f"{view.job_id}: {clean_line(view.status, 20)}, cost {credits_text(view.cost)}")


def show_why(notebook: Notebook, rest: str) -> None:
    """Print what the last cell took along and why, and why its job waits."""
    from .prepare import captured_text

    parser = Parser("why")
    parser.add_argument("job", metavar="JOB", nargs="?")
    given = parser.parse_args(words_of(rest))
    order = notebook.latest
    if given.job is None and order is not None:
        print(captured_text(order))
    job_id = given.job or notebook.latest_job
    if job_id is None:
        if order is None:
            print(
                "No remote cell has run in this kernel. `%gridx needs CODE` shows what one takes."
            )
        return
    view = notebook.connection.client.job(job_id)
    print(f"{view.job_id} ({clean_line(view.status, 20)}){_reason(view)}")


def _reason(view: JobView) -> str:
    if view.waiting:
        return f": {clean_line(view.waiting, 300)}"
    if view.reason is not None:
        sentence = view.reason.message.rstrip(".")
        return f": {clean_line(f'{sentence}. {view.reason.hint}', 300)}"
    return ""


def show_needs(notebook: Notebook, rest: str) -> None:
    """Print what a piece of code would take along."""
    from .prepare import captured_text, prepare

    if not rest:
        raise usage_error("%gridx needs: no code is given.", "Usage: %gridx needs CODE", "")
    latest = notebook.latest
    options = CellOptions(dry_run=True)
    visible = visible_cell(notebook.shell, "", rest)
    print(captured_text(prepare(notebook, "", f"{rest}\n", options, visible)))
    notebook.latest = latest


def _job_id(command: str, rest: str) -> str:
    parser = Parser(command)
    parser.add_argument("job", metavar="JOB")
    return str(parser.parse_args(words_of(rest)).job)
