"""Every message on the two WebSockets, as closed tagged unions.

Workers speak MessagePack. Clients choose with the subprotocol: ``gridx.v1.msgpack`` or
``gridx.v1.json`` (bytes as base64). Unknown fields are ignored, so that neighbouring versions
can talk; new fields take a default, none is renamed or retyped.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from .credits import Rates
from .errors import ErrorBody, ProtocolError
from .resources import MIB, Capability, Load, PauseReason, Usage
from .schemas import BlobRef, CellSpec, JobRequest, JobView, Reason, SessionSpec
from .states import Cause

# 2: blobs, files and sessions. 3: images, packages, disk, GPU models; jobs that stand still
PROTOCOL = 3
OLDEST_PROTOCOL = 1  # what the coordinator still serves: its neighbour's release
MAX_FRAME_BYTES = 16 * MIB
MAX_PAYLOAD_BYTES = 15 * MIB  # inputs or a result inside one frame; larger things are blobs
CLIENT_MSGPACK = "gridx.v1.msgpack"
CLIENT_JSON = "gridx.v1.json"


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of all messages."""


class AttemptRef(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Names one attempt: the lease is a live attempt, there is no separate lease id."""

    job_id: str
    attempt: int


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """A place in a job's output: ``offset`` bytes into the event stream of ``attempt``."""

    attempt: int = 0
    offset: int = 0


class StoredEnd(msgspec.Struct, frozen=True, kw_only=True):
    """An adopted attempt and how many bytes of its stream are stored."""

    job_id: str
    attempt: int
    offset: int


# --- worker to coordinator ------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """First message of a connection. ``running`` names every attempt that the worker still
    holds: executing, or finished and not yet settled. Log in with password or token."""

    protocol_min: int
    protocol_max: int
    worker_id: str
    name: str
    user: str
    password: str | None = None
    token: str | None = None
    capability: Capability
    running: tuple[AttemptRef, ...] = ()
    version: str = ""
    public_key: str = ""  # Ed25519, base64; with it ``signed_at`` and ``signature``
    signed_at: int = 0  # seconds since 1970 UTC
    signature: str = ""  # over gridx.identity.hello_text(worker_id, user, signed_at)


class Heartbeat(Message, frozen=True, kw_only=True, tag="heartbeat"):
    """Every ``heartbeat_s``: renews the lease of each attempt it names."""

    running: tuple[AttemptRef, ...]
    load: Load


class AttemptStarted(Message, frozen=True, kw_only=True, tag="attempt_started"):
    """The sandbox has the job; the meter runs from its arrival."""

    job_id: str
    attempt: int
    call: int = 0


class Output(Message, frozen=True, kw_only=True, tag="output"):
    """A piece of whole events (gridx.events) at ``offset``. Both ways: worker to coordinator,
    coordinator to client. Resent by the worker until acknowledged; clients drop what they have."""

    job_id: str
    attempt: int
    offset: int
    data: bytes
    call: int = 0


class AttemptFinished(Message, frozen=True, kw_only=True, tag="attempt_finished"):
    """The call has ended. Resent until Settled or StopAttempt answers it.

    ``stream_bytes`` is the length of the whole output stream: the coordinator accepts the
    report when it has stored exactly that much. ``result`` is for the client alone
    (gridx.codec.results) and is never opened by the coordinator; a large one was put as
    ``result_blobs`` before, and is their bytes in order.
    """

    job_id: str
    attempt: int
    call: int = 0
    cause: Cause
    exit_code: int | None = None
    message: str = ""
    stream_bytes: int
    result: bytes | None = None
    result_blobs: tuple[BlobRef, ...] = ()
    usage: Usage


class CallFinished(Message, frozen=True, kw_only=True, tag="call_finished"):
    """A call of a session has ended and the session goes on. Resent until CallSettled.

    ``stream_bytes`` is the length of the attempt's output stream at its end.
    """

    job_id: str
    attempt: int
    call: int
    cause: Cause
    exit_code: int | None = None
    message: str = ""
    stream_bytes: int
    result: bytes | None = None
    result_blobs: tuple[BlobRef, ...] = ()
    usage: Usage


class HandBack(Message, frozen=True, kw_only=True, tag="hand_back"):
    """The worker will not run this attempt (it stops, or cannot start it): run it elsewhere."""

    job_id: str
    attempt: int
    message: str = ""


class Preparing(Message, frozen=True, kw_only=True, tag="preparing"):
    """What an attempt waits for that has not started: its packages are being installed."""

    job_id: str
    attempt: int
    message: str  # "Installing 3 packages: downloading"


class AttemptFrozen(Message, frozen=True, kw_only=True, tag="attempt_frozen"):
    """The lender paused: the job stands still, and so do its meter and its deadline.

    Said again after an adoption; ``frozen`` False: it goes on.
    """

    job_id: str
    attempt: int
    frozen: bool
    reason: PauseReason
    message: str = ""


class CapabilityChanged(Message, frozen=True, kw_only=True, tag="capability_changed"):
    """What the worker offers is different now (an image built, a GPU withdrawn, draining)."""

    capability: Capability


FromWorker = (
    Hello
    | Heartbeat
    | AttemptStarted
    | Output
    | AttemptFinished
    | CallFinished
    | HandBack
    | Preparing
    | AttemptFrozen
    | CapabilityChanged
)


# --- coordinator to worker ------------------------------------------------------------------


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """Answers Hello. ``adopted`` go on from the stored end; ``stop`` are no longer live."""

    protocol: int
    http_url: str
    heartbeat_s: float
    max_frame_bytes: int
    token: str | None = None  # worker-scoped; use it instead of the password from now on
    adopted: tuple[StoredEnd, ...] = ()
    stop: tuple[AttemptRef, ...] = ()


class Refused(Message, frozen=True, kw_only=True, tag="refused"):
    """A request or a hello is refused. ``job_id`` when it concerns one job."""

    error: ErrorBody
    job_id: str | None = None


class StartAttempt(Message, frozen=True, kw_only=True, tag="start_attempt"):
    """Run this call now. ``inputs`` is for the sandbox alone."""

    job_id: str
    attempt: int
    call: int = 0
    user: str
    job: JobRequest
    cell: CellSpec | None = None
    call_timeout_s: float | None = None  # of call 0 of a session; None: the job's own limit
    inputs: bytes = b""
    blobs: tuple[BlobRef, ...] = ()  # what ``inputs`` and ``cell.files`` refer to: fetch them
    session: SessionSpec | None = None  # keep the sandbox for StartCall after call 0


class StartCall(Message, frozen=True, kw_only=True, tag="start_call"):
    """Run this call in the sandbox of a session that has no other. Sent again it is the same."""

    job_id: str
    attempt: int
    call: int
    code: str
    timeout_s: float
    cell: CellSpec
    inputs: bytes = b""
    blobs: tuple[BlobRef, ...] = ()


class InterruptCall(Message, frozen=True, kw_only=True, tag="interrupt_call"):
    """Interrupt the call as a kernel is interrupted: the session lives on if it obeys in time."""

    job_id: str
    attempt: int
    call: int


class EndAttempt(Message, frozen=True, kw_only=True, tag="end_attempt"):
    """Close the session: report AttemptFinished as completed. A call that runs is interrupted."""

    job_id: str
    attempt: int


class StopAttempt(Message, frozen=True, kw_only=True, tag="stop_attempt"):
    """Stop and forget this attempt: cancelled by its user (then report the metered usage), or
    no longer live (``fenced``: drop it, nothing more will be accepted)."""

    job_id: str
    attempt: int
    fenced: bool = False


class OutputAck(Message, frozen=True, kw_only=True, tag="output_ack"):
    """The stream is stored up to ``offset``: the worker may drop what is before it."""

    job_id: str
    attempt: int
    offset: int


class OutputResend(Message, frozen=True, kw_only=True, tag="output_resend"):
    """Send the stream again from ``offset``, the stored end."""

    job_id: str
    attempt: int
    offset: int


class Settled(Message, frozen=True, kw_only=True, tag="settled"):
    """The report is accepted and durable: forget the attempt."""

    job_id: str
    attempt: int
    call: int = 0


class CallSettled(Message, frozen=True, kw_only=True, tag="call_settled"):
    """The report of a session's call is accepted and durable."""

    job_id: str
    attempt: int
    call: int


ToWorker = (
    Welcome
    | Refused
    | StartAttempt
    | StartCall
    | InterruptCall
    | EndAttempt
    | StopAttempt
    | OutputAck
    | OutputResend
    | Settled
    | CallSettled
)


# --- client to coordinator ------------------------------------------------------------------


class ClientHello(Message, frozen=True, kw_only=True, tag="client_hello"):
    """First message of a client connection. In open mode the user's name is enough."""

    user: str
    token: str | None = None
    protocol_min: int = OLDEST_PROTOCOL
    protocol_max: int = PROTOCOL


class Submit(Message, frozen=True, kw_only=True, tag="submit"):
    """Submit and watch. ``job.job_id`` must be set: sent again it is the same job.

    ``blobs`` are all that ``inputs`` and ``cell.files`` refer to; they were put before. With
    ``session`` the cell is call 0 of a session, under its own limit ``call_timeout_s``.
    """

    job: JobRequest
    cell: CellSpec | None = None
    inputs: bytes = b""
    blobs: tuple[BlobRef, ...] = ()
    session: SessionSpec | None = None
    call_timeout_s: float | None = None


class SubmitCall(Message, frozen=True, kw_only=True, tag="submit_call"):
    """The next call of a session: ``call`` is one more than the last. Sent again it is the same.

    Answered by CallChanged, or by Refused with the job's id.
    """

    job_id: str
    call: int
    code: str
    timeout_s: float
    cell: CellSpec
    inputs: bytes = b""
    blobs: tuple[BlobRef, ...] = ()


class Interrupt(Message, frozen=True, kw_only=True, tag="interrupt"):
    """Interrupt a call of a session; its end comes as CallChanged."""

    job_id: str
    call: int


class EndSession(Message, frozen=True, kw_only=True, tag="end_session"):
    """Close a session. Its end comes as JobChanged."""

    job_id: str


class Watch(Message, frozen=True, kw_only=True, tag="watch"):
    """Send the job's state, its output after ``after``, and everything that follows."""

    job_id: str
    after: Position = Position()
    newest_call: bool = False  # of a session: no output before its newest call


class Unwatch(Message, frozen=True, kw_only=True, tag="unwatch"):
    """Send nothing more of this job."""

    job_id: str


class Cancel(Message, frozen=True, kw_only=True, tag="cancel"):
    """Stop the job. Answered by JobChanged or Refused."""

    job_id: str


FromClient = ClientHello | Submit | SubmitCall | Interrupt | EndSession | Watch | Unwatch | Cancel


# --- coordinator to client ------------------------------------------------------------------


class ClientWelcome(Message, frozen=True, kw_only=True, tag="client_welcome"):
    """Answers ClientHello."""

    user: str
    protocol: int
    balance_ucr: int
    held_ucr: int
    rates: Rates
    max_payload_bytes: int = MAX_PAYLOAD_BYTES


class JobChanged(Message, frozen=True, kw_only=True, tag="job_changed"):
    """The job's state. A higher ``job.attempt`` than before means: the output begins again.

    On the final state every byte of output was sent before. ``cost_ucr``, ``balance_ucr`` and
    ``held_ucr`` are exact; ``result`` is that of ``call`` of the accepted attempt (cells only).
    ``end`` is then the end of the output: a client that has less asks for the rest with Watch.
    """

    job: JobView
    call: int = 0
    cost_ucr: int = 0
    balance_ucr: int | None = None
    held_ucr: int | None = None
    result: bytes | None = None
    result_blobs: tuple[BlobRef, ...] = ()  # instead of ``result``: its bytes in order
    end: Position | None = None


class CallChanged(Message, frozen=True, kw_only=True, tag="call_changed"):
    """A call of a session: accepted, running, or ended. ``status`` as for jobs.

    On a final status every byte of the call's output was sent before, as for JobChanged.
    """

    job_id: str
    call: int
    status: str
    reason: Reason | None = None
    exit_code: int | None = None
    elapsed_s: float | None = None
    cost_ucr: int = 0  # what this call cost, by the session's rate; the session pays all of it
    result: bytes | None = None
    result_blobs: tuple[BlobRef, ...] = ()
    begin: Position | None = None  # where the call's output begins
    end: Position | None = None


ToClient = ClientWelcome | JobChanged | CallChanged | Output | Refused

T = TypeVar("T")


class Codec(Generic[T]):
    """Encodes any message, decodes one union; wrong bytes become a ProtocolError."""

    def __init__(self, union: Any, *, as_json: bool = False) -> None:
        self._as_json = as_json
        self._encoder: Any = msgspec.json.Encoder() if as_json else msgspec.msgpack.Encoder()
        self._decoder: Any = (
            msgspec.json.Decoder(union) if as_json else msgspec.msgpack.Decoder(union)
        )

    @property
    def is_binary(self) -> bool:
        """Whether its frames are binary (MessagePack) or text (JSON)."""
        return not self._as_json

    def encode(self, message: Message) -> bytes:
        """Return the frame of a message."""
        data: bytes = self._encoder.encode(message)
        return data

    def decode(self, data: bytes | str) -> T:
        """Return the message of a frame.

        Raises:
            ProtocolError: it is none of the union; the sentence names the field by its path.
        """
        try:
            message: T = self._decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
            raise ProtocolError(f"The message is malformed: {exc}.") from None
        return message


from_worker: Codec[FromWorker] = Codec(FromWorker)
to_worker: Codec[ToWorker] = Codec(ToWorker)
from_client: Codec[FromClient] = Codec(FromClient)
to_client: Codec[ToClient] = Codec(ToClient)
from_client_json: Codec[FromClient] = Codec(FromClient, as_json=True)
to_client_json: Codec[ToClient] = Codec(ToClient, as_json=True)
