"""Sessions in a real sandbox: one process, many calls, each with its own output and its end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from gridx.codec.results import apply_result
from gridx.events import ErrorOutput, Stream
from gridx.states import Cause
from worker.runtime.frames import Cancel, Exited, Interrupt

from .runtime_box import Box, Outcome, container_box, process_box

pytestmark = pytest.mark.docker

SPIN = "print('on')\nwhile True: pass"
BEGUN = "on\n"


@pytest.fixture(params=["container", "process"])
def box(request: pytest.FixtureRequest) -> Iterator[Box]:
    with container_box() if request.param == "container" else process_box() as made:
        yield made


@pytest.fixture
def container() -> Iterator[Box]:
    with container_box() as made:
        yield made


def errors(outcome: Outcome) -> list[str]:
    return [event.error["type"] for event in outcome.of(ErrorOutput)]


def ended(outcome: Outcome, cause: Cause) -> bool:
    """Return whether the whole session ended, for this cause."""
    last = outcome.frames[-1]
    return isinstance(last, Exited) and last.cause is cause


# ---------------------------------------------------------------- calls


def test_a_session_keeps_its_namespace_between_calls(box: Box) -> None:
    assert box.call(0, "x = 20").call_exited.cause is Cause.COMPLETED
    assert box.call(1, "def f(): return x + 1").call_exited.call == 1
    outcome = box.call(2, "f() * 2")
    assert [e.data["text/plain"] for e in outcome.events] == ["42"]  # type: ignore[union-attr]
    assert {e.call for e in outcome.events} == {2}


def test_every_call_sends_its_own_result(box: Box) -> None:
    namespace: dict[str, Any] = {}
    for call, code, name in ((0, "a = [1]", "a"), (1, "b = a + [2]", "b"), (2, "a.append(3)", "a")):
        outcome = box.call(call, code, expected=(name,), watched=("a",))
        apply_result(outcome.result, namespace, expected={name}, cell_source=code)
    assert namespace == {"a": [1, 3], "b": [1, 2]}


def test_every_call_is_metered_from_its_own_start(box: Box) -> None:
    busy = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    first = box.call(0, busy).call_exited.usage
    second = box.call(1, "1").call_exited.usage
    assert first.cpu_s >= 0.4 > second.cpu_s
    assert first.wall_s >= 0.4 > second.wall_s
    assert second.peak_memory_bytes > 0
    box.send(Cancel())
    whole = box.collect().exited
    assert whole.cause is Cause.CANCELLED
    assert whole.usage.cpu_s >= 0.4 and whole.usage.wall_s >= first.wall_s + second.wall_s


def test_an_error_shows_the_lines_of_the_call_that_they_are_from(box: Box) -> None:
    box.call(0, "def g(a):\n    return 1 / a")
    [error] = box.call(1, "x = 0\n\ng(x)").of(ErrorOutput)
    frames = [(f["is_cell"], f["file"], f["line"], f["source"]) for f in error.error["frames"]]
    assert frames == [(True, "<cell 1>", 3, "g(x)"), (False, "<cell>", 2, "    return 1 / a")]
    assert box.call(2, "1").call_exited.cause is Cause.COMPLETED


def test_a_warning_is_shown_once_in_every_call(box: Box) -> None:
    code = "import warnings\nfor _ in range(3): warnings.warn('careful')"
    for call, file in ((0, "<cell>"), (1, "<cell 1>")):
        assert box.call(call, code).stderr.splitlines() == [
            f"{file}:2: UserWarning: careful",
            "  for _ in range(3): warnings.warn('careful')",
        ]


def test_the_value_that_was_shown_last_is_at_hand_in_the_next_call(box: Box) -> None:
    box.call(0, "6 * 7")
    assert box.call(1, "print(_ + 1)").stdout == "43\n"


def test_a_second_run_while_one_is_running_is_ignored(box: Box) -> None:
    box.begin(0, "print('on')\nimport time; time.sleep(0.3)\nprint('first')")
    box.collect_until(BEGUN)
    box.begin(1, "print('second')")
    outcome = box.collect_call()
    assert (outcome.stdout, outcome.call_exited.call) == ("first\n", 0)


# ---------------------------------------------------------------- interrupts and limits


@pytest.mark.parametrize(
    "code",
    [
        SPIN,
        "import time\nprint('on')\ntime.sleep(60)",
        "import asyncio\nprint('on')\nawait asyncio.sleep(60)",
        "import subprocess\nprint('on')\nsubprocess.run(['sleep', '60'])",
        "print('on')\n!sleep 60",
        "import asyncio\nasync def f():\n    print('on')\n    await asyncio.sleep(60)\nasyncio.run(f())",
        "import threading\nprint('on')\nthreading.Event().wait()",
    ],
    ids=["spins", "sleeps", "awaits", "waits for a program", "shell", "asyncio.run", "an event"],
)
def test_an_interrupt_ends_the_call_and_keeps_the_namespace(box: Box, code: str) -> None:
    box.begin(0, "x = 5\n" + code)
    box.collect_until(BEGUN)
    box.send(Interrupt())
    outcome = box.collect_call()
    assert errors(outcome) == ["KeyboardInterrupt"]
    assert outcome.call_exited.cause is Cause.CANCELLED
    after = box.call(1, "import asyncio\nawait asyncio.sleep(0)\nprint(x)")
    assert (after.stdout, after.stderr) == ("5\n", "")


def test_an_interrupt_shows_the_line_that_was_running(box: Box) -> None:
    # Said by the loop while the third line waits: said by the second, it may still be running.
    code = (
        "import asyncio\nasyncio.get_running_loop().call_soon(print, 'on')\nawait asyncio.sleep(60)"
    )
    box.begin(0, code)
    box.collect_until(BEGUN)
    box.send(Interrupt())
    [error] = box.collect_call().of(ErrorOutput)
    assert [f["line"] for f in error.error["frames"] if f["is_cell"]] == [3]


def test_an_interrupt_in_the_middle_of_a_flood_leaves_the_session_whole(box: Box) -> None:
    box.begin(0, "print('on')\nwhile True: print('x' * 500)")
    box.collect_until(BEGUN)
    for _ in range(2):
        box.send(Interrupt())
        outcome = box.collect_call()
        assert errors(outcome) == ["KeyboardInterrupt"]
        call = outcome.call_exited.call + 1
        box.begin(call, "print('on')\nwhile True: print('y' * 500)")
        box.collect_until("yyy")
    box.send(Cancel())
    assert box.collect().exited.cause is Cause.CANCELLED


def test_a_call_that_catches_its_interrupt_completes(box: Box) -> None:
    code = "try:\n    print('on')\n    while True: pass\nexcept KeyboardInterrupt:\n    print('caught')"
    box.begin(0, code)
    box.collect_until(BEGUN)
    box.send(Interrupt())
    outcome = box.collect_call()
    assert (outcome.stdout, outcome.call_exited.cause) == ("caught\n", Cause.COMPLETED)


def test_a_handler_that_a_call_sets_is_not_the_next_ones(box: Box) -> None:
    box.call(0, "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN);")
    box.begin(1, SPIN)
    box.collect_until(BEGUN)
    box.send(Interrupt())
    assert errors(box.collect_call()) == ["KeyboardInterrupt"]


def test_an_interrupt_while_the_variables_are_encoded_keeps_the_session(box: Box) -> None:
    code = (
        "class Slow:\n    def __reduce_ex__(self, protocol):\n        print('on')\n"
        "        import time; time.sleep(600)\nx = Slow()"
    )
    box.begin(0, code, expected=("x",))
    box.collect_until(BEGUN)
    box.send(Interrupt())
    outcome = box.collect_call()
    assert (errors(outcome), outcome.call_exited.cause) == (["KeyboardInterrupt"], Cause.CANCELLED)
    assert box.call(1, "print(type(x).__name__)").stdout == "Slow\n"


def test_an_interrupt_between_two_calls_interrupts_neither(box: Box) -> None:
    box.call(0, "1")
    box.send(Interrupt())
    assert box.call(1, "print('fine')").stdout == "fine\n"


def test_a_call_that_does_not_obey_its_interrupt_takes_the_session_with_it(box: Box) -> None:
    box.begin(0, "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + SPIN)
    box.collect_until(BEGUN)
    box.send(Interrupt())
    outcome = box.collect_call()
    assert ended(outcome, Cause.CANCELLED)
    assert "after an interrupt" in outcome.exited.message


def test_the_time_limit_of_a_call_leaves_the_session_open(box: Box) -> None:
    outcome = box.call(0, "x = 1\nwhile True: pass", timeout_s=0.3)
    assert outcome.call_exited.cause is Cause.TIMEOUT
    assert outcome.call_exited.message == "Stopped at its time limit of 0.3 s."
    assert box.call(1, "print(x)").stdout == "1\n"


def test_a_call_that_ignores_its_time_limit_ends_the_session(box: Box) -> None:
    code = (
        "import time\nwhile True:\n    try:\n        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n        pass"
    )
    assert ended(box.call(0, code, timeout_s=0.3), Cause.TIMEOUT)


@pytest.mark.parametrize(
    ("code", "cause", "exit_code"),
    [
        ("import os\nos._exit(3)", Cause.CRASHED, 3),
        ("import os\nos.abort()", Cause.CRASHED, 128 + signal.SIGABRT),
        ("x = bytearray(2 << 30)", Cause.OUT_OF_MEMORY, 137),
    ],
    ids=["os._exit", "a crash", "out of memory"],
)
def test_the_end_of_the_process_is_the_end_of_the_session(
    container: Box, code: str, cause: Cause, exit_code: int
) -> None:
    container.call(0, "y = 1")
    outcome = container.call(1, code)
    assert ended(outcome, cause)
    assert outcome.exited.exit_code == exit_code


def test_an_exit_is_an_error_of_its_call_alone(box: Box) -> None:
    outcome = box.call(0, "import sys\nsys.exit(3)")
    assert errors(outcome) == ["SystemExit"]
    assert (outcome.call_exited.cause, outcome.call_exited.exit_code) == (Cause.ERROR, 3)
    assert box.call(1, "print('on')").stdout == "on\n"


# ---------------------------------------------------------------- whose output


LATE = {
    "a thread": (
        "import threading\nevent = threading.Event()\ndef late():\n    event.wait()\n"
        "    print('late')\nthread = threading.Thread(target=late)\nthread.start()",
        "event.set()\nthread.join()\nprint('mine')",
    ),
    "a task": (
        "import asyncio\nasync def late():\n    await asyncio.sleep(0)\n    await event.wait()\n"
        "    print('late')\nevent = asyncio.Event()\ntask = asyncio.ensure_future(late())\n"
        "await asyncio.sleep(0)",
        "event.set()\nawait task\nprint('mine')",
    ),
    "a process": (
        "import subprocess\nlate = subprocess.Popen(['sh', '-c', 'read x; echo late'], "
        "stdin=subprocess.PIPE)",
        "late.communicate(b'go\\n')\nprint('mine')",
    ),
    "a fork": (
        "import os\nr, w = os.pipe()\npid = os.fork()\nif pid == 0:\n    os.read(r, 1)\n"
        "    print('late')\n    os._exit(0)",
        "os.write(w, b'x')\nos.waitpid(pid, 0)\nprint('mine')",
    ),
    "a display": (
        "import threading\nfrom IPython.display import display\nevent = threading.Event()\n"
        "def late():\n    event.wait()\n    print('late')\n    display('shown')\n"
        "thread = threading.Thread(target=late)\nthread.start()",
        "event.set()\nthread.join()\nprint('mine')",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LATE)
def test_what_outlives_its_call_speaks_for_that_call(box: Box, kind: str) -> None:
    first, second = LATE[kind]
    outcome = box.call(0, first)
    assert (outcome.stdout, outcome.stderr) == ("", "")
    outcome = box.call(1, second)
    outcome.frames += box.call(2, "print('end')").frames
    texts = {0: "", 1: "", 2: ""}
    for event in outcome.of(Stream):
        texts[event.call] += event.text
    assert texts == {0: "late\n", 1: "mine\n", 2: "end\n"}
    assert {e.call for e in outcome.events if not isinstance(e, Stream)} <= {0}


def test_work_for_an_older_pool_speaks_for_the_call_that_gave_it(box: Box) -> None:
    box.call(0, "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)")
    box.call(1, "pool.submit(print, 'one').result()")
    outcome = box.call(2, "pool.submit(print, 'two').result()")
    assert [(e.call, e.text) for e in outcome.of(Stream)] == [(2, "two\n")]


def test_what_is_said_between_two_calls_arrives_at_once(box: Box) -> None:
    box.call(0, "import threading\nthreading.Timer(0.2, print, ['later']).start()")
    [said] = box.collect_until("later").of(Stream)
    assert said.call == 0


def test_code_that_holds_the_interpreters_lock_cannot_block_a_later_call(container: Box) -> None:
    container.call(0, "import ctypes\nlibc = ctypes.PyDLL(None)")
    code = (
        "libc.printf(b'%0*d', ctypes.c_int(4_000_000), ctypes.c_int(0))\n"
        "libc.fflush(None)\nprint('end')"
    )
    assert container.call(1, code).stdout == "0" * 4_000_000 + "end\n"


def test_many_calls_leave_no_descriptor_behind(box: Box) -> None:
    count = "import os\nprint(len(os.listdir('/proc/self/fd')))"
    numbers = [int(box.call(call, count).stdout) for call in range(40)]
    assert max(numbers) < numbers[0] + 10  # the last calls' may still be open, not every call's


# ---------------------------------------------------------------- a job that lies


FIND_PIPE = (
    "import os, struct, stat\n"
    "def pipes():\n"
    "    for name in os.listdir('/proc/self/fd'):\n"
    "        try:\n"
    "            if stat.S_ISFIFO(os.fstat(int(name)).st_mode) and int(name) > 2:\n"
    "                yield int(name)\n"
    "        except OSError:\n            pass\n"
    "def say(kind, body=b''):\n"
    "    for fd in pipes():\n"
    "        try:\n            os.write(fd, struct.pack('>BI', kind, len(body)) + body)\n"
    "        except OSError:\n            pass\n"
)  # fmt: skip


@pytest.mark.parametrize(
    "lie",
    [
        "import threading\nthreading.Timer(0.2, say, [4, DONE]).start()",
        "import threading\nthreading.Timer(0.2, say, [3, b'result']).start()",
        "say(2, b'\\0\\0\\0\\x24' + msgspec.msgpack.encode("
        "{'type': 'stream', 'name': 'stdout', 'text': '', 'call': 7}))",
        "say(9)",
    ],
    ids=["an end between two calls", "a result of no call", "an event of a call to come", "noise"],
)
def test_a_session_that_forges_records_ends(container: Box, lie: str) -> None:
    prepare = "import msgspec\nDONE = msgspec.msgpack.encode({'completed': True, 'exit_code': 0})\n"
    container.begin(0, prepare + FIND_PIPE + lie)
    outcome = container.collect()
    assert outcome.exited.cause is Cause.CRASHED


def test_a_forged_end_ends_the_call_that_runs_and_no_other(container: Box) -> None:
    lie = (
        "import msgspec\nsay(4, msgspec.msgpack.encode({'completed': True, 'exit_code': 0}))\n"
        "import time\ntime.sleep(60)"
    )
    outcome = container.call(0, FIND_PIPE + lie)
    assert outcome.call_exited.call == 0
    container.send(Cancel())
    assert container.collect().exited.cause is Cause.CANCELLED
