"""The warm pool over sandboxes that do, or fail to do, what is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gridx.errors import SandboxError
from gridx.resources import GIB, Gpu, Image, ResourceRequest
from worker.runtime.frames import Frame, FromSupervisor, Ready
from worker.sandbox.base import DEFAULT_REQUEST, Death, GpuUnavailable, SandboxClosed
from worker.sandbox.demand import KEPT_S
from worker.sandbox.pool import GPU_RETRY_S, SandboxPool

BIG = ResourceRequest(memory_bytes=2 * GIB)
ON_GPU = ResourceRequest(gpus=1)
SMALL_CARD = Gpu(uuid="GPU-0", name="NVIDIA T4", memory_bytes=16 * GIB)
BIG_CARD = Gpu(uuid="GPU-1", name="NVIDIA A100-SXM4-80GB", memory_bytes=80 * GIB)
PYTHON = Image(name="gridx/python:1", digest="sha256:1", language="python", python="3.11")
BASH = Image(name="gridx/bash:1", digest="sha256:2", language="bash", python="")


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class IdleSandbox:
    """Warm, and nothing more."""

    def __init__(self, number: int, request: ResourceRequest) -> None:
        self.id = f"sandbox-{number}"
        self.request = request
        self.ready = Ready(python="3.11", filtered=True)
        self.is_closed = False
        self.is_removed = False
        self.leaves_a_process = 0  # so many kills do not end it
        self.kills = 0

    async def send(self, frame: Frame) -> None:
        raise NotImplementedError

    async def receive(self) -> FromSupervisor:
        raise SandboxClosed("It never speaks.")

    async def kill(self) -> None:
        self.is_closed = True
        self.kills += 1
        self.is_removed = self.kills > self.leaves_a_process

    async def post_mortem(self) -> Death:
        return Death()


class CountingEngine:
    """Starts sandboxes, as many at once as it is asked to, and remembers how many that were."""

    kind = "docker"

    def __init__(self, *images: Image) -> None:
        self.images = images
        self.started: list[IdleSandbox] = []
        self.from_images: list[Image | None] = []
        self.has_gpu_driver = True
        self.gpus: list[tuple[str, ...]] = []
        self.at_once = 0
        self.most_at_once = 0
        self.fails = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def prepare(self) -> None:
        pass

    async def start(
        self, request: ResourceRequest, *, image: Image | None = None, gpus: Sequence[str] = ()
    ) -> IdleSandbox:
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
        if gpus and not self.has_gpu_driver:
            raise GpuUnavailable("The engine has no driver for GPUs.")
        self.from_images.append(image)
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
    engine.fails = 1
    clock = Clock()
    pool = SandboxPool(engine, target=1, parallel=1, now_s=clock)
    with pytest.raises(SandboxError):
        await pool.take(DEFAULT_REQUEST)
    await settle()
    assert engine.started == []
    clock.now_s += 60
    pool.prune()
    await settle()
    assert pool.warm == 1
    await pool.close()


async def test_who_comes_after_a_failed_start_does_not_wait_for_the_next_try() -> None:
    engine = CountingEngine()
    engine.fails = 1
    pool = SandboxPool(engine, target=1, parallel=1)
    with pytest.raises(SandboxError):
        await pool.take(DEFAULT_REQUEST)
    assert await pool.take(DEFAULT_REQUEST)
    await pool.close()


async def test_two_jobs_never_share_a_gpu_and_a_discarded_one_returns_it() -> None:
    engine = CountingEngine()
    pool = SandboxPool(engine, target=1, parallel=2, gpus=[SMALL_CARD, BIG_CARD])
    one = await pool.take(ON_GPU)
    two = await pool.take(ON_GPU)
    assert {*pool.gpus_of(one), *pool.gpus_of(two)} == {"GPU-0", "GPU-1"}
    assert len(pool.gpus_of(one)) == 1
    with pytest.raises(SandboxError, match="No GPU"):
        await pool.take(ON_GPU)
    was = pool.gpus_of(one)
    pool.discard(one)
    await settle()
    assert pool.gpus_of(await pool.take(ON_GPU)) == was
    await pool.close()


async def test_a_gpu_is_free_again_when_its_sandbox_did_not_start() -> None:
    engine = CountingEngine()
    pool = SandboxPool(engine, target=1, parallel=2, gpus=[SMALL_CARD])
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


# ---------------------------------------------------------------- other images and sizes


async def test_a_burst_makes_the_pool_larger_up_to_the_most() -> None:
    engine = CountingEngine()
    clock = Clock()
    pool = SandboxPool(engine, target=1, parallel=2, most=4, now_s=clock)
    await pool.fill_first()
    await asyncio.gather(*(pool.take(DEFAULT_REQUEST) for _ in range(6)))
    await settle()
    assert pool.warm == 4
    assert engine.most_at_once == 2
    await pool.close()


async def test_a_pool_that_nobody_asks_any_more_shrinks_to_its_resting_size() -> None:
    engine = CountingEngine()
    clock = Clock()
    pool = SandboxPool(engine, target=1, parallel=2, most=4, now_s=clock)
    await asyncio.gather(*(pool.take(DEFAULT_REQUEST) for _ in range(6)))
    await settle()
    clock.now_s += 10 * KEPT_S
    sizes = []
    for _ in range(4):
        pool.prune()
        await settle()
        sizes.append(pool.warm)
    assert sizes == [3, 2, 1, 1]
    await pool.close()


async def test_a_size_that_is_used_repeatedly_is_kept_warm_for_five_minutes() -> None:
    engine = CountingEngine()
    clock = Clock()
    pool = SandboxPool(engine, target=1, parallel=2, most=4, now_s=clock)
    await pool.fill_first()
    for _ in range(2):
        await pool.take(BIG)
        await settle()
    assert pool.take_warm(BIG) is not None
    await settle()
    clock.now_s += KEPT_S - 1
    pool.prune()
    await settle()
    kept = pool.take_warm(BIG)
    assert kept is not None and kept.request == BIG
    await settle()
    clock.now_s += KEPT_S + 1
    pool.prune()
    await settle()
    assert pool.take_warm(BIG) is None
    await pool.close()


async def test_an_image_and_a_size_together_make_the_kind() -> None:
    engine = CountingEngine(PYTHON, BASH)
    pool = SandboxPool(engine, target=1, parallel=2, most=4)
    await pool.fill_first()
    assert pool.take_warm(DEFAULT_REQUEST, BASH) is None
    await pool.take(DEFAULT_REQUEST, BASH)
    assert engine.from_images[-1] == BASH
    assert pool.take_warm(DEFAULT_REQUEST, PYTHON) is not None  # the default by its name
    await pool.close()


async def test_the_default_stays_warm_beside_any_number_of_other_kinds() -> None:
    engine = CountingEngine()
    clock = Clock()
    pool = SandboxPool(engine, target=2, parallel=2, most=3, now_s=clock)
    await pool.fill_first()
    for _ in range(2):
        for size in (2, 3, 4, 5):
            await pool.take(ResourceRequest(memory_bytes=size * GIB))
            await settle()
    assert pool.warm == 3
    assert pool.take_warm(DEFAULT_REQUEST) is not None
    await pool.close()


async def test_the_set_aside_memory_is_announced_when_it_changes() -> None:
    engine = CountingEngine()
    clock = Clock()
    changes: list[int] = []
    pool = SandboxPool(
        engine,
        target=1,
        parallel=2,
        most=9,
        now_s=clock,
        on_change=lambda: changes.append(pool.reserved),
    )
    await pool.fill_first()
    assert (pool.reserved, changes) == (1, [])
    await asyncio.gather(*(pool.take(DEFAULT_REQUEST) for _ in range(6)))
    await settle()
    assert changes[-1] == pool.reserved == 8
    clock.now_s += 10 * KEPT_S
    pool.prune()
    assert changes[-1] == pool.reserved == 1
    await pool.close()


async def test_who_waits_goes_before_the_refill() -> None:
    engine = CountingEngine()
    engine.gate.clear()
    pool = SandboxPool(engine, target=4, parallel=1, most=4)
    pool.resume()  # the refill begins
    taking = asyncio.create_task(pool.take(BIG))
    await settle()
    engine.gate.set()
    assert (await taking).id == "sandbox-1"
    await pool.close()


async def test_a_paused_pool_starts_nothing_ahead_and_a_released_one_holds_nothing() -> None:
    engine = CountingEngine()
    pool = SandboxPool(engine, target=2, parallel=2)
    await pool.fill_first()
    await settle()
    pool.pause()
    await pool.take(DEFAULT_REQUEST)
    pool.prune()
    await settle()
    assert pool.warm == 1
    pool.release()
    await settle()
    assert pool.warm == 0
    assert engine.started[1].kills == 1
    assert await pool.take(DEFAULT_REQUEST)  # what runs already may need one
    pool.resume()
    await settle()
    assert pool.warm == 2
    await pool.close()


# ---------------------------------------------------------------- GPUs


async def gpu_pool(
    engine: CountingEngine, *gpus: Gpu, clock: Clock | None = None
) -> tuple[SandboxPool, list[tuple[Gpu, ...]]]:
    """A filled pool, and what it lent each time that changed."""
    lent: list[tuple[Gpu, ...]] = []
    pool = SandboxPool(
        engine,
        target=1,
        parallel=2,
        gpus=gpus,
        now_s=clock,
        on_change=lambda: lent.append(pool.gpus),
    )
    await pool.fill_first()
    await settle()
    return pool, lent


async def test_the_smallest_card_that_will_do_is_picked_by_its_model() -> None:
    engine = CountingEngine()
    pool, _ = await gpu_pool(engine, BIG_CARD, SMALL_CARD)
    assert pool.gpus_of(await pool.take(ON_GPU)) == ("GPU-0",)
    a100 = await pool.take(ResourceRequest(gpus=1, gpu_model="a100"))
    assert pool.gpus_of(a100) == ("GPU-1",)
    with pytest.raises(SandboxError, match="No GPU"):
        await pool.take(ResourceRequest(gpus=1, gpu_model="h100"))
    await pool.close()


async def test_no_gpu_sandbox_is_warm_before_one_was_asked_for() -> None:
    engine = CountingEngine()
    pool, _ = await gpu_pool(engine, SMALL_CARD)
    pool.prune()
    await settle()
    assert pool.take_warm(ON_GPU) is None
    await pool.close()


async def test_a_free_gpu_that_was_asked_for_lately_gets_a_warm_sandbox() -> None:
    engine = CountingEngine()
    clock = Clock()
    pool, _ = await gpu_pool(engine, SMALL_CARD, clock=clock)
    first = await pool.take(ON_GPU)
    await settle()
    assert pool.take_warm(ON_GPU) is None  # no card is free
    pool.discard(first)
    await settle()
    second = pool.take_warm(ON_GPU)
    assert second is not None and pool.gpus_of(second) == ("GPU-0",)
    pool.discard(second)
    clock.now_s += KEPT_S + 1
    await settle()
    assert pool.take_warm(ON_GPU) is None
    await pool.close()


async def test_an_idle_sandbox_of_another_kind_gives_its_gpu_to_who_asks() -> None:
    engine = CountingEngine()
    pool, _ = await gpu_pool(engine, SMALL_CARD)
    pool.discard(await pool.take(ON_GPU))
    await settle()
    idle = engine.started[-1]
    assert idle.request == ON_GPU and not idle.is_closed
    other = ResourceRequest(gpus=1, memory_bytes=4 * GIB)
    got = await pool.take(other)
    assert idle.kills == 1 and pool.gpus_of(got) == ("GPU-0",)
    await pool.close()


async def test_of_two_who_wait_for_one_gpu_the_second_is_told() -> None:
    engine = CountingEngine()
    pool, _ = await gpu_pool(engine, SMALL_CARD)
    engine.gate.clear()
    takers = [asyncio.create_task(pool.take(ON_GPU)) for _ in range(2)]
    await settle()
    engine.gate.set()
    got = await asyncio.gather(*takers, return_exceptions=True)
    assert [isinstance(one, SandboxError) for one in got] == [False, True]
    await pool.close()


async def test_a_gpu_whose_container_could_not_be_removed_is_lent_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.sandbox.pool.KILL_AGAIN_S", 0.0)
    engine = CountingEngine()
    pool, _ = await gpu_pool(engine, SMALL_CARD)
    await pool.take(ON_GPU)
    stuck = engine.started[-1]
    stuck.leaves_a_process = 2
    pool.discard(stuck)
    taking = asyncio.create_task(pool.take(ON_GPU))
    got = await taking
    assert stuck.kills == 3 and pool.gpus_of(got) == ("GPU-0",)
    await pool.close()


async def test_a_withdrawn_gpu_is_not_lent_until_every_reason_is_gone() -> None:
    engine = CountingEngine()
    pool, lent = await gpu_pool(engine, SMALL_CARD, BIG_CARD)
    pool.withdraw_gpu("GPU-0")
    pool.withdraw_gpu("GPU-0", "hot")
    pool.withdraw_gpu("GPU-9")
    assert (lent, pool.gpus) == ([(BIG_CARD,)], (BIG_CARD,))
    sandbox = await pool.take(ON_GPU)
    assert pool.gpus_of(sandbox) == ("GPU-1",)
    pool.return_gpu("GPU-0")
    assert pool.gpus == (BIG_CARD,)
    pool.return_gpu("GPU-0", "hot")
    assert pool.gpus == (SMALL_CARD, BIG_CARD)
    assert len(lent) == 2
    await pool.close()


async def test_a_gpu_that_is_withdrawn_under_a_job_stays_with_it_and_is_not_lent_after() -> None:
    engine = CountingEngine()
    pool, _ = await gpu_pool(engine, SMALL_CARD)
    sandbox = await pool.take(ON_GPU)
    pool.withdraw_gpu("GPU-0")
    assert not sandbox.is_closed
    pool.discard(sandbox)
    await settle()
    with pytest.raises(SandboxError, match="No GPU"):
        await pool.take(ON_GPU)
    await pool.close()


async def test_an_engine_without_a_driver_lends_no_gpu_from_the_start_and_is_tried_again() -> None:
    engine = CountingEngine()
    engine.has_gpu_driver = False
    clock = Clock()
    pool, lent = await gpu_pool(engine, SMALL_CARD, BIG_CARD, clock=clock)
    assert pool.gpus == ()
    engine.has_gpu_driver = True
    pool.prune()
    await settle()
    assert pool.gpus == ()
    clock.now_s += GPU_RETRY_S
    pool.prune()
    await settle()
    assert lent[-1] == pool.gpus == (SMALL_CARD, BIG_CARD)
    await pool.close()


async def test_a_driver_that_vanishes_under_the_pool_withdraws_the_gpus_and_tells_who_waits() -> (
    None
):
    engine = CountingEngine()
    pool, lent = await gpu_pool(engine, SMALL_CARD)
    engine.has_gpu_driver = False
    with pytest.raises(GpuUnavailable):
        await pool.take(ON_GPU)
    assert lent == [()]
    assert await pool.take(DEFAULT_REQUEST)
    await pool.close()
