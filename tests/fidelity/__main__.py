"""``python -m tests.fidelity [NOTEBOOK …]``: the comparison as a table; ``make fidelity`` calls it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from gridx.terminal import table
from tests.support.kernels import Kernel
from tests.support.programs import grid

from .harness import ASPECTS, Compared, compare

NOTEBOOKS: Final = Path(__file__).resolve().parent / "notebooks"
USER: Final = "scientist"


def report(path: Path, compared: Sequence[Compared]) -> str:
    """Return the table of one notebook, and below it what differs."""
    head = ("CELL", *(aspect.upper() for aspect in ASPECTS), "FIRST LINE")
    rows = []
    for cell in compared:
        marks = []
        for aspect in ASPECTS:
            if aspect not in cell.differs:
                marks.append("=")
            else:
                marks.append("declared" if aspect in cell.expected else "DIFFERS")
        rows.append((str(cell.number), *marks, cell.source.strip().splitlines()[0][:60]))
    equal = sum(not cell.differs for cell in compared)
    text = [f"{path.name}: {equal} of {len(compared)} cells equal", table(head, rows)]
    for cell in compared:
        if cell.differs or cell.expected:
            text.append(f"cell {cell.number}: {cell.because or 'not explained'}")
            text += [f"    {line}" for line in cell.explanation().splitlines()]
            text += [f"    note: {note.strip()}" for note in cell.there.notes]
    return "\n".join(text)


def main(argv: Sequence[str]) -> int:
    """Compare the notebooks; the exit code is 1 when a cell differs and does not say so."""
    parser = argparse.ArgumentParser(prog="python -m tests.fidelity", description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--sandbox", default="docker", choices=("docker", "process"))
    options = parser.parse_args(argv)
    paths = [path.resolve() for path in options.notebooks] or sorted(NOTEBOOKS.glob("*.ipynb"))
    undeclared = cells = equal = 0
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lender = "lender" if options.sandbox == "docker" else USER
        coordinator, _ = stack.enter_context(grid(home, sandbox=options.sandbox, lender=lender))
        for path in paths:
            with (
                Kernel(coordinator.http_url, USER, cwd=home) as here,
                Kernel(coordinator.http_url, USER, cwd=home) as there,
            ):
                compared = list(compare(path, here, there))
            print(report(path, compared), flush=True)
            undeclared += sum(not cell.is_as_declared for cell in compared)
            equal += sum(not cell.differs for cell in compared)
            cells += len(compared)
    print(f"{equal} of {cells} cells equal, {undeclared} differ without saying so")
    return 1 if undeclared else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
