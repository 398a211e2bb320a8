"""What the worker asks of a sandbox, whatever it is made of.

A sandbox takes one call and is thrown away. It is ready when it exists: its child is warm,
filtered and blocked on its job. Whatever it says is decoded here and still not believed:
``worker/attempt.py`` checks every event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from gridx.errors import SandboxError
from gridx.resources import Image, Isolation, ResourceRequest

from ..runtime.frames import Frame, FromSupervisor, Ready
from .metering import HostMeter

DEFAULT_REQUEST = ResourceRequest()  # the size that warm sandboxes have


class SandboxClosed(SandboxError):
    """The sandbox has ended: nothing more will come from it."""

    code = "sandbox_closed"
    default_hint = "Nothing to do: its attempt is reported or handed back."


class GpuUnavailable(SandboxError):
    """The engine starts no container with a GPU: its driver, or its toolkit, is missing."""

    code = "gpu_unavailable"
    default_hint = "Install the NVIDIA container toolkit on the worker, or lend no GPU."


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """How a sandbox ended that did not say so itself."""

    out_of_memory: bool = False
    exit_code: int | None = None
    stderr: str = ""  # the last words of its PID 1, for the worker's own log
    from_inside: bool = False  # nothing else than its job can have ended it


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """One limit that jobs are promised, and whether this machine keeps it."""

    name: str
    kept: bool
    detail: str = ""


class Sandbox(Protocol):
    """One single-use sandbox, waiting for its call."""

    @property
    def id(self) -> str:
        """A name for logs: the container's id, or the process's."""
        ...

    @property
    def request(self) -> ResourceRequest:
        """The size it was started with."""
        ...

    @property
    def image(self) -> Image:
        """What it was started from."""
        ...

    @property
    def ready(self) -> Ready:
        """What its supervisor said when it was warm."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether the sandbox ended, or its stream was cut."""
        ...

    @property
    def meter(self) -> HostMeter | None:
        """Its counters, read from outside; None where only its supervisor can."""
        ...

    @property
    def is_removed(self) -> bool:
        """Whether nothing is left of it, and its GPUs may be another's; True only after ``kill``."""
        ...

    @property
    def is_open_inside(self) -> bool:
        """Whether a job can reach PID 1: kill it, and write into its stream (gVisor)."""
        ...

    @property
    def inputs_dir(self) -> str:
        """Where the job finds its inputs, as it sees it."""
        ...

    async def put_inputs(self, files: Mapping[str, Path]) -> None:
        """Let the job read these files, by name, in its ``inputs_dir``; it cannot write there.

        Files of a name that is there already are left as they are.

        Raises:
            SandboxError: the disk is full or gone.
        """
        ...

    async def send(self, frame: Frame) -> None:
        """Write one frame to its supervisor.

        Raises:
            SandboxClosed: it has ended.
        """
        ...

    async def receive(self) -> FromSupervisor:
        """Return its next frame. While nobody receives, the sandbox is held back by its pipe.

        Raises:
            SandboxClosed: it has ended.
            SandboxError: what it sent is no frame, or too large.
        """
        ...

    async def freeze(self) -> None:
        """Let all of it stand still, its deadlines and its meter too. Twice is once.

        Raises:
            SandboxError: it cannot; it goes on.
        """
        ...

    async def thaw(self) -> None:
        """Let it go on.

        Raises:
            SandboxError: it cannot; kill it.
        """
        ...

    async def kill(self) -> None:
        """End it with all its processes, within two seconds, and remove what is left of it.

        Safe to call twice, and while its output is not being read.
        """
        ...

    async def post_mortem(self) -> Death:
        """Say how it ended. Only after ``SandboxClosed``, and before ``kill``."""
        ...


class SandboxEngine(Protocol):
    """Starts sandboxes of one kind."""

    @property
    def kind(self) -> str:
        """ "docker" or "process"."""
        ...

    @property
    def images(self) -> tuple[Image, ...]:
        """What it can start now; known after ``prepare``."""
        ...

    async def prepare(self) -> None:
        """Find or build the image, remove own leftovers, and check every promised limit.

        Raises:
            SandboxError: jobs cannot be isolated as promised; the sentence says what is missing.
        """
        ...

    @property
    def isolation(self) -> Isolation:
        """What stands between its sandboxes and the machine; known after ``prepare``."""
        ...

    async def start(
        self, request: ResourceRequest, *, image: Image | None = None, gpus: Sequence[str] = ()
    ) -> Sandbox:
        """Return a sandbox of that size that has reported ready.

        Args:
            request: the size.
            image: one of ``images``, or what ``environment`` returned; the first when None.
            gpus: UUIDs of the devices that it alone gets.

        Raises:
            SandboxError: it could not be started.
        """
        ...

    @property
    def environments(self) -> bool:
        """Whether ``environment`` builds any."""
        ...

    async def environment(
        self, requirements: Sequence[str], *, base: Image, say: Callable[[str], None]
    ) -> Image:
        """Return ``base`` with these distributions installed, built now if it is not there.

        Args:
            requirements: names with versions, checked again here.
            base: one of ``images``.
            say: called with one line for each step, for the user who waits.

        Raises:
            EnvironmentFailed: they cannot be installed; it ends with the log's last lines.
            SandboxError: this engine builds none.
        """
        ...

    async def close(self) -> None:
        """Remove every sandbox that is left, and let go of the engine."""
        ...
