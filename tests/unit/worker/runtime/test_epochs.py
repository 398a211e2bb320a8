"""Which call of a session a thread works for. In an interpreter of its own: it follows threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
PREPARE = (
    "import asyncio, contextvars, threading, _thread\n"
    "from concurrent.futures import ThreadPoolExecutor\n"
    "from worker.runtime.epochs import begin_epoch, call_of_this_thread as here, follow_threads\n"
    "follow_threads()\nbegin_epoch(3)\nsaid = []\n"
    "def note(): said.append(here())\n"
)


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        ("note()\nbegin_epoch(4)\nnote()", [3, 4]),
        (
            "go = threading.Event()\nt = threading.Thread(target=lambda: (go.wait(), note()))\n"
            "t.start()\nbegin_epoch(4)\ngo.set()\nt.join()",
            [3],
        ),
        (
            "def outer():\n    go.wait()\n    t = threading.Thread(target=note)\n    t.start()\n"
            "    t.join()\n"
            "go = threading.Event()\nt = threading.Thread(target=outer)\nt.start()\n"
            "begin_epoch(4)\ngo.set()\nt.join()",
            [3],
        ),
        (
            "pool = ThreadPoolExecutor(1)\npool.submit(note).result()\nbegin_epoch(4)\n"
            "pool.submit(note).result()",
            [3, 4],
        ),
        (
            "async def later():\n    await go.wait()\n    note()\n"
            "loop = asyncio.new_event_loop()\ngo = asyncio.Event()\n"
            "async def make():\n    return asyncio.ensure_future(later())\n"
            "task = loop.run_until_complete(make())\nbegin_epoch(4)\ngo.set()\n"
            "loop.run_until_complete(task)\nloop.close()",
            [3],
        ),
        (
            "done = threading.Event()\ngo = threading.Event()\n"
            "def low():\n    note()\n    go.wait()\n    note()\n    done.set()\n"
            "_thread.start_new_thread(low, ())\n"
            "while not said: pass\nbegin_epoch(4)\ngo.set()\ndone.wait()",
            [3, 3],
        ),
    ],
    ids=["main", "a thread", "a thread of a thread", "a pool", "a task", "below threading"],
)
def test_what_outlives_its_call_still_works_for_it(code: str, calls: list[int]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", f"{PREPARE}{code}\nprint(said)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout == f"{calls}\n"
