"""The warm pool over sandboxes that do, or fail to do, what is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gridx.errors import SandboxError
from gridx.resources import GIB, Image, ResourceRequest
from worker.runtime.frames import Frame, FromSupervisor, Ready
from worker.sandbox.base import DEFAULT_REQUEST, Death, SandboxClosed
from worker.sandbox.pool import SandboxPool

BIG = ResourceRequest(memory_bytes=2 * GIB)


class IdleSandbox:
    """Warm, and nothing more."""

    def __init__(self, number: int, request: ResourceRequest) -> None:
        self.id = f"sandbox-{number}"
        self.request = request
        self.ready = Ready(python="3.11", filtered=True)
        self.is_closed = False
        self.kills = 0

    async def send(self, frame: Frame) -> None:
        raise NotImplementedError

    async def receive(self) -> FromSupervisor:
        raise SandboxClosed("It never speaks.")

    async def kill(self) -> None:
        self.is_closed = True
        self.kills += 1

    async def post_mortem(self) -> Death:
        return Death()


class CountingEngine:
    """Starts sandboxes, as many at once as it is asked to, and remembers how many that were."""

    kind = "docker"
    images: tuple[Image, ...] = ()

    def __init__(self) -> None:
        self.started: list[IdleSandbox] = []
        self.gpus: list[tuple[str, ...]] = []
        self.at_once = 0
        self.most_at_once = 0
        self.fails = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def prepare(self) -> None:
        pass

    async def start(self, request: ResourceRequest, *, gpus: Sequence[str] = ()) -> IdleSandbox:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
        finally:
            self.at_once -= 1
        if self.fails:
            self.fails -= 1
            raise SandboxError("The engine is full.")
        self.gpus.append(tuple(gpus))
        self.started.append(IdleSandbox(len(self.started), request))
        return self.started[-1]

    async def close(self) -> None:
        pass


async def settle() -> None:
    """Let everything run that can run without a clock."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_the_first_is_ready_when_fill_first_returns_and_the_others_follow() -> None:
    engine = CountingEngine()
    pool = SandboxPool(engine, target=4, parallel=2)
    await pool.fill_first()
    assert pool.warm == 1
    await settle()
    assert pool.warm == 4
    assert engine.most_at_once == 2
    await pool.close()
    assert all(sandbox.kills == 1 for sandbox in engine.started)


async def test_a_warm_sandbox_is_handed_out_once_and_replaced() -> None:
    engine = CountingEngine()
    pool = SandboxPool(engine, target=1, parallel=1)
    await pool.fill_first()
    first = await pool.take(DEFAULT_REQUEST)
    second = await pool.take(DEFAULT_REQUEST)
    assert first is not second
    await pool.close()


async def test_who_comes_to_an_empty_pool_gets_the_next_one() -> None:
    engine = CountingEngine()
    pool = SandboxPool(engine, target=1, parallel=2)
    engine.gate.clear()
    waiting = [asyncio.create_task(pool.take(DEFAULT_REQUEST)) for _ in range(2)]
    await settle()
    engine.gate.set()
    got = await asyncio.gather(*waiting)
    await settle()
    assert len({sandbox.id for sandbox in got}) == 2
    assert pool.warm == 1
    await pool.close()


async def test_another_size_starts_cold_and_leaves_the_pool_alone() -> None:
    engine = CountingEngine()
    pool = SandboxPool(engine, target=1, parallel=1)
    await pool.fill_first()
    sandbox = await pool.take(BIG)
    assert sandbox.request == BIG
    assert pool.warm == 1
    await pool.close()


async def test_a_sandbox_that_died_while_it_waited_is_not_handed_out() -> None:
    engine = CountingEngine()
    pool = SandboxPool(engine, target=1, parallel=1)
    await pool.fill_first()
    engine.started[0].is_closed = True
    assert await pool.take(DEFAULT_REQUEST) is not engine.started[0]
    await pool.close()
    assert engine.started[0].kills == 1


async def test_a_heartbeat_replaces_what_died_while_it_waited() -> None:
    engine = CountingEngine()
    pool = SandboxPool(engine, target=1, parallel=1)
    await pool.fill_first()
    engine.started[0].is_closed = True
    pool.prune()
    await settle()
    assert pool.warm == 1
    assert engine.started[0].kills == 1
    await pool.close()


async def test_who_waits_is_told_when_the_engine_fails() -> None:
    engine = CountingEngine()
    engine.fails = 1
    pool = SandboxPool(engine, target=1, parallel=1)
    with pytest.raises(SandboxError, match="The engine is full"):
        await pool.take(DEFAULT_REQUEST)
    assert pool.last_error is not None
    await pool.close()


async def test_a_failed_start_is_tried_again_later_not_at_once() -> None:
    engine = CountingEngine()
    engine.fails = 2  # for the taker, and for the pool itself
    pool = SandboxPool(engine, target=1, parallel=1)
    with pytest.raises(SandboxError):
        await pool.take(DEFAULT_REQUEST)
    await settle()
    assert engine.fails == 0
    assert engine.started == []
    await pool.close()


async def test_two_jobs_never_share_a_gpu_and_a_discarded_one_returns_it() -> None:
    engine = CountingEngine()
    pool = SandboxPool(engine, target=1, parallel=2, gpus=["GPU-0", "GPU-1"])
    one = await pool.take(ResourceRequest(gpus=1))
    await pool.take(ResourceRequest(gpus=1))
    assert set(engine.gpus[0]) | set(engine.gpus[1]) == {"GPU-0", "GPU-1"}
    with pytest.raises(SandboxError, match="No GPU"):
        await pool.take(ResourceRequest(gpus=1))
    pool.discard(one)
    await settle()
    await pool.take(ResourceRequest(gpus=1))
    assert engine.gpus[2] == engine.gpus[0]
    await pool.close()


async def test_a_gpu_is_free_again_when_its_sandbox_did_not_start() -> None:
    engine = CountingEngine()
    pool = SandboxPool(engine, target=1, parallel=2, gpus=["GPU-0"])
    engine.fails = 1
    with pytest.raises(SandboxError):
        await pool.take(ResourceRequest(gpus=1))
    await pool.take(ResourceRequest(gpus=1))
    await pool.close()


async def test_a_taker_that_gives_up_costs_no_sandbox() -> None:
    engine = CountingEngine()
    pool = SandboxPool(engine, target=1, parallel=1)
    engine.gate.clear()
    taking = asyncio.create_task(pool.take(DEFAULT_REQUEST))
    await settle()
    taking.cancel()
    engine.gate.set()
    await settle()
    assert pool.warm >= 1
    assert not any(sandbox.kills for sandbox in engine.started)
    await pool.close()


async def test_a_closed_pool_gives_nothing_and_keeps_nothing() -> None:
    engine = CountingEngine()
    pool = SandboxPool(engine, target=2, parallel=1)
    await pool.fill_first()
    await pool.close()
    with pytest.raises(SandboxError, match="stopping"):
        await pool.take(DEFAULT_REQUEST)
    assert all(sandbox.kills for sandbox in engine.started)


async def test_closing_does_not_wait_for_idle_sandboxes_that_are_still_to_be_killed() -> None:
    engine = CountingEngine()
    pool = SandboxPool(engine, target=1, parallel=1)
    await pool.fill_first()
    sandbox = await pool.take(DEFAULT_REQUEST)
    pool.discard(sandbox, is_idle=True)
    await settle()
    assert engine.started[0].kills == 0
    await pool.close()
    assert engine.started[0].kills == 1
