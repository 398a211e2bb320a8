"""Cells that misbehave, in a real container: each is contained, and each has an end with a cause."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gridx.events import Stream
from gridx.resources import MIB
from gridx.states import Cause
from worker.runtime.frames import Cancel, Run
from worker.runtime.records import EVENTS, RESULT

from .runtime_box import Box, Outcome, container_box, process_box

pytestmark = pytest.mark.docker

SUPERVISOR = Path(__file__).parents[2] / "worker" / "runtime" / "supervisor.py"
TRY = """\
import ctypes, errno, os, socket, struct, sys
def tried(f, *args):
    try:
        f(*args)
    except OSError as e:
        return errno.errorcode[e.errno]
    return 'allowed'
def call(*words):
    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    answer = libc.syscall(*(ctypes.c_long(w) for w in words))
    return errno.errorcode.get(ctypes.get_errno()) if answer < 0 else 'allowed'
"""


def wait_for_output(box: Box, text: str) -> Outcome:
    """Return what was said until ``text`` has been."""
    outcome = Outcome()
    while text not in outcome.text():
        outcome.frames.append(box.frame())
    return outcome


def answers(code: str) -> list[str]:
    """Run code that prints words; return them."""
    with container_box() as box:
        outcome = box.run(TRY + code)
    assert outcome.stderr == ""
    return outcome.stdout.split()


# ---------------------------------------------------------------- how a call ends

ENDS: dict[str, tuple[str, Cause, int]] = {
    "os._exit": ("import os\nos._exit(3)", Cause.CRASHED, 3),
    "a segmentation fault": ("import ctypes\nctypes.string_at(0)", Cause.CRASHED, 139),
    "a kill of itself": ("import os\nos.kill(os.getpid(), 9)", Cause.CRASHED, 137),
    "an endless __repr__": (
        "import sys\nsys.setrecursionlimit(10**7)\n"
        "class A:\n    def __repr__(self):\n        return repr(self)\nrepr(A())",
        Cause.CRASHED,
        139,
    ),
    "memory without end": (
        "import os\na = []\nwhile True:\n    a.append(bytearray(os.urandom(1 << 20)) * 8)",
        Cause.OUT_OF_MEMORY,
        137,
    ),
    "an endless loop": ("while True: pass", Cause.TIMEOUT, 137),
    "signals ignored": (
        "import signal\nfor s in (1, 2, 3, 15): signal.signal(s, signal.SIG_IGN)\n"
        "while True: signal.pause()",
        Cause.TIMEOUT,
        137,
    ),
    "every descriptor closed, then a loop": (
        "import os\nos.closerange(0, 1024)\nwhile True: pass",
        Cause.TIMEOUT,
        137,
    ),
    "a fork bomb": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        Cause.TIMEOUT,
        137,
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_every_end_has_its_cause(name: str) -> None:
    code, cause, exit_code = ENDS[name]
    timeout_s = 1.0 if cause is Cause.TIMEOUT else 60.0
    with container_box(memory_bytes=256 * MIB, pids=64) as box:
        outcome = box.run("print('before')\n" + code, kind="cell", timeout_s=timeout_s)
    exited = outcome.exited
    assert (exited.cause, exited.exit_code) == (cause, exit_code)
    assert exited.message.endswith(".")
    assert outcome.stdout.startswith("before\n")
    assert exited.usage.out_of_memory is (cause is Cause.OUT_OF_MEMORY)
    assert exited.usage.source == "cgroup"
    assert exited.usage.cpu_s > 0
    assert exited.usage.peak_memory_bytes > 16 * MIB


def test_a_child_out_of_memory_is_not_the_jobs_end() -> None:
    code = (
        "import os\nif os.fork() == 0:\n    a = []\n"
        "    while True: a.append(bytearray(os.urandom(1 << 20)) * 8)\n"
        "print(os.waitpid(-1, 0)[1])"
    )
    with container_box(memory_bytes=256 * MIB) as box:
        outcome = box.run(code)
    assert (outcome.stdout, outcome.exited.cause) == ("9\n", Cause.COMPLETED)
    assert outcome.exited.usage.out_of_memory


def test_a_cancelled_call_is_over_with_everything_that_it_started() -> None:
    code = (
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n        os.setsid()\n"
        "        while True: time.sleep(60)\nprint('started')\nwhile True: pass"
    )
    with container_box() as box:
        box.send(Run(kind="cell", code=code, timeout_s=60.0))
        wait_for_output(box, "started")
        box.send(Cancel())
        outcome = box.collect()
        assert outcome.exited.cause is Cause.CANCELLED
        assert outcome.exited.usage.wall_s > 0
        processes = box.api.top(box.container)["Processes"]
        assert len(processes) == 1


def test_a_cancel_before_the_job_ends_the_sandbox() -> None:
    with container_box() as box:
        box.send(Cancel())
        assert box.collect().exited.cause is Cause.CANCELLED


def test_a_stray_does_not_hold_up_the_end_of_its_job() -> None:
    code = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        while True: time.sleep(60)\n    os._exit(0)\nos.wait()\nprint('done')"
    )
    with container_box() as box:
        outcome = box.run(code, timeout_s=30.0)
    assert (outcome.stdout, outcome.exited.cause) == ("done\n", Cause.COMPLETED)


def test_the_container_ends_when_its_worker_has_gone() -> None:
    with container_box() as box:
        box.send(Run(kind="cell", code="print('a', flush=True)\nwhile True: pass", timeout_s=60.0))
        wait_for_output(box, "a")
        box.hang_up()
        assert box.api.wait(box.container, timeout=30)["StatusCode"] == 0


def test_a_container_whose_job_is_done_ends_when_its_worker_hangs_up() -> None:
    with container_box() as box:
        box.run("1")
        box.hang_up()
        assert box.api.wait(box.container, timeout=30)["StatusCode"] == 0


def test_there_is_one_job_a_sandbox() -> None:
    with container_box() as box:
        box.send(Run(kind="script", code="print('first')", timeout_s=10.0))
        box.send(Run(kind="script", code="print('second')", timeout_s=10.0))
        assert box.collect().stdout == "first\n"
        box.hang_up()
        with pytest.raises(EOFError):
            box.frame()


def test_what_the_warm_up_used_is_not_charged() -> None:
    with container_box() as box:
        outcome = box.run("1 + 1", kind="cell")
    # Warming takes some 100 ms of CPU, such a cell a few.
    assert outcome.exited.usage.cpu_s < 0.05


# ---------------------------------------------------------------- what the job can reach


def test_the_filter_is_in_before_the_job() -> None:
    with container_box() as box:
        assert box.ready is not None and box.ready.filtered
        status = box.run("print(open('/proc/self/status').read())").stdout
    assert "Seccomp_filters:\t2\n" in status
    assert "NoNewPrivs:\t1\n" in status
    assert "CapEff:\t0000000000000000\n" in status


def test_kernel_calls_beyond_a_jobs_needs_are_refused() -> None:
    words = answers(
        "from_table = dict(io_uring=(425, 8, 0), ptrace=(101, 0, 0, 0, 0), bpf=(321, 0, 0, 0),\n"
        "    userfaultfd=(323, 1), memfd_secret=(447, 0), unshare=(272, 0x10000000),\n"
        "    keyctl=(250, 0, -3, 0), perf=(298, 0, 0, -1, -1, 0), clone_new_user=(56, 0x10000011))\n"
        "for words in from_table.values(): print(call(*words))\nprint(call(435, 0, 0))"
    )
    assert words == ["EPERM"] * 9 + ["ENOSYS"]


def test_there_is_no_network() -> None:
    words = answers(
        "print(tried(socket.create_connection, ('192.0.2.1', 80), 5))\n"
        "for family, kind in ((16, 3), (17, 3), (40, 1), (38, 5)):\n"
        "    print(tried(socket.socket, family, kind))\n"
        "print(*os.listdir('/sys/class/net'))"
    )
    assert words == ["ENETUNREACH", "EPERM", "EPERM", "EPERM", "EPERM", "lo"]


def test_the_supervisor_is_out_of_reach() -> None:
    words = answers(
        "print(os.getpid() != 1)\n"
        "for f in (lambda: os.listdir('/proc/1/fd'), lambda: open('/proc/1/mem', 'rb+'),\n"
        "          lambda: open('/proc/1/environ').read(), lambda: open('/proc/1/fd/1', 'wb')):\n"
        "    print(tried(f))\n"
        "print(call(101, 16, 1, 0, 0), tried(os.kill, 1, 9), tried(os.kill, 1, 19))\n"
        "print(len(os.listdir('/proc/self/fd')) > 0)"
    )
    assert words[:6] == ["True", "EACCES", "EACCES", "EACCES", "EACCES", "EPERM"]
    # The kernel accepts signals to PID 1 and drops them: that it answers this call is the proof.
    assert words[-1] == "True"


def test_the_job_holds_no_end_of_the_protocol() -> None:
    """Written into every descriptor that there is: nothing reaches the worker as a frame."""
    code = TRY + (
        "frame = b'\\0\\0\\0\\x20' + bytes(32)\n"
        "for fd in range(3, 1024):\n    tried(os.write, fd, frame)\nos.write(1, b'x' * 10)\n"
        "while True: pass"
    )
    with container_box() as box:
        outcome = box.run(code, timeout_s=10.0)
    assert outcome.exited.cause is Cause.CRASHED
    assert "runtime's own pipe" in outcome.exited.message


@pytest.mark.parametrize(
    "record",
    [
        (EVENTS, b"\0\0\0\x04abcd"),  # not an event
        (EVENTS, b"\0\0\0\x40" + bytes(8)),  # cut
        (RESULT, None),  # announces 4 GiB
        (99, b""),  # unknown
    ],
    ids=["not an event", "a cut event", "a huge result", "an unknown record"],
)
def test_garbage_from_the_job_ends_the_job_and_nothing_else(
    record: tuple[int, bytes | None],
) -> None:
    kind, body = record
    length = 0xFFFFFFF0 if body is None else len(body)
    code = TRY + (
        f"record = struct.pack('>BI', {kind}, {length}) + {body or b''!r}\n"
        "for fd in range(900, 1024):\n    tried(os.write, fd, record)\nwhile True: pass"
    )
    with container_box() as box:
        outcome = box.run(code, timeout_s=10.0)
    assert outcome.exited.cause is Cause.CRASHED
    assert all(isinstance(event, Stream) for event in outcome.events)


def test_a_flood_waits_for_a_worker_that_does_not_read() -> None:
    code = "import os\nb = b'x' * 65536\nfor _ in range(800): os.write(1, b)\nprint('end')"
    with container_box() as box:
        box.send(Run(kind="script", code=code, timeout_s=60.0))
        outcome = box.collect()
    assert outcome.exited.cause is Cause.COMPLETED
    assert len(outcome.stdout) == 800 * 65536 + 4


# ---------------------------------------------------------------- without a container


def test_the_process_sandbox_ends_what_escaped_from_its_session() -> None:
    code = (
        "import os, time\nreading, writing = os.pipe()\nif os.fork() == 0:\n    os.setsid()\n"
        "    if os.fork() == 0:\n        os.write(writing, str(os.getpid()).encode())\n"
        "        while True: time.sleep(60)\n    os._exit(0)\nprint(os.read(reading, 20).decode())"
    )
    with process_box() as box:
        outcome = box.run(code)
        assert outcome.exited.cause is Cause.COMPLETED
        stray = int(outcome.stdout)
        box.hang_up()
        box.process.wait(timeout=30)
        with pytest.raises(ProcessLookupError):
            os.kill(stray, 0)


def test_the_process_sandbox_reports_its_memory_limit() -> None:
    with process_box("--limit", f"as={2048 * MIB}", "--limit", "core=0") as box:
        outcome = box.run("x = bytearray(4 << 30)")
    assert outcome.exited.cause is Cause.OUT_OF_MEMORY


def test_the_process_sandbox_stops_at_its_time_limit() -> None:
    with process_box() as box:
        outcome = box.run("while True: pass", timeout_s=0.5)
    assert outcome.exited.cause is Cause.TIMEOUT


def test_outside_a_container_the_supervisor_refuses_to_play_pid_1() -> None:
    done = subprocess.run(
        [sys.executable, "-I", str(SUPERVISOR)],
        input=b"",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert b"--process" in done.stderr
