"""Warm sandboxes: started ahead, handed out once, refilled in the background.

A shelf holds those of one image and size. The default's is never empty for long; another is
filled when its kind is asked for repeatedly, and empties when nobody asks any more. GPUs are
lent by the pool, each to one sandbox at a time, until that is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from gridx.errors import SandboxError
from gridx.resources import Gpu, Image, ResourceRequest

from .base import DEFAULT_REQUEST, GpuUnavailable, Sandbox, SandboxEngine
from .demand import Demand, reserved, share

_log = logging.getLogger(__name__)

# A trivial job, and the way of its result to the notebook, are over by then: neither the refill
# nor the removal competes with them for a core.
REFILL_DELAY_S: Final = 0.05
REMOVAL_DELAY_S: Final = 0.05
FIRST_RETRY_S: Final = 0.5
PROBLEM_AFTER: Final = 3  # failures in a row
LONGEST_RETRY_S: Final = 30.0
GPU_RETRY_S: Final = 300.0  # so long after a GPU could not be started with, it is tried again
LONGEST_GPU_RETRY_S: Final = 3600.0
KILL_AGAIN_S: Final = 5.0

LENDER: Final = "lender"  # withdrawn on the lender's wish, or for its temperature
DRIVER: Final = "driver"  # withdrawn because no container starts with it

_STOPPING: Final = "The worker is stopping."
_NO_GPU: Final = "No GPU of this worker is free."


class _Kind(NamedTuple):
    """What the sandboxes of one shelf have in common."""

    image: str
    request: ResourceRequest


class _Shelf:
    """The sandboxes of one image and size, and who waits for one."""

    def __init__(self, image: Image | None, request: ResourceRequest, *, resting: int) -> None:
        self.image = image
        self.request = request
        self.demand = Demand(resting=resting)
        self.warm: deque[Sandbox] = deque()
        self.waiters: deque[asyncio.Future[Sandbox]] = deque()
        self.starting = 0
        self.target = 0
        self.failures = 0
        self.not_before_s = 0.0  # no refill until then: the start before failed

    @property
    def missing(self) -> int:
        return self.target + len(self.waiters) - len(self.warm) - self.starting

    @property
    def is_in_use(self) -> bool:
        return bool(self.warm or self.waiters or self.starting)


class SandboxPool:
    """Keeps sandboxes warm for what is asked for.

    At most ``parallel`` start at once, those first that somebody waits for: more than
    ``min(2, cores)`` in parallel start slower, not faster.
    """

    def __init__(
        self,
        engine: SandboxEngine,
        *,
        target: int,
        parallel: int,
        most: int | None = None,
        gpus: Sequence[Gpu] = (),
        on_change: Callable[[], None] = lambda: None,
        now_s: Callable[[], float] | None = None,
    ) -> None:
        """
        Args:
            engine: starts them.
            target: warm sandboxes of the default image and size when nobody asks.
            parallel: starts at once.
            most: warm sandboxes without a GPU, of all kinds together; ``target`` when None.
            gpus: devices that may be lent.
            on_change: called when other GPUs can be lent than before, or memory for more or
                fewer sandboxes is set aside.
            now_s: a monotonic clock; the event loop's when None.
        """
        self._engine = engine
        self._resting = target
        self._most = max(target, most or 0)
        self._parallel = max(1, parallel)
        self.on_change = on_change
        self._now_s = now_s or asyncio.get_running_loop().time
        self._shelves: dict[_Kind, _Shelf] = {}
        self._default = self._shelf_of(DEFAULT_REQUEST, None)
        self._starting = 0
        self._reserved = target
        self._devices = {gpu.uuid: gpu for gpu in gpus}
        self._free_gpus = list(self._devices)
        self._busy_gpus: set[str] = set()  # a job has them
        self._gpus_of: dict[str, list[str]] = {}  # sandbox id -> the devices it has
        self._withdrawn: dict[str, set[str]] = {}  # device -> why it is not lent
        self._gpu_retry_s: float | None = None  # when the driver is tried again
        self._gpu_retry_after_s = GPU_RETRY_S
        self._is_paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self.last_error: SandboxError | None = None

    # ---- what it has

    @property
    def images(self) -> tuple[Image, ...]:
        """What can be asked for; the first is the default."""
        return self._engine.images

    @property
    def warm(self) -> int:
        """How many sandboxes wait for a job."""
        return sum(len(shelf.warm) for shelf in self._shelves.values())

    @property
    def reserved(self) -> int:
        """For how many warm sandboxes the worker's memory is set aside."""
        return self._reserved

    @property
    def all_gpus(self) -> tuple[Gpu, ...]:
        """Every device that it was given, also those that are withdrawn."""
        return tuple(self._devices.values())

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The devices that can be lent: not those that are withdrawn."""
        return tuple(gpu for gpu in self._devices.values() if gpu.uuid not in self._withdrawn)

    @property
    def problem(self) -> str | None:
        """Why no sandbox can be started, after several tries in a row; None while one can."""
        if self._default.failures < PROBLEM_AFTER or self.last_error is None:
            return None
        return self.last_error.message

    def gpus_of(self, sandbox: Sandbox) -> tuple[str, ...]:
        """Return the UUIDs of the devices that ``sandbox`` has."""
        return tuple(self._gpus_of.get(sandbox.id, ()))

    # ---- what may be asked of it

    async def fill_first(self) -> None:
        """Start the first warm sandbox and return when it is ready; the others follow.

        A GPU is tried, too: that an engine has no driver for it shows only at a start.

        Raises:
            SandboxError: it could not be started.
        """
        default = self._default
        self._keep(default, await self._start(default, []))
        if self._devices:
            await self._try_gpus()
        self._pump()

    async def take(self, request: ResourceRequest, image: Image | None = None) -> Sandbox:
        """Return a sandbox, warm when there is one. ``discard`` it afterwards.

        Args:
            request: its size.
            image: one of ``images``, or an environment; the first when None.

        Raises:
            SandboxError: none could be started.
        """
        if self._closing.is_set():
            raise SandboxError(_STOPPING)
        shelf = self._shelf_of(request, image)
        shelf.demand.asked(self._now_s())
        if (sandbox := self._pop(shelf)) is not None:
            return sandbox
        if shelf.request.gpus and len(self._obtainable(shelf.request)) < shelf.request.gpus:
            raise SandboxError(_NO_GPU)
        waiter: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
        shelf.waiters.append(waiter)
        self._pump()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                sandbox = waiter.result()
                self._busy_gpus.difference_update(self._gpus_of.get(sandbox.id, ()))
                self._keep(shelf, sandbox)
            raise
        finally:
            if waiter in shelf.waiters:
                shelf.waiters.remove(waiter)

    async def environment(
        self, requirements: Sequence[str], *, base: Image, say: Callable[[str], None]
    ) -> Image:
        """Return ``base`` with these distributions installed, see ``SandboxEngine``.

        Raises:
            EnvironmentFailed: they cannot be installed.
            SandboxError: the engine installs none.
        """
        return await self._engine.environment(requirements, base=base, say=say)

    def take_warm(self, request: ResourceRequest, image: Image | None = None) -> Sandbox | None:
        """Return a warm sandbox, or None where ``take`` would have to wait."""
        if self._closing.is_set():
            return None
        shelf = self._shelf_of(request, image)
        sandbox = self._pop(shelf)
        if sandbox is not None:
            shelf.demand.asked(self._now_s())
        return sandbox

    def discard(self, sandbox: Sandbox, *, is_idle: bool = False) -> None:
        """Kill ``sandbox`` in the background. Its GPUs are free when it is gone.

        Args:
            sandbox: one that this pool gave away.
            is_idle: its call has ended, so that the kill may wait a moment.
        """
        self._busy_gpus.difference_update(self._gpus_of.get(sandbox.id, ()))
        self._run(self._kill(sandbox, REMOVAL_DELAY_S if is_idle else 0.0))

    def prune(self) -> None:
        """Replace warm sandboxes that ended while they waited, let go of those that nobody asks
        for any more, and try again what may work by now. Call it now and then."""
        for kind, shelf in list(self._shelves.items()):
            for sandbox in [sandbox for sandbox in shelf.warm if sandbox.is_closed]:
                shelf.warm.remove(sandbox)
                self.discard(sandbox)
            is_forgotten = not shelf.is_in_use and not shelf.demand.was_asked_lately(self._now_s())
            if is_forgotten and shelf is not self._default:
                del self._shelves[kind]
        self._set_targets()
        for shelf in self._shelves.values():
            while shelf.warm and shelf.missing < 0:
                self.discard(shelf.warm.popleft())
                if shelf.target:
                    break  # one a time: demand may come back
        if self._gpu_retry_s is not None and self._now_s() >= self._gpu_retry_s:
            self._gpu_retry_s = None
            self._run(self._try_gpus())
        self._pump()

    def pause(self) -> None:
        """Start no sandbox ahead until ``resume``; who waits for one still gets it."""
        self._is_paused = True

    def release(self) -> None:
        """Pause, and kill every sandbox that waits for a job."""
        self.pause()
        for shelf in self._shelves.values():
            while shelf.warm:
                self.discard(shelf.warm.popleft())
        self._set_targets()

    def resume(self) -> None:
        """Start sandboxes ahead again."""
        self._is_paused = False
        self._pump()

    def withdraw_gpu(self, uuid: str, why: str = LENDER) -> None:
        """Lend this device to no new job. A job that has it keeps it.

        Args:
            uuid: a device of this pool; others are ignored.
            why: each reason is withdrawn for itself, and returned for itself.
        """
        if uuid not in self._devices or why in self._withdrawn.get(uuid, ()):
            return
        was_lent = uuid not in self._withdrawn
        self._withdrawn.setdefault(uuid, set()).add(why)
        for shelf in self._shelves.values():
            for sandbox in list(shelf.warm):
                if uuid in self._gpus_of.get(sandbox.id, ()):
                    shelf.warm.remove(sandbox)
                    self.discard(sandbox)
        if was_lent:
            self.on_change()
        self._pump()

    def return_gpu(self, uuid: str, why: str = LENDER) -> None:
        """Lend this device again, unless it is withdrawn for another reason, too."""
        reasons = self._withdrawn.get(uuid)
        if reasons is None or why not in reasons:
            return
        reasons.remove(why)
        if not reasons:
            del self._withdrawn[uuid]
            self.on_change()
            self._pump()

    async def close(self) -> None:
        """Kill every warm sandbox and wait for the kills that are under way."""
        self._closing.set()
        if self._timer is not None:
            self._timer.cancel()
        for shelf in self._shelves.values():
            self._tell_waiters(shelf, SandboxError(_STOPPING))
            while shelf.warm:
                self.discard(shelf.warm.popleft())
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- shelves

    def _shelf_of(self, request: ResourceRequest, image: Image | None) -> _Shelf:
        if not request.gpus and request.gpu_model:
            request = msgspec.structs.replace(request, gpu_model="")
        images = self._engine.images
        if image is None or (images and _name(image) == _name(images[0])):
            kind = _Kind("", request)
        else:
            kind = _Kind(_name(image), request)
        shelf = self._shelves.get(kind)
        if shelf is None:
            is_default = kind == _Kind("", DEFAULT_REQUEST)
            resting = self._resting if is_default else 0
            shelf = self._shelves[kind] = _Shelf(
                image if kind.image else None, request, resting=resting
            )
        return shelf

    def _pop(self, shelf: _Shelf) -> Sandbox | None:
        while shelf.warm:
            sandbox = shelf.warm.popleft()
            self._refill_soon(shelf)
            if not sandbox.is_closed:
                self._busy_gpus.update(self._gpus_of.get(sandbox.id, ()))
                return sandbox
            self.discard(sandbox)
        return None

    def _keep(self, shelf: _Shelf, sandbox: Sandbox) -> None:
        if self._closing.is_set():
            self.discard(sandbox)
            return
        while shelf.waiters:
            waiter = shelf.waiters.popleft()
            if not waiter.done():
                self._busy_gpus.update(self._gpus_of.get(sandbox.id, ()))
                waiter.set_result(sandbox)
                return
        has_withdrawn = not self._withdrawn.keys().isdisjoint(self._gpus_of.get(sandbox.id, ()))
        if self._is_paused or has_withdrawn:
            self.discard(sandbox)
            return
        shelf.warm.append(sandbox)

    def _set_targets(self) -> None:
        """Say how many of each kind are wanted; the default comes first, then the latest."""
        now_s = self._now_s()
        others = [shelf for shelf in self._shelves.values() if shelf is not self._default]
        others.sort(key=lambda shelf: shelf.demand.last_s or 0.0, reverse=True)
        plain = [self._default, *(shelf for shelf in others if not shelf.request.gpus)]
        kept = share([shelf.demand.wanted(now_s) for shelf in plain], self._most)
        for shelf, count in zip(plain, kept, strict=True):
            shelf.target = count
        free = set(self._free_gpus) - self._withdrawn.keys()
        for shelf in (shelf for shelf in others if shelf.request.gpus):
            shelf.target = 0
            if shelf.demand.was_asked_lately(now_s):
                # Only with a device that nobody has: those of the latest kind come first.
                picked = _pick((self._devices[uuid] for uuid in free), shelf.request)
                shelf.target = min(1, len(shelf.warm) + shelf.starting or len(picked))
                if not (shelf.warm or shelf.starting):
                    free.difference_update(picked)
        set_aside = reserved(sum(kept), resting=self._resting)
        if set_aside != self._reserved:
            self._reserved = set_aside
            self.on_change()

    # ---- refill

    def _refill_soon(self, shelf: _Shelf) -> None:
        if shelf.warm:
            self._wake(REFILL_DELAY_S)
        else:
            # Not within the call that takes the sandbox: the job goes first.
            asyncio.get_running_loop().call_soon(self._pump)

    def _wake(self, after_s: float) -> None:
        """Look again in so many seconds, or sooner."""
        loop = asyncio.get_running_loop()
        at_s = loop.time() + after_s
        if self._closing.is_set() or (self._timer is not None and self._timer.when() <= at_s):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(at_s, self._pump_by_timer)

    def _pump_by_timer(self) -> None:
        self._timer = None
        self._pump()

    def _pump(self) -> None:
        """Start what is missing, as much of it as may start at once."""
        if self._closing.is_set():
            return
        self._set_targets()
        self._refuse_hopeless()
        while self._starting < self._parallel:
            shelf = self._next_to_start()
            if shelf is None:
                return
            gpus = _pick(self._lendable(), shelf.request)
            for uuid in gpus:
                self._free_gpus.remove(uuid)
            shelf.starting += 1
            self._starting += 1
            self._run(self._start_one(shelf, gpus))

    def _next_to_start(self) -> _Shelf | None:
        for shelf in self._shelves.values():
            if len(shelf.waiters) > shelf.starting and self._has_gpus_for(shelf):
                return shelf
        now_s = self._now_s()
        for shelf in self._shelves.values():
            if shelf.missing <= 0 or self._is_paused:
                continue
            if now_s < shelf.not_before_s:
                self._wake(shelf.not_before_s - now_s)
            elif _pick(self._lendable(), shelf.request) if shelf.request.gpus else self._has_room():
                return shelf
        return None

    def _has_room(self) -> bool:
        """Return whether one more may be kept, if need be in the place of a superfluous one."""
        plain = [shelf for shelf in self._shelves.values() if not shelf.request.gpus]
        if sum(len(shelf.warm) + shelf.starting for shelf in plain) < self._most:
            return True
        for shelf in plain:
            if shelf.warm and shelf.missing < 0:
                self.discard(shelf.warm.popleft())
                return True
        return False  # those that start are for somebody who waits

    async def _start_one(self, shelf: _Shelf, gpus: list[str]) -> None:
        try:
            sandbox = await self._start(shelf, gpus)
        except GpuUnavailable as error:
            self._failed(shelf, error)
            self._no_driver(error)
        except SandboxError as error:
            self._failed(shelf, error)
        else:
            shelf.failures, shelf.not_before_s = 0, 0.0
            self.last_error = None
            self._keep(shelf, sandbox)
        finally:
            shelf.starting -= 1
            self._starting -= 1
            # Not from here: a start that was cancelled is one of a loop that ends.
            asyncio.get_running_loop().call_soon(self._pump)

    async def _start(self, shelf: _Shelf, gpus: list[str]) -> Sandbox:
        """Start one. ``gpus`` are taken already, and free again when it fails."""
        began_s = self._now_s()
        try:
            sandbox = await self._engine.start(shelf.request, image=shelf.image, gpus=gpus)
        except BaseException:
            self._free_gpus += gpus
            raise
        shelf.demand.started(self._now_s() - began_s)
        if gpus:
            self._gpus_of[sandbox.id] = gpus
        return sandbox

    def _failed(self, shelf: _Shelf, error: SandboxError) -> None:
        shelf.failures += 1
        self.last_error = error
        _log.warning(
            "a sandbox could not be started",
            extra={"action": "refill", "error": str(error), "failures": shelf.failures},
        )
        # Who waits is told at once, and hands its attempt back: another worker may do better.
        self._tell_waiters(shelf, error, at_most=1)
        pause_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(shelf.failures, 10))
        shelf.not_before_s = self._now_s() + pause_s

    @staticmethod
    def _tell_waiters(shelf: _Shelf, error: SandboxError, *, at_most: int | None = None) -> None:
        told = 0
        while shelf.waiters and (at_most is None or told < at_most):
            waiter = shelf.waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)
                told += 1

    async def _kill(self, sandbox: Sandbox, delay_s: float) -> None:
        if delay_s:
            try:
                async with asyncio.timeout(delay_s):
                    await self._closing.wait()
            except TimeoutError:
                pass  # the usual case: nobody closes the pool meanwhile
        await sandbox.kill()
        gpus = self._gpus_of.get(sandbox.id, [])
        while gpus and not sandbox.is_removed and not self._closing.is_set():
            # Its processes may live: the device is nobody else's before they are gone.
            try:
                async with asyncio.timeout(KILL_AGAIN_S):
                    await self._closing.wait()
            except TimeoutError:
                await sandbox.kill()
        self._gpus_of.pop(sandbox.id, None)
        if gpus:
            self._free_gpus += gpus
            self._pump()

    # ---- GPUs

    def _lendable(self) -> Iterable[Gpu]:
        return (self._devices[uuid] for uuid in self._free_gpus if uuid not in self._withdrawn)

    def _obtainable(self, request: ResourceRequest) -> list[str]:
        """Return the devices that a job could get: free ones, and those of idle sandboxes."""
        could = (gpu for gpu in self.gpus if gpu.uuid not in self._busy_gpus)
        return [gpu.uuid for gpu in could if _is_model(gpu, request.gpu_model)]

    def _has_gpus_for(self, shelf: _Shelf) -> bool:
        """Return whether the devices are free; where they are not, end idle sandboxes of other
        kinds that have them."""
        request = shelf.request
        if not request.gpus or _pick(self._lendable(), request):
            return True
        for other in self._shelves.values():
            for sandbox in [] if other is shelf else list(other.warm):
                held = self._gpus_of.get(sandbox.id, ())
                if any(_is_model(self._devices[uuid], request.gpu_model) for uuid in held):
                    other.warm.remove(sandbox)
                    self.discard(sandbox)
        return False  # they come back when those are gone

    def _refuse_hopeless(self) -> None:
        """Tell those who wait for a device that a job has got meanwhile."""
        promised = 0
        for shelf in self._shelves.values():
            if not (count := shelf.request.gpus):
                continue
            could = max(0, len(self._obtainable(shelf.request)) - promised) // count
            for waiter in list(shelf.waiters)[could:]:
                if not waiter.done():
                    waiter.set_exception(SandboxError(_NO_GPU))
                shelf.waiters.remove(waiter)
            promised += len(shelf.waiters) * count

    async def _try_gpus(self) -> None:
        """Start a container with a GPU and end it: whether the engine can shows only so."""
        request = ResourceRequest(gpus=1)
        picked = _pick((self._devices[uuid] for uuid in self._free_gpus), request)
        if not picked:
            return  # all in use: it can
        self._free_gpus.remove(picked[0])
        trial = _Shelf(None, request, resting=0)
        try:
            sandbox = await self._start(trial, picked)
        except GpuUnavailable as error:
            self._no_driver(error)
        except SandboxError as error:
            _log.warning("no GPU was tried", extra={"action": "gpu", "error": str(error)})
            self._retry_gpus_later()
        else:
            self.discard(sandbox)
            self._gpu_retry_s, self._gpu_retry_after_s = None, GPU_RETRY_S
            for uuid in self._devices:
                self.return_gpu(uuid, DRIVER)

    def _no_driver(self, error: GpuUnavailable) -> None:
        _log.warning(
            "the GPUs are withdrawn: no container starts with them",
            extra={"action": "gpu", "error": str(error)},
        )
        self._retry_gpus_later()
        for uuid in self._devices:
            self.withdraw_gpu(uuid, DRIVER)

    def _retry_gpus_later(self) -> None:
        if self._gpu_retry_s is None:
            self._gpu_retry_s = self._now_s() + self._gpu_retry_after_s
            self._gpu_retry_after_s = min(LONGEST_GPU_RETRY_S, self._gpu_retry_after_s * 2)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _name(image: Image) -> str:
    return image.digest or image.name


def _is_model(gpu: Gpu, model: str) -> bool:
    return model.lower() in gpu.name.lower()


def _pick(gpus: Iterable[Gpu], request: ResourceRequest) -> list[str]:
    """Return the devices for a job, the smallest that will do; none when they do not suffice."""
    fit = sorted(
        (gpu for gpu in gpus if _is_model(gpu, request.gpu_model)),
        key=lambda gpu: gpu.memory_bytes,
    )
    return [gpu.uuid for gpu in fit[: request.gpus]] if len(fit) >= request.gpus else []
