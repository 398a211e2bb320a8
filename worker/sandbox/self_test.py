"""Does this engine keep what jobs are promised? Tried in two containers before the first job.

An engine without a limit only warns when it is asked for one, so each is looked at from inside:
a job of ours reads and tries what a stranger's job could (``worker/runtime/facts.py``), another
takes more memory than it has. Both go the production way: the same engine, options, image and
frames. A worker whose engine breaks one promise takes no job.

What passed is remembered for a day, for exactly this engine, image, runtime, kernel and set of
options, so that an ordinary start does not wait for it.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from gridx.disk import shared_bytes, tmp_bytes, work_bytes
from gridx.errors import SandboxError
from gridx.events import decode_events, join_text
from gridx.resources import MIB, Check, Image, ResourceRequest, format_bytes
from gridx.states import Cause

from ..runtime import facts as facts_module
from ..runtime.frames import CallExited, Events, Exited, Run
from .base import Promise, Sandbox, SandboxClosed, SandboxEngine
from .limits import (
    FILE_BYTES,
    FILES,
    LEAST_CORES,
    OOM_SCORE,
    OPEN_FILES,
    PIDS,
)

REQUEST: Final = ResourceRequest(cores=1.0, memory_bytes=256 * MIB)
SMALL_REQUEST: Final = ResourceRequest(cores=1.0, memory_bytes=128 * MIB)
PASSED_FOR: Final = timedelta(days=1)
KILL_LIMIT_S: Final = 2.0
PATIENCE_S: Final = 30.0  # for one answer; a machine under load is slow, not unsafe
GVISOR: Final = "runsc"
TOLERANCE: Final = 0.02  # quotas are whole microseconds
WRITABLE: Final = (
    *("/work", "/tmp", "/dev", "/dev/shm", "/dev/pts", "/dev/mqueue", "/proc"),  # noqa: S108
)
_REFUSED: Final = (errno.EPERM, errno.ENOSYS)
_CLOSED: Final = (errno.EPERM, errno.EACCES, errno.ENOENT)

_ECHO: Final = "print('echo')"
_FACTS_CALL: Final = (
    f"\nimport json as _json\nprint(_json.dumps(facts(most_bytes={REQUEST.memory_bytes // 2})))\n"
)
_SPIN: Final = (
    "import signal\nfor _s in (1, 2, 3, 15): signal.signal(_s, signal.SIG_IGN)\n"
    "print('on', flush=True)\nwhile True: pass"
)
# Four times what it has: where there is no limit, it takes no more than that.
_EAT: Final = f"_a = [b'x' * (8 << 20) for _ in range({SMALL_REQUEST.memory_bytes >> 21})]"

_UPDATE: Final = "Update Docker (20.10 or newer) and its runc, and start the worker again."
_CGROUPS: Final = (
    "The engine cannot use this control group. A rootless engine needs cgroup v2 with delegation"
    " (systemd: Delegate=cpu memory pids for user@.service); on version 1 boot with"
    " cgroup_enable=memory."
)
_SECCOMP: Final = (
    'The engine runs without seccomp: remove "seccomp-profile": "unconfined" from daemon.json, or'
    " use a kernel with CONFIG_SECCOMP."
)
HINTS: Final[Mapping[str, str]] = {
    "Linux containers": "Switch Docker Desktop to Linux containers.",
    "CPU quota": _CGROUPS,
    "control groups": _CGROUPS,
    "system call filter": _SECCOMP,
    "own user": "The engine ignores the user of a container. " + _UPDATE,
    "no capabilities": "The engine or its runtime adds capabilities. Look at the settings of"
    " the runtime in daemon.json.",
    "no new privileges": "The runtime ignores no-new-privileges. " + _UPDATE,
    "engine's system call filter": _SECCOMP,
    "own system call filter": "This kernel refuses seccomp filters (CONFIG_SECCOMP_FILTER), or"
    " the processor is neither x86-64 nor aarch64.",
    "read-only root": "The engine's storage leaves something writable. Use overlay2 as storage"
    " driver, and no volumes in the image.",
    "disk limit": "The engine ignores the size of a tmpfs. " + _UPDATE,
    "temporary folder": "The engine ignores the options of a tmpfs. " + _UPDATE,
    "number of files": "The engine ignores nr_inodes of a tmpfs. " + _UPDATE,
    "shared memory": "The engine ignores the size of /dev/shm or shares it. Remove"
    ' "default-ipc-mode" and "default-shm-size" from daemon.json.',
    "no network": "The engine connects containers in spite of --network none. Look for a hook or"
    " plugin of the engine that does.",
    "memory limit": _CGROUPS,
    "no swap above it": "The engine cannot limit swap. Boot with swapaccount=1 (cgroup v1), or"
    " turn swap off: swapoff -a.",
    "process limit": _CGROUPS,
    "CPU limit": _CGROUPS,
    "limits of a process": "The engine ignores ulimits. " + _UPDATE,
    "ends first": "The engine ignores the score for the kernel's choice when memory is short. "
    + _UPDATE,
    "supervisor closed to the job": "The kernel lets a job look into the process that watches"
    " it. Use a kernel with /proc access checks (any since 4.14), or runc as the runtime.",
    "own processes only": "The engine shares process ids with the machine. Remove that from its"
    " settings or its runtime's.",
    "inputs read-only": "The engine mounts the job's inputs writable. " + _UPDATE,
    "inputs of other jobs": "Containers see each other's folders. Give the worker a --data-dir"
    " of its own, on a local disk.",
    "out of memory is seen": _CGROUPS,
    "killed in time": "The engine took too long to kill a container. Is the machine overloaded,"
    " or its disk full? Look at the engine's log.",
    "answers": "The attach stream of the engine does not work. A proxy before its socket?",
}
_OTHERWISE: Final = "Run `gridx-worker check` for the whole list, and look at the engine's log."


def hint_of(name: str) -> str:
    """Return what to do when the check of that name fails."""
    return HINTS.get(name, _OTHERWISE)


def refuse(checks: Sequence[Check | Promise]) -> None:
    """Return when every check has passed.

    Raises:
        SandboxError: one has not; it names each, and what to do.
    """
    broken = [check for check in checks if not check.kept]
    if not broken:
        return
    raise SandboxError(
        "This machine takes no jobs, because its engine does not keep what jobs are promised: "
        + ", ".join(f"{check.name} ({check.detail or 'off'})" for check in broken)
        + ".",
        hint=" ".join(dict.fromkeys(hint_of(check.name) for check in broken))
        + " `gridx-worker check` shows the whole list.",
    )


async def self_test(
    engine: SandboxEngine, *, image: Image | None = None, runtime: str = "", probe: Path
) -> tuple[Check, ...]:
    """Try every promised limit in containers of ``engine``.

    Args:
        engine: prepared, or able to start sandboxes.
        image: what to try; the first when None.
        runtime: the engine's OCI runtime; gVisor differs in a few points, and says so.
        probe: a file of this worker's that one of the two containers gets as an input.

    Returns:
        One check a promise, kept or not.

    Raises:
        SandboxError: a container could not be started at all.
    """
    started = await asyncio.gather(
        engine.start(REQUEST, image=image),
        engine.start(SMALL_REQUEST, image=image),
        return_exceptions=True,
    )
    sandboxes = [each for each in started if not isinstance(each, BaseException)]
    try:
        for answer in started:
            if isinstance(answer, BaseException):
                raise answer
        looking, eating = sandboxes
        await eating.put_inputs({"secret": probe})  # which the other one must not see
        checks, seen = await asyncio.gather(_from_inside(looking, runtime), _out_of_memory(eating))
    finally:
        await asyncio.gather(*(sandbox.kill() for sandbox in sandboxes))
    killed = checks.pop()
    if not killed.kept:  # a machine that was busy for a moment is told from one that cannot
        killed = await _killed_in_time(await engine.start(SMALL_REQUEST, image=image))
    return (*checks, killed, seen)


async def _from_inside(sandbox: Sandbox, runtime: str) -> list[Check]:
    began_s = time.monotonic()
    echo = await _call(sandbox, 0, _ECHO)
    took_s = time.monotonic() - began_s
    answers = Check(name="answers", kept=echo == "echo\n", detail=f"after {1000 * took_s:.0f} ms")
    told = await _call(sandbox, 1, inspect.getsource(facts_module) + _FACTS_CALL)
    try:
        found = json.loads(told)
    except ValueError:
        raise SandboxError(f"The self-test's job said {told[-500:]!r}.") from None
    return [answers, *judge(found, REQUEST, runtime=runtime), await _killed_in_time(sandbox)]


async def _killed_in_time(sandbox: Sandbox) -> Check:
    try:
        await sandbox.send(Run(call=2, kind="cell", code=_SPIN, timeout_s=PATIENCE_S, keep=True))
        async with asyncio.timeout(PATIENCE_S):
            while not isinstance(await sandbox.receive(), Events):
                pass
    finally:
        began_s = time.monotonic()
        await sandbox.kill()
    took_s = time.monotonic() - began_s
    return Check(name="killed in time", kept=took_s < KILL_LIMIT_S, detail=f"{took_s:.2f} s")


async def _call(sandbox: Sandbox, number: int, code: str) -> str:
    """Run a cell and return what it printed, or the error that it told."""
    await sandbox.send(
        Run(call=number, kind="cell", code=code, timeout_s=PATIENCE_S, keep=True, expected=())
    )
    text = ""
    try:
        async with asyncio.timeout(2 * PATIENCE_S):
            while True:
                frame = await sandbox.receive()
                if isinstance(frame, Events):
                    text += join_text(decode_events(frame.data), "stdout")
                elif isinstance(frame, CallExited | Exited):
                    return text if frame.cause is Cause.COMPLETED else text + frame.message
    except TimeoutError:
        raise SandboxError("A container of the self-test does not answer.") from None


async def _out_of_memory(sandbox: Sandbox) -> Check:
    name = "out of memory is seen"
    try:
        await sandbox.send(Run(kind="script", code=_EAT, timeout_s=PATIENCE_S))
        async with asyncio.timeout(2 * PATIENCE_S):
            while not isinstance(frame := await sandbox.receive(), Exited):
                pass
        return Check(name=name, kept=frame.cause is Cause.OUT_OF_MEMORY, detail=frame.cause.value)
    except SandboxClosed:  # the supervisor may be the one that the kernel picks
        death = await sandbox.post_mortem()
        detail = "the whole container ended" if death.out_of_memory else "ended, and nobody knows"
        return Check(name=name, kept=death.out_of_memory, detail=detail)
    except TimeoutError:
        return Check(name=name, kept=False, detail="nothing ended it")


# ---------------------------------------------------------------- what was found, judged


def judge(found: Mapping[str, Any], request: ResourceRequest, *, runtime: str = "") -> list[Check]:
    """Return one check a promise for what a job of size ``request`` found around itself.

    Args:
        found: what ``facts`` returned in the container.
        request: the size that was asked for.
        runtime: the OCI runtime. gVisor shows no control groups and has filters of its own.
    """
    is_gvisor = runtime == GVISOR
    status: Mapping[str, str] = found["status"]
    first: Mapping[str, str] = found["first"]
    capabilities = {name: status.get(name, "") for name in ("CapEff", "CapBnd")}
    groups = f", groups {found['groups']}" if found["groups"] else ""
    return [
        Check(
            name="own user",
            kept=found["uid"] >= 1000 and found["gid"] == found["uid"] and not found["groups"],
            detail=f"user {found['uid']}, group {found['gid']}{groups}",
        ),
        Check(
            name="no capabilities",
            kept=all(value.strip("0") == "" and value for value in capabilities.values()),
            detail=" ".join(
                f"{name} {value.lstrip('0') or 0}" for name, value in capabilities.items()
            ),
        ),
        Check(
            name="no new privileges",
            # Of PID 1, which has not set it itself; gVisor has no such line.
            kept=first.get("NoNewPrivs", "1" if is_gvisor else "") == "1",
            detail=f"NoNewPrivs {first.get('NoNewPrivs', '?')}",
        ),
        _engine_filter(first, is_gvisor=is_gvisor),
        Check(
            name="own system call filter",
            kept=all(error in _REFUSED for error in found["denied"].values()),
            detail=", ".join(f"{name} {_word(error)}" for name, error in found["denied"].items()),
        ),
        _read_only(found, is_gvisor=is_gvisor),
        *_folders(found, request, is_gvisor=is_gvisor),
        Check(
            name="no network",
            kept=found["interfaces"] in (["lo"], []) and found["connect"] != 0,
            detail=f"interfaces {' '.join(found['interfaces']) or 'none'},"
            f" connect {_word(found['connect'])}",
        ),
        *_groups(found["cgroup"], request, is_gvisor=is_gvisor),
        _rlimits(found["rlimits"]),
        Check(
            name="ends first",
            kept=found["oom_score_adj"] == OOM_SCORE or (is_gvisor and not found["oom_score_adj"]),
            detail=f"oom_score_adj {_count(found['oom_score_adj'])}",
        ),
        _supervisor(found["supervisor"], is_gvisor=is_gvisor),
        Check(
            name="own processes only",
            kept=found["processes"] <= 4,
            detail=f"{found['processes']} to be seen",
        ),
        Check(
            name="inputs read-only",
            kept=found["inputs_write"] != 0 and (found["inputs_are_read_only"] or is_gvisor),
            detail=_word(found["inputs_write"]),
        ),
        Check(
            name="inputs of other jobs",
            kept=found["inputs"] == [],
            detail="not to be seen" if found["inputs"] == [] else f"sees {found['inputs']}",
        ),
    ]


def _engine_filter(first: Mapping[str, str], *, is_gvisor: bool) -> Check:
    name = "engine's system call filter"
    if is_gvisor:
        return Check(name=name, kept=True, detail="gVisor answers system calls itself")
    mode = first.get("Seccomp", "?")
    return Check(name=name, kept=mode == "2", detail=f"Seccomp {mode}")


def _read_only(found: Mapping[str, Any], *, is_gvisor: bool) -> Check:
    extra = [path for path in found["writable"] if path not in WRITABLE]
    if is_gvisor:  # its own /sys and /proc are files of nobody's
        extra = [path for path in extra if not path.startswith(("/sys", "/proc", "/dev"))]
    # gVisor does not tell how it has mounted what; that a write fails is all that can be seen.
    is_read_only = found["root_is_read_only"] or (is_gvisor and found["root_write"] != 0)
    return Check(
        name="read-only root",
        kept=bool(is_read_only) and not extra,
        detail=f"also writable: {' '.join(extra)}" if extra else "only /work, /tmp and /dev/shm",
    )


def _folders(found: Mapping[str, Any], request: ResourceRequest, *, is_gvisor: bool) -> list[Check]:
    work, temporary, shared = found["work"], found["tmp"], found["shm"]
    small = tmp_bytes(request.memory_bytes)
    disk = work_bytes(request.memory_bytes, request.disk_bytes)
    many = [each.get("many") for each in (work, temporary, shared)]
    return [
        _ends("disk limit", work, disk, is_gvisor=is_gvisor),
        _ends("temporary folder", temporary, small, is_gvisor=is_gvisor),
        _number_of_files(many, is_gvisor=is_gvisor),
        Check(
            name="shared memory",
            kept=shared.get("bytes") == shared_bytes(request.memory_bytes),
            detail=format_bytes(shared.get("bytes", 0)),
        ),
    ]


def _number_of_files(many: Sequence[Sequence[int] | None], *, is_gvisor: bool) -> Check:
    kept = all(each and each[1] == errno.ENOSPC and each[0] <= FILES for each in many)
    detail = ", ".join(f"{each[0]} then {_word(each[1])}" if each else "?" for each in many)
    if is_gvisor and not kept:
        # Its files are memory of its own process, which the container's limit counts.
        kept, detail = True, "under gVisor they count as memory"
    return Check(name="number of files", kept=kept, detail=detail)


def _ends(name: str, folder: Mapping[str, Any], size_bytes: int, *, is_gvisor: bool) -> Check:
    filled = folder.get("filled")
    if not filled:
        why = f"not writable: {_word(folder['write'])}" if folder.get("write") else "not limited"
        return Check(name=name, kept=False, detail=f"{why}, {_bytes(folder.get('bytes'))}")
    missing = [flag for flag in ("noexec", "nosuid", "nodev") if not folder[flag]]
    if is_gvisor:
        missing = []  # it shows no such flag
    return Check(
        name=name,
        # Less than all of it goes in: the runtime has put something there before.
        kept=folder["bytes"] == size_bytes
        and 0 < filled[0] <= size_bytes
        and filled[1] == errno.ENOSPC
        and not missing,
        detail=f"{format_bytes(filled[0])}, then {_word(filled[1])}"
        + (f"; without {' '.join(missing)}" if missing else ""),
    )


def _groups(
    limits: Mapping[str, float | None], request: ResourceRequest, *, is_gvisor: bool
) -> list[Check]:
    memory, swap = limits["memory_bytes"], limits["swap_bytes"]
    cores = max(request.cores, LEAST_CORES)
    wanted = (
        ("memory limit", memory, memory == request.memory_bytes, _bytes(memory)),
        # No such file: no swap to be limited. The engine is asked for that before.
        ("no swap above it", swap or 0.0, not swap, _bytes(swap or 0.0)),
        ("process limit", limits["pids"], limits["pids"] == PIDS, _count(limits["pids"])),
        (
            "CPU limit",
            limits["cores"],
            limits["cores"] is not None and abs(limits["cores"] - cores) <= TOLERANCE * cores,
            f"{_count(limits['cores'])} cores",
        ),
    )
    checks = []
    for name, value, kept, detail in wanted:
        if value is None:
            shown = "gVisor does not show it; the engine holds it from outside"
            detail = shown if is_gvisor else "cannot be read"
        checks.append(Check(name=name, kept=kept or (value is None and is_gvisor), detail=detail))
    return checks


def _rlimits(limits: Mapping[str, int]) -> Check:
    wanted = {"nofile": OPEN_FILES, "fsize": FILE_BYTES, "core": 0, "msgqueue": 0}
    wrong = {name: limits[name] for name, value in wanted.items() if limits[name] != value}
    return Check(
        name="limits of a process",
        kept=not wrong,
        detail=", ".join(f"{name} {value}" for name, value in (wrong or wanted).items()),
    )


def _supervisor(error: int, *, is_gvisor: bool) -> Check:
    name = "supervisor closed to the job"
    if is_gvisor and error == 0:
        # Known: there frames can be forged from inside. The worker's own checks carry it.
        return Check(name=name, kept=True, detail="open under gVisor; its frames are checked")
    return Check(name=name, kept=error in _CLOSED, detail=_word(error))


def _word(error: int) -> str:
    return errno.errorcode.get(error, str(error)) if error else "possible"


def _count(value: float | None) -> str:
    if value is None:
        return "?"
    return "unlimited" if value == float("inf") else f"{value:g}"


def _bytes(value: float | None) -> str:
    if value is None or value > 1 << 60:  # version 1 writes the largest multiple of a page
        return "unlimited" if value is not None else "?"
    return format_bytes(value)


# ---------------------------------------------------------------- remembered


class _Passed(msgspec.Struct, frozen=True, kw_only=True):
    at: datetime
    checks: tuple[Check, ...]


class Remembered:
    """Self-tests that passed not long ago, in a file of the worker's data folder."""

    def __init__(self, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path = path
        self._now = now

    def find(self, key: str) -> tuple[Check, ...] | None:
        """Return the checks that passed for ``key`` less than a day ago."""
        passed = self._load().get(key)
        if passed is None or not timedelta(0) <= self._now() - passed.at < PASSED_FOR:
            return None
        return passed.checks

    def keep(self, key: str, checks: Sequence[Check]) -> None:
        """Remember that every one of ``checks`` passed. A full disk costs the next start time."""
        now = self._now()
        known = {
            other: passed
            for other, passed in self._load().items()
            if timedelta(0) <= now - passed.at < PASSED_FOR
        }
        known[key] = _Passed(at=now, checks=tuple(checks))
        part = self._path.with_name(self._path.name + ".part")
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(msgspec.json.encode(known))
            part.replace(self._path)
        except OSError:
            pass

    def _load(self) -> dict[str, _Passed]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, _Passed])
        except (OSError, msgspec.MsgspecError):
            return {}


_KEY_WORDS: Final = (
    *("ID", "ServerVersion", "KernelVersion", "OperatingSystem", "DefaultRuntime", "RuncCommit"),
    *("CgroupVersion", "CgroupDriver", "SecurityOptions", "Driver"),
)


def key_of(info: Mapping[str, Any], *, image: str, runtime: str, options: object) -> str:
    """Return what a passed self-test is good for: a digest of all that could change its answer.

    Args:
        info: the engine's answer to ``docker info``.
        image: digest of the image.
        runtime: OCI runtime; "" is the engine's default.
        options: what a container is created with, and whatever else is part of the promise.
    """
    seen = [*(info.get(word) for word in _KEY_WORDS), image, runtime, options]
    text = json.dumps(seen, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
