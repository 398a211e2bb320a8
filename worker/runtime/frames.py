"""The frames between the worker and PID 1 of a sandbox, over its stdin and stdout.

Each frame is ``u32`` big-endian length and MessagePack. The job's own process holds no end of
these pipes: what it says reaches the supervisor over pipes of its own, and the supervisor puts
it into ``Events`` and ``Result``. Only the supervisor can say ``Exited``.
"""

from __future__ import annotations

import msgspec

from gridx.resources import MIB, Usage
from gridx.schemas import FileSpec
from gridx.states import Cause

MAX_EVENTS_BYTES = 9 * MIB  # one Events frame
MAX_RESULT_BYTES = 16 * MIB
INTERRUPT_GRACE_S = 2.0  # a call that was interrupted has this long to obey


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of all frames."""


class Run(Frame, frozen=True, kw_only=True, tag="run"):
    """Worker to supervisor: the one call that this sandbox is for."""

    call: int = 0
    kind: str  # "script" | "cell"
    language: str = "python"  # of a script: "python", "bash" or "node"
    code: str
    timeout_s: float
    inputs: bytes = b""
    expected: tuple[str, ...] = ()
    watched: tuple[str, ...] = ()  # captured data names, compared for changes in place
    out: tuple[str, ...] | None = None
    max_result_bytes: int = MAX_RESULT_BYTES  # of all Result frames of the call together
    keep: bool = False  # a session: answer with CallExited and wait for the next Run
    inputs_dir: str = "/in"  # where the blobs lie, each under its digest
    files: tuple[FileSpec, ...] = ()
    fetch: tuple[str, ...] = ()
    prelude: str = ""


class Interrupt(Frame, frozen=True, kw_only=True, tag="interrupt"):
    """Worker to supervisor: interrupt the call (SIGINT); kill it when it does not obey in time."""


class Cancel(Frame, frozen=True, kw_only=True, tag="cancel"):
    """Worker to supervisor: kill the call and report what it used."""


class Freeze(Frame, frozen=True, kw_only=True, tag="freeze"):
    """Worker to supervisor: the sandbox is about to stand still. Its deadlines wait for Thaw,
    and the time until then counts as ``Usage.frozen_s`` instead of ``wall_s``."""


class Thaw(Frame, frozen=True, kw_only=True, tag="thaw"):
    """Worker to supervisor: the sandbox runs again."""

    stood_s: float = 0.0  # by the worker's clock: it may stand before it has read Freeze


ToSupervisor = Run | Interrupt | Cancel | Freeze | Thaw


class Ready(Frame, frozen=True, kw_only=True, tag="ready"):
    """Supervisor to worker: the child is warm, filtered, and waits for its job."""

    python: str
    filtered: bool  # the child's own seccomp filter is installed
    warm_s: float = 0.0
    meter: str = ""  # where its own readings are from: "cgroup" or "rusage"


class Events(Frame, frozen=True, kw_only=True, tag="events"):
    """Supervisor to worker: whole events of gridx.events, as the child encoded them."""

    data: bytes


class Result(Frame, frozen=True, kw_only=True, tag="result"):
    """Supervisor to worker: the next piece of gridx.codec.results of the call, at most 8 MiB."""

    data: bytes


class CallExited(Frame, frozen=True, kw_only=True, tag="call_exited"):
    """Supervisor to worker: a call with ``keep`` has ended, and the sandbox waits for another."""

    call: int
    cause: Cause
    exit_code: int | None = None
    message: str = ""
    usage: Usage


class Exited(Frame, frozen=True, kw_only=True, tag="exited"):
    """Supervisor to worker: the last frame. Every event came before it."""

    cause: Cause
    exit_code: int | None = None
    message: str = ""
    usage: Usage


FromSupervisor = Ready | Events | Result | CallExited | Exited

_encoder = msgspec.msgpack.Encoder()
from_supervisor: msgspec.msgpack.Decoder[FromSupervisor] = msgspec.msgpack.Decoder(FromSupervisor)
to_supervisor: msgspec.msgpack.Decoder[ToSupervisor] = msgspec.msgpack.Decoder(ToSupervisor)


def encode_frame(frame: Frame) -> bytes:
    """Return ``frame`` with its length before it."""
    body = _encoder.encode(frame)
    return len(body).to_bytes(4, "big") + body
