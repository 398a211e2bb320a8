"""What libraries and programs write in a cell, in a real container."""

from __future__ import annotations

import re

import pytest

from gridx.events import Stream
from gridx.states import Cause

from .runtime_box import Outcome, container_box, process_box

pytestmark = pytest.mark.docker


def run(code: str, *, timeout_s: float = 60.0) -> Outcome:
    with container_box() as box:
        outcome = box.run(code, kind="cell", timeout_s=timeout_s)
    assert outcome.exited.cause is Cause.COMPLETED, outcome.stderr
    return outcome


@pytest.mark.parametrize("module", ["tqdm", "tqdm.auto", "tqdm.notebook", "tqdm.autonotebook"])
def test_a_progress_bar_is_text(module: str) -> None:
    code = (
        f"from {module} import tqdm, trange\nimport warnings, time\n"
        "for i in tqdm(range(50)): time.sleep(0.001)\nfor i in trange(2): pass"
    )
    outcome = run(code)
    assert "100%|██████████| 50/50" in outcome.stderr
    assert "100%|██████████| 2/2" in outcome.stderr
    assert "widget" not in outcome.stderr.lower()
    assert len(outcome.events) < 12  # 50 updates are a few messages


def test_a_widget_is_its_text() -> None:
    with process_box() as box:  # the image has no widgets; this interpreter has them
        outcome = box.run("import ipywidgets\nipywidgets.IntSlider()", kind="cell")
    assert [e.data["text/plain"] for e in outcome.events] == ["IntSlider(value=0)"]  # type: ignore[union-attr]


def test_loggers_made_before_and_after_write_where_the_cell_writes() -> None:
    code = (
        "import logging, sys\nlogging.basicConfig(level=logging.INFO)\nlogging.info('one')\n"
        "print('two')\nlogger = logging.getLogger('mine')\nlogger.propagate = False\n"
        "logger.addHandler(logging.StreamHandler(sys.stdout))\nlogger.warning('three')"
    )
    outcome = run(code)
    assert (outcome.stdout, outcome.stderr) == ("two\nthree\n", "INFO:root:one\n")
    assert outcome.text() == "INFO:root:one\ntwo\nthree\n"


def test_what_c_code_left_in_its_buffer_comes_before_the_end() -> None:
    code = "import ctypes\nctypes.CDLL(None).printf(b'in C\\n')\nprint('in Python')"
    assert run(code).stdout == "in Python\nin C\n"


POOLS = {
    "multiprocessing": (
        "import multiprocessing as mp\nwith mp.Pool(2) as pool:\n"
        "    print([a.x for a in pool.map(work, [A(1), A(2)])])"
    ),
    "concurrent.futures": (
        "from concurrent.futures import ProcessPoolExecutor\nwith ProcessPoolExecutor(2) as pool:\n"
        "    print([a.x for a in pool.map(work, [A(1), A(2)])])"
    ),
    "joblib": (
        "from joblib import Parallel, delayed\n"
        "print([a.x for a in Parallel(n_jobs=2)(delayed(work)(A(i)) for i in (1, 2))])"
    ),
    "pickle": "import pickle\nprint([work(pickle.loads(pickle.dumps(A(i)))).x for i in (1, 2)])",
}


@pytest.mark.parametrize("pool", POOLS)
def test_classes_of_the_cell_are_found_where_others_look_for_them(pool: str) -> None:
    code = (
        "class A:\n    def __init__(self, x):\n        self.x = x\n"
        "def work(a):\n    return A(a.x * 10)\n" + POOLS[pool]
    )
    outcome = run(code)
    assert (outcome.stdout, outcome.stderr) == ("[10, 20]\n", "")


def test_warnings_are_shown_once_with_the_line_of_the_cell() -> None:
    code = (
        "import warnings\nimport numpy as np\nfor i in range(3): warnings.warn('often')\n"
        "np.array([1.0]) / 0;\ndef f(): warnings.warn('old', DeprecationWarning, stacklevel=2)\nf()"
    )
    assert run(code).stderr.splitlines() == [
        "<cell>:3: UserWarning: often",
        "  for i in range(3): warnings.warn('often')",
        "<cell>:4: RuntimeWarning: divide by zero encountered in divide",
        "  np.array([1.0]) / 0;",
        "<cell>:6: DeprecationWarning: old",
        "  f()",
    ]


