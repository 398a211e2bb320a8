"""Sandboxes as plain processes, for trying Grid-X on a machine without Docker.

The same supervisor as in a container, started as this user in namespaces of its own where the
kernel grants them (``confinement.py``). What holds everywhere: the time limit, cancelling,
address space, open files and file size of each process. What never does: total memory and CPU,
and a job can read this user's files. The rest is measured at start and announced. Hence own jobs
only.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import psutil

from gridx.errors import SandboxError
from gridx.resources import Check, Image, Isolation, ResourceRequest

from ..runtime.frames import Frame, Freeze, FromSupervisor, Ready, Thaw, encode_frame
from ..runtime.programs import PROGRAMS
from .base import Death, SandboxClosed
from .confinement import CHOICES, SUPERVISOR, Plan, checks_of, plan
from .frames import MAX_STDERR_BYTES
from .metering import HostMeter
from .pipe import FrameQueue
from .slots import fill

_log = logging.getLogger(__name__)

READY_TIMEOUT_S: Final = 60.0
LEAVE_TIMEOUT_S: Final = 1.0
INPUTS_SUFFIX: Final = ".in"  # of the folder beside the job's own


class _SupervisorProtocol(asyncio.SubprocessProtocol):
    """The pipes of one supervisor."""

    def __init__(self) -> None:
        self.frames = FrameQueue()
        self.stderr = bytearray()
        self.exited = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        reading = transport.get_pipe_transport(1)
        assert isinstance(reading, asyncio.ReadTransport)
        self.frames.connect(reading)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            self.frames.feed(data)
        else:
            self.stderr += data
            del self.stderr[:-MAX_STDERR_BYTES]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self.frames.end()
        self._writable.set()

    def process_exited(self) -> None:
        self.exited.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def wait_writable(self) -> None:
        await self._writable.wait()


class ProcessSandbox:
    """One supervisor process, warm."""

    def __init__(
        self,
        transport: asyncio.SubprocessTransport,
        protocol: _SupervisorProtocol,
        *,
        request: ResourceRequest,
        image: Image,
        ready: Ready,
        folder: Path,
        has_first_process: bool,
    ) -> None:
        self._transport = transport
        self._has_first_process = has_first_process
        self._protocol = protocol
        self._folder = folder
        self._killed: asyncio.Task[None] | None = None
        self._frozen_at_s: float | None = None
        self.id = f"process-{transport.get_pid()}"
        self.request = request
        self.image = image
        self.ready = ready
        self.is_open_inside = False  # it is the lender's own job
        self.inputs_dir = f"{folder}{INPUTS_SUFFIX}"

    @property
    def is_closed(self) -> bool:
        return self._protocol.frames.closed.is_set()

    @property
    def meter(self) -> HostMeter | None:
        return None  # its processes share a group with the worker's

    @property
    def is_removed(self) -> bool:
        return self._killed is not None and self._killed.done()

    async def put_inputs(self, files: Mapping[str, Path]) -> None:
        try:
            await asyncio.to_thread(fill, Path(self.inputs_dir), files)
        except OSError as error:
            raise SandboxError(f"The job's inputs cannot be laid out: {error}.") from error

    async def send(self, frame: Frame) -> None:
        stdin = self._transport.get_pipe_transport(0)
        if self.is_closed or not isinstance(stdin, asyncio.WriteTransport) or stdin.is_closing():
            raise SandboxClosed("The sandbox has ended.")
        stdin.write(encode_frame(frame))
        await self._protocol.wait_writable()

    async def receive(self) -> FromSupervisor:
        return await self._protocol.frames.receive()

    async def freeze(self) -> None:
        if self._frozen_at_s is None:
            await self.send(Freeze())
            self._frozen_at_s = time.monotonic()
            stopped: set[int] = set()
            while found := _signal_below(self._supervisor(), signal.SIGSTOP, but=stopped):
                stopped |= found  # until none is left that one of them had just started

    async def thaw(self) -> None:
        if self._frozen_at_s is not None:
            _signal_below(self._supervisor(), signal.SIGCONT)
            stood_s, self._frozen_at_s = time.monotonic() - self._frozen_at_s, None
            await self.send(Thaw(stood_s=stood_s))

    def _supervisor(self) -> int:
        """Return its process id: that of the child which is first in namespaces of its own."""
        pid = self._transport.get_pid()
        if self._has_first_process:
            try:
                return next((child.pid for child in psutil.Process(pid).children()), pid)
            except psutil.NoSuchProcess:
                pass  # it ended meanwhile
        return pid

    async def kill(self) -> None:
        if self._killed is None:
            self._protocol.frames.end()
            self._killed = asyncio.create_task(_end(self._transport, self._protocol, self._folder))
        await asyncio.shield(self._killed)

    async def post_mortem(self) -> Death:
        await self._protocol.exited.wait()
        return Death(
            exit_code=self._transport.get_returncode(),
            stderr=self._protocol.stderr.decode(errors="replace")[-2000:],
        )


async def _end(
    transport: asyncio.SubprocessTransport, protocol: _SupervisorProtocol, folder: Path
) -> None:
    # At the end of its stdin the supervisor kills all that the job started, also what has left
    # its session. Only when it does not is it killed itself, with whatever is below it.
    stdin = transport.get_pipe_transport(0)
    if isinstance(stdin, asyncio.WriteTransport):
        stdin.abort()
    try:
        async with asyncio.timeout(LEAVE_TIMEOUT_S):
            await protocol.exited.wait()
    except TimeoutError:
        _kill_tree(transport.get_pid())
        await protocol.exited.wait()
    transport.close()
    for made in (folder, f"{folder}{INPUTS_SUFFIX}"):
        shutil.rmtree(made, ignore_errors=True)


def _signal_below(pid: int, number: int, *, but: Collection[int] = ()) -> set[int]:
    """Signal every process below ``pid``, but not itself or those named; return which."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return set()
    found = set()
    for process in below:
        if process.pid not in but:
            found.add(process.pid)
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                pass  # it ended meanwhile
    return found


