"""Runs a notebook in two kernels, one of them with every cell under ``%%gridx``, and compares.

Compared for each cell: the outcome (error class, text, and the lines of the traceback), what was
printed on each stream, the displays with their MIME types in their order, and the namespace that
the cell left behind. A cell may declare in its metadata that it differs, and why::

    "fidelity": {"differs": ["names"], "because": "a fitted forest stays closed here"}
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import nbformat

from tests.support.kernels import CellRun, Kernel

from . import probe

ASPECTS: Final = ("outcome", "stdout", "stderr", "displays", "names")
CELL_TIMEOUT_S: Final = 180.0
_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{6,}")
_PROMPT: Final = re.compile(r"(Cell )?In ?\[\d+\]")
_TIMING: Final = re.compile(r"(Wall time|CPU times):[^\n]*|\d+(\.\d+)? ?(ns|µs|μs|us|ms|s)\b[^\n]*")
_FRAME: Final = re.compile(r"Cell In ?\[\d+\], line (\d+)")
_OVERWRITTEN: Final = re.compile(r"[^\r\n]*\r")
_SYNTAX: Final = re.compile(r"\(\w+\.py, line (\d+)\)")
_CHAINED: Final = re.compile(r"\nThe above exception was|\nDuring handling of")
_TEMPORARY: Final = re.compile(r"/tmp/ipykernel_\d+/\d+\.py")  # of a local warning


@dataclass
class Seen:
    """What one cell did, in the form that is compared."""

    outcome: str = "ok"
    stdout: str = ""
    stderr: str = ""
    displays: list[list[Any]] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What the magic said of its own, which has no counterpart here."""


@dataclass
class Compared:
    """One cell of a notebook: what was seen in both kernels, and in what that differs."""

    number: int
    source: str
    here: Seen
    there: Seen
    expected: frozenset[str]
    because: str

    @property
    def differs(self) -> frozenset[str]:
        """The aspects in which the two differ."""
        return frozenset(a for a in ASPECTS if getattr(self.here, a) != getattr(self.there, a))

    @property
    def is_as_declared(self) -> bool:
        """Whether the cell is equal, or differs just as its metadata says."""
        return self.differs == self.expected

    def explanation(self) -> str:
        """Return what differs, one line for each aspect."""
        lines = []
        for aspect in sorted(self.differs):
            here, there = getattr(self.here, aspect), getattr(self.there, aspect)
            if aspect == "names":
                lines += _names_text(here, there)
            else:
                lines.append(f"{aspect}: here {_short(here)} · there {_short(there)}")
        lines += [
            f"{aspect}: declared to differ, and is equal" for aspect in self.expected - self.differs
        ]
        return "\n".join(lines)