def test_an_error_in_a_thread_shows_the_cell_and_none_of_the_runtime() -> None:
    code = "import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()"
    stderr = run(code).stderr
    assert 'File "<cell>", line 2, in <lambda>' in stderr
    assert "gridx" not in stderr


def test_what_runs_on_after_the_cell_is_over_with_it() -> None:
    code = (
        "import subprocess, threading, time\n"
        "def spin():\n    while True: print('thread'); time.sleep(0.001)\n"
        "threading.Thread(target=spin).start()\n"
        "subprocess.Popen(['sh', '-c', 'while :; do echo child; done']);"
    )
    # The two write at the same time, so one line may stand inside another.
    assert not re.sub(r"thread|child|\s", "", run(code).stdout)


def test_streams_that_a_cell_replaces_are_its_own_affair() -> None:
    code = (
        "import contextlib, io, sys\nwith contextlib.redirect_stdout(io.StringIO()) as kept:\n"
        "    print('kept')\nsys.stdout = io.StringIO()\nprint('lost')\nsys.stdout = sys.__stdout__\n"
        "print(repr(kept.getvalue()))"
    )
    assert run(code).stdout == "'kept\\n'\n"


def test_windows_line_ends_are_kept_and_bars_are_not() -> None:
    outcome = run("print('a\\r\\nb\\r\\n', end='')\nprint('\\r1\\r2\\r3')")
    assert outcome.stdout == "a\r\nb\r\n\r3\n"


def test_a_flood_of_prints_is_few_messages() -> None:
    outcome = run("for i in range(200_000): print(i)")
    assert outcome.stdout.endswith("199999\n")
    assert len(outcome.of(Stream)) < 2000


def test_threads_and_processes_that_write_at_once_lose_nothing() -> None:
    code = (
        "import subprocess, sys, threading\n"
        "def say(word):\n    for i in range(2000): print(word * 8)\n"
        "threads = [threading.Thread(target=say, args=(w,)) for w in 'ab']\n"
        "child = subprocess.Popen([sys.executable, '-c', \"for i in range(2000): print('c' * 8)\"])\n"
        "for t in threads: t.start()\nfor t in threads: t.join()\nchild.wait();"
    )
    text = run(code).stdout
    assert {letter: text.count(letter) for letter in "abc"} == dict.fromkeys("abc", 16_000)


def test_a_cell_finds_the_surroundings_of_a_notebook() -> None:
    code = (
        "import os, sys\nprint(sys.argv, '__file__' in globals(), __name__, os.getcwd())\n"
        "print(sys.modules['__main__'].__dict__ is globals(), sys.path[0] == '')\n"
        "print([os.environ[n] for n in ('TERM', 'COLUMNS', 'PYTHONUNBUFFERED', 'OMP_NUM_THREADS')])\n"
        "print(repr(sys.stdin.read()), sys.stdout.isatty(), sys.stdout.encoding)"
    )
    assert run(code).stdout.splitlines() == [
        "[''] False __main__ /work",
        "True True",
        "['dumb', '120', '1', '1']",
        "'' False utf-8",
    ]


def test_programs_write_to_the_streams_of_the_cell_by_name() -> None:
    code = (
        "import subprocess, sys\nprint('one', flush=True)\n"
        "subprocess.run(['sh', '-c', 'echo two; echo three >&2'], stdout=sys.stdout,"
        " stderr=sys.stderr)\nprint('four')\n"
        "subprocess.run(['echo', 'five'], stderr=subprocess.STDOUT);"
    )
    outcome = run(code)
    assert outcome.text() == "one\ntwo\nthree\nfour\nfive\n"
    assert outcome.stderr == "three\n"


def test_what_cannot_be_encoded_is_shown_escaped() -> None:
    code = "import sys\nprint('\\ud800')\nsys.stdout.buffer.write(b'\\xff\\n')\nsys.stderr.write('\\udcff');"
    outcome = run(code)
    assert (outcome.stdout, outcome.stderr) == ("\\ud800\n\ufffd\n", "\\udcff")
