"""Memory without end, in every way that there is to ask for it."""

from __future__ import annotations

from typing import Any

import pytest

from gridx.resources import MIB
from gridx.states import Cause
from tests.support.hostile_cells import HostileCells

pytestmark = pytest.mark.docker

SIZE_BYTES = 128 * MIB

BOMBS: dict[str, str] = {
    "a list of pieces": "a = []\nwhile True: a.append(os.urandom(1 << 20) * 4)",
    "a list that doubles": "a = [0]\nwhile True: a += a",
    "a mapping": "import mmap\nm = mmap.mmap(-1, 1 << 30)\nm.write(b'x' * (1 << 30))",
    "a huge allocation that is used": "a = bytearray(1 << 30)\nfor i in range(0, 1 << 30, 4096): a[i] = 1",
    "a file in memory": "fd = os.memfd_create('x')\nwhile True: os.write(fd, b'x' * (1 << 20))",
    "shared memory of System V": (
        "_libc.shmat.restype = ctypes.c_void_p\n"
        "i = _libc.shmget(0, ctypes.c_size_t(1 << 30), 0o1600)\nassert i >= 0\n"
        "at = _libc.shmat(i, None, 0)\nctypes.memset(ctypes.c_void_p(at), 1, 1 << 30)"
    ),
    "a bomb of compressed zeros": (
        "import zlib\nz = zlib.compress(bytes(32 << 20), 9)\na = []\n"
        "while True: a.append(zlib.decompress(z))"
    ),
    "endless recursion": (
        "sys.setrecursionlimit(10**9)\ndef deeper(n): return deeper(n + 1)\ndeeper(0)"
    ),
    "processes that share it out": (
        "for _ in range(8):\n    if os.fork() == 0: break\n"
        "a = []\nwhile True: a.append(os.urandom(1 << 20) * 4)"
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_as_out_of_memory(cells: HostileCells, name: str) -> None:
    # The kernel may pick the supervisor itself; then the engine says what it was.
    ended = cells.run("print('before', flush=True)\n" + BOMBS[name], memory_bytes=SIZE_BYTES)
    assert ended.cause is Cause.OUT_OF_MEMORY
    if ended.said is not None:
        assert ended.said.exited.exit_code == 137
        assert ended.said.exited.usage.out_of_memory
        assert ended.stdout.startswith("before\n")


def test_what_is_asked_for_and_not_used_is_an_error_of_the_job_or_nothing(
    cells: HostileCells,
) -> None:
    found = cells.probe("say(asked=tried(bytearray, 1 << 45))", memory_bytes=SIZE_BYTES)
    assert found["asked"] == "MemoryError"


def test_a_child_out_of_memory_is_not_the_jobs_end(cells: HostileCells) -> None:
    """The engine then says "out of memory" of a container that left with exit code 0."""
    ended = cells.run(
        "if os.fork() == 0:\n    a = []\n    while True: a.append(os.urandom(1 << 20) * 4)\n"
        "print(os.waitpid(-1, 0)[1])",
        memory_bytes=SIZE_BYTES,
        with_state=True,
    )
    assert ended.said is not None, ended
    assert (ended.stdout, ended.cause) == ("9\n", Cause.COMPLETED)
    assert ended.said.exited.usage.out_of_memory
    assert ended.state["ExitCode"] == 0
    assert ended.state["OOMKilled"] is True


# ---------------------------------------------------------------- the limit itself


@pytest.fixture(scope="module")
def limits(cells: HostileCells) -> dict[str, Any]:
    """What the control group says inside, for both of its versions."""
    return cells.probe(
        """
def first(*paths):
    found = [read(path).strip() for path in paths]
    return next((value for value in found if not value.startswith("E")), None)
say(
    memory=first("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"),
    with_swap=first("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"),
    swap=first("/sys/fs/cgroup/memory.swap.max"),
    bounded=tried(lambda: [os.urandom(1 << 20) for _ in range(8)]),
)
""",
        memory_bytes=SIZE_BYTES,
    )


@pytest.mark.guards("Memory")
def test_the_memory_limit_is_the_one_that_was_asked_for(limits: dict[str, Any]) -> None:
    assert int(limits["memory"]) == SIZE_BYTES


@pytest.mark.guards("MemorySwap")
def test_there_is_no_swap_above_the_memory_limit(limits: dict[str, Any]) -> None:
    # Neither file: a kernel that does not count swap; what the engine was told is looked at too.
    assert limits["with_swap"] in (None, limits["memory"])
    assert limits["swap"] in (None, "0")
