"""Script jobs in a real container: what a terminal would show, and nothing else."""

from __future__ import annotations

import pytest

from gridx.states import Cause
from worker.runtime.frames import Result

from .runtime_box import container_box, process_box

pytestmark = pytest.mark.docker

TRACEBACK = """\
Traceback (most recent call last):
  File "<job>", line 4, in <module>
    f(0)
  File "<job>", line 2, in f
    return 1 / n
           ~~^~~
ZeroDivisionError: division by zero
"""

# name: (code, stdout, stderr, exit code)
SCRIPTS: dict[str, tuple[str, str, str | None, int]] = {
    "prints": ("print(1)\nprint('é', 2, sep='-')", "1\né-2\n", "", 0),
    "nothing": ("", "", "", 0),
    "does not echo a last expression": ("1 + 1", "", "", 0),
    "is main": ("if __name__ == '__main__':\n    print('main')", "main\n", "", 0),
    "keeps a line without its end": ("print('a', end='')", "a", "", 0),
    "writes to both": ("import sys\nprint('e', file=sys.stderr)\nprint('o')", "o\n", "e\n", 0),
    "raises": ("def f(n):\n    return 1 / n\n\nf(0)\n", "", TRACEBACK, 1),
    "prints before it raises": ("print(1)\nraise KeyError('k')", "1\n", None, 1),
    "is not Python": (
        "x = (\n",
        "",
        "  File \"<job>\", line 1\n    x = (\n        ^\nSyntaxError: '(' was never closed\n",
        1,
    ),
    "has a null byte": ("x = '\0'", "", None, 1),
    "leaves with a code": ("import sys\nsys.exit(3)", "", "", 3),
    "leaves well": ("import sys\nsys.exit()", "", "", 0),
    "leaves with a word": ("raise SystemExit('bye')", "", "bye\n", 1),
    "leaves with a large code": ("raise SystemExit(256 + 7)", "", "", 7),
    "asks for input": ("input('name? ')", "", None, 1),
    "is interrupted by itself": ("raise KeyboardInterrupt", "", None, 130),
    "has an excepthook": (
        "import sys\nsys.excepthook = lambda t, v, tb: print('hook', v)\nraise ValueError('x')",
        "hook x\n",
        "",
        1,
    ),
    "ends with threads and atexit": (
        "import atexit, threading\n"
        "gate = threading.Event()\n"
        "atexit.register(print, 'atexit')\n"
        "threading.Thread(target=lambda: (gate.wait(), print('thread'))).start()\n"
        "print('main')\ngate.set()",
        "main\nthread\natexit\n",
        "",
        0,
    ),
    "has no notebook around it": (
        "import builtins\n"
        "print([n for n in ('display', 'get_ipython', 'In', '_') if n in globals()])\n"
        "print(hasattr(builtins, '__IPYTHON__'), sorted(n for n in globals() if n[0] != '_'))",
        "[]\nFalse ['builtins']\n",
        "",
        0,
    ),
    "uses futures, dataclasses and pickles of its own classes": (
        "from __future__ import annotations\n"
        "import dataclasses, pickle\n"
        "@dataclasses.dataclass\nclass P:\n    x: int\n"
        "print(pickle.loads(pickle.dumps(P(3))))",
        "P(x=3)\n",
        "",
        0,
    ),
    "finds its own modules": (
        "open('mine.py', 'w').write('A = 7')\nimport mine\nprint(mine.A)",
        "7\n",
        "",
        0,
    ),
    "starts Python with the image's packages": (
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'import numpy; print(numpy.arange(3).sum())'])",
        "3\n",
        "",
        0,
    ),
    "replaces itself": ("import os\nos.execvp('echo', ['echo', 'replaced'])", "replaced\n", "", 0),
    "leaves by os._exit in the middle of a burst": (
        "import os\nfor n in range(5):\n    print(n)\nos._exit(0)",
        "0\n1\n2\n3\n4\n",
        "",
        0,
    ),
    "leaves by os._exit(0)": ("import os\nos.write(1, b'x')\nos._exit(0)", "x", "", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_shows_what_a_terminal_would(name: str) -> None:
    code, stdout, stderr, exit_code = SCRIPTS[name]
    with container_box() as box:
        outcome = box.run(code)
    assert outcome.stdout == stdout
    if stderr is not None:
        assert outcome.stderr == stderr
    assert outcome.exited.exit_code == exit_code
    assert outcome.exited.cause is (Cause.COMPLETED if exit_code == 0 else Cause.ERROR)
    assert not [f for f in outcome.frames if isinstance(f, Result)]


@pytest.mark.parametrize(
    ("code", "last_line"),
    [
        ("input()", "EOFError: input() cannot ask anybody here; pass the value as a variable."),
        ("x = '\0'", "source code string cannot contain null bytes"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_a_traceback_shows_the_script_and_none_of_the_runtime(code: str, last_line: str) -> None:
    with container_box() as box:
        outcome = box.run(code)
    assert outcome.stderr.splitlines()[-1].endswith(last_line)
    assert "gridx_runtime" not in outcome.stderr


def test_an_error_in_a_thread_shows_the_line_of_the_script() -> None:
    code = (
        "import threading\ndef f():\n    1/0\n"
        "t = threading.Thread(target=f, name='T')\nt.start()\nt.join()\nprint('goes on')"
    )
    with container_box() as box:
        outcome = box.run(code)
    assert outcome.stderr.startswith("Exception in thread T:\nTraceback")
    assert '  File "<job>", line 3, in f\n    1/0\n    ~^~\n' in outcome.stderr
    assert (outcome.stdout, outcome.exited.exit_code) == ("goes on\n", 0)


def test_a_script_runs_in_the_process_sandbox_too() -> None:
    with process_box() as box:
        assert box.ready is not None and box.ready.filtered
        outcome = box.run("def f(n):\n    return 1 / n\n\nf(0)\n")
    assert outcome.stderr == TRACEBACK
    assert outcome.exited.usage.source == "rusage"
    assert outcome.exited.usage.cpu_s < 0.1