def cells(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield source and ``fidelity`` metadata of each code cell that does something here."""
    for cell in nbformat.read(path, as_version=4).cells:
        source = cell.source
        first, _, rest = source.partition("\n")
        if first.startswith("%%gridx"):
            source = rest
        lines = [line for line in source.splitlines() if line.strip()]
        is_ours = all(line.startswith(("%load_ext gridx", "%gridx", "#")) for line in lines)
        if cell.cell_type == "code" and not is_ours:
            yield source, dict(cell.metadata.get("fidelity", {}))


def compare(path: Path, here: Kernel, there: Kernel) -> Iterator[Compared]:
    """Yield each cell of the notebook as it was run in the two kernels."""
    for kernel in (here, there):
        _prepare(kernel)
    known: dict[str, tuple[Any, Any]] = {}
    for number, (source, declared) in enumerate(cells(path), 1):
        compared = Compared(
            number=number,
            source=source,
            here=_seen(here, source, first_line=0),
            there=_seen(there, f"%%gridx\n{source}", first_line=1),
            expected=frozenset(declared.get("differs", ())),
            because=str(declared.get("because", "")),
        )
        known = _forget_known(compared, known)
        yield compared


def _forget_known(compared: Compared, known: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Blame a difference of names on the cell that made it, and not on every later one."""
    here, there = compared.here.names, compared.there.names
    now = {
        name: (here.get(name), there.get(name))
        for name in here.keys() | there.keys()
        if here.get(name) != there.get(name)
    }
    for name, values in now.items():
        if known.get(name) == values:
            here.pop(name, None)
            there.pop(name, None)
    return now


def _prepare(kernel: Kernel) -> None:
    """Put the probe into the kernel, below a name that no notebook has."""
    text = inspect.getsource(probe)
    made = kernel.run(
        "import sys as _sys, types as _types\n"
        "_sys.modules['_fidelity'] = _types.ModuleType('_fidelity')\n"
        f"exec(compile({text!r}, '<probe>', 'exec'), _sys.modules['_fidelity'].__dict__)\n"
    )
    assert made.reply["status"] == "ok", made.reply


def _seen(kernel: Kernel, source: str, *, first_line: int) -> Seen:
    run = kernel.run(source, timeout_s=CELL_TIMEOUT_S)
    seen = Seen()
    _read(run, seen)
    seen.outcome = _outcome(run, first_line)
    asked = kernel.run(
        "print(_sys.modules['_fidelity'].describe(get_ipython().user_ns))", timeout_s=60
    )
    described = json.loads(asked.stdout)
    seen.names = described["names"]
    for group in described["shared"]:
        seen.names[" is ".join(group)] = "one object"
    return seen


def _read(run: CellRun, seen: Seen) -> None:
    order: list[list[Any]] = []
    by_id: dict[str, list[Any]] = {}
    for _, kind, content in run.messages:
        if kind == "stream":
            _add_text(seen, content["name"], content["text"])
        elif kind == "clear_output":
            order.clear()
            seen.stdout = seen.stderr = ""
        elif kind in ("display_data", "execute_result", "update_display_data"):
            data = content["data"]
            plain = str(data.get("text/plain", ""))
            shown = [kind.removeprefix("update_"), sorted(data), _normal(plain)]
            name = (content.get("transient") or {}).get("display_id")
            if plain.startswith("Grid-X: "):
                seen.notes = plain.splitlines()[1:]
            elif kind == "update_display_data" and name in by_id:
                by_id[name][1:] = shown[1:]
            elif kind != "update_display_data":
                order.append(shown)
                by_id[name] = shown
    seen.stdout, seen.stderr = _normal(seen.stdout), _normal(seen.stderr)
    seen.displays = order


def _add_text(seen: Seen, name: str, text: str) -> None:
    if name == "stderr":
        own = [line for line in text.splitlines() if line.startswith("Grid-X")]
        seen.notes += own
        text = "".join(
            line for line in text.splitlines(keepends=True) if not line.startswith("Grid-X")
        )
    setattr(seen, name, getattr(seen, name) + text)


def _outcome(run: CellRun, first_line: int) -> str:
    error = run.error
    if error is None:
        return str(run.reply["status"])
    traceback = _ANSI.sub("", "\n".join(error["traceback"]))
    # Of a chain, the error itself: for its causes IPython shows where the frame stood last.
    last = _CHAINED.split(traceback)[-1]
    lines = [int(number) - first_line for number in _FRAME.findall(last)]
    value = _SYNTAX.sub(lambda found: f"(line {int(found[1]) - first_line})", error["evalue"])
    return f"{error['ename']}: {_normal(value)} at {lines}"


def _normal(text: str) -> str:
    """Return ``text`` without what differs from run to run: addresses, prompts, measured times."""
    text = _TEMPORARY.sub("<cell>", _ADDRESS.sub("0x", _ANSI.sub("", text)))
    text = _OVERWRITTEN.sub("", text.replace("\r\n", "\n"))  # a terminal's own; bars as shown
    return _TIMING.sub("<time>", _PROMPT.sub("In [n]", text))


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return repr(text if len(text) <= 300 else f"{text[:300]}…")


def _names_text(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    lines = []
    for name in sorted(here.keys() | there.keys()):
        one, other = here.get(name, "not bound"), there.get(name, "not bound")
        if one != other:
            lines.append(f"names: {name}: here {_short(one)} · there {_short(other)}")
    return lines
