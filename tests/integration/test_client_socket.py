"""The clients' socket: submit, watch, resume at any position, cancel; msgpack and JSON."""

from __future__ import annotations

import asyncio
import json

import pytest
from tornado.websocket import websocket_connect

from coordinator.app import Serving
from gridx.events import split_events
from gridx.ids import new_job_id
from gridx.protocol import (
    MAX_PAYLOAD_BYTES,
    Cancel,
    ClientHello,
    ClientWelcome,
    JobChanged,
    Output,
    Position,
    Refused,
    StartAttempt,
    StopAttempt,
    Submit,
    Unwatch,
    Watch,
)
from gridx.schemas import CellSpec, JobRequest, Limits
from gridx.states import Cause
from tests.support.scripted_client import Rest, ScriptedClient
from tests.support.scripted_worker import (
    ScriptedWorker,
    WorkerByHand,
    WorkerThatVanishes,
    offer,
    text_events,
    workers,
)

CELL = CellSpec(python="3.11", expected=("x",))


def submission(code: str = "x = 1", job_id: str | None = None, **limits: float) -> Submit:
    job = JobRequest(code=code, job_id=job_id or new_job_id(), limits=Limits(**limits))  # type: ignore[arg-type]
    return Submit(job=job, cell=CELL, inputs=b"inputs")


def id_of(message: Submit) -> str:
    assert message.job.job_id is not None
    return message.job.job_id


@pytest.fixture(params=["msgpack", "json"])
def as_json(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "json")


async def test_a_hello_tells_balance_and_rates(coordinator: Serving, as_json: bool) -> None:
    async with ScriptedClient(coordinator.http_url, as_json=as_json) as client:
        welcome = await client.expect(ClientWelcome)
    assert (welcome.user, welcome.balance_ucr, welcome.held_ucr) == ("alice", 100_000_000, 0)
    assert welcome.rates.core_ucr_per_s == 100_000
    assert welcome.max_payload_bytes == MAX_PAYLOAD_BYTES


async def test_a_cell_travels_there_and_back(coordinator: Serving, as_json: bool) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url, as_json=as_json) as client:
        sent = submission()
        client.send(sent)
        start = await worker.expect(StartAttempt)
        assert (start.cell, start.inputs, start.job.code) == (CELL, b"inputs", "x = 1")
        worker.started(start)
        piece = text_events("hello\n")
        worker.output(start, 0, piece)
        worker.finish(start, stream_bytes=len(piece), result=b"\x00result\xff")
        final = await client.final(id_of(sent))
        assert client.output(id_of(sent)) == piece
    assert final.job.status == "completed"
    assert final.job.kind == "cell"
    assert final.result == b"\x00result\xff"
    assert final.cost_ucr > 0
    assert final.balance_ucr == 100_000_000 - final.cost_ucr
    assert final.held_ucr == 0
    assert final.end == Position(attempt=1, offset=len(piece))
    first = next(m for m in client.received if isinstance(m, JobChanged))
    assert (first.held_ucr, first.job.reserved) == (6_000_000, 6.0)


async def test_the_json_subprotocol_is_plain_json(coordinator: Serving) -> None:
    url = coordinator.http_url.replace("http:", "ws:") + "/ws/client"
    connection = await websocket_connect(url, subprotocols=["gridx.v1.json"])
    await connection.write_message('{"type":"client_hello","user":"alice"}')
    answer = await connection.read_message()
    assert isinstance(answer, str)
    assert json.loads(answer)["type"] == "client_welcome"
    job_id = new_job_id()
    submit = {"type": "submit", "job": {"code": "1", "job_id": job_id}}
    await connection.write_message(json.dumps(submit))
    answer = await connection.read_message()
    assert isinstance(answer, str)
    changed = json.loads(answer)
    assert (changed["type"], changed["job"]["job_id"]) == ("job_changed", job_id)
    assert changed["job"]["status"] == "queued"
    connection.close()


