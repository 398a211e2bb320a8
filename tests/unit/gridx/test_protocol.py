from __future__ import annotations

import base64
import datetime as dt
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridx import protocol
from gridx.credits import Rates
from gridx.errors import ErrorBody, ProtocolError
from gridx.protocol import (
    AttemptFinished,
    AttemptFrozen,
    AttemptRef,
    AttemptStarted,
    CallChanged,
    CallFinished,
    CallSettled,
    Cancel,
    CapabilityChanged,
    ClientHello,
    ClientWelcome,
    Codec,
    EndAttempt,
    EndSession,
    HandBack,
    Heartbeat,
    Hello,
    Interrupt,
    InterruptCall,
    JobChanged,
    Message,
    Output,
    OutputAck,
    OutputResend,
    Position,
    Preparing,
    Refused,
    Settled,
    StartAttempt,
    StartCall,
    StopAttempt,
    StoredEnd,
    Submit,
    SubmitCall,
    Unwatch,
    Watch,
    Welcome,
    from_client,
    from_client_json,
    from_worker,
    to_client,
    to_client_json,
    to_worker,
)
from gridx.resources import (
    GIB,
    Accepts,
    Capability,
    Check,
    Gpu,
    Image,
    Isolation,
    Load,
    Pause,
    PauseReason,
    Usage,
)
from gridx.schemas import (
    BlobRef,
    CellSpec,
    FileSpec,
    JobRequest,
    JobView,
    Limits,
    Reason,
    SessionSpec,
)
from gridx.states import Cause

