from __future__ import annotations

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
    AttemptRef,
    AttemptStarted,
    Cancel,
    CapabilityChanged,
    ClientHello,
    ClientWelcome,
    Codec,
    HandBack,
    Heartbeat,
    Hello,
    JobChanged,
    Message,
    Output,
    OutputAck,
    OutputResend,
    Position,
    Refused,
    Settled,
    StartAttempt,
    StopAttempt,
    StoredEnd,
    Submit,
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
from gridx.resources import GIB, Capability, Gpu, Image, Load, Usage
from gridx.schemas import CellSpec, JobRequest, JobView, Limits, Reason
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
            HandBack(job_id=JOB, attempt=1, message="stopping"),
            CapabilityChanged(capability=OFFER),
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
                job_id=JOB, attempt=1, user="ada", job=REQUEST, cell=CellSpec(python="3.11")
            ),
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
