"""Cell jobs in a real container: as in a notebook, in the order in which things were said."""

from __future__ import annotations

from typing import Any

import pytest

from gridx.codec.results import apply_result
from gridx.events import (
    ClearOutput,
    DisplayData,
    ErrorOutput,
    Event,
    ExecuteResult,
    Stream,
    UpdateDisplayData,
    decode_events,
)
from gridx.ship.capture import capture
from gridx.states import Cause
from worker.runtime.frames import Cancel, Events, Run

from .runtime_box import Outcome, container_box

pytestmark = pytest.mark.docker

PNG = b"\x89PNG\r\n\x1a\n"


def said(outcome: Outcome) -> list[tuple[str, str]]:
    """Return what was said in order; neighbouring text of one stream is one."""
    result: list[tuple[str, str]] = []
    for event in outcome.events:
        kind, text = _in_short(event)
        if result and isinstance(event, Stream) and result[-1][0] == kind:
            result[-1] = (kind, result[-1][1] + text)
        else:
            result.append((kind, text))
    return result


def _in_short(event: Event) -> tuple[str, str]:
    match event:
        case Stream():
            return event.name, event.text
        case ErrorOutput():
            return "error", event.error["type"]
        case ExecuteResult() | DisplayData() | UpdateDisplayData():
            kind = {"ExecuteResult": "result", "DisplayData": "display"}
            images = "".join(f" + {mime}" for mime in event.binary)
            return kind.get(type(event).__name__, "update"), event.data["text/plain"] + images
        case ClearOutput():
            return "clear", str(event.wait)
        case _:
            return type(event).__name__, ""