JOB = "job_" + "0" * 32
WORKER = "wrk_" + "0" * 32
OFFER = Capability(
    cores=4,
    memory_bytes=8 * GIB,
    slots=8,
    sandbox="docker",
    images=(
        Image(name="gridx/python:3.11-1", digest="sha256:0", language="python", python="3.11"),
    ),
    gpus=(Gpu(uuid="GPU-1", name="T4", memory_bytes=16 * GIB),),
)
REQUEST = JobRequest(code="print(1)", job_id=JOB, limits=Limits(timeout_s=5))
VIEW = JobView(
    job_id=JOB,
    user_id="ada",
    status="running",
    language="python",
    kind="cell",
    limits=Limits(),
    reserved=6.0,
    cost=0.0,
    attempt=1,
    reason=Reason(code="timeout", message="Too long."),
    created_at=dt.datetime(2026, 11, 24, tzinfo=dt.UTC),
)
BLOB = BlobRef(digest="0123456789abcdef" * 4, size=8 * 1024 * 1024)
CELL = CellSpec(
    python="3.11",
    expected=("x",),
    files=(FileSpec(path="a/b.txt", data=b"\xff"), FileSpec(path="big.bin", blobs=(BLOB,))),
    fetch=("*.png",),
    prelude="import numpy as np",
)
REFUSED = Refused(error=ErrorBody(code="conflict", message="No.", details={"a": 1}), job_id=JOB)
OUTPUT = Output(job_id=JOB, attempt=1, offset=7, data=b"\x00\xff")
SAMPLES: list[tuple[list[Codec[Any]], list[Message]]] = [
    (
        [from_worker],
        [
            Hello(
                protocol_min=1,
                protocol_max=1,
                worker_id=WORKER,
                name="box",
                user="ada",
                capability=OFFER,
                running=(AttemptRef(job_id=JOB, attempt=1),),
            ),
            Heartbeat(running=(), load=Load(cpu=0.5, gpu=(0.1,))),
            AttemptStarted(job_id=JOB, attempt=1),
            OUTPUT,
            AttemptFinished(
                job_id=JOB,
                attempt=1,
                cause=Cause.COMPLETED,
                exit_code=0,
                stream_bytes=9,
                result=b"\x01",
                usage=Usage(wall_s=1.5, source="cgroup"),
            ),
            CallFinished(
                job_id=JOB,
                attempt=1,
                call=3,
                cause=Cause.ERROR,
                stream_bytes=9,
                result_blobs=(BLOB, BLOB),
                usage=Usage(wall_s=1.5),
            ),
            HandBack(job_id=JOB, attempt=1, message="stopping"),
            Preparing(job_id=JOB, attempt=1, message="Installing 3 packages: downloading"),
            AttemptFrozen(job_id=JOB, attempt=1, frozen=True, reason=PauseReason.BATTERY),
            CapabilityChanged(
                capability=msgspec.structs.replace(
                    OFFER,
                    slots=0,
                    pause=Pause(
                        reason=PauseReason.HOURS, until=dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
                    ),
                    accepts=Accepts.USERS,
                    users=("bob",),
                    isolation=Isolation(runtime="runc", checks=(Check(name="pids", kept=True),)),
                )
            ),
        ],
    ),
    (
        [to_worker],
        [
            Welcome(
                protocol=1,
                http_url="http://localhost:8081",
                heartbeat_s=5,
                max_frame_bytes=1,
                adopted=(StoredEnd(job_id=JOB, attempt=1, offset=3),),
            ),
            REFUSED,
            StartAttempt(
                job_id=JOB,
                attempt=1,
                user="ada",
                job=REQUEST,
                cell=CELL,
                blobs=(BLOB,),
                session=SessionSpec(name="lab"),
                call_timeout_s=5,
            ),
            StartCall(
                job_id=JOB, attempt=1, call=3, code="1", timeout_s=5, cell=CELL, blobs=(BLOB,)
            ),
            InterruptCall(job_id=JOB, attempt=1, call=3),
            EndAttempt(job_id=JOB, attempt=1),
            CallSettled(job_id=JOB, attempt=1, call=3),
            StopAttempt(job_id=JOB, attempt=1, fenced=True),
            OutputAck(job_id=JOB, attempt=1, offset=3),
            OutputResend(job_id=JOB, attempt=1, offset=3),
            Settled(job_id=JOB, attempt=1),
        ],
    ),
    (
        [from_client, from_client_json],
        [
            ClientHello(user="ada"),
            Submit(job=REQUEST, cell=CellSpec(python="3.11", out=("x",)), inputs=b"\x80"),
            SubmitCall(job_id=JOB, call=3, code="1", timeout_s=5, cell=CELL, blobs=(BLOB,)),
            Interrupt(job_id=JOB, call=3),
            EndSession(job_id=JOB),
            Watch(job_id=JOB, after=Position(attempt=1, offset=3)),
            Unwatch(job_id=JOB),
            Cancel(job_id=JOB),
        ],
    ),
    (
        [to_client, to_client_json],
        [
            ClientWelcome(user="ada", protocol=1, balance_ucr=1, held_ucr=0, rates=Rates()),
            JobChanged(job=VIEW, cost_ucr=1, result=b"\xff", end=Position(attempt=1, offset=9)),
            CallChanged(job_id=JOB, call=3, status="completed", result_blobs=(BLOB,)),
            OUTPUT,
            REFUSED,
        ],
    ),
]
EACH = [
    (codec, message) for codecs, messages in SAMPLES for codec in codecs for message in messages
]
UNIONS = {
    from_worker: protocol.FromWorker,
    to_worker: protocol.ToWorker,
    from_client: protocol.FromClient,
    to_client: protocol.ToClient,
}


@pytest.mark.parametrize(("codec", "message"), EACH, ids=lambda x: type(x).__name__)
def test_every_message_comes_back_as_it_went(codec: Codec[Any], message: Message) -> None:
    assert codec.decode(codec.encode(message)) == message


@pytest.mark.parametrize("row", range(len(SAMPLES)))
def test_the_samples_cover_each_union(row: int) -> None:
    codecs, messages = SAMPLES[row]
    assert {type(message) for message in messages} == set(get_args(UNIONS[codecs[0]]))