async def test_output_reaches_the_client_before_it_is_stored(coordinator: Serving) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        client.send(submission())
        start = await worker.expect(StartAttempt)
        pieces = [text_events(f"{number}\n") for number in range(3)]
        offset = 0
        for piece in pieces:
            worker.output(start, offset, piece)
            got = await client.expect(Output, offset=offset)
            assert got.data == piece
            offset += len(piece)


async def test_submitting_again_is_the_same_job_and_sends_everything(
    coordinator: Serving,
) -> None:
    sent = submission()
    async with workers(ScriptedWorker(coordinator.ws_url)):
        async with ScriptedClient(coordinator.http_url) as client:
            client.send(sent)
            first = await client.final(id_of(sent))
            whole = client.output(id_of(sent))
        async with ScriptedClient(coordinator.http_url) as again:
            again.send(sent)
            second = await again.final(id_of(sent))
            assert again.output(id_of(sent)) == whole
    assert first.job == second.job
    assert (first.cost_ucr, first.balance_ucr) == (second.cost_ucr, second.balance_ucr)


async def test_two_submissions_racing_for_one_balance_are_not_both_taken(
    coordinator: Serving,
) -> None:
    async with (
        ScriptedClient(coordinator.http_url) as one,
        ScriptedClient(coordinator.http_url) as two,
    ):
        dear = [submission(timeout_s=600) for _ in range(2)]
        one.send(dear[0])
        two.send(dear[1])
        answers = await asyncio.gather(
            one.expect((JobChanged, Refused)), two.expect((JobChanged, Refused))
        )
        refused = [answer for answer in answers if isinstance(answer, Refused)]
        assert len(refused) == 1
        assert refused[0].error.code == "insufficient_credits"
        assert refused[0].job_id in {id_of(sent) for sent in dear}
        assert refused[0].error.details["missing_ucr"] == 20_000_000


async def test_output_is_resumed_at_every_position(coordinator: Serving) -> None:
    sent = submission()
    texts = [f"line {number}\n" for number in range(12)]
    whole = text_events(*texts)
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        client.send(sent)
        start = await worker.expect(StartAttempt)
        worker.output(start, 0, whole)
        worker.finish(start, stream_bytes=len(whole), result=b"r")
        await client.final(id_of(sent))
    offsets = [0]
    for event in split_events(whole):
        offsets.append(offsets[-1] + len(event))
    async with ScriptedClient(coordinator.http_url) as later:
        for offset in offsets:
            begin = len(later.received)
            position = Position(attempt=1, offset=offset)
            later.send(Watch(job_id=id_of(sent), after=position))
            final = await later.expect(JobChanged, after=begin)
            data = b"".join(m.data for m in later.received[begin:] if isinstance(m, Output))
            assert data == whole[offset:]
            assert final.job.status == "completed"
            assert final.result == b"r"
            assert final.held_ucr == 0
            assert final.end == Position(attempt=1, offset=len(whole))


@pytest.mark.parametrize("size", [100, 100_000], ids=["stored with the report", "in the log"])
async def test_a_position_inside_an_event_is_refused(coordinator: Serving, size: int) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    sent = submission()
    whole = text_events("x" * size)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        client.send(sent)
        start = await worker.expect(StartAttempt)
        worker.output(start, 0, whole)
        worker.finish(start, stream_bytes=len(whole))
        await client.final(id_of(sent))
        client.send(Watch(job_id=id_of(sent), after=Position(attempt=1, offset=7)))
        refused = await client.expect(Refused)
        assert refused.error.code == "invalid_request"