def _kill_tree(pid: int) -> None:
    try:
        below = psutil.Process(pid).children(recursive=True)
        os.killpg(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return
    for process in below:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass  # it ended meanwhile


class ProcessEngine:
    """Starts supervisors as processes of this user."""

    kind = "process"
    environments = False

    def __init__(
        self,
        *,
        folder: Path,
        hide: Sequence[Path] = (),
        namespaces: Sequence[tuple[str, ...]] = CHOICES,
    ) -> None:
        """
        Args:
            folder: where the jobs' working folders are made; emptied at start.
            hide: what no job may see, where the kernel lets that be arranged: tokens and keys.
            namespaces: sets of them, the fullest first, of which the first that is granted is
                used.
        """
        self._folder = folder
        self._hide = tuple(hide)
        self._choices = tuple(namespaces)
        self._plan = Plan((), False, False, {})
        self._live: set[ProcessSandbox] = set()
        self._packages: dict[str, str] = {}

    @property
    def images(self) -> tuple[Image, ...]:
        minor = f"{sys.version_info.major}.{sys.version_info.minor}"
        python = Image(
            name=f"process/python:{minor}",
            digest="",
            language="python",
            python=minor,
            packages=self._packages,
        )
        others = (
            Image(name=f"process/{language}", digest="", language=language, python="")
            for language, program in PROGRAMS.items()
            if any(map(shutil.which, program.names))
        )
        return (python, *others)

    @property
    def isolation(self) -> Isolation:
        return Isolation(runtime="", checks=checks_of(self._plan))

    async def environment(
        self, requirements: Sequence[str], *, base: Image, say: Callable[[str], None]
    ) -> Image:
        raise SandboxError(
            "The process sandbox installs no packages.",
            hint="Install them where the worker runs, or start it with Docker.",
        )

    async def prepare(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700, parents=True)
        self._packages = await asyncio.to_thread(_installed_packages)
        await self.measure()

    async def measure(self) -> tuple[Check, ...]:
        """Find out what this machine lets a sandbox have, and return what that limits."""
        self._plan = await asyncio.to_thread(plan, self._choices)
        return checks_of(self._plan)

    async def start(
        self, request: ResourceRequest, *, image: Image | None = None, gpus: Sequence[str] = ()
    ) -> ProcessSandbox:
        image = image or self.images[0]
        folder, inputs = self._make_folders()
        threads = str(max(1, math.ceil(request.cores)))
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "IPYTHONDIR": str(folder / ".ipython"),
            "OPENBLAS_NUM_THREADS": threads,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        }
        loop = asyncio.get_running_loop()
        try:
            transport, protocol = await loop.subprocess_exec(
                _SupervisorProtocol,
                *(sys.executable, "-I", str(SUPERVISOR)),
                *self._plan.options(request, inputs=inputs, hide=self._hide),
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            for made in (folder, inputs):
                shutil.rmtree(made, ignore_errors=True)
            raise SandboxError(f"A supervisor could not be started: {error}.") from error
        try:
            ready = await self._wait_ready(protocol)
        except BaseException:
            await asyncio.shield(asyncio.create_task(_end(transport, protocol, folder)))
            raise
        sandbox = ProcessSandbox(
            transport,
            protocol,
            request=request,
            image=image,
            ready=ready,
            folder=folder,
            has_first_process=self._plan.has_first_process,
        )
        self._live = {known for known in self._live if not known.is_closed} | {sandbox}
        return sandbox

    def _make_folders(self) -> tuple[Path, Path]:
        """Return the job's own folder and the one of its inputs, which its view is made with."""
        folder = Path(tempfile.mkdtemp(prefix="job-", dir=self._folder))
        inputs = Path(f"{folder}{INPUTS_SUFFIX}")
        inputs.mkdir(mode=0o700)
        return folder, inputs

    async def _wait_ready(self, protocol: _SupervisorProtocol) -> Ready:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                frame = await protocol.frames.receive()
        except TimeoutError:
            raise SandboxError(
                f"A supervisor was not ready after {READY_TIMEOUT_S:.0f} s."
            ) from None
        except SandboxClosed:
            last = protocol.stderr.decode(errors="replace").strip()[-500:]
            raise SandboxError(f"A supervisor ended before it was ready: {last}") from None
        if not isinstance(frame, Ready):
            raise SandboxError("A supervisor's first frame was not Ready.")
        return frame

    async def close(self) -> None:
        await asyncio.gather(*(sandbox.kill() for sandbox in self._live))
        self._live.clear()
        shutil.rmtree(self._folder, ignore_errors=True)


def _installed_packages() -> dict[str, str]:
    found = {
        re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower(): dist.version
        for dist in metadata.distributions()
        if dist.metadata["Name"]
    }
    return dict(sorted(found.items()))
