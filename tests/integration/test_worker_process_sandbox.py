"""The process sandbox: the shared contract, and what it does without a container."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from gridx.states import Cause
from tests.support.sandbox_contract import SandboxContract, call, first_output, read_to_exit
from worker.runtime.frames import Run
from worker.sandbox.base import DEFAULT_REQUEST
from worker.sandbox.confinement import CHOICES, plan
from worker.sandbox.process import ProcessEngine
from worker.settings import process_notice


def below() -> set[int]:
    """Return the processes below this one: other tests' services may be among them."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[ProcessEngine]:
    """With as many namespaces as this kernel grants: all of them, or none in a container."""
    before = below()
    made = ProcessEngine(folder=tmp_path / "process", hide=[tmp_path])
    await made.prepare()
    try:
        yield made
    finally:
        await made.close()
    assert below() <= before


@pytest.fixture
async def bare(tmp_path: Path) -> AsyncIterator[ProcessEngine]:
    """Where the kernel grants nothing."""
    before = below()
    made = ProcessEngine(folder=tmp_path / "bare", hide=[tmp_path], namespaces=[()])
    await made.prepare()
    try:
        yield made
    finally:
        await made.close()
    assert below() <= before


class TestProcessSandbox(SandboxContract):
    """Every promise of the contract."""


def kept(engine: ProcessEngine) -> dict[str, bool]:
    return {check.name: check.kept for check in engine.isolation.checks}


async def test_the_job_works_in_a_folder_of_its_own_that_goes_with_it(
    engine: ProcessEngine, tmp_path: Path
) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    said = await call(sandbox, "import os\nprint(os.getcwd(), os.environ['HOME'])")
    where, home = said.stdout.split()
    assert where == home
    assert Path(where).parent == tmp_path / "process"
    await sandbox.kill()
    assert list((tmp_path / "process").iterdir()) == []


async def test_the_workers_environment_does_not_reach_the_job(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIDX_PASSWORD", "secret123")
    sandbox = await engine.start(DEFAULT_REQUEST)
    said = await call(sandbox, "import os\nprint('GRIDX_PASSWORD' in os.environ)")
    assert said.stdout == "False\n"


async def test_the_size_of_a_file_is_limited(engine: ProcessEngine) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    said = await call(sandbox, "open('big', 'wb').truncate(1 << 30)")
    assert "File too large" in said.stderr


async def test_what_people_use_works_as_it_does_outside(engine: ProcessEngine) -> None:
    code = """
import multiprocessing, os, pty, subprocess, sys, tempfile
import numpy, matplotlib.pyplot as plt
plt.plot(numpy.arange(3)); plt.savefig("plot.png")
print(os.path.getsize("plot.png") > 0)
print(subprocess.run([sys.executable, "-c", "import msgspec; print(6 * 7)"],
                     capture_output=True, text=True).stdout.strip())
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(abs, [-1, -2]))
with tempfile.NamedTemporaryFile() as file:
    file.write(b"x")
print(os.access("/tmp", os.W_OK), os.path.exists("/dev/null"))
os.close(pty.openpty()[0])
print(os.path.expanduser("~") == os.getcwd())
"""
    sandbox = await engine.start(DEFAULT_REQUEST)
    said = await call(sandbox, code)
    assert said.stdout.splitlines() == ["True", "42", "[1, 2]", "True True", "True"], said.stderr


_LOOKS = """
import os, socket
def tried(act):
    try:
        act()
        return 0
    except OSError as error:
        return error.errno
print(len([name for name in os.listdir("/proc") if name.isdecimal()]) <= 4)
print(tried(lambda: socket.create_connection(("127.0.0.1", PORT), 2)) != 0)
print(tried(lambda: os.kill(WORKER, 0)) != 0)
print(tried(lambda: open(SECRET)) != 0)
print(tried(lambda: open(VICTIM, "a")) != 0)
"""


async def test_what_is_announced_as_held_is_held(
    engine: ProcessEngine, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = tmp_path / "worker.json"
    secret.write_text("token")
    victim = tmp_path_factory.mktemp("home") / "diary"
    victim.write_text("dear")
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = (
            f"PORT, WORKER = {server.getsockname()[1]}, {os.getpid()}\n"
            f"SECRET, VICTIM = {str(secret)!r}, {str(victim)!r}\n"
        )
        said = await call(await engine.start(DEFAULT_REQUEST), code + _LOOKS)
    found = [word == "True" for word in said.stdout.splitlines()]
    held = kept(engine)
    processes, network, files = (
        held["own processes only"],
        held["no network"],
        held["files stay as they are"],
    )
    assert found == [processes, network, processes, held["the worker's own files"], files]


async def test_with_namespaces_turned_off_it_says_what_it_does_not_hold(
    bare: ProcessEngine,
) -> None:
    held = kept(bare)
    for name in ("no network", "own processes only", "files stay as they are", "memory limit"):
        assert not held[name]
    assert held["own system call filter"]
    assert held["limits of a process"]
    notice = process_notice(bare.isolation.checks)
    assert "takes only your own jobs" in notice
    assert "Held here: the time limit, " in notice
    assert "no network (interfaces " in notice.partition("Not held here: ")[2]
    said = await call(await bare.start(DEFAULT_REQUEST), "import numpy\nprint(numpy.arange(2))")
    assert said.stdout == "[0 1]\n"


async def test_with_namespaces_turned_off_strays_end_with_the_job(bare: ProcessEngine) -> None:
    sandbox = await bare.start(DEFAULT_REQUEST)
    code = "import os\nif os.fork() == 0: os.setsid()\nprint('on', flush=True)\nwhile True: pass"
    await sandbox.send(Run(kind="script", code=code, timeout_s=50))
    await first_output(sandbox)
    await sandbox.kill()


async def test_a_frozen_job_stands_still_and_its_deadline_too(engine: ProcessEngine) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    code = "import time\nprint('on', flush=True)\ntime.sleep(0.2)\nprint('end')"
    await sandbox.send(Run(kind="script", code=code, timeout_s=20))
    await first_output(sandbox)
    await sandbox.freeze()
    stood = asyncio.Event()
    asyncio.get_running_loop().call_later(0.5, stood.set)
    await stood.wait()
    await sandbox.thaw()
    said = await read_to_exit(sandbox)
    assert said.exited.cause is Cause.COMPLETED
    assert said.stdout.endswith("end\n")


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "+".join(choice) or "none")
def test_a_kernel_that_refuses_is_no_failure(choice: tuple[str, ...]) -> None:
    chosen = plan((choice, ()))
    assert chosen.namespaces in (choice, ())
    assert chosen.found["status"]["NoNewPrivs"] == "1"
    if chosen.namespaces != choice:
        assert chosen.refused


def test_namespaces_that_do_not_exist_are_refused_and_the_rest_is_tried() -> None:
    chosen = plan((("user", "moon"), ()))
    assert chosen.namespaces == ()
    assert "moon" in chosen.refused or sys.platform != "linux"
