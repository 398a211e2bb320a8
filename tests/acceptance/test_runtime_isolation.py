"""How the supervisor ends a job, and what becomes of one that talks nonsense to it.

What else hostile code can do in a container is in ``adversarial/``.
"""

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
import os, struct
def tried(f, *args):
    try:
        f(*args)
    except OSError:
        pass
"""


def wait_for_output(box: Box, text: str) -> Outcome:
    """Return what was said until ``text`` has been."""
    outcome = Outcome()
    while text not in outcome.text():
        outcome.frames.append(box.frame())
    return outcome


# ---------------------------------------------------------------- how a call ends


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
