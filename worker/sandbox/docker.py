"""Sandboxes as hardened containers of a Docker engine.

Calls of the Engine API block, so they run in a few threads, each with its own client and a time
limit on every call. The attach stream alone is asyncio. Order matters twice: attach before
start, because output before an attach is lost; and close the attach stream before a kill,
because an engine that cannot write to it holds the container's lock (moby issue 41827).
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import docker.errors
import psutil
import requests

from gridx.errors import SandboxError
from gridx.resources import Check, Image, Isolation, ResourceRequest

from ..images import (
    ImageInfo,
    default_image_tag,
    engine_client,
    ensure_images,
    find_image,
)
from ..images.environments import build_environment
from ..runtime import syscalls
from ..runtime.frames import Frame, Freeze, FromSupervisor, Ready, Thaw, encode_frame
from .base import Death, GpuUnavailable, Promise, SandboxClosed
from .cgroups import CgroupMeter
from .frames import AttachDemultiplexer
from .limits import (
    GVISOR,
    INPUTS_DIR,
    POOL_LABEL,
    UIDS_LABEL,
    WORKER_LABEL,
    container_options,
    promises,
)
from .metering import EngineStats, HostMeter, HostReading, reading_of_stats
from .pipe import FrameQueue
from .self_test import REQUEST as SELF_TEST_REQUEST
from .self_test import Remembered, key_of, refuse, self_test
from .slots import Slots, fill
from .uids import UidRange, space_of

_log = logging.getLogger(__name__)

API_TIMEOUT_S = 20.0
ATTACH_TIMEOUT_S = 10.0
READY_TIMEOUT_S = 30.0
REMOVE_TRIES = 3
PAUSE_TRIES = 3
LATE_SWEEP_S = 10.0
ABANDONED_S = 60.0
MEND_S = 2.0  # between two tries to remove what an engine in trouble has kept
TROUBLE_S = 60.0  # so long after it, an engine may still carry out what it did not answer
THREADS = 4  # two starts and two removals at once
MAX_HEAD_BYTES = 16 * 1024
# What an engine says at the start of a container that cannot have its GPUs: no toolkit, a
# driver that is not loaded, a device that is lost.
GPU_TROUBLE = ("could not select device driver", "nvidia-container-cli", "nvidia-container-runtime")

T = TypeVar("T")


class _Lent(NamedTuple):
    """What a container has of the host, as long as it lives."""

    uid: int
    slot: Path


class _AttachProtocol(asyncio.Protocol):
    """One hijacked attach connection: the engine's answer, then the container's streams."""

    def __init__(self) -> None:
        self.frames = FrameQueue()
        self.streams = AttachDemultiplexer()
        self.attached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._head: bytearray | None = bytearray()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.frames.connect(transport)

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            data = self._read_head(data)
        if not data:
            return
        try:
            for piece in self.streams.feed(data):
                self.frames.feed(piece)
        except SandboxError as error:
            self.frames.end(error)
        if self.frames.closed.is_set():
            self.close()

    def _read_head(self, data: bytes) -> bytes:
        assert self._head is not None
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            if len(self._head) > MAX_HEAD_BYTES:
                self._refuse("too long an answer")
            return b""
        status = bytes(self._head[: self._head.find(b"\r\n")])
        rest = bytes(self._head[end + 4 :])
        self._head = None
        # 101 to the upgrade that was asked for; older engines answer 200 and hijack all the same.
        if status.split(b" ")[1:2] not in ([b"101"], [b"200"]):
            self._refuse(status.decode(errors="replace"))
            return b""
        if not self.attached.done():
            self.attached.set_result(None)
        return rest

    def _refuse(self, answer: str) -> None:
        if not self.attached.done():
            self.attached.set_exception(
                SandboxError(f"The engine refused to attach to a container: {answer}.")
            )
        self.close()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        if not self.attached.done():
            self.attached.set_exception(SandboxError("The engine closed the attach stream."))
            self.attached.exception()  # the waiter may have given up
        self.frames.end()

    async def write(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            raise SandboxClosed("The sandbox has ended.")
        self._transport.write(data)
        await self._writable.wait()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()  # not close(): that would wait for unwritten input
        self.frames.end()


class DockerSandbox:
    """One warm container and its attach stream."""

    def __init__(
        self,
        engine: DockerEngine,
        *,
        container: str,
        slot: Path,
        request: ResourceRequest,
        image: Image,
        stream: _AttachProtocol,
        ready: Ready,
        meter: HostMeter | None,
        is_open_inside: bool,
    ) -> None:
        self._engine = engine
        self._stream = stream
        self._slot = slot
        self._killed: asyncio.Task[None] | None = None
        self._frozen_at_s: float | None = None
        self.id = container
        self.request = request
        self.image = image
        self.ready = ready
        self.meter = meter
        self.inputs_dir = INPUTS_DIR
        self.is_open_inside = is_open_inside

    @property
    def is_closed(self) -> bool:
        return self._stream.frames.closed.is_set()

    @property
    def is_removed(self) -> bool:
        return self._killed is not None and not self._engine.has(self.id)

    async def put_inputs(self, files: Mapping[str, Path]) -> None:
        await self._engine.fill(self._slot, files)

    async def send(self, frame: Frame) -> None:
        await self._stream.write(encode_frame(frame))

    async def receive(self) -> FromSupervisor:
        return await self._stream.frames.receive()

    async def freeze(self) -> None:
        if self._frozen_at_s is not None:
            return
        # The supervisor is told before, because it stands still with the rest.
        await self.send(Freeze())
        self._frozen_at_s = time.monotonic()
        try:
            await self._engine.pause(self.id)
        except SandboxError:
            await self.thaw()  # it may stand still all the same
            raise

    async def thaw(self) -> None:
        if self._frozen_at_s is None:
            return
        await self._engine.unpause(self.id)
        stood_s, self._frozen_at_s = time.monotonic() - self._frozen_at_s, None
        await self.send(Thaw(stood_s=stood_s))

    async def kill(self) -> None:
        if self._killed is None or (self._killed.done() and not self.is_removed):
            self._stream.close()
            if self.meter is not None:
                self.meter.close()
            self._killed = asyncio.create_task(self._engine.remove(self.id))
        await asyncio.shield(self._killed)

    async def post_mortem(self) -> Death:
        state = await self._engine.state_of(self.id)
        return Death(
            out_of_memory=bool(state.get("OOMKilled")),
            exit_code=state.get("ExitCode"),
            stderr=self._stream.streams.stderr.decode(errors="replace")[-2000:],
            # An engine that ends takes all of its containers with it.
            from_inside=self.is_open_inside
            and state.get("ExitCode") is not None
            and self._engine.has_open_streams(),
        )


class DockerEngine:
    """Starts containers, and removes every one that it started."""

    kind = "docker"

    def __init__(
        self,
        *,
        worker_id: str,
        python_minor: str | None = None,
        runtime: str | None = None,
        slots: Path | None = None,
        self_test: Path | None = None,
        pythons: Sequence[str] = (),
        languages: Sequence[str] = ("python",),
        families: Sequence[str] = (),
        environments: bool = True,
        environments_bytes: int | None = None,
        packages: frozenset[str] | None = None,
    ) -> None:
        """
        Args:
            worker_id: label of what it starts.
            python_minor: of the image; this process's when None.
            runtime: another OCI runtime of the engine; its default when None.
            slots: folder for the containers' inputs, which the engine must see under the same
                path; emptied at start. A temporary one when None.
            self_test: where ``prepare`` keeps that its self-test has passed; it makes none when
                None.
            pythons: minor versions of more images; the first is the default's. ``python_minor``
                alone when empty.
            languages: of the images: "python", "bash", "node".
            families: the lender's own images, by name.
            environments: whether jobs may have packages installed.
            environments_bytes: of disk for those, all together; no limit when None.
            packages: the only ones that may be installed, by normalised name; any when None.
        """
        self._worker_id = worker_id
        self._pythons = tuple(pythons) or ((python_minor,) if python_minor else ())
        self._languages, self._families = tuple(languages), tuple(families)
        self.environments = environments
        self._environments_bytes = environments_bytes
        self._packages = packages
        self._offered: tuple[Image, ...] = ()
        self._remembered = None if self_test is None else Remembered(self_test)
        self._checks: tuple[Check, ...] = ()
        self._slots = Slots(slots)
        self._pool_id = f"pool_{secrets.token_hex(4)}"
        self._python_minor = self._pythons[0] if self._pythons else None
        self._runtime = runtime
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="docker")
        self._own = threading.local()
        self._uids: UidRange | None = None
        self._image: ImageInfo | None = None
        self._address = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
        self._late_sweep: asyncio.Task[None] | None = None
        self._streams: dict[str, _AttachProtocol] = {}
        self._owed: set[str] = set()  # containers that could not be removed
        self._trouble_until_s = 0.0
        self._mending: asyncio.Task[None] | None = None
        self._live: dict[str, _Lent] = {}
        self._claiming = asyncio.Lock()
        self._sure: set[str] = set()  # live, and their range is this worker's alone
        self.info: Mapping[str, Any] = {}

    # ---- before the first job

    @property
    def images(self) -> tuple[Image, ...]:
        return self._offered

    @property
    def isolation(self) -> Isolation:
        security = " ".join(str(option) for option in self.info.get("SecurityOptions") or ())
        return Isolation(
            runtime=self._runtime or str(self.info.get("DefaultRuntime") or ""),
            engine=str(self.info.get("ServerVersion") or ""),
            cgroup=str(self.info.get("CgroupVersion") or ""),
            rootless="name=rootless" in security,
            userns="name=userns" in security,
            checks=self._checks,
        )

    async def prepare(self) -> None:
        _check_address(self._address)
        refuse(await self.check_promises())
        _check_runtime(self.info, self._runtime)
        self._image = await self._build_image()
        await self.sweep()
        self._uids = await self._free_range()
        self._slots.sweep()
        self._late_sweep = asyncio.create_task(self._sweep_later())
        if self._remembered is not None:
            await self._vouch(self._remembered)

    async def _vouch(self, remembered: Remembered) -> None:
        """Know that every promise is kept: tried now, or not long ago with the same parts."""
        assert self._image is not None
        options = container_options(
            SELF_TEST_REQUEST, image="", uid=0, worker_id="", pool_id="", inputs="/"
        )
        key = key_of(
            self.info,
            image=self._image.announced().digest,
            runtime=self._runtime or "",
            options=[options, syscalls.program(syscalls.machine())],
        )
        known = remembered.find(key)
        checks = await self.self_test() if known is None else known
        self._checks = checks
        refuse(checks)
        if known is None:
            remembered.keep(key, checks)

    async def self_test(self) -> tuple[Check, ...]:
        """Try every promised limit in two containers; see ``self_test.py``."""
        runtime = self._runtime or str(self.info.get("DefaultRuntime") or "")
        with tempfile.NamedTemporaryFile(prefix="gridx-self-test-") as probe:
            return await self_test(self, runtime=runtime, probe=Path(probe.name))

    async def _build_image(self) -> ImageInfo:
        """Find the images, or build them, and return the default's."""
        found = await self._in_own_thread(
            lambda api: ensure_images(
                api,
                pythons=self._pythons,
                languages=self._languages,
                families=self._families,
            )
        )
        self._offered = tuple(image.announced() for image in found)
        return found[0]

    async def _in_own_thread(self, build: Callable[[Any], T]) -> T:
        """Do what takes minutes in a thread that a stop of the worker does not wait for."""
        loop = asyncio.get_running_loop()
        built: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                with closing(engine_client(timeout_s=API_TIMEOUT_S)) as api:
                    made = build(api)
            except Exception as error:  # whatever it was, it belongs to who waits for it
                tell(built.set_exception, error)
            else:
                tell(built.set_result, made)

        def tell(answer: Callable[[Any], None], value: object) -> None:
            try:
                loop.call_soon_threadsafe(lambda: None if built.done() else answer(value))
            except RuntimeError:
                pass  # the loop is closed: the worker has stopped

        threading.Thread(target=work, name="image", daemon=True).start()
        return await built

    async def check_promises(self) -> list[Promise]:
        """Return what the engine says about each promised limit."""
        self.info = await self._call(lambda api: api.info())
        return promises(self.info, has_swap=psutil.swap_memory().total > 0)

    async def find_image(self) -> ImageInfo | None:
        """Return the default image when the engine has it."""
        tag = default_image_tag(self._python_minor)
        return await self._call(lambda api: find_image(api, tag))

    async def sweep(self) -> int:
        """Remove what an earlier run of this worker left, and what any worker left long ago.

        Returns:
            How many containers were removed.
        """
        label = {"label": f"{WORKER_LABEL}={self._worker_id}"}
        found = await self._call(lambda api: api.containers(all=True, filters=label))
        leftovers = {
            str(entry["Id"])
            for entry in found
            if (entry.get("Labels") or {}).get(POOL_LABEL) != self._pool_id
        }
        leftovers |= await self._call(_ended_long_ago)
        await asyncio.gather(*(self._remove(container) for container in leftovers))
        if leftovers:
            _log.info("removed leftovers", extra={"action": "sweep", "containers": len(leftovers)})
        return len(leftovers)

    async def _sweep_later(self) -> None:
        # A create that the earlier run did not live to see answered may be carried out after
        # the first sweep.
        await asyncio.sleep(LATE_SWEEP_S)
        try:
            await self.sweep()
        except SandboxError as error:
            _log.warning("no second sweep", extra={"action": "sweep", "error": str(error)})

    # ---- one container

    async def start(
        self, request: ResourceRequest, *, image: Image | None = None, gpus: Sequence[str] = ()
    ) -> DockerSandbox:
        if self._uids is None or self._image is None:
            raise SandboxError("The engine is not prepared.")
        image = image or self._image.announced()
        container, lent = await self._create(request, image, gpus)
        stream: _AttachProtocol | None = None
        try:
            stream = self._streams[container] = await self._attach(container)
            await self._call(lambda api: api.start(container))
            ready = await self._wait_ready(stream, container)
            meter = await self._meter_of(container, ready)
        except BaseException:
            if stream is not None:
                stream.close()
            await asyncio.shield(self.remove(container))
            raise
        return DockerSandbox(
            self,
            container=container,
            slot=lent.slot,
            request=request,
            image=image,
            stream=stream,
            ready=ready,
            meter=meter,
            is_open_inside=self._runtime == GVISOR,
        )

    def has_open_streams(self) -> bool:
        """Whether any container of this engine is still attached."""
        return any(not stream.frames.closed.is_set() for stream in self._streams.values())

    async def _create(
        self, request: ResourceRequest, image: Image, gpus: Sequence[str]
    ) -> tuple[str, _Lent]:
        """Create a container whose uid no other live container of this engine has.

        While one container of this worker is alive, its label keeps others off the range. With
        none alive, another worker may have taken the range; so whoever has just made its first
        looks whether somebody else is there. Of two who come at once at least one sees the
        other; who does leaves, for a range by chance.
        """
        while True:
            container, lent = await self._create_one(request, image, gpus)
            try:
                if await self._is_sure_of(container, lent.uid):
                    return container, lent
            except BaseException:
                await asyncio.shield(self.remove(container))
                raise
            await asyncio.shield(self.remove(container))

    async def _is_sure_of(self, container: str, uid: int) -> bool:
        async with self._claiming:
            if self._uids is None:
                raise SandboxError("The engine is closed.")
            if uid not in self._uids:
                return False  # of a range that was left meanwhile
            if not self._sure and await self._is_contested(self._uids.first_uid):
                old, self._uids = self._uids, await self._free_range(by_chance=True)
                old.close()
                _log.info("moved to other user ids", extra={"action": "uids"})
                return False
            self._sure.add(container)
            return True

    async def _create_one(
        self, request: ResourceRequest, image: Image, gpus: Sequence[str]
    ) -> tuple[str, _Lent]:
        if self._uids is None:
            raise SandboxError("The engine is closed.")
        first_uid = self._uids.first_uid
        lent = await self._lend(self._uids.take())
        try:
            options = container_options(
                request,
                image=image.digest,
                uid=lent.uid,
                worker_id=self._worker_id,
                pool_id=self._pool_id,
                inputs=str(lent.slot),
                gpus=gpus,
                runtime=self._runtime,
            )
            options["Labels"] = {**options.get("Labels", {}), UIDS_LABEL: str(first_uid)}
            created = await self._call(lambda api: api.create_container_from_config(options))
        except SandboxError as error:
            await self._take_back(lent)
            if not isinstance(error.__cause__, docker.errors.APIError | None):
                self._mend_soon()  # no answer: it may be made all the same
            raise
        container = str(created["Id"])
        self._live[container] = lent
        return container, lent

    async def _free_range(self, *, by_chance: bool = False) -> UidRange:
        found = await self._call(
            lambda api: api.containers(all=True, filters={"label": UIDS_LABEL})
        )
        labels = [str((entry.get("Labels") or {}).get(UIDS_LABEL)) for entry in found]
        taken = {int(label) for label in labels if label.isdecimal()}
        return UidRange.lock(space=space_of(self.info), taken=taken, by_chance=by_chance)

    async def _is_contested(self, first_uid: int) -> bool:
        label = {"label": f"{UIDS_LABEL}={first_uid}"}
        found = await self._call(lambda api: api.containers(all=True, filters=label))
        pools = {(entry.get("Labels") or {}).get(POOL_LABEL) for entry in found}
        return bool(pools - {self._pool_id})

    async def _meter_of(self, container: str, ready: Ready) -> HostMeter | None:
        """Open the container's counters from outside, while nobody waits for them."""

        def find(api: Any) -> CgroupMeter | None:
            state = api.inspect_container(container).get("State") or {}
            pid = int(state.get("Pid") or 0)
            return CgroupMeter.of_process(pid, container) if pid else None

        meter = await self._call(find)
        if meter is not None:
            return meter
        if ready.meter == "cgroup" and self._runtime is None:
            return None  # the supervisor reads its own, and its word is safe from its job

        async def ask() -> HostReading | None:
            # One reading: without it the engine waits for a second one, to compare.
            stats = await self._call(lambda api: api.stats(container, stream=False, one_shot=True))
            return reading_of_stats(stats)

        return EngineStats(ask)

    async def environment(
        self, requirements: Sequence[str], *, base: Image, say: Callable[[str], None]
    ) -> Image:
        if not self.environments:
            raise SandboxError(
                "This worker installs no packages.",
                hint="Its lender has set --pip off; leave --pip out, or take another worker.",
            )
        loop = asyncio.get_running_loop()

        def say_there(line: str) -> None:
            try:
                loop.call_soon_threadsafe(say, line)
            except RuntimeError:
                pass  # the loop is closed: nobody waits any more

        # A taker that gives up leaves it to go on: others may wait for the same, or come for it.
        built = await self._in_own_thread(
            lambda api: build_environment(
                api,
                requirements,
                base=base,
                say=say_there,
                allowed=self._packages,
                max_bytes=self._environments_bytes,
            )
        )
        return built.announced()

    async def pause(self, container: str) -> None:
        """Let every process of a container stand still; one that does already is left so."""
        await self._until_it_is_so(container, "is already paused", lambda api: api.pause(container))

    async def unpause(self, container: str) -> None:
        """Let them go on."""
        await self._until_it_is_so(container, "is not paused", lambda api: api.unpause(container))

    async def _until_it_is_so(
        self, container: str, is_so: str, request: Callable[[Any], None]
    ) -> None:
        """Ask, and take "it is so" for an answer when the engine's own state says the same.

        An engine may say that a container "is not paused" right after it has paused it.
        """
        for attempt in range(PAUSE_TRIES):
            try:
                await self._call(request)
            except SandboxError as error:
                if is_so not in str(error):
                    raise
                is_paused = "already" in is_so
                found = await self._call(lambda api: api.inspect_container(container))
                if bool((found.get("State") or {}).get("Paused")) is is_paused:
                    return
                await asyncio.sleep(0.05 * (attempt + 1))
            else:
                return
        raise SandboxError(f"The engine cannot make up its mind whether {container[:12]} {is_so}.")

    def has(self, container: str) -> bool:
        """Return whether it has started this container and not removed it."""
        return container in self._live

    async def fill(self, slot: Path, files: Mapping[str, Path]) -> None:
        """Make ``files`` readable for the container that has ``slot``.

        Raises:
            SandboxError: the disk is full or gone.
        """
        try:
            await self._aside(lambda: fill(slot, files))
        except OSError as error:
            raise SandboxError(f"The job's inputs cannot be laid out: {error}.") from error

    async def _attach(self, container: str) -> _AttachProtocol:
        loop = asyncio.get_running_loop()
        parts = urlsplit(self._address)
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT_S):
                if parts.scheme == "unix":
                    transport, stream = await loop.create_unix_connection(
                        _AttachProtocol, parts.path
                    )
                else:
                    transport, stream = await loop.create_connection(
                        _AttachProtocol, parts.hostname or "localhost", parts.port or 2375
                    )
                transport.write(
                    f"POST /containers/{container}/attach?stream=1&stdin=1&stdout=1&stderr=1"
                    " HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode()
                )
                try:
                    await stream.attached
                except BaseException:
                    stream.close()
                    raise
        except (OSError, TimeoutError) as exc:
            raise SandboxError(f"The engine's socket does not answer: {exc}.") from exc
        return stream

    async def _wait_ready(self, stream: _AttachProtocol, container: str) -> Ready:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                frame = await stream.frames.receive()
        except TimeoutError:
            raise SandboxError(
                f"A container was not ready after {READY_TIMEOUT_S:.0f} s."
            ) from None
        except SandboxClosed:
            state = await self.state_of(container)
            last = stream.streams.stderr.decode(errors="replace").strip()[-500:]
            raise SandboxError(
                "A container ended before it was ready"
                f" (exit {state.get('ExitCode')}{': ' + last if last else ''})."
            ) from None
        if not isinstance(frame, Ready):
            raise SandboxError("A container's first frame was not Ready.")
        if not frame.filtered:
            raise SandboxError(
                "The child of a container runs without its system call filter.",
                hint="This machine's processor or kernel is not supported yet: x86-64 and"
                " aarch64 with seccomp are.",
            )
        return frame

    async def state_of(self, container: str) -> Mapping[str, Any]:
        """Return the engine's State of a container that has ended."""
        try:
            # The stream ends a moment before the engine knows the exit code.
            await self._call(lambda api: api.wait(container, timeout=5))
            found = await self._call(lambda api: api.inspect_container(container))
        except SandboxError:
            return {}
        state: Mapping[str, Any] = found.get("State") or {}
        return state

    async def remove(self, container: str) -> None:
        """Kill and remove a container whose attach stream is closed, and what it was lent.

        An engine that does not answer is asked again in the background until it has done so.
        """
        self._sure.discard(container)
        self._streams.pop(container, None)
        if await self._remove(container):
            self._owed.discard(container)
            lent = self._live.pop(container, None)
            if lent is not None:
                await self._take_back(lent)
        else:
            self._owed.add(container)
            self._mend_soon()

    def _mend_soon(self) -> None:
        self._trouble_until_s = time.monotonic() + TROUBLE_S
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._mend())

    async def _mend(self) -> None:
        """Remove what the engine still has of this run, until its trouble is surely over."""
        while self._owed or time.monotonic() < self._trouble_until_s:
            await asyncio.sleep(MEND_S)
            try:
                orphans = await self._call(self._orphans)
            except SandboxError:
                continue  # it is still in trouble
            for container in (self._owed | orphans) - self._sure:
                await self.remove(container)

    def _orphans(self, api: Any) -> set[str]:
        """Return containers of this run that were made without an answer, some time ago."""
        label = {"label": f"{POOL_LABEL}={self._pool_id}"}
        made_before = time.time() - 2 * API_TIMEOUT_S
        return {
            str(entry["Id"])
            for entry in api.containers(all=True, filters=label)
            if entry["Id"] not in self._live and float(entry.get("Created") or 0) < made_before
        }

    async def _lend(self, uid: int) -> _Lent:
        try:
            return _Lent(uid, await self._aside(self._slots.make))
        except OSError as error:
            if self._uids is not None:
                self._uids.give_back(uid)
            raise SandboxError(f"No folder can be made for a container: {error}.") from error

    async def _take_back(self, lent: _Lent) -> None:
        if self._uids is not None:
            self._uids.give_back(lent.uid)
        await self._aside(lambda: shutil.rmtree(lent.slot, ignore_errors=True))

    async def _remove(self, container: str) -> bool:
        for attempt in range(REMOVE_TRIES):
            try:
                await self._call(lambda api: api.remove_container(container, force=True, v=True))
                return True
            except SandboxError as error:
                cause = error.__cause__
                if isinstance(cause, docker.errors.NotFound):
                    return True
                if isinstance(cause, docker.errors.APIError) and "in progress" in str(cause):
                    return True
                _log.warning(
                    "a container could not be removed",
                    extra={"action": "remove", "container": container, "error": str(error)},
                )
                await asyncio.sleep(0.2 * (attempt + 1))
        return False

    async def close(self) -> None:
        for task in (self._late_sweep, self._mending):
            if task is not None:
                task.cancel()
        await asyncio.gather(*(self.remove(container) for container in list(self._live)))
        if self._mending is not None:
            self._mending.cancel()  # what is left is for the sweep of the next start
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._uids is not None:
            self._uids.close()
            self._uids = None
        self._slots.close()

    # ---- the engine's API

    async def _aside(self, work: Callable[[], T]) -> T:
        """Run what may wait for the disk in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _call(self, request: Callable[[Any], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._run, request)

    def _run(self, request: Callable[[Any], T]) -> T:
        api = getattr(self._own, "api", None)
        if api is None:
            api = self._own.api = engine_client(timeout_s=API_TIMEOUT_S)
        try:
            return request(api)
        except (docker.errors.DockerException, requests.RequestException) as exc:
            sentence = f"The Docker engine refused: {_sentence(exc)}"
            raise (GpuUnavailable if _is_about_gpus(exc) else SandboxError)(sentence) from exc


def _ended_long_ago(api: Any) -> set[str]:
    """Return containers of any worker that ended some time ago and that nobody has removed.

    A living worker removes its own at once; these outlived a worker that was killed and whose
    data folder, and with it its id, may be gone.
    """
    ended = {"label": WORKER_LABEL, "status": ["exited", "dead"]}
    long_ago = datetime.now(UTC) - timedelta(seconds=ABANDONED_S)
    found = set()
    for entry in api.containers(all=True, filters=ended):
        try:
            state = api.inspect_container(entry["Id"])["State"]
            # "2026-11-24T10:52:03.123456789Z": the engine's clock, nanoseconds cut off
            finished = datetime.fromisoformat(state["FinishedAt"][:19] + "+00:00")
        except (docker.errors.NotFound, KeyError, ValueError):
            continue  # removed meanwhile, or it has no end yet
        if finished < long_ago:
            found.add(str(entry["Id"]))
    return found


def _is_about_gpus(exc: Exception) -> bool:
    said = str(getattr(exc, "explanation", None) or exc)
    return any(words in said for words in GPU_TROUBLE)


def _sentence(exc: Exception) -> str:
    said = str(getattr(exc, "explanation", None) or exc).strip() or type(exc).__name__
    if "could not select device driver" in said:
        return "it has no driver for GPUs (the NVIDIA container toolkit is not installed)."
    if "bind source path does not exist" in said:
        return (
            "it cannot see this worker's data folder. Run the worker on the engine's own machine,"
            " with a --data-dir that the engine has under the same path."
        )
    return said[:500]


def _check_runtime(info: Mapping[str, Any], runtime: str | None) -> None:
    """Refuse a runtime that the engine does not know: it would say so at each container's start."""
    has = sorted(info.get("Runtimes") or {})
    if runtime is not None and runtime not in has:
        raise SandboxError(
            f"This Docker engine has no runtime {runtime!r}; it has {', '.join(has) or 'none'}.",
            hint="Start the worker with --runtime and one of these, or register the other in the"
            " engine's daemon.json: docs/howto/gvisor.md.",
        )


def _check_address(address: str) -> None:
    scheme = urlsplit(address).scheme
    if scheme not in ("unix", "tcp", "http") or os.environ.get("DOCKER_TLS_VERIFY"):
        raise SandboxError(
            f"This release cannot attach to an engine at {address} (TLS, or not a unix socket).",
            hint="Run the worker on the engine's own machine, or set DOCKER_HOST=unix://PATH.",
        )
