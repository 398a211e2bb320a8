"""What holds a job that is a plain process of this user: tried on this machine, not guessed.

The kernel may refuse namespaces to an ordinary user, or in a container; so the fullest set that
it grants is looked for once, by starting the supervisor with it, and what a process of it then
finds is announced. What is refused makes no worker fail: it takes its owner's jobs only.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from gridx.disk import work_bytes
from gridx.resources import GIB, MIB, Check, ResourceRequest, format_bytes

from .. import runtime
from .limits import FILE_BYTES, OPEN_FILES, PIDS

SUPERVISOR: Final = Path(runtime.__file__).with_name("supervisor.py")
# Address space counts what is reserved, not what is used: interpreter and numpy reserve this.
RESERVED_BYTES: Final = 2 * GIB
PROBE_TIMEOUT_S: Final = 30.0
_PROBE_BYTES: Final = 32 * MIB
_INSIDE: Final = ("mount", "pid", "net", "ipc", "uts")
_REFUSED: Final = (errno.EPERM, errno.ENOSYS)
# The fullest first. Process ids need a mount namespace, for a /proc that shows them.
CHOICES: Final[tuple[tuple[str, ...], ...]] = (
    ("user", *_INSIDE),
    _INSIDE,  # root where user namespaces are switched off
    ("user", "mount", "net", "ipc", "uts"),  # in a container, whose /proc cannot be mounted anew
    ("user", "net", "ipc", "uts"),
    (),
)


class Plan(NamedTuple):
    """How a supervisor is started here, and what its job then finds."""

    namespaces: tuple[str, ...]
    filtered: bool
    counts_processes: bool
    found: Mapping[str, Any]
    refused: str = ""  # why the fullest set is not used

    @property
    def has_first_process(self) -> bool:
        """Whether the supervisor is the first process of its own, with a parent that waits."""
        return "pid" in self.namespaces

    def options(self, request: ResourceRequest, *, inputs: Path, hide: Sequence[Path]) -> list[str]:
        """Return the supervisor's command line after the program."""
        words = ["--process"]
        if not self.filtered:
            words.append("--unfiltered")
        for name in self.namespaces:
            words += ["--namespace", name]
        if "mount" in self.namespaces:
            size_bytes = work_bytes(request.memory_bytes, request.disk_bytes)
            words += ["--work-bytes", str(size_bytes), "--keep", str(inputs)]
            for path in hide:
                words += ["--hide", str(path)]
        # No limit of CPU time: it would count what a warm sandbox did before its job, and the
        # job's own time limit ends everything.
        limits = {
            "as": request.memory_bytes + RESERVED_BYTES,
            "fsize": max(FILE_BYTES, request.disk_bytes or 0),
            "nofile": OPEN_FILES,
            "core": 0,
        }
        if self.counts_processes:
            limits["nproc"] = PIDS
        for name, value in limits.items():
            words += ["--limit", f"{name}={value}"]
        return words


@functools.cache
def plan(choices: tuple[tuple[str, ...], ...] = CHOICES) -> Plan:
    """Return the first of ``choices`` that this machine grants. Tried once in a process's life."""
    refused = ""
    for namespaces in choices:
        for filtered in (True, False):
            # Only in a user namespace of its own are a job's processes counted apart.
            made = Plan(namespaces, filtered, "user" in namespaces, {}, refused)
            found = _probe(made)
            if isinstance(found, str):
                refused = refused or found
                continue
            if made.counts_processes and found["forks"][0] < PIDS // 2:
                made = made._replace(counts_processes=False)  # kernels before 5.14 count all
                found = _probe(made)
            if isinstance(found, dict) and not found["unreadable"]:
                return made._replace(found=found, refused=refused)
    return Plan((), False, False, {}, refused)