CELLS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "print, stderr, os.system, a child, os.write": (
        "import sys, os, subprocess\nprint('a')\nprint('b', file=sys.stderr)\nos.system('echo c')\n"
        "subprocess.run(['sh', '-c', 'echo d >&2'])\nprint('e')\nos.write(1, b'f\\n');",
        [("stdout", "a\n"), ("stderr", "b\n"), ("stdout", "c\n"), ("stderr", "d\n"),
         ("stdout", "e\nf\n")],
    ),
    "displays between prints": (
        "from IPython.display import display, HTML\nprint('before')\ndisplay(HTML('<b>x</b>'))\n"
        "print('after')\n42",
        [("stdout", "before\n"), ("display", "<IPython.core.display.HTML object>"),
         ("stdout", "after\n"), ("result", "42")],
    ),
    "C writes": (
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.printf(b'from C\\n')\nlibc.fflush(None)\n"
        "print('py')",
        [("stdout", "from C\npy\n")],
    ),
    "a print without its newline, then a child": (
        "import subprocess\nprint('first ', end='')\nsubprocess.run(['echo', 'second']);",
        [("stdout", "first second\n")],
    ),
    "shell commands": (
        "x = !echo hi\nprint(x)\n!echo {1 + 1} >&2\n!exit 3\n_exit_code",
        [("stdout", "['hi']\n"), ("stderr", "2\n"), ("result", "3")],
    ),
    "a bash cell": ("%%bash\necho hi", [("stdout", "hi\n")]),
    "await at top level": (
        "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 5\nawait f()",
        [("result", "5")],
    ),
    "a semicolon": ("3;", []),
    "the value None": ("None", []),
    "a figure": (
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nprint('drawn')\nplt.show()",
        [("stdout", "drawn\n"), ("display", "<Figure size 640x480 with 1 Axes> + image/png")],
    ),
    "a figure that is not shown by hand": (
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
        [("display", "<Figure size 640x480 with 1 Axes> + image/png")],
    ),
    "a table": ("import pandas as pd\npd.DataFrame({'a': [1]})", [("result", "   a\n0  1")]),
    "input": ("print('q')\ninput('name? ')", [("stdout", "q\n"), ("error", "EOFError")]),
    "an error after output": (
        "print('a')\nraise ValueError('x')",
        [("stdout", "a\n"), ("error", "ValueError")],
    ),
    "what is not Python": ("y = (2,\nz = 3 4", [("error", "SyntaxError")]),
    "a magic that is not there": ("%nothing_of_that_name", [("error", "UsageError")]),
    "a __repr__ that raises": (
        "class A:\n    def __repr__(self):\n        return 1 / 0\nprint('a')\nA()",
        [("stdout", "a\n"),
         ("stderr", 'Traceback (most recent call last):\n  File "<cell>", line 3, in __repr__\n'
                    "    return 1 / 0\n           ~~^~~\nZeroDivisionError: division by zero\n")],
    ),
    "clearing": (
        "from IPython.display import clear_output\nprint(1)\nclear_output(wait=True)\nprint(2)",
        [("stdout", "1\n"), ("clear", "True"), ("stdout", "2\n")],
    ),
    "updating a display": (
        "from IPython.display import display\nh = display('a', display_id='id')\nh.update('b')",
        [("display", "'a'"), ("update", "'b'")],
    ),
    "warnings and logging": (
        "import warnings, logging\nwarnings.warn('careful')\nlogging.warning('log')",
        [("stderr", "<cell>:2: UserWarning: careful\n  warnings.warn('careful')\n"
                    "WARNING:root:log\n")],
    ),
    "a thread": (
        "import threading\nt = threading.Thread(target=print, args=('from thread',))\n"
        "t.start()\nt.join()",
        [("stdout", "from thread\n")],
    ),
    "bytes that are not UTF-8": (
        "import os\nos.write(1, b'\\xff ok\\n')\nprint('\\ud800')",
        [("stdout", "\ufffd ok\n\\ud800\n")],
    ),
    "a character in two pieces": (
        "import os, sys\nos.write(1, 'é'.encode()[:1])\nsys.stdout.flush()\n"
        "os.write(1, 'é'.encode()[1:]);",
        [("stdout", "é")],
    ),
    "the streams by their device names": (
        "!echo a > /dev/stderr\nopen('/dev/stdout', 'w').write('b\\n');",
        [("stderr", "a\n"), ("stdout", "b\n")],
    ),
    "exit": ("exit\nprint('goes on')", [("stdout", "goes on\n")]),
    "sys.exit": ("import sys\nsys.exit(3)", [("error", "SystemExit")]),
    "a fork that falls through the cell": (
        "import os\npid = os.fork()\nprint('child' if pid == 0 else os.waitpid(pid, 0)[1])",
        [("stdout", "child\n0\n")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_says_what_it_says_in_order(name: str) -> None:
    code, expected = CELLS[name]
    with container_box() as box:
        outcome = box.run(code, kind="cell")
    assert said(outcome) == expected
    failed = bool(expected) and expected[-1][0] == "error"
    assert outcome.exited.cause is (Cause.ERROR if failed else Cause.COMPLETED)


def test_processes_of_a_pool_write_whole_lines() -> None:
    code = (
        "import multiprocessing as mp\ndef sq(x):\n    print('child', x)\n    return x * x\n"
        "with mp.get_context('fork').Pool(2) as pool:\n    print(pool.map(sq, [1, 2]))"
    )
    with container_box() as box:
        outcome = box.run(code, kind="cell")
    assert sorted(outcome.stdout.splitlines()) == ["[1, 4]", "child 1", "child 2"]


def test_a_pool_that_starts_new_interpreters_works() -> None:
    code = (
        "import multiprocessing as mp\nwith mp.get_context('spawn').Pool(1) as pool:\n"
        "    print(pool.map(abs, [-1, 2]))"
    )
    with container_box() as box:
        outcome = box.run(code, kind="cell")
    assert (outcome.stdout, outcome.stderr) == ("[1, 2]\n", "")


def test_a_progress_bar_is_a_few_messages() -> None:
    code = "import sys\nfor i in range(20_000):\n    sys.stderr.write(f'\\r{i}')\n    sys.stderr.flush()"
    with container_box() as box:
        outcome = box.run(code, kind="cell")
    assert len(outcome.events) < 400
    assert outcome.stderr.endswith("19999")
    assert len(outcome.stderr) < 20_000


def test_code_that_holds_the_interpreters_lock_cannot_block_its_own_output() -> None:
    code = (
        "import ctypes\nlibc = ctypes.PyDLL(None)\n"
        "libc.printf(b'%0*d', ctypes.c_int(4_000_000), ctypes.c_int(0))\n"
        "libc.fflush(None)\nprint('end')"
    )
    with container_box() as box:
        outcome = box.run(code, kind="cell")
    assert outcome.stdout == "0" * 4_000_000 + "end\n"


def test_many_lines_arrive_whole_and_in_order() -> None:
    with container_box() as box:
        outcome = box.run("for i in range(200_000): print(i)", kind="cell")
    assert outcome.stdout == "".join(f"{i}\n" for i in range(200_000))


def test_one_print_of_many_megabytes_arrives_whole() -> None:
    with container_box() as box:
        outcome = box.run("print('é' * 5_000_000)", kind="cell")
    assert outcome.stdout == "é" * 5_000_000 + "\n"


def test_an_error_is_data_with_the_lines_of_the_cell() -> None:
    code = "def g(a):\n    return 1 / a\n\ng(0)"
    with container_box() as box:
        outcome = box.run(code, kind="cell")
    [error] = outcome.of(ErrorOutput)
    frames = [(f["is_cell"], f["line"], f["name"]) for f in error.error["frames"]]
    assert frames == [(True, 4, "<module>"), (True, 2, "g")]
    assert error.error["message"] == "division by zero"
    assert outcome.exited.message == "ZeroDivisionError: division by zero"


def test_an_image_comes_as_its_bytes() -> None:
    code = "from IPython.display import Image, display\nimport base64\n" + (
        f"display(Image(data={PNG + bytes(100)!r}, format='png', width=10))"
    )
    with container_box() as box:
        outcome = box.run(code, kind="cell")
    [shown] = outcome.of(DisplayData)
    assert shown.binary == {"image/png": PNG + bytes(100)}
    assert shown.metadata == {"image/png": {"width": 10}}


def run_captured(code: str, namespace: dict[str, Any], **more: Any) -> Outcome:
    """Run ``code`` with what it reads of ``namespace``, and bring home what it binds."""
    sent = capture(code, namespace)
    with container_box() as box:
        outcome = box.run(
            code,
            kind="cell",
            inputs=sent.payload,
            expected=tuple(sorted(sent.expected)),
            watched=tuple(sorted(sent.inputs)),
            **more,
        )
    apply_result(outcome.result, namespace, expected=sent.expected, cell_source=code)
    return outcome


def test_variables_travel_there_and_back() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__", "n": 20, "names": ["a"]}
    outcome = run_captured("total = sum(range(n))\nnames.append('b')\ntotal", namespace)
    assert said(outcome) == [("result", "190")]
    assert (namespace["total"], namespace["names"]) == (190, ["a", "b"])


def test_what_was_bound_before_an_error_comes_home() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    outcome = run_captured("a = 1\n1 / 0\nb = 2", namespace)
    assert outcome.exited.cause is Cause.ERROR
    assert namespace["a"] == 1 and "b" not in namespace


def test_only_the_names_that_were_asked_for_come_home() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    run_captured("a = 1\nb = 2", namespace, out=("b",))
    assert namespace["b"] == 2 and "a" not in namespace


def test_variables_above_the_limit_stay_and_the_user_is_told() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    outcome = run_captured("a = 'x' * 100_000", namespace, max_result_bytes=10_000)
    assert outcome.exited.cause is Cause.COMPLETED
    assert "a" not in namespace
    assert "97.7 KiB, more than the 9.8 KiB that may come" in outcome.stderr
    assert "The largest: a (97.7 KiB)" in outcome.stderr
    assert "--out" in outcome.stderr


def test_inputs_that_are_damaged_are_the_jobs_error() -> None:
    with container_box() as box:
        outcome = box.run("1", kind="cell", inputs=b"garbage")
    assert outcome.exited.cause is Cause.ERROR
    [error] = outcome.of(ErrorOutput)
    assert error.error["type"] == "RestoreError"


def test_half_a_line_is_seen_while_the_cell_goes_on_computing() -> None:
    with container_box() as box:
        box.send(Run(kind="cell", code="print('half', end='')\nwhile True: pass", timeout_s=60.0))
        frame = box.frame()
        box.send(Cancel())
        box.collect()
    assert isinstance(frame, Events)
    assert [e.text for e in decode_events(frame.data) if isinstance(e, Stream)] == ["half"]


def test_a_job_that_comes_before_the_sandbox_is_warm_waits_for_it() -> None:
    with container_box(wait=False) as box:
        box.send(Run(kind="cell", code="1 + 1", timeout_s=30.0))
        box.wait_ready()
        outcome = box.collect()
    assert said(outcome) == [("result", "2")]
