"""docs/reference/hardening.md: each protection, what it holds off, the test that fails without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support.weakened import FUNCTIONAL, WEAKENINGS

from .run import Noticed

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "hardening.md"

HEAD: Final = """\
# What holds a job in, and the test that fails without it

Every option that `worker/sandbox/limits.py` asks of the engine, and every protection of the
runtime inside the container. `make mutations` takes each away in turn (or sets it to what it
guards against), runs the tests that are marked with its name, and fails when none of them
notices. This page is what the last `python -m tests.mutation --write` has seen, on a Docker
Engine with control groups of version 1 and runc.

A container is one of many such layers, and none of them is a promise that the kernel has no bug:
see [the threat model](../security.md).

| Protection | Taken away as | Holds off | The test that fails then |
| --- | --- | --- | --- |
"""

FOOT: Final = """
Options without a row hold nothing off; a job would not run, or not as well, without them:

| Option | What it is for |
| --- | --- |
"""


def page_of(found: Sequence[Noticed]) -> str:
    """Return the page."""
    lines = []
    notes: list[str] = []
    for each in found:
        weakening = WEAKENINGS[each.flag]
        mark = ""
        if weakening.note:
            if weakening.note not in notes:
                notes.append(weakening.note)
            mark = f" ({notes.index(weakening.note) + 1})"
        how = weakening.how.replace("|", "\\|")
        lines.append(f"| {each.flag}{mark} | {how} | {weakening.holds_off} | `{_where(each)}` |\n")
    numbered = "".join(f"\n{number}. {note}" for number, note in enumerate(notes, 1))
    purposes = "".join(f"| {key} | {why} |\n" for key, why in FUNCTIONAL.items())
    return HEAD + "".join(lines) + numbered + "\n" + FOOT + purposes


def _where(noticed: Noticed) -> str:
    path, _, name = noticed.failed.partition("::")
    return f"{path}::{name.partition('[')[0]}"
