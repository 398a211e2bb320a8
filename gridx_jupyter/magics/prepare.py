"""Before anything is sent: capture, the checks that need no worker, and the dry run."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gridx.credits import Rates, format_credits, hold_ucr
from gridx.display import clean_line
from gridx.errors import GridXError, InvalidRequest, TransportError
from gridx.quantities import format_duration
from gridx.resources import format_bytes
from gridx.schemas import CellSpec

from .failures import shown_at_its_lines
from .options import CellOptions, usage_error
from .order import Order
from .visible_cell import VisibleCell

if TYPE_CHECKING:
    from gridx.resources import Image
    from gridx.ship.capture import Captured
    from gridx.ship.environment import Findings
    from gridx.ship.fingerprint import Fingerprint
    from gridx.ship.offers import Offers

    from ..connection import Connection
    from .notebook import Notebook
    from .sessions import OpenSession

_ALWAYS_THERE: Final = sys.stdlib_module_names | {"__main__", "gridx"}
_OURS_BELOW: Final = re.compile(r"^\s*(%{1,2}gridx)\b", re.MULTILINE)


def prepare(
    notebook: Notebook,
    line: str,
    body: str,
    options: CellOptions,
    visible: VisibleCell,
    session: OpenSession | None = None,
) -> Order:
    """Return the cell ready to be sent. Nothing has left the notebook afterwards.

    Args:
        session: the open session that it goes to; only what has changed is captured then.

    Raises:
        CaptureError: a variable that the cell reads cannot travel; the sentence names it.
        InvalidRequest: a file that was named is not there.
        SyntaxError: the cell is not Python; shown at its visible line.
        UsageError: ``--out`` names something that the cell does not bind.
    """
    if options.is_script:
        order = Order(line, body, options, visible, CellSpec(python=""))
        notebook.latest = order
        return order
    ours = _OURS_BELOW.search(body)
    if ours is not None:
        raise usage_error(
            f"{ours[1]} stands inside the cell's code, which runs on a worker: put it into a cell "
            f"of its own."
        )
    captured = _captured(notebook, body, options, visible, session)
    _check_out(options, captured)
    spec = CellSpec(
        python=captured.python,
        expected=tuple(sorted(captured.expected | frozenset(options.out or ()))),
        inputs=tuple(sorted(captured.inputs)),
        out=options.out,
        cell_id=visible.cell_id,
        files=captured.files,
        fetch=options.fetch,
        prelude=notebook.prelude.text if notebook.has_prelude else "",
    )
    order = Order(line, body, options, visible, spec, captured, notes=_local_notes(options))
    if options.background:
        order = order.at(notebook.shell.user_ns)
    notebook.latest = order
    return order


def _captured(
    notebook: Notebook,
    body: str,
    options: CellOptions,
    visible: VisibleCell,
    session: OpenSession | None,
) -> Captured:
    from gridx.ship.capture import capture

    shell = notebook.shell
    known: Mapping[str, Fingerprint] | None = None if options.session is None else {}
    remote_names = set(notebook.prelude.names) if notebook.has_prelude else set()
    without = set(options.without)
    if session is not None:
        without |= session.kept_there(shell.user_ns)
        known, remote_names = session.known, remote_names | session.remote_names
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    target = own if options.local else _target_python(notebook, own, options.image)
    sources: list[str] = []
    if target != own:
        history = getattr(shell.history_manager, "input_hist_raw", None) or []
        sources = [str(cell) for cell in history[1:]]
    try:
        return capture(
            body,
            shell.user_ns,
            needs=options.needs,
            without=without,
            everything=options.everything,
            report_only=options.dry_run,
            with_blobs=not options.local,
            known=known,
            remote_names=remote_names,
            target_python=None if target == own else target,
            sources=sources,
        )
    except SyntaxError as exc:
        error = exc
    error.filename = visible.file
    error.lineno = (error.lineno or 1) + visible.line_offset
    if error.end_lineno is not None:
        error.end_lineno += visible.line_offset
    raise shown_at_its_lines(error, shell)


def _local_notes(options: CellOptions) -> tuple[str, ...]:
    if not options.local or not (options.pip or options.image):
        return ()
    return (
        "--local runs in this kernel's own environment: --pip installs nothing here, and --image "
        "is left aside",
    )


def _target_python(notebook: Notebook, own: str, family: str) -> str:
    try:
        return notebook.connection.python_for(own, family)
    except GridXError:
        return own  # no coordinator answers: whoever needs one says so


def check_environment(notebook: Notebook, order: Order) -> Order:
    """Return ``order`` with what the images on the grid lack, as notes.

    Raises:
        MissingModules: no image has a package that the cell needs; nothing was sent.
        InvalidRequest: nobody has the image that it names, or installs what it lists.
    """
    captured, options = order.captured, order.options
    if captured is not None and not options.image and not options.pip:
        roots = {name.partition(".")[0] for name in captured.modules | captured.imports}
        roots |= {name.partition(".")[0] for name in captured.optional_imports}
        if roots <= _ALWAYS_THERE:
            return order
    connection = notebook.connection
    try:
        offers = connection.offers(order.wish)
        found = _findings(order, offers)
        if found.missing:
            connection.seen(0.0)
            offers = connection.offers(order.wish)
            found = _findings(order, offers)
    except TransportError:
        return order  # whoever sends the cell says it with what to type
    error = found.error()
    if error is not None:
        raise error
    return dataclasses.replace(order, notes=(*order.notes, *found.notes), notice=offers.notice)


def _findings(order: Order, offers: Offers) -> Findings:
    from gridx.ship.environment import Findings, check

    if order.captured is None:
        return Findings()
    return check(
        order.captured,
        offers.images,
        pip=order.options.pip,
        builds=offers.builds,
        others=offers.others,
    )


def _check_out(options: CellOptions, captured: Captured) -> None:
    if captured.dynamic:
        return  # what it binds is known only when it has run
    for name in options.out or ():
        if name not in captured.expected:
            raise usage_error(f"--out {name}: nothing in this cell binds or changes {name!r}.")


def notes_before(order: Order) -> list[str]:
    """Return what the reader should know about what travels, one line each."""
    captured = order.captured
    if captured is None:
        return list(order.notes)
    notes = [*captured.warnings, *order.notes]
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


def captured_text(order: Order) -> str:
    """Return what was captured and why, as text."""
    captured, options = order.captured, order.options
    if captured is None:
        return f"A {options.language} script: no variable travels or comes home."
    lines = []
    if captured.names:
        lines.append(f"Sent, {format_bytes(captured.size_bytes)} in all:")
        width = max(len(name) for name in captured.names)
        for name, size in sorted(captured.names.items(), key=lambda item: (-item[1], item[0])):
            shown = format_bytes(size) if size else "code"
            lines.append(f"  {name:<{width}}  {shown:>9}  {captured.why.get(name, '')}".rstrip())
    else:
        lines.append("Sent: no variable, only the code.")
    if captured.unchanged:
        names = ", ".join(sorted(captured.unchanged))
        lines.append(f"In the session already, unchanged: {names}.")
    lines.append(_home_text(order))
    lines += _file_lines(options)
    modules = sorted({name.partition(".")[0] for name in captured.modules | captured.imports})
    modules = [name for name in modules if not name.startswith("_")]
    if modules:
        lines.append(f"Modules needed there: {', '.join(modules)}.")
    if order.spec.prelude:
        count = order.spec.prelude.count("\n") + 1
        lines.append(f"Run first: the prelude, {count} lines (`%gridx prelude`).")
    for name, size in sorted(captured.left_out.items()):
        lines.append(
            f"Left out: {name} ({format_bytes(size)}), "
            f"{captured.left_out_why.get(name, 'only mentioned in a string')}; "
            f"--needs {name} sends it."
        )
    for name in sorted(captured.missing):
        lines.append(f"Missing: {name} is read, and neither the notebook nor Python has it.")
    for name, reason in sorted(captured.unpicklable.items()):
        lines.append(f"Cannot travel: {name}: {reason.sentence}")
    if captured.written_files:
        names = " ".join(sorted(captured.written_files))
        lines.append(f"Written there: {names}; --fetch brings them home.")
    lines += [f"Note: {note}" for note in notes_before(order)]
    lines += [f"Limit: {limit}" for limit in captured.limits]
    return "\n".join(lines)


def _file_lines(options: CellOptions) -> list[str]:
    from .files import describe, find_files

    lines = []
    if options.files:
        try:
            lines.append(f"Files sent: {describe(find_files(options.files, Path.cwd()))}.")
        except InvalidRequest as exc:
            lines.append(f"Files: {exc.message}")
    if options.fetch:
        lines.append(f"Files brought home: {', '.join(options.fetch)}.")
    return lines


def dry_run_text(order: Order, connection: Connection) -> str:
    """Return what the cell would send and cost, as text."""
    return "\n".join(
        [
            "Grid-X dry run: nothing was sent and nothing ran.",
            captured_text(order),
            *_environment_lines(order, connection),
            _price_text(order.options, connection),
        ]
    )


def _environment_lines(order: Order, connection: Connection) -> list[str]:
    options = order.options
    try:
        offers = connection.offers(order.wish)
    except TransportError:
        return []
    except GridXError as exc:
        return [f"Refused: {exc}"]
    found = _findings(order, offers)
    lines = []
    if offers.images:
        image, where = offers.images[0], ", ".join(dict.fromkeys(offers.workers))
        version = f"Python {image.python}" if image.python else image.language
        lines.append(f"Image: {image.family} ({version}), of {clean_line(where, 200)}.")
        lines += _package_lines(options, image)
    if offers.notice:
        lines.append(f"Waits: {offers.notice}.")
    error = found.error()
    if error is not None:
        lines += [f"Missing there: {sentence}" for sentence in found.missing]
        lines.append(f"  {error.hint}")
    return [*lines, *(f"Note: {note}" for note in found.notes)]


def _package_lines(options: CellOptions, image: Image) -> list[str]:
    """Return what becomes of each package that ``--pip`` lists."""
    from gridx.ship.environment import is_there

    if not options.pip:
        return []
    there = {text for text in options.pip if is_there(text, image)}
    named = [
        f"{text} ({'there already' if text in there else 'to be installed'})"
        for text in options.pip
    ]
    return [f"Packages: {', '.join(named)}."]


def _home_text(order: Order) -> str:
    captured, out = order.captured, order.options.out
    assert captured is not None
    wanted = captured.expected if out is None else captured.expected & set(out)
    bound = ", ".join(sorted(wanted & (captured.writes | captured.deletes)))
    changed = ", ".join(sorted(wanted - captured.writes - captured.deletes))
    if changed:
        changed = f"{changed}, if changed in place"
    return f"Brought home: {'; '.join(filter(None, (bound, changed))) or 'nothing'}."


def _price_text(options: CellOptions, connection: Connection) -> str:
    limits = options.limits()
    try:
        rates, where = connection.welcome().rates, ""
    except GridXError:
        rates, where = Rates(), " (usual prices: no coordinator answers)"
    rate_ucr = rates.rate_ucr_per_s(limits.request())
    cores = f"{limits.cpus:g} core" + ("" if limits.cpus == 1 else "s")
    model = f" {options.gpu_model}" if options.gpu_model else ""
    gpus = f", {limits.gpus}{model} GPU" + "s" * (limits.gpus > 1) if limits.gpus else ""
    disk = f", {format_bytes(options.disk_bytes)} of it for files" if options.disk_bytes else ""
    hold = hold_ucr(rate_ucr, limits.timeout_s)
    return (
        f"Price: {format_credits(rate_ucr)} credits a second for {cores}, "
        f"{format_bytes(limits.memory_bytes)}{disk}{gpus}; up to {format_duration(limits.timeout_s)} "
        f"holds {format_credits(hold)}, and what is not used comes back{where}."
    )