@pytest.mark.parametrize(("codec", "message"), EACH, ids=lambda x: type(x).__name__)
def test_a_field_of_a_newer_side_is_ignored(codec: Codec[Any], message: Message) -> None:
    coder: Any = msgspec.msgpack if codec.is_binary else msgspec.json
    fields = coder.decode(codec.encode(message))
    assert codec.decode(coder.encode({**fields, "from_the_future": [1]})) == message


@pytest.mark.parametrize(
    "codec", UNIONS, ids=["from_worker", "to_worker", "from_client", "to_client"]
)
@given(data=st.binary(max_size=100))
def test_any_bytes_give_a_message_or_a_protocol_error(codec: Codec[Any], data: bytes) -> None:
    try:
        codec.decode(data)
    except ProtocolError as exc:
        assert exc.hint


def test_a_wrong_field_is_named_by_its_path() -> None:
    data = msgspec.msgpack.encode({"type": "watch", "job_id": JOB, "after": {"offset": "3"}})
    with pytest.raises(ProtocolError, match=r"\$\.after\.offset"):
        from_client.decode(data)


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(ProtocolError, match="Invalid value 'welcome'"):
        from_worker.decode(to_worker.encode(SAMPLES[1][1][0]))


def test_a_setting_that_does_not_exist_is_refused_inside_a_job() -> None:
    body = msgspec.msgpack.encode({"type": "submit", "job": {"code": "1", "limits": {"gpu": 1}}})
    with pytest.raises(ProtocolError, match="unknown field `gpu`"):
        from_client.decode(body)


def test_deep_nesting_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        from_client.decode(b"\x91" * 100_000)


