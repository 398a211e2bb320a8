"""Processes without end or number, and what they may do to the one that watches them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gridx.resources import MIB
from gridx.states import Cause
from tests.support.hostile_cells import HostileCells
from worker.runtime.syscalls import DENIED, machine
from worker.sandbox.docker import DockerSandbox
from worker.sandbox.limits import PIDS

pytestmark = pytest.mark.docker

PTRACE = DENIED["ptrace"][machine().column]
MANY = 300  # more than a container may have, and no danger where the limit is taken away

# ---------------------------------------------------------------- how a cell ends

ENDS: dict[str, tuple[str, Cause, int]] = {
    "os._exit": ("os._exit(3)", Cause.CRASHED, 3),
    "a segmentation fault": ("ctypes.string_at(0)", Cause.CRASHED, 139),
    "a kill of itself": ("os.kill(os.getpid(), 9)", Cause.CRASHED, 137),
    "an endless __repr__": (
        "sys.setrecursionlimit(10**7)\n"
        "class A:\n    def __repr__(self):\n        return repr(self)\nrepr(A())",
        Cause.CRASHED,
        139,
    ),
    "signals ignored": (
        "import signal\nfor s in (1, 2, 3, 15): signal.signal(s, signal.SIG_IGN)\n"
        "while True: signal.pause()",
        Cause.TIMEOUT,
        137,
    ),
    "descriptors 1 and 2 closed, then a loop": (
        "os.close(1)\nos.close(2)\nwhile True: pass",
        Cause.TIMEOUT,
        137,
    ),
    "every descriptor closed, then a loop": (
        "os.closerange(0, 1024)\nwhile True: pass",
        Cause.TIMEOUT,
        137,
    ),
    "fifty children that spin": (
        "for _ in range(50):\n    if os.fork() == 0: break\nwhile True: pass",
        Cause.TIMEOUT,
        137,
    ),
    "a fork bomb": (
        "while True:\n    try: os.fork()\n    except OSError: pass",
        Cause.TIMEOUT,
        137,
    ),
    "a bomb of threads": (
        "import threading\nwhile True:\n"
        "    try: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n"
        "    except RuntimeError: pass",
        Cause.TIMEOUT,
        137,
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_every_end_has_its_cause_and_keeps_what_was_said(cells: HostileCells, name: str) -> None:
    code, cause, exit_code = ENDS[name]
    timeout_s = 1.0 if cause is Cause.TIMEOUT else 60.0
    code = "print('before', flush=True)\n" + code
    ended = cells.run(code, kind="cell", timeout_s=timeout_s, memory_bytes=256 * MIB)
    assert ended.said is not None, ended
    exited = ended.said.exited
    assert (exited.cause, exited.exit_code) == (cause, exit_code)
    assert exited.message.endswith(".")
    assert ended.stdout.startswith("before\n")
    assert not exited.usage.out_of_memory
    assert exited.usage.cpu_s > 0
    assert exited.usage.peak_memory_bytes > 16 * MIB


@pytest.mark.guards("runtime: deadline")
def test_a_loop_is_ended_at_its_time_limit(cells: HostileCells) -> None:
    sandbox = cells.start()
    try:
        cells.begin(sandbox, "print('on', flush=True)\nwhile True: pass", timeout_s=0.5)

        async def ended() -> None:
            async with asyncio.timeout(10):
                while not hasattr(await sandbox.receive(), "cause"):
                    pass

        cells.wait(ended())
    finally:
        cells.kill(sandbox)


@pytest.mark.parametrize(
    "bomb",
    ["while True:\n    try: os.fork()\n    except OSError: pass", "while True: pass"],
    ids=["a fork bomb", "a loop"],
)
def test_the_worker_ends_a_container_from_outside_however_busy_it_is(
    cells: HostileCells, bomb: str
) -> None:
    """What follows when the supervisor has not kept the deadline."""
    sandbox = cells.start()
    cells.begin(sandbox, "print('on', flush=True)\n" + bomb)
    start_s = time.monotonic()
    cells.kill(sandbox)
    assert time.monotonic() - start_s < 10  # some 100 ms on a machine that is not shared
    assert not cells.api.containers(all=True, filters={"id": sandbox.id})


@pytest.mark.guards("runtime: kill of strays")
@pytest.mark.parametrize(
    "stray",
    [
        "    os.setsid()\n    if os.fork() == 0:\n        while True: time.sleep(60)\n    os._exit(0)",
        "    os.setsid()\n    while True: pass",
    ],
    ids=["a daemon that forked twice", "a session of its own"],
)
def test_nothing_that_a_job_started_outlives_it(cells: HostileCells, stray: str) -> None:
    sandbox = cells.start()
    try:
        cells.begin(sandbox, f"if os.fork() == 0:\n{stray}\nprint('done', flush=True)")
        assert cells.finish(sandbox).exited.cause is Cause.COMPLETED

        async def alone() -> None:
            # The supervisor waits for the worker to hang up; it ends the strays before that.
            async with asyncio.timeout(10):
                while len(cells.api.top(sandbox.id)["Processes"]) > 1:
                    await asyncio.sleep(0.02)

        cells.wait(alone())
    finally:
        cells.kill(sandbox)


# ---------------------------------------------------------------- how many, and how much

COUNTED = f"""
import resource, threading
def forks():
    made = 0
    try:
        while made < {MANY}:
            if os.fork() == 0:
                while True: time.sleep(60)
            made += 1
    except OSError as error:
        return made, errno.errorcode[error.errno]
    return made, "done"