def _probe(tried: Plan) -> dict[str, Any] | str:
    """Return what a process of that plan finds, or why there is none."""
    with tempfile.TemporaryDirectory(prefix="gridx-probe-") as base:
        job, inputs, hidden = (Path(base) / name for name in ("job", "job.in", "hidden"))
        for folder in (job, inputs, hidden):
            folder.mkdir()
        (hidden / "secret").write_text("")
        request = ResourceRequest(disk_bytes=_PROBE_BYTES)
        options = tried.options(request, inputs=inputs, hide=[hidden])
        try:
            ended = subprocess.run(
                [sys.executable, "-I", str(SUPERVISOR), *options, "--probe"],
                cwd=job,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PROBE_TIMEOUT_S,
                check=False,
                start_new_session=True,
            )
            found: dict[str, Any] = json.loads(ended.stdout)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        except ValueError:
            said = ended.stderr.decode(errors="replace").strip().splitlines()
            return said[-1][:200] if said else f"exit code {ended.returncode}"
        return found


def checks_of(chosen: Plan) -> tuple[Check, ...]:
    """Return what is limited here, in the words that the self-test of containers has."""
    found = chosen.found
    if not found:
        detail = chosen.refused or "could not be tried"
        return (Check(name="limits of a process", kept=False, detail=detail),)
    has_mounts = "mount" in chosen.namespaces
    limits = found["rlimits"]
    work, temporary = found["work"], found["tmp"]
    denied = [name for name, error in found["denied"].items() if error in _REFUSED]
    forks, fork_error = found["forks"]
    return (
        Check(
            name="no capabilities",
            kept=not found["status"].get("CapEff", "").strip("0"),
            detail=f"CapEff {found['status'].get('CapEff', '?').lstrip('0') or 0}",
        ),
        Check(
            name="own system call filter",
            kept=len(denied) == len(found["denied"]),
            detail=f"refuses {', '.join(denied) or 'nothing'}",
        ),
        Check(
            name="no network",
            kept=found["interfaces"] in (["lo"], []) and found["connect"] != 0,
            detail=f"interfaces {' '.join(found['interfaces'])}",
        ),
        Check(
            name="own processes only",
            kept=chosen.has_first_process and found["processes"] <= 4,
            detail=f"{found['processes']} to be seen",
        ),
        Check(
            name="supervisor closed to the job",
            kept=chosen.has_first_process and found["supervisor"] != 0,
            detail="" if chosen.has_first_process else "it is a process of the same user",
        ),
        Check(
            name="files stay as they are",
            kept=has_mounts and bool(found["root_is_read_only"]) and not found["home_is_writable"],
            detail="read-only" if has_mounts else "a job can change what this user can",
        ),
        Check(
            name="the worker's own files",
            kept=has_mounts and bool(found["hidden"]),
            detail="hidden" if has_mounts else "a job can read them",
        ),
        Check(
            name="disk limit",
            kept=work.get("filled", [0, 0])[1] == errno.ENOSPC,
            detail="half of a job's memory, or what it asks for" if has_mounts else "none",
        ),
        Check(
            name="temporary folder",
            kept=has_mounts and temporary.get("many", [0, 0])[1] == errno.ENOSPC,
            detail=f"its own, {format_bytes(temporary.get('bytes', 0))}"
            if has_mounts
            else "shared",
        ),
        Check(
            name="process limit",
            kept=fork_error == errno.EAGAIN and forks <= PIDS,
            detail=f"{forks}" if fork_error else _why_not_counted(),
        ),
        Check(
            name="limits of a process",
            kept=limits["nofile"] == OPEN_FILES and limits["core"] == 0 and limits["as"] > 0,
            detail=f"{limits['nofile']} open files, {format_bytes(limits['fsize'])} a file,"
            f" address space of its memory and {format_bytes(RESERVED_BYTES)}",
        ),
        # These two need a control group, which an ordinary user has none of to give.
        Check(name="memory limit", kept=False, detail="of each process, not of all together"),
        Check(name="CPU limit", kept=False, detail="only the time limit"),
        Check(name="this user's files", kept=False, detail="a job can read what this user can"),
    )


def _why_not_counted() -> str:
    return "not for root" if os.getuid() == 0 else "the kernel counts all of this user's"
