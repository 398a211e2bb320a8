"""What every sandbox promises, whatever it is made of: one set of tests for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from gridx.events import Event, decode_events, join_text
from gridx.states import Cause
from worker.runtime.frames import (
    CallExited,
    Cancel,
    Events,
    Exited,
    FromSupervisor,
    Interrupt,
    Result,
    Run,
)
from worker.sandbox.base import DEFAULT_REQUEST, Sandbox, SandboxClosed, SandboxEngine

HANG_S = 60.0


class Said(list[FromSupervisor]):
    """The frames of one call."""

    @property
    def events(self) -> list[Event]:
        frames = [frame for frame in self if isinstance(frame, Events)]
        return [event for frame in frames for event in decode_events(frame.data)]

    @property
    def stdout(self) -> str:
        return join_text(self.events, "stdout")

    @property
    def stderr(self) -> str:
        return join_text(self.events, "stderr")

    @property
    def exited(self) -> Exited:
        last = self[-1]
        assert isinstance(last, Exited)
        return last


async def call(sandbox: Sandbox, code: str, *, kind: str = "script", timeout_s: float = 50) -> Said:
    """Run ``code`` in ``sandbox`` and return everything that it said."""
    await sandbox.send(Run(kind=kind, code=code, timeout_s=timeout_s))
    return await read_to_exit(sandbox)


async def read_to_exit(sandbox: Sandbox) -> Said:
    said = Said()
    async with asyncio.timeout(HANG_S):
        while not said or not isinstance(said[-1], Exited):
            said.append(await sandbox.receive())
    return said


async def first_output(sandbox: Sandbox) -> None:
    async with asyncio.timeout(HANG_S):
        while not isinstance(await sandbox.receive(), Events):
            pass


class SandboxContract:
    """Subclass it with a fixture ``engine`` that is prepared."""

    @pytest.fixture
    async def sandbox(self, engine: SandboxEngine) -> Sandbox:
        return await engine.start(DEFAULT_REQUEST)

    async def test_it_announces_an_image_with_its_packages(self, engine: SandboxEngine) -> None:
        image = engine.images[0]
        assert image.language == "python"
        assert {"numpy", "pandas", "matplotlib", "ipython"} <= set(image.packages)

    async def test_it_is_warm_when_it_exists(self, engine: SandboxEngine, sandbox: Sandbox) -> None:
        assert not sandbox.is_closed
        assert sandbox.request == DEFAULT_REQUEST
        assert sandbox.ready.python.startswith(engine.images[0].python + ".")

    async def test_a_script_writes_what_a_terminal_would_show(self, sandbox: Sandbox) -> None:
        said = await call(sandbox, "import sys\nprint('out')\nprint('err', file=sys.stderr)\n5")
        assert (said.stdout, said.stderr) == ("out\n", "err\n")
        assert (said.exited.cause, said.exited.exit_code) == (Cause.COMPLETED, 0)
        assert said.exited.usage.wall_s > 0

    async def test_an_error_is_the_jobs_own(self, sandbox: Sandbox) -> None:
        said = await call(sandbox, "x = 1\nx / 0")
        assert said.exited.cause is Cause.ERROR
        assert "line 2" in said.stderr and "ZeroDivisionError" in said.stderr

    async def test_a_cell_sends_its_result(self, sandbox: Sandbox) -> None:
        await sandbox.send(Run(kind="cell", code="x = 5", timeout_s=50, expected=("x",)))
        said = await read_to_exit(sandbox)
        assert said.exited.cause is Cause.COMPLETED, said
        assert any(isinstance(frame, Result) for frame in said)

    async def test_a_job_reads_its_inputs_in_a_folder_of_its_own(
        self, engine: SandboxEngine, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        stored = tmp_path / "stored"
        stored.write_bytes(b"from the cache")
        stored.chmod(0o444)
        await sandbox.put_inputs({"one": stored})
        await sandbox.put_inputs({"one": stored, "two": stored})  # said again, and added to
        code = (
            f"import os\nfolder = {sandbox.inputs_dir!r}\nprint(sorted(os.listdir(folder)))\n"
            "print(open(folder + '/two').read())"
        )
        assert (await call(sandbox, code)).stdout == "['one', 'two']\nfrom the cache\n"
        other = await engine.start(DEFAULT_REQUEST)
        code = f"import os\nprint(os.path.exists({other.inputs_dir + '/one'!r}))"
        assert (await call(other, code)).stdout == "False\n"
        await asyncio.gather(sandbox.kill(), other.kill())
        assert stored.read_bytes() == b"from the cache"

    @pytest.mark.parametrize(
        "code",
        [
            "while True: pass",
            "import time\nwhile True: time.sleep(1)",
            "import signal\nfor s in (1, 2, 3, 15): signal.signal(s, signal.SIG_IGN)\n"
            "while True: pass",
            "import os\nos.closerange(0, 256)\nwhile True: pass",
            "import os\nfor _ in range(20):\n    if os.fork() == 0:\n        break\nwhile True: pass",
        ],
        ids=["spins", "sleeps", "ignores signals", "closes its pipes", "forks"],
    )
    async def test_the_time_limit_ends_a_job_that(self, sandbox: Sandbox, code: str) -> None:
        said = await call(sandbox, code, timeout_s=0.5)
        assert said.exited.cause is Cause.TIMEOUT
        assert said.exited.usage.wall_s >= 0.5

    async def test_a_cancelled_job_says_so_and_keeps_its_output(self, sandbox: Sandbox) -> None:
        code = "import time\nprint('begun', flush=True)\ntime.sleep(60)"
        await sandbox.send(Run(kind="script", code=code, timeout_s=50))
        await first_output(sandbox)
        await sandbox.send(Cancel())
        said = await read_to_exit(sandbox)
        assert said.exited.cause is Cause.CANCELLED

    async def test_a_crash_is_a_crash(self, sandbox: Sandbox) -> None:
        said = await call(sandbox, "import os\nprint('last words', flush=True)\nos.abort()")
        assert said.exited.cause is Cause.CRASHED
        assert said.stdout == "last words\n"

    async def test_a_flood_arrives_whole_and_in_order(self, sandbox: Sandbox) -> None:
        said = await call(sandbox, "for i in range(200000): print(i, 'x' * 50)")
        assert said.stdout == "".join(f"{i} {'x' * 50}\n" for i in range(200000))

    async def test_a_reader_that_is_stuck_holds_the_job_back_and_can_still_kill_it(
        self, sandbox: Sandbox
    ) -> None:
        await sandbox.send(Run(kind="script", code="while True: print('x' * 1000)", timeout_s=50))
        await first_output(sandbox)  # and then nobody reads
        stuck = asyncio.Event()
        asyncio.get_running_loop().call_later(0.5, stuck.set)
        await stuck.wait()
        async with asyncio.timeout(10):  # a hang is what this is about
            await sandbox.kill()

    async def test_a_kill_ends_everything_and_can_be_said_twice(self, sandbox: Sandbox) -> None:
        code = (
            "import os\nif os.fork() == 0: os.setsid()\nprint('on', flush=True)\nwhile True: pass"
        )
        await sandbox.send(Run(kind="script", code=code, timeout_s=50))
        await first_output(sandbox)
        await asyncio.gather(sandbox.kill(), sandbox.kill())
        await sandbox.kill()
        assert sandbox.is_closed
        with pytest.raises(SandboxClosed):
            await sandbox.send(Cancel())

    async def test_two_sandboxes_do_not_see_each_other(self, engine: SandboxEngine) -> None:
        one, two = await asyncio.gather(*(engine.start(DEFAULT_REQUEST) for _ in range(2)))
        code = "import os\nopen('mark', 'w').close()\nprint(os.path.exists('mark'))"
        assert (await call(one, code)).stdout == "True\n"
        said = await call(two, "import os\nprint(os.path.exists('mark'))")
        assert said.stdout == "False\n"

    async def test_a_session_keeps_its_process_and_is_interrupted_call_by_call(
        self, sandbox: Sandbox
    ) -> None:
        codes = ("x = 1\nprint('on')\nwhile True: pass", "x += 1\nprint(x)")
        for call_, code in enumerate(codes):
            await sandbox.send(Run(call=call_, kind="cell", code=code, timeout_s=50, keep=True))
            said = Said()
            async with asyncio.timeout(HANG_S):
                if call_ == 0:
                    await first_output(sandbox)
                    await sandbox.send(Interrupt())
                while not said or not isinstance(said[-1], CallExited):
                    said.append(await sandbox.receive())
            last = said[-1]
            assert isinstance(last, CallExited)
            assert last.cause is (Cause.CANCELLED, Cause.COMPLETED)[call_]
        assert said.stdout == "2\n"
        await sandbox.send(Cancel())
        assert (await read_to_exit(sandbox)).exited.cause is Cause.CANCELLED

    async def test_after_close_nothing_is_left(self, engine: SandboxEngine) -> None:
        sandboxes: Sequence[Sandbox] = [await engine.start(DEFAULT_REQUEST) for _ in range(2)]
        await engine.close()
        assert all(sandbox.is_closed for sandbox in sandboxes)