async def test_a_client_that_reconnects_in_mid_job_misses_nothing(coordinator: Serving) -> None:
    sent = submission()
    worker = WorkerByHand(coordinator.ws_url)
    pieces = [text_events(f"piece {number}\n") for number in range(30)]
    async with workers(worker):
        offset, got, position = 0, b"", Position()
        start: StartAttempt | None = None
        for round_number in range(3):
            async with ScriptedClient(coordinator.http_url) as client:
                if round_number == 0:
                    client.send(sent)
                else:
                    client.send(Watch(job_id=id_of(sent), after=position))
                    await client.expect(JobChanged)
                start = await worker.expect(StartAttempt)
                for piece in pieces[10 * round_number : 10 * round_number + 10]:
                    worker.output(start, offset, piece)
                    offset += len(piece)
                    if len(piece) % 2:
                        await client.expect(Output)  # some are seen, some are on the way
                new = [m for m in client.received if isinstance(m, Output)]
                for message in new:
                    assert message.offset == len(got)
                    got += message.data
                position = Position(attempt=1, offset=len(got))
        async with ScriptedClient(coordinator.http_url) as client:
            client.send(Watch(job_id=id_of(sent), after=position))
            assert start is not None
            worker.finish(start, stream_bytes=offset)
            await client.final(id_of(sent))
            for message in client.received:
                if isinstance(message, Output):
                    assert message.offset == len(got)
                    got += message.data
    assert got == b"".join(pieces)


async def test_a_slow_client_gets_every_byte_in_the_end(coordinator: Serving) -> None:
    sent = submission()
    worker = WorkerByHand(coordinator.ws_url)
    piece = text_events("x" * 500_000)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        client.send(sent)
        start = await worker.expect(StartAttempt)
        assert client._reading is not None
        connection = client._connection
        assert connection is not None
        client._reading.cancel()  # it reads no more, and the socket fills
        for number in range(24):
            worker.output(start, number * len(piece), piece)
        worker.finish(start, stream_bytes=24 * len(piece))
        await Rest(coordinator.http_url).wait_for(id_of(sent))
        client._reading = asyncio.get_running_loop().create_task(client._read(connection))
        await client.final(id_of(sent))
        assert client.output(id_of(sent)) == piece * 24


async def test_every_byte_comes_before_the_final_state(coordinator: Serving) -> None:
    async with (
        workers(ScriptedWorker(coordinator.ws_url)),
        ScriptedClient(coordinator.http_url) as client,
    ):
        for _ in range(20):
            sent = submission("code")
            client.send(sent)
            await client.final(id_of(sent))
            mine = [
                m
                for m in client.received
                if (m.job_id if isinstance(m, Output) else getattr(m, "job", None)) is not None
                and (
                    (isinstance(m, Output) and m.job_id == id_of(sent))
                    or (isinstance(m, JobChanged) and m.job.job_id == id_of(sent))
                )
            ]
            assert isinstance(mine[-1], JobChanged)
            assert client.output(id_of(sent)) == text_events("code\n")


async def test_a_new_attempt_begins_the_output_again(coordinator: Serving) -> None:
    sent = submission("again")
    async with ScriptedClient(coordinator.http_url) as client:
        async with workers(WorkerThatVanishes(coordinator.ws_url, user="gone")):
            client.send(sent)
            await client.expect(Output, attempt=1)
            await Rest(coordinator.http_url).wait_for(id_of(sent), "queued")
            async with ScriptedWorker(coordinator.ws_url):
                final = await client.final(id_of(sent))
        assert final.job.attempt == 2
        assert client.output(id_of(sent), 1) == text_events("before the end\n")
        assert client.output(id_of(sent), 2) == text_events("again\n")


async def test_a_running_job_is_cancelled_and_the_rest_of_the_hold_comes_back(
    coordinator: Serving, as_json: bool
) -> None:
    sent = submission()
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url, as_json=as_json) as client:
        client.send(sent)
        start = await worker.expect(StartAttempt)
        worker.started(start)
        client.send(Cancel(job_id=id_of(sent)))
        await worker.expect(StopAttempt, fenced=False)
        final = await client.final(id_of(sent))
    assert final.job.status == "cancelled"
    assert 0 < final.cost_ucr < 6_000_000
    assert (final.balance_ucr, final.held_ucr) == (100_000_000 - final.cost_ucr, 0)