# What the release before sent, as its encoder wrote it (base64).
FROM_PROTOCOL_1: list[tuple[Codec[Any], Message, str]] = [
    (
        from_worker,
        Hello(
            protocol_min=1,
            protocol_max=1,
            worker_id=WORKER,
            name="box",
            user="ada",
            capability=msgspec.structs.replace(OFFER, gpus=()),
            running=(AttemptRef(job_id=JOB, attempt=1),),
        ),
        "i6R0eXBlpWhlbGxvrHByb3RvY29sX21pbgGscHJvdG9jb2xfbWF4Aal3b3JrZXJfaWTZJHdya18w"
        "MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMKRuYW1lo2JveKR1c2Vyo2FkYahwYXNzd29y"
        "ZMCldG9rZW7AqmNhcGFiaWxpdHmIpWNvcmVzBKxtZW1vcnlfYnl0ZXPPAAAAAgAAAAClc2xvdHMI"
        "p3NhbmRib3imZG9ja2VypmltYWdlc5GFpG5hbWWzZ3JpZHgvcHl0aG9uOjMuMTEtMaZkaWdlc3So"
        "c2hhMjU2OjCobGFuZ3VhZ2WmcHl0aG9upnB5dGhvbqQzLjExqHBhY2thZ2VzgKRncHVzkKljcHVf"
        "bW9kZWygqHBsYXRmb3JtoKdydW5uaW5nkYKmam9iX2lk2SRqb2JfMDAwMDAwMDAwMDAwMDAwMDAw"
        "MDAwMDAwMDAwMDAwMDCnYXR0ZW1wdAGndmVyc2lvbqA=",
    ),
    (
        from_worker,
        AttemptStarted(job_id=JOB, attempt=1),
        "hKR0eXBlr2F0dGVtcHRfc3RhcnRlZKZqb2JfaWTZJGpvYl8wMDAwMDAwMDAwMDAwMDAwMDAwMDAw"
        "MDAwMDAwMDAwMKdhdHRlbXB0AaRjYWxsAA==",
    ),
    (
        from_worker,
        AttemptFinished(
            job_id=JOB,
            attempt=1,
            cause=Cause.COMPLETED,
            exit_code=0,
            stream_bytes=9,
            result=b"\x01",
            usage=Usage(wall_s=1.5, source="cgroup"),
        ),
        "iqR0eXBlsGF0dGVtcHRfZmluaXNoZWSmam9iX2lk2SRqb2JfMDAwMDAwMDAwMDAwMDAwMDAwMDAw"
        "MDAwMDAwMDAwMDCnYXR0ZW1wdAGkY2FsbAClY2F1c2WpY29tcGxldGVkqWV4aXRfY29kZQCnbWVz"
        "c2FnZaCsc3RyZWFtX2J5dGVzCaZyZXN1bHTEAQGldXNhZ2WIpndhbGxfc8s/+AAAAAAAAKVjcHVf"
        "c8sAAAAAAAAAALFwZWFrX21lbW9yeV9ieXRlcwCtb3V0X29mX21lbW9yecKraW5wdXRfYnl0ZXMA"
        "rG91dHB1dF9ieXRlcwCtZHJvcHBlZF9ieXRlcwCmc291cmNlpmNncm91cA==",
    ),
    (
        from_worker,
        Heartbeat(running=(AttemptRef(job_id=JOB, attempt=1),), load=Load(cpu=0.5)),
        "g6R0eXBlqWhlYXJ0YmVhdKdydW5uaW5nkYKmam9iX2lk2SRqb2JfMDAwMDAwMDAwMDAwMDAwMDAw"
        "MDAwMDAwMDAwMDAwMDCnYXR0ZW1wdAGkbG9hZIejY3B1yz/gAAAAAAAAsW1lbW9yeV91c2VkX2J5"
        "dGVzALJtZW1vcnlfdG90YWxfYnl0ZXMAo2dwdZC1Z3B1X21lbW9yeV91c2VkX2J5dGVzkLFncHVf"
        "dGVtcGVyYXR1cmVfY5Cud2FybV9zYW5kYm94ZXMA",
    ),
    (
        from_client,
        ClientHello(user="ada", protocol_max=1),
        "haR0eXBlrGNsaWVudF9oZWxsb6R1c2Vyo2FkYaV0b2tlbsCscHJvdG9jb2xfbWluAaxwcm90b2NvbF9tYXgB",
    ),
    (
        from_client,
        Submit(job=REQUEST, cell=CellSpec(python="3.11", out=("x",)), inputs=b"\x80"),
        "hKR0eXBlpnN1Ym1pdKNqb2KFpGNvZGWocHJpbnQoMSmndXNlcl9pZMCobGFuZ3VhZ2WmcHl0aG9u"
        "pmxpbWl0c4SpdGltZW91dF9zBaRjcHVzyz/wAAAAAAAArG1lbW9yeV9ieXRlc85AAAAApGdwdXMA"
        "pmpvYl9pZNkkam9iXzAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwpGNlbGyFpnB5dGhv"
        "bqQzLjExqGV4cGVjdGVkkKZpbnB1dHOQo291dJGheKdjZWxsX2lkoKZpbnB1dHPEAYA=",
    ),
    (
        from_client,
        Watch(job_id=JOB, after=Position(attempt=1, offset=3)),
        "g6R0eXBlpXdhdGNopmpvYl9pZNkkam9iXzAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw"
        "pWFmdGVygqdhdHRlbXB0AaZvZmZzZXQD",
    ),
]


@pytest.mark.parametrize(
    ("codec", "message", "recorded"), FROM_PROTOCOL_1, ids=lambda x: type(x).__name__
)
def test_the_release_before_is_understood(
    codec: Codec[Any], message: Message, recorded: str
) -> None:
    assert codec.decode(base64.b64decode(recorded)) == message


def test_the_release_before_is_told_of_no_field_that_it_would_refuse() -> None:
    # It ignores unknown fields of messages, but a request with one it refuses as a whole.
    start = StartAttempt(job_id=JOB, attempt=1, user="ada", job=REQUEST)
    sent = msgspec.msgpack.decode(to_worker.encode(start))["job"]
    assert set(sent) <= {"code", "user_id", "language", "limits", "job_id"}
    assert set(sent["limits"]) == {"timeout_s", "cpus", "memory_bytes", "gpus"}
