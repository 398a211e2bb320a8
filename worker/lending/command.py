"""`gridx-worker status|pause|resume|drain|snooze|wake`: the lender's word to a worker that runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from gridx.errors import GridXError, InvalidRequest
from gridx.quantities import format_duration, parse_duration
from gridx.resources import Accepts, format_bytes

from ..settings import default_data_dir
from .control import Ask, GpuStatus, Status, ask_worker
from .policy import OnPause

COMMANDS: Final = {
    "status": "say how the worker is, and why it takes nothing when it does not",
    "pause": "take nothing more for now",
    "resume": "take back a pause or a drain",
    "drain": "take nothing more, let what runs end, then stop the worker",
    "snooze": "lend one GPU no more for now",
    "wake": "lend that GPU again",
}


def parser(command: str) -> argparse.ArgumentParser:
    """Return the parser of one of ``COMMANDS``."""
    made = argparse.ArgumentParser(
        prog=f"gridx-worker {command}", description=f"{COMMANDS[command].capitalize()}."
    )
    made.add_argument(
        "--data-dir",
        type=Path,
        default=default_data_dir(),
        metavar="DIR",
        help=f"of the worker that is meant; default: {default_data_dir()}",
    )
    if command == "status":
        made.add_argument("--json", action="store_true", help="for programs")
    if command in ("pause", "snooze"):
        made.add_argument(
            "--for", dest="for_s", type=_duration, metavar="TIME", help="as 2h; default: until told"
        )
    if command == "pause":
        made.add_argument(
            "--jobs",
            type=OnPause,
            choices=list(OnPause),
            metavar="finish|freeze|hand-back",
            help="what becomes of running jobs; default: what --on-pause of the worker says",
        )
    if command in ("snooze", "wake"):
        made.add_argument("gpu", help="UUID or index, as `gridx-worker status` shows them")
    return made


def main(command: str, arguments: Sequence[str]) -> int:
    """Run one of ``COMMANDS``; return its exit code."""
    given = parser(command).parse_args(arguments)
    ask = Ask(
        command=command,
        for_s=getattr(given, "for_s", None),
        jobs=getattr(given, "jobs", None),
        gpu=getattr(given, "gpu", None),
    )
    try:
        status = ask_worker(given.data_dir, ask)
    except GridXError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        return 1
    if getattr(given, "json", False):
        print(msgspec.json.format(msgspec.json.encode(status)).decode())
    else:
        print("\n".join(lines(status)))
    return 0


def lines(status: Status) -> list[str]:
    """Return what a person is shown."""
    said = [status.note] if status.note else []
    said.append(f"worker    {status.name or status.worker_id} of {status.user}, pid {status.pid}")
    link = "connected to" if status.is_connected else "NOT connected to"
    said.append(f"grid      {link} {status.coordinator}")
    said.append(f"lending   {_lending(status)}")
    said.append(
        f"offers    {status.cores:g} cores, {format_bytes(status.memory_bytes)},"
        f" {status.slots} jobs at a time, to {_accepts(status)}; hours: {status.hours}"
    )
    for at, gpu in enumerate(status.gpus):
        said.append(f"gpu {at}     {_gpu(gpu)}")
    if not status.jobs:
        said.append(f"jobs      none; {status.warm_sandboxes} warm sandboxes")
    for job in status.jobs:
        kind = "session" if job.is_session else "job"
        stands = ", stands still" if job.is_frozen else ""
        said.append(
            f"{kind:<10}{job.ref.job_id} of {job.user}, {format_duration(job.running_s)}{stands}"
        )
    said.append(f"machine   {_readings(status)}")
    return said


def _lending(status: Status) -> str:
    if status.pause is None:
        known = f" until {_local(status.next_change)}" if status.next_change is not None else ""
        return f"yes{known}"
    until = f" Until {_local(status.pause.until)}." if status.pause.until is not None else ""
    draining = (
        " It stops when its jobs have ended."
        if status.is_draining and "stops" not in status.pause.message
        else ""
    )
    return f"paused ({status.pause.reason.value}): {status.pause.message}{until}{draining}"


def _accepts(status: Status) -> str:
    if status.accepts is Accepts.USERS:
        return ", ".join((status.user, *status.users))
    return "anyone" if status.accepts is Accepts.ANYONE else f"{status.user} only"


def _gpu(gpu: GpuStatus) -> str:
    until = f" until {_local(gpu.snoozed_until)}" if gpu.snoozed_until else ""
    asleep = f", snoozes{until}" if gpu.is_snoozed else ""
    return f"{gpu.gpu.name}, {format_bytes(gpu.gpu.memory_bytes)}, {gpu.gpu.uuid}{asleep}"


def _readings(status: Status) -> str:
    readings = status.readings
    known = []
    if readings.on_battery is not None:
        full = f", {readings.battery:.0%}" if readings.battery is not None else ""
        known.append(f"on {'battery' if readings.on_battery else 'mains'}{full}")
    if readings.cpu_temperature_c is not None:
        known.append(f"processor {readings.cpu_temperature_c:.0f} °C")
    if readings.gpu_temperature_c is not None:
        known.append(f"GPU {readings.gpu_temperature_c:.0f} °C")
    if readings.owner_idle_s is not None:
        known.append(f"last touched {format_duration(readings.owner_idle_s)} ago")
    if readings.others_cpu is not None:
        known.append(f"its people's programs use {readings.others_cpu:.0%}")
    return ", ".join(known) or "tells nothing of battery, heat or its owner"


def _local(moment: datetime) -> str:
    return f"{moment.astimezone():%a %d %b %H:%M}"


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(f"{error.message} {error.hint}") from None