def threads():
    made = 0
    try:
        while made < {MANY}:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            made += 1
    except RuntimeError:
        return made, "RuntimeError"
    return made, "done"
def group(controller, *names):
    for name in names:
        for folder in (f"/sys/fs/cgroup/{{controller}}", "/sys/fs/cgroup"):
            if not read(f"{{folder}}/{{name}}").startswith("E"):
                return read(f"{{folder}}/{{name}}").split()
    return None
"""


@pytest.fixture(scope="module")
def forked(cells: HostileCells) -> dict[str, Any]:
    """What a container of the usual size has come to with processes."""
    return cells.probe(COUNTED + "say(made=forks(), pids=group('pids', 'pids.max'))")


@pytest.fixture(scope="module")
def threaded(cells: HostileCells) -> dict[str, Any]:
    """The same with threads."""
    return cells.probe(
        COUNTED
        + """
say(
    made=threads(),
    quota=group("cpu", "cpu.cfs_quota_us", "cpu.max"),
    period=group("cpu", "cpu.cfs_period_us", "cpu.max"),
    oom_score=read("/proc/self/oom_score_adj"),
    threads=[os.environ.get(name + "_NUM_THREADS") for name in ("OMP", "OPENBLAS", "MKL")],
    isolated=sys.flags.isolated,
    nice=[tried(os.nice, -1), tried(os.setpriority, os.PRIO_PROCESS, 0, -5)],
    realtime=tried(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)),
    limits={name: resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
            for name in ("nofile", "fsize", "core", "msgqueue")},
    raised={name: tried(resource.setrlimit, getattr(resource, f"RLIMIT_{name.upper()}"),
                        (1 << 40, 1 << 40)) for name in ("nofile", "fsize", "core", "msgqueue")},
)
""",
        cores=0.5,
    )


@pytest.mark.guards("PidsLimit")
def test_processes_end_at_their_number(forked: dict[str, Any]) -> None:
    made, why = forked["made"]
    assert why == "EAGAIN"
    assert PIDS // 2 < made < PIDS
    assert forked["pids"] == [str(PIDS)]


@pytest.mark.guards("PidsLimit")
def test_threads_end_at_the_same_number(threaded: dict[str, Any]) -> None:
    made, why = threaded["made"]
    assert why == "RuntimeError"
    assert PIDS // 2 < made < PIDS


@pytest.mark.guards("NanoCpus")
def test_the_cpu_quota_is_the_one_that_was_asked_for(threaded: dict[str, Any]) -> None:
    assert int(threaded["quota"][0]) / int(threaded["period"][-1]) == 0.5


@pytest.mark.guards("OomScoreAdj")
def test_a_job_goes_before_the_lenders_own_programs(threaded: dict[str, Any]) -> None:
    assert int(threaded["oom_score"]) == 500


@pytest.mark.guards("Env threads")
def test_libraries_start_as_many_threads_as_the_job_has_cores(threaded: dict[str, Any]) -> None:
    assert threaded["threads"] == ["1", "1", "1"]


@pytest.mark.guards("Cmd -I")
def test_the_supervisor_takes_no_module_from_outside_the_image(threaded: dict[str, Any]) -> None:
    assert threaded["isolated"] == 1


def test_nothing_makes_a_job_more_important(threaded: dict[str, Any]) -> None:
    assert set(threaded["nice"]) <= {"EPERM", "EACCES"}
    assert threaded["realtime"] == "EPERM"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=name, marks=pytest.mark.guards(f"Ulimits {name}"))
        for name, value in {
            "nofile": 1024,
            "fsize": 256 * MIB,
            "core": 0,
            "msgqueue": 0,
        }.items()
    ],
)
def test_a_limit_of_a_process_is_what_was_asked_for_and_cannot_be_raised(
    threaded: dict[str, Any], name: str, value: int
) -> None:
    assert threaded["limits"][name] == [value, value]
    assert threaded["raised"][name] == "ValueError"  # "not allowed to raise maximum limit"


# ---------------------------------------------------------------- PID 1


@pytest.fixture
def warm(cells: HostileCells) -> Iterator[DockerSandbox]:
    """A sandbox for one test."""
    made = cells.start()
    try:
        yield made
    finally:
        cells.kill(made)


@pytest.mark.guards("runtime: PID 1 not dumpable")
def test_the_supervisor_cannot_be_read(cells: HostileCells, warm: DockerSandbox) -> None:
    found = cells.probe_in(
        warm,
        """
