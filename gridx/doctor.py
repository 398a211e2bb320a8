"""``gridx doctor``: what a job needs, checked one after the other, each with its way out."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from . import __version__
from .client import Client
from .credits import format_credits, from_credits
from .engine import find_engine
from .errors import GridXError
from .schemas import WorkerView
from .settings import ConnectionSettings, load

_OLDEST_PYTHON: Final = (3, 11)
_CLOCK_TOLERANCE_S: Final = 5.0
_LENDING_S: Final = 90.0  # containers are started; two seconds on a machine at rest


@dataclass(frozen=True)
class Row:
    """One line of the report. ``note``: worth knowing, and nothing is wrong."""

    check: str
    state: Literal["ok", "note", "care"]
    found: str
    advice: str = ""


async def examine(
    *, url: str | None = None, user: str | None = None, environ: Mapping[str, str] = os.environ
) -> list[Row]:
    """Return the report for this machine and the coordinator that it is set to.

    It takes a moment only. What ``examine_lending`` tries takes some seconds, so it is asked for.
    """
    rows = [_python()]
    try:
        settings = load(url, user, environ=environ)
    except GridXError as exc:
        return [
            *rows,
            Row("settings", "care", exc.message, exc.hint),
            _docker(environ, needed=False),
        ]
    rows += _settings(settings)
    async with Client(settings) as client:
        try:
            health = await client.health()
        except GridXError as exc:
            rows.append(Row("coordinator", "care", exc.message, exc.hint))
            return [*rows, _docker(environ, needed=True)]
        rows.append(_coordinator(settings.url, health.version))
        rows.append(await _login(client))
        rows.append(await _balance(client))
        workers = await _workers(client)
        rows.append(workers)
        rows.append(await _clock(client))
    return [*rows, _docker(environ, needed=workers.state == "care")]


class _LendingRow(msgspec.Struct):
    """One row of ``gridx-worker check --json``."""

    name: str
    kept: bool
    detail: str = ""
    hint: str = ""


class _LendingReport(msgspec.Struct):
    rows: list[_LendingRow]


def needs_care(rows: list[Row]) -> bool:
    """Return whether something is wrong."""
    return any(row.state == "care" for row in rows)


def _python() -> Row:
    found = f"Python {platform.python_version()}, gridx-jupyter {__version__}"
    if sys.version_info[:2] < _OLDEST_PYTHON:
        return Row("Python", "care", found, "Install Python 3.11 or newer.")
    return Row("Python", "ok", found)


def _settings(settings: ConnectionSettings) -> list[Row]:
    exists = settings.file.exists()
    token = "a token" if settings.token else "no token"
    return [
        Row("settings file", "ok", f"{settings.file}{'' if exists else ' (none; not needed)'}"),
        Row("address", "ok", f"{settings.url}, from: {settings.sources['url']}"),
        Row("user", "ok", f"{settings.user}, from: {settings.sources['user']}"),
        Row("token", "ok", f"{token}, from: {settings.sources['token']}"),
    ]


def _coordinator(url: str, version: str) -> Row:
    found = f"version {version} at {url}"
    if version.split(".")[:2] != __version__.split(".")[:2]:
        advice = "Upgrade the older side: `pip install -U gridx-jupyter`."
        return Row("coordinator", "note", f"{found}; here {__version__}", advice)
    return Row("coordinator", "ok", found)


async def _login(client: Client) -> Row:
    try:
        welcome = await client.connect()
    except GridXError as exc:
        return Row("log-in", "care", exc.message, exc.hint)
    return Row("log-in", "ok", f"accepted as {welcome.user}; the job connection stands")


async def _balance(client: Client) -> Row:
    try:
        account = await client.balance()
    except GridXError as exc:
        return Row("balance", "care", exc.message, exc.hint)
    available = format_credits(from_credits(account.available))
    held = format_credits(from_credits(account.held))
    if account.available <= 0:
        advice = "Lend a worker to earn credits, or ask the grid's admin for a grant."
        return Row("balance", "care", f"{available} free, {held} held", advice)
    return Row("balance", "ok", f"{available} free, {held} held")


async def _workers(client: Client) -> Row:
    try:
        online = [worker for worker in await client.workers() if worker.status == "online"]
    except GridXError as exc:
        return Row("workers", "care", exc.message, exc.hint)
    usable = [
        worker
        for worker in online
        if not worker.capability.own_jobs_only or worker.owner == client.settings.user
    ]
    found = ", ".join(map(_worker, online[:4])) + (" …" if len(online) > 4 else "")
    if not online:
        return Row("workers", "care", "none online", "Start one: `gridx up`, or `gridx-worker`.")
    if not usable:
        return Row(
            "workers",
            "care",
            f"{len(online)} online, none that takes your jobs: {found}",
            "A process sandbox takes its owner's jobs only; start a worker with Docker, or your"
            " own.",
        )
    return Row("workers", "ok", f"{len(online)} online: {found}")


def _worker(worker: WorkerView) -> str:
    return f"{worker.name} ({worker.owner}, {worker.capability.sandbox})"


async def _clock(client: Client) -> Row:
    try:
        ahead_s = await client.clock_offset_s()
    except GridXError as exc:
        return Row("clock", "care", exc.message, exc.hint)
    if ahead_s is None:
        return Row("clock", "note", "the coordinator does not tell its time")
    if abs(ahead_s) > _CLOCK_TOLERANCE_S:
        which = "behind" if ahead_s > 0 else "ahead of"
        return Row(
            "clock",
            "care",
            f"{abs(ahead_s):.0f} s {which} the coordinator's",
            "Set this machine's clock (timedatectl set-ntp true).",
        )
    return Row("clock", "ok", "agrees with the coordinator's")


def _docker(environ: Mapping[str, str], *, needed: bool) -> Row:
    engine = find_engine(environ)
    if engine.answers:
        advice = "To lend this machine: `gridx doctor --lender` tries whether it holds jobs."
        return Row("Docker here", "ok", f"engine {engine.version} at {engine.address}", advice)
    advice = "Only a lender needs it: docs/howto/install-docker.md."
    if needed:
        advice = "`gridx up` works without it, for your own jobs: docs/howto/install-docker.md."
    return Row("Docker here", "note", f"{engine.reason} at {engine.address}", advice)


async def examine_lending(environ: Mapping[str, str] = os.environ) -> list[Row]:
    """Return what ``gridx-worker check`` finds: whether this machine keeps what jobs are promised.

    The worker is a program of its own, started here as one. No image is built.
    """
    if importlib.util.find_spec("worker") is None or importlib.util.find_spec("docker") is None:
        advice = "Type: pip install 'gridx-jupyter[worker]' (in a clone: pip install '.[worker]')."
        return [Row("lending", "care", "the worker is not installed here", advice)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker.main", "check", "--json"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(environ),
    )
    try:
        async with asyncio.timeout(_LENDING_S):
            out, err = await process.communicate()
    except TimeoutError:
        advice = "Look at it by hand: `gridx-worker check`; is the engine's disk full?"
        return [Row("lending", "care", f"no answer within {_LENDING_S:.0f} s", advice)]
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    try:
        report = msgspec.json.decode(out, type=_LendingReport)
    except msgspec.MsgspecError:
        said = " ".join(err.decode(errors="replace").split())[-300:]
        return [Row("lending", "care", said or "no report", "Try `gridx-worker check` by hand.")]
    return [
        Row(f"lending: {row.name}", "ok" if row.kept else "care", row.detail, row.hint)
        for row in report.rows
    ]