async def test_a_queued_job_is_cancelled_for_nothing(coordinator: Serving) -> None:
    sent = submission()
    async with ScriptedClient(coordinator.http_url) as client:
        client.send(sent)
        waiting = await client.expect(JobChanged)
        assert waiting.job.waiting is not None
        client.send(Cancel(job_id=id_of(sent)))
        final = await client.final(id_of(sent))
    assert (final.job.status, final.cost_ucr, final.held_ucr) == ("cancelled", 0, 0)
    async with ScriptedWorker(coordinator.ws_url) as worker:
        assert not any(isinstance(message, StartAttempt) for message in worker.received)


async def test_cancelling_a_job_that_has_ended_tells_how_it_ended(coordinator: Serving) -> None:
    sent = submission()
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        client.send(sent)
        start = await worker.expect(StartAttempt)
        worker.finish(start, result=b"r")
        final = await client.final(id_of(sent))
        seen = len(client.received)
        client.send(Cancel(job_id=id_of(sent)))
        assert await client.expect(JobChanged, after=seen) == final


async def test_a_job_that_waits_starts_when_a_worker_joins(coordinator: Serving) -> None:
    sent = submission()
    async with ScriptedClient(coordinator.http_url) as client:
        client.send(sent)
        await client.expect(JobChanged)
        async with ScriptedWorker(coordinator.ws_url):
            final = await client.final(id_of(sent))
    assert final.job.status == "completed"


async def test_a_waiting_job_says_anew_why_it_waits_when_that_changes(
    coordinator: Serving,
) -> None:
    sent = submission()
    async with ScriptedClient(coordinator.http_url) as client:
        client.send(sent)
        first = await client.expect(JobChanged)
        assert first.job.waiting == "No worker is online: it starts as soon as one joins."
        full = WorkerByHand(coordinator.ws_url, capability=offer(slots=0))
        async with workers(full):
            seen = len(client.received)
            again = await client.expect(JobChanged, after=seen)
            assert again.job.waiting == "1 worker online: 1 busy"


async def test_a_flood_of_submissions_on_one_connection_is_all_answered(
    coordinator: Serving,
) -> None:
    async with (
        workers(*(ScriptedWorker(coordinator.ws_url, name=f"w{n}") for n in range(4))),
        ScriptedClient(coordinator.http_url) as client,
    ):
        flood = [submission(f"{n}", timeout_s=0.01) for n in range(600)]
        for sent in flood:
            client.send(sent)
        for sent in flood:
            final = await client.final(id_of(sent))
            assert final.job.status == "completed"


async def test_a_timeout_reaches_the_client_with_its_reason(coordinator: Serving) -> None:
    sent = submission()
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        client.send(sent)
        start = await worker.expect(StartAttempt)
        worker.started(start)
        worker.finish(start, cause=Cause.TIMEOUT, exit_code=None)
        final = await client.final(id_of(sent))
    assert final.job.status == "failed"
    assert final.job.reason is not None
    assert final.job.reason.code == "timeout"
    assert final.job.reason.hint


async def test_unwatching_sends_nothing_more(coordinator: Serving) -> None:
    sent, other = submission(), submission()
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        client.send(sent)
        start = await worker.expect(StartAttempt)
        client.send(Unwatch(job_id=id_of(sent)))
        client.send(other)
        await worker.expect(StartAttempt, job_id=id_of(other))
        worker.output(start, 0, text_events("unseen\n"))
        second = await worker.expect(StartAttempt, job_id=id_of(other))
        worker.finish(second)
        await client.final(id_of(other))
        assert client.output(id_of(sent)) == b""


@pytest.mark.parametrize("job_id", ["7", "", "job_00000000000070008000000000000000"])
async def test_a_job_that_is_not_there_is_refused_and_the_connection_stays(
    coordinator: Serving, job_id: str
) -> None:
    async with ScriptedClient(coordinator.http_url) as client:
        client.send(Watch(job_id=job_id))
        refused = await client.expect(Refused)
        assert refused.error.code in ("not_found", "invalid_request")
        client.send(Cancel(job_id=job_id))
        await client.expect(Refused, after=len(client.received))
        sent = submission()
        client.send(sent)
        await client.expect(JobChanged)