say(
    descriptors=tried(os.listdir, "/proc/1/fd"),
    output=tried(open, "/proc/1/fd/1", "wb"),
    memory=tried(open, "/proc/1/mem", "rb+"),
    environment=tried(open, "/proc/1/environ"),
    folder=tried(os.readlink, "/proc/1/cwd"),
    root=tried(os.listdir, "/proc/1/root"),
    maps=tried(lambda: open("/proc/1/maps").read()),
    own=tried(os.listdir, "/proc/self/fd"),
)
""",
    )
    assert found.pop("own") == "done"
    assert found == dict.fromkeys(found, "EACCES")


@pytest.mark.guards("Init", "Privileged")
def test_the_supervisor_cannot_be_stopped(cells: HostileCells) -> None:
    """The kernel takes signals to PID 1 and drops them: that it answers is the proof."""
    sandbox = cells.start()
    try:
        assert cells.inspect(sandbox)["HostConfig"]["Init"] is False
        found = cells.probe_in(
            sandbox,
            f"""
import signal
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    tried(os.kill, 1, number)
say(own=os.getpid(), parent=os.getppid(), attached=kernel({PTRACE}, 16, 1, 0, 0))
""",
        )
    finally:
        cells.kill(sandbox)
    assert found["own"] != 1
    assert found["parent"] == 1
    assert found["attached"] == "EPERM"


@pytest.mark.guards("runtime: other descriptors closed")
def test_a_job_inherits_no_descriptor_of_the_supervisor(cells: HostileCells) -> None:
    """Its own, for what it says, lie where a job's never come, and are worth garbage: below."""
    found = cells.probe(
        "say(low=[fd for fd in range(3, 900) if tried(os.fstat, fd) == 'done'],"
        " others=[fd for fd in range(900, 1024) if tried(os.fstat, fd) == 'done'])"
    )
    assert found["low"] == []
    assert len(found["others"]) <= 6


def test_a_job_holds_no_end_of_the_protocol(cells: HostileCells) -> None:
    """Written into every descriptor that there is: nothing reaches the worker as a frame."""
    ended = cells.run(
        "frame = b'\\0\\0\\0\\x20' + bytes(32)\n"
        "for fd in range(3, 1024):\n    tried(os.write, fd, frame)\nos.write(1, b'x' * 10)\n"
        "while True: pass",
        timeout_s=10.0,
    )
    assert ended.said is not None, ended
    assert ended.said.exited.cause is Cause.CRASHED
    assert "runtime's own pipe" in ended.said.exited.message
