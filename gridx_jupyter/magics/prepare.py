"""Before anything is sent: capture, the checks that need no worker, and the dry run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gridx.credits import Rates, format_credits, hold_ucr
from gridx.errors import PayloadTooLarge
from gridx.quantities import format_duration
from gridx.resources import format_bytes

from .failures import shown_at_its_lines
from .options import CellOptions, usage_error
from .result import Order
from .visible_cell import VisibleCell

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from gridx.ship.capture import Captured

    from ..connection import Connection


def prepare(
    shell: InteractiveShell, body: str, options: CellOptions, visible: VisibleCell
) -> Order:
    """Return the cell ready to be sent. Nothing has left the notebook afterwards.

    Raises:
        CaptureError: a variable that the cell reads cannot travel; the sentence names it.
        SyntaxError: the cell is not Python; shown at its visible line.
        UsageError: ``--out`` names something that the cell does not bind.
    """
    from gridx.ship.capture import capture

    try:
        captured = capture(
            body,
            shell.user_ns,
            needs=options.needs,
            without=options.without,
            everything=options.everything,
            report_only=options.dry_run,
        )
    except SyntaxError as exc:
        error = exc
    else:
        _check_out(options, captured)
        at_submit = dict(shell.user_ns) if options.background else None
        return Order(body, options, captured, visible, at_submit)
    error.filename = visible.file
    error.lineno = (error.lineno or 1) + visible.line_offset
    if error.end_lineno is not None:
        error.end_lineno += visible.line_offset
    raise shown_at_its_lines(error, shell)


def _check_out(options: CellOptions, captured: Captured) -> None:
    if captured.dynamic:
        return  # what it binds is known only when it has run
    for name in options.out or ():
        if name not in captured.expected:
            raise usage_error(f"--out {name}: nothing in this cell binds or changes {name!r}.")


def check_size(order: Order, max_payload_bytes: int) -> None:
    """Refuse inputs that do not fit into one message, naming the largest variables.

    Raises:
        PayloadTooLarge: nothing was sent.
    """
    captured = order.captured
    if captured.size_bytes <= max_payload_bytes:
        return
    largest = ", ".join(f"{name} ({format_bytes(size)})" for name, size in captured.largest(3))
    raise PayloadTooLarge(
        f"This cell's variables are {format_bytes(captured.size_bytes)} and at most "
        f"{format_bytes(max_payload_bytes)} can travel in this release. "
        f"The largest: {largest}. Nothing was sent.",
        hint="Select or aggregate first, create the data inside the cell, "
        "or leave a variable out with --without NAME.",
    )


def notes_before(captured: Captured) -> list[str]:
    """Return what the reader should know about what travels, one line each."""
    notes = list(captured.warnings)
    if captured.dynamic:
        what = ", ".join(sorted(captured.dynamic))
        notes.append(
            f"the cell looks names up at run time ({what}): add what it lacks with --needs a,b"
        )
    notes += [
        f"{name} looks like a secret and stayed here: --needs {name} sends it"
        for name in sorted(captured.withheld)
    ]
    return notes


def dry_run_text(order: Order, connection: Connection) -> str:
    """Return what the cell would send and cost, as text."""
    captured, options = order.captured, order.options
    lines = ["Grid-X dry run: nothing was sent and nothing ran."]
    if captured.names:
        lines.append(f"Sent, {format_bytes(captured.size_bytes)} in all:")
        width = max(len(name) for name in captured.names)
        for name, size in sorted(captured.names.items(), key=lambda item: (-item[1], item[0])):
            shown = format_bytes(size) if size else "code"
            lines.append(f"  {name:<{width}}  {shown:>9}  {captured.why.get(name, '')}".rstrip())
    else:
        lines.append("Sent: no variable, only the code.")
    lines.append(_home_text(order))
    modules = sorted({name.partition(".")[0] for name in captured.modules | captured.imports})
    modules = [name for name in modules if not name.startswith("_")]
    if modules:
        lines.append(f"Modules needed there: {', '.join(modules)}.")
    for name, size in sorted(captured.left_out.items()):
        lines.append(
            f"Left out: {name} ({format_bytes(size)}), only mentioned in a string; "
            f"--needs {name} sends it."
        )
    for name in sorted(captured.missing):
        lines.append(f"Missing: {name} is read, and neither the notebook nor Python has it.")
    for name, reason in sorted(captured.unpicklable.items()):
        lines.append(f"Cannot travel: {name}: {reason.sentence}")
    lines += [f"Note: {note}" for note in notes_before(captured)]
    lines.append(_price_text(options, connection))
    return "\n".join(lines)


def _home_text(order: Order) -> str:
    captured, out = order.captured, order.options.out
    wanted = captured.expected if out is None else captured.expected & set(out)
    bound = ", ".join(sorted(wanted & (captured.writes | captured.deletes)))
    changed = ", ".join(sorted(wanted - captured.writes - captured.deletes))
    if changed:
        changed = f"{changed}, if changed in place"
    return f"Brought home: {'; '.join(filter(None, (bound, changed))) or 'nothing'}."


def _price_text(options: CellOptions, connection: Connection) -> str:
    from gridx.errors import GridXError

    limits = options.limits()
    try:
        rates, where = connection.welcome().rates, ""
    except GridXError:
        rates, where = Rates(), " (usual prices: no coordinator answers)"
    rate_ucr = rates.rate_ucr_per_s(limits.request())
    cores = f"{limits.cpus:g} core" + ("" if limits.cpus == 1 else "s")
    gpus = f", {limits.gpus} GPU" + ("s" if limits.gpus > 1 else "") if limits.gpus else ""
    hold = hold_ucr(rate_ucr, limits.timeout_s)
    return (
        f"Price: {format_credits(rate_ucr)} credits a second for {cores}, "
        f"{format_bytes(limits.memory_bytes)}{gpus}; up to {format_duration(limits.timeout_s)} "
        f"holds {format_credits(hold)}, and what is not used comes back{where}."
    )
