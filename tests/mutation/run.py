"""Take one protection of the sandbox away, and see which test notices."""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.support import weakened

ROOT: Final = Path(__file__).parents[2]
PLACES: Final = ("tests/acceptance/test_docker_sandbox.py", "tests/acceptance/adversarial")


class Noticed(NamedTuple):
    """What became of the tests that guard one flag. An empty flag: nothing was taken away."""

    flag: str
    failed: str  # the first test that failed; "" when none did
    ran: int
    why: str  # the last lines of that failure, or of the run when nothing was run
    seconds: float

    @property
    def by(self) -> str:
        """The name of the test, without the way to it."""
        return self.failed.rpartition("::")[2]


class _First:
    """A plugin that remembers the first failure."""

    def __init__(self) -> None:
        self.failed = self.why = ""
        self.ran = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call"
        if report.failed and not self.failed:
            self.failed = report.nodeid
            lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
            self.why = lines[0].removeprefix("E").strip() if lines else report.longreprtext[-300:]


def try_without(flag: str) -> Noticed:
    """Run the tests that guard ``flag`` without it, up to the first that fails.

    In this process: the caller is a child that ends afterwards.
    """
    os.chdir(ROOT)
    first = _First()
    said = io.StringIO()
    start_s = time.monotonic()
    words = ["-p", "no:cacheprovider", "-p", "no:xdist", "-q", "-x"]
    words += ["--without", flag] if flag else ["--guards"]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main([*PLACES, *words], plugins=[first, weakened])
    why = first.why
    if not first.failed and code != pytest.ExitCode.OK:
        why = said.getvalue()[-2000:]
    return Noticed(flag, first.failed, first.ran, why, time.monotonic() - start_s)


def run(flags: Sequence[str], *, jobs: int = 1) -> Iterator[Noticed]:
    """Yield what became of each of ``flags``, in their order.

    Args:
        flags: keys of ``WEAKENINGS``; "" takes nothing away and stops at the first failure.
        jobs: how many at a time.
    """
    # Imported once, before the children are forked: it takes longer than most of the tests.
    for name in ("coordinator.app", "tests.support.hostile_cells"):
        importlib.import_module(name)
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        yield from pool.imap(try_without, flags, chunksize=1)


def unguarded(found: Sequence[Noticed]) -> list[Noticed]:
    """Return those that no test has noticed."""
    return [each for each in found if each.flag and not each.failed]


def known(flags: Sequence[str]) -> list[str]:
    """Return ``flags`` that can be taken away, all of them when none is named.

    Raises:
        ValueError: one is not in the table.
    """
    for flag in flags:
        if flag not in weakened.WEAKENINGS:
            raise ValueError(f"{flag!r} is none of: {', '.join(weakened.WEAKENINGS)}.")
    return list(flags) or list(weakened.WEAKENINGS)
