"""``gridx-worker check``: is this machine fit to run other people's jobs, and if not, what to do.

The same limits are tried as at the start of a worker, in real containers; what passed before is
tried again all the same. No image is built: that takes minutes, and has its own command.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from gridx.errors import GridXError
from gridx.ids import new_worker_id
from gridx.resources import Check

from .sandbox.base import Promise
from .sandbox.self_test import hint_of
from .settings import SANDBOXES

_NAME_COLUMNS: Final = 30
_LEAST_COLUMNS: Final = 72


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report."""

    name: str
    kept: bool
    detail: str = ""
    hint: str = ""  # what to do when it is not kept


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What ``--json`` prints."""

    fit: bool
    sandbox: str
    rows: tuple[Row, ...]


def main(arguments: Sequence[str]) -> int:
    """Print the report; return 0 when this machine is fit, 1 when it is not."""
    parser = argparse.ArgumentParser(
        prog="gridx-worker check",
        description="Try whether this machine keeps what jobs are promised.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--sandbox", choices=SANDBOXES, default="docker", help="default: docker")
    parser.add_argument("--python", metavar="MINOR", help="Python of the sandbox, as 3.11")
    parser.add_argument("--runtime", help="another OCI runtime of the engine, such as runsc")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="gridx-check-") as folder:
        if given.sandbox == "process":
            report = asyncio.run(check_process(Path(folder)))
        else:
            report = asyncio.run(check_docker(python=given.python, runtime=given.runtime))
    if given.json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        columns = shutil.get_terminal_size((100, 24)).columns
        sys.stdout.write(table(report, columns) + "\n")
    sys.stdout.flush()
    return 0 if report.fit else 1


async def check_docker(*, python: str | None = None, runtime: str | None = None) -> Report:
    """Return what the Docker engine of this machine keeps."""
    from .sandbox.docker import DockerEngine

    rows: list[Row] = []
    engine = DockerEngine(worker_id=new_worker_id(), python_minor=python, runtime=runtime)
    try:
        said = await engine.check_promises()
        rows.append(_engine(engine.info.get("ServerVersion")))
        # What it says of a limit is not shown when the limit is tried below.
        rows += _rows([each for each in said if not each.kept or each.name == "control groups"])
        image = await engine.find_image()
        if image is None:
            hint = "Build it: `gridx-worker image`. A worker does so at its first start."
            rows.append(Row(name="image", kept=False, detail="not built yet", hint=hint))
        else:
            rows.append(Row(name="image", kept=True, detail=image.tag))
        if all(row.kept for row in rows):
            await engine.prepare()
            rows += _rows(await engine.self_test())
    except GridXError as error:
        rows.append(Row(name="engine", kept=False, detail=error.message, hint=error.hint))
    finally:
        await engine.close()
    return Report(fit=all(row.kept for row in rows), sandbox="docker", rows=tuple(rows))


async def check_process(folder: Path) -> Report:
    """Return what holds a job that runs as a process of this user. Not all of it has to."""
    from .sandbox.process import ProcessEngine

    engine = ProcessEngine(folder=folder / "process")
    try:
        await engine.prepare()
        rows = tuple(_rows(engine.isolation.checks))
        return Report(fit=True, sandbox="process", rows=rows)
    except GridXError as error:
        row = Row(name="process", kept=False, detail=error.message, hint=error.hint)
        return Report(fit=False, sandbox="process", rows=(row,))
    finally:
        await engine.close()


def _engine(version: object) -> Row:
    return Row(name="engine", kept=True, detail=f"answers, version {version or '?'}")


def _rows(checks: Sequence[Check | Promise]) -> list[Row]:
    return [
        Row(
            name=check.name,
            kept=check.kept,
            detail=check.detail,
            hint="" if check.kept else hint_of(check.name),
        )
        for check in checks
    ]


def table(report: Report, columns: int = 100) -> str:
    """Return the report for people: what is kept, how it was found, and what to do."""
    width = max(_LEAST_COLUMNS, columns) - 6
    lines = []
    for row in report.rows:
        text = f"{row.name:<{_NAME_COLUMNS}}{row.detail}"
        lines += _wrapped(text, width, first=f"  {'ok' if row.kept else 'NO':<4}")
        if row.hint and report.sandbox == "docker":
            lines += _wrapped(row.hint, width - _NAME_COLUMNS, first=" " * (6 + _NAME_COLUMNS))
    return "\n".join([*lines, _verdict(report)])


def _wrapped(text: str, width: int, *, first: str) -> list[str]:
    rest = " " * (6 + _NAME_COLUMNS)
    return textwrap.wrap(
        text,
        width + 6,
        initial_indent=first,
        subsequent_indent=rest,
        replace_whitespace=False,
        drop_whitespace=True,
        break_long_words=True,
    )


def _verdict(report: Report) -> str:
    if report.sandbox == "process":
        if not report.fit:
            return "Jobs cannot run as processes here."
        return "Your own jobs can run as processes here. To lend this machine, use Docker."
    return "This machine is fit." if report.fit else "This machine is not fit yet."