async def test_somebody_elses_job_is_not_there(coordinator: Serving) -> None:
    sent = submission()
    async with ScriptedClient(coordinator.http_url) as alice:
        alice.send(sent)
        await alice.expect(JobChanged)
        async with ScriptedClient(coordinator.http_url, user="eve") as eve:
            eve.send(Watch(job_id=id_of(sent)))
            assert (await eve.expect(Refused)).error.code == "not_found"
            eve.send(Cancel(job_id=id_of(sent)))
            assert (await eve.expect(Refused, after=len(eve.received))).error.code == "not_found"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (Submit(job=JobRequest(code="1")), "invalid_request"),
        (Submit(job=JobRequest(code="1", job_id="7")), "invalid_request"),
        (Submit(job=JobRequest(code="1", job_id=new_job_id(), language="r")), "unknown_language"),
        (
            Submit(job=JobRequest(code="1", job_id=new_job_id()), cell=CellSpec(python="2; rm")),
            "invalid_request",
        ),
        (
            Submit(
                job=JobRequest(code="1" * 600_000, job_id=new_job_id()),
                inputs=b"x" * (MAX_PAYLOAD_BYTES - 1000),
            ),
            "payload_too_large",
        ),
        (submission(timeout_s=80_000), "insufficient_credits"),
    ],
)
async def test_a_bad_submission_is_refused_and_the_connection_stays(
    coordinator: Serving, message: Submit, code: str
) -> None:
    async with ScriptedClient(coordinator.http_url) as client:
        client.send(message)
        refused = await client.expect(Refused)
        assert (refused.error.code, refused.job_id) == (code, message.job.job_id)
        client.send(submission())
        await client.expect(JobChanged)


@pytest.mark.parametrize(
    "frame",
    ["", "{", '{"type":"nonsense"}', '{"type":"submit"}', '{"type":"watch","job_id":7}', "[]"],
)
async def test_a_malformed_message_is_refused_without_a_traceback(
    coordinator: Serving, frame: str
) -> None:
    async with ScriptedClient(coordinator.http_url, as_json=True) as client:
        client.send_raw(frame)
        refused = await client.expect(Refused)
        assert refused.error.code == "protocol"
        assert "Traceback" not in refused.error.message
        await client.expect_close()


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        (ClientHello(user="a b"), "invalid_request"),
        (ClientHello(user="alice", protocol_min=9, protocol_max=9), "protocol"),
        (Watch(job_id="x"), "protocol"),
    ],
)
async def test_a_wrong_hello_is_refused(
    coordinator: Serving, hello: ClientHello | Watch, code: str
) -> None:
    client = ScriptedClient(coordinator.http_url)
    await client.open()
    client.send(hello)
    assert (await client.expect(Refused)).error.code == code
    await client.expect_close()
    await client.close()


async def test_without_a_subprotocol_the_two_names_are_told(coordinator: Serving) -> None:
    url = coordinator.http_url.replace("http:", "ws:") + "/ws/client"
    connection = await websocket_connect(url)
    answer = await connection.read_message()
    assert isinstance(answer, bytes)
    assert b"gridx.v1.msgpack" in answer
    assert await connection.read_message() is None
    connection.close()


async def test_two_clients_watch_one_job_alike(coordinator: Serving) -> None:
    sent = submission()
    worker = WorkerByHand(coordinator.ws_url)
    async with (
        workers(worker),
        ScriptedClient(coordinator.http_url) as one,
        ScriptedClient(coordinator.http_url, as_json=True) as two,
    ):
        one.send(sent)
        start = await worker.expect(StartAttempt)
        two.send(Watch(job_id=id_of(sent)))
        await two.expect(JobChanged)
        pieces = [text_events(f"{number}\n") for number in range(50)]
        offset = 0
        for piece in pieces:
            worker.output(start, offset, piece)
            offset += len(piece)
        worker.finish(start, stream_bytes=offset)
        finals = await asyncio.gather(one.final(id_of(sent)), two.final(id_of(sent)))
        assert finals[0] == finals[1]
        assert one.output(id_of(sent)) == two.output(id_of(sent)) == b"".join(pieces)
