"""Sessions over the real sockets, between scripted workers and clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from coordinator.app import Serving, serving
from coordinator.services.audit import run_audit
from coordinator.settings import Settings
from coordinator.store.engine import Store
from gridx.ids import new_job_id
from gridx.protocol import (
    AttemptRef,
    CallChanged,
    CallSettled,
    Cancel,
    ClientHello,
    EndAttempt,
    EndSession,
    HandBack,
    Interrupt,
    InterruptCall,
    JobChanged,
    Output,
    OutputResend,
    Position,
    Refused,
    StartAttempt,
    StartCall,
    StopAttempt,
    Submit,
    SubmitCall,
    Watch,
    Welcome,
)
from gridx.schemas import BlobRef, CellSpec, JobRequest, Limits, SessionSpec
from gridx.states import Cause
from tests.support.coordinator_program import CoordinatorProgram
from tests.support.scripted_client import Rest, ScriptedClient
from tests.support.scripted_worker import (
    WorkerByHand,
    WorkerWithSessions,
    offer,
    text_events,
    workers,
)

CELL = CellSpec(python="3.11", expected=("x",))


@pytest.fixture(autouse=True)
async def _no_program_outlives_its_test() -> AsyncIterator[None]:
    yield
    await CoordinatorProgram.kill_what_is_left()


def opening(code: str = "a", *, open_s: float = 300, idle_s: float = 600) -> Submit:
    return Submit(
        job=JobRequest(code=code, job_id=new_job_id(), limits=Limits(timeout_s=open_s)),
        cell=CELL,
        inputs=b"inputs 0",
        session=SessionSpec(name="main", idle_s=idle_s),
        call_timeout_s=30,
    )


def id_of(message: Submit) -> str:
    assert message.job.job_id is not None
    return message.job.job_id


def next_call(job_id: str, call: int, code: str) -> SubmitCall:
    return SubmitCall(
        job_id=job_id, call=call, code=code, timeout_s=20, cell=CELL, inputs=f"{call}".encode()
    )


async def ended_call(client: ScriptedClient, call: int, status: str = "completed") -> CallChanged:
    return await client.expect(CallChanged, call=call, status=status)


@pytest.mark.parametrize("as_json", [False, True], ids=["msgpack", "json"])
async def test_a_session_runs_call_after_call_on_one_worker_and_is_closed(
    coordinator: Serving, as_json: bool
) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url, as_json=as_json) as client:
        sent = opening()
        job_id = id_of(sent)
        client.send(sent)
        first = await ended_call(client, 0)
        assert (first.result, first.begin, first.end) == (
            b"a",
            Position(attempt=1, offset=0),
            Position(attempt=1, offset=len(worker.streams[job_id])),
        )
        start = await worker.expect(StartAttempt)
        assert (start.session, start.call_timeout_s) == (sent.session, 30)
        client.send(next_call(job_id, 1, "b"))
        second = await ended_call(client, 1)
        assert (second.result, second.begin) == (b"a;b", first.end)
        told = await worker.expect(StartCall)
        assert (told.call, told.code, told.timeout_s, told.inputs) == (1, "b", 20, b"1")
        assert client.output(job_id) == worker.streams[job_id]
        calls = [m.call for m in client.received if isinstance(m, Output)]
        assert calls == sorted(calls) and set(calls) == {0, 1}

        client.send(EndSession(job_id=job_id))
        final = await client.final(job_id)
        assert (final.job.status, final.job.kind, final.job.session) == (
            "completed",
            "session",
            "main",
        )
        assert final.job.reason is not None and final.job.reason.code == "session_ended"
        assert final.result is None
        assert final.balance_ucr == 100_000_000 - final.cost_ucr
        assert final.held_ucr == 0
        client.send(next_call(job_id, 2, "c"))
        refused = await client.expect(Refused, job_id=job_id)
        assert refused.error.code == "session_ended"
    assert await coordinator.context.store.read(run_audit) == ()


async def test_an_interrupt_ends_the_call_and_keeps_the_session(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        sent = opening("wait")
        client.send(sent)
        await client.expect(CallChanged, call=0, status="running")
        client.send(Interrupt(job_id=id_of(sent), call=0))
        await worker.expect(InterruptCall, call=0)
        failed = await ended_call(client, 0, "failed")
        assert failed.reason is not None and failed.reason.code == "job_failed"
        client.send(next_call(id_of(sent), 1, "b"))
        assert (await ended_call(client, 1)).result == b"wait;b"


async def test_a_call_is_accepted_once_and_refused_out_of_turn(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        sent = opening()
        job_id = id_of(sent)
        client.send(sent)
        await ended_call(client, 0)
        client.send(next_call(job_id, 1, "b"))
        client.send(next_call(job_id, 1, "b"))
        await ended_call(client, 1)
        assert len([m for m in worker.received if isinstance(m, StartCall)]) == 1
        for wrong in (next_call(job_id, 1, "other"), next_call(job_id, 5, "f")):
            before = len(client.received)
            client.send(wrong)
            refused = await client.expect(Refused, after=before)
            assert refused.error.code == "conflict"
        before = len(client.received)
        client.send(next_call(new_job_id(), 1, "b"))
        assert (await client.expect(Refused, after=before)).error.code == "not_found"
        good = next_call(job_id, 2, "b")
        for wrong, code in (
            (msgspec.structs.replace(good, timeout_s=-1.0), "invalid_request"),
            (msgspec.structs.replace(good, cell=CellSpec(python="2")), "invalid_request"),
            (msgspec.structs.replace(good, code="#" * 2**20 + "1"), "payload_too_large"),
            (
                msgspec.structs.replace(good, blobs=(BlobRef(digest="0" * 64, size=1),)),
                "blobs_missing",
            ),
        ):
            before = len(client.received)
            client.send(wrong)
            assert (await client.expect(Refused, after=before)).error.code == code
        client.send(good)
        await ended_call(client, 2)


async def test_somebody_else_sees_and_reaches_no_session(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with (
        workers(worker),
        ScriptedClient(coordinator.http_url) as client,
        ScriptedClient(coordinator.http_url, user="eve") as eve,
    ):
        sent = opening()
        job_id = id_of(sent)
        client.send(sent)
        await ended_call(client, 0)
        for message in (
            next_call(job_id, 1, "evil"),
            Interrupt(job_id=job_id, call=0),
            EndSession(job_id=job_id),
            Watch(job_id=job_id, newest_call=True),
            Cancel(job_id=job_id),
        ):
            before = len(eve.received)
            eve.send(message)
            refused = await eve.expect(Refused, after=before)
            assert refused.error.code == "not_found", message
        assert worker.ran[job_id] == ["a"]


async def test_a_session_that_opens_without_a_cell_is_refused(coordinator: Serving) -> None:
    async with ScriptedClient(coordinator.http_url) as client:
        client.send(msgspec.structs.replace(opening(), cell=None))
        refused = await client.expect(Refused)
        assert refused.error.code == "invalid_request"


async def test_a_watch_of_the_newest_call_brings_its_state_and_its_output_alone(
    coordinator: Serving,
) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker):
        async with ScriptedClient(coordinator.http_url) as client:
            sent = opening()
            job_id = id_of(sent)
            client.send(sent)
            await ended_call(client, 0)
            begin = len(worker.streams[job_id])
            client.send(next_call(job_id, 1, "b"))
            await ended_call(client, 1)
        async with ScriptedClient(coordinator.http_url) as again:
            again.send(Watch(job_id=job_id, newest_call=True))
            done = await ended_call(again, 1)
            assert done.result == b"a;b"
            shown = [m for m in again.received if isinstance(m, CallChanged | Output)]
            assert isinstance(shown[0], CallChanged)
            assert shown[0].begin == Position(attempt=1, offset=begin)
            pieces = [m for m in shown if isinstance(m, Output)]
            assert b"".join(m.data for m in pieces) == worker.streams[job_id][begin:]
            assert {m.call for m in pieces} == {1}
        async with ScriptedClient(coordinator.http_url) as whole:
            whole.send(Watch(job_id=job_id))
            await ended_call(whole, 1)
            assert whole.output(job_id) == worker.streams[job_id]
        text = await Rest(coordinator.http_url).get(f"/jobs/{job_id}")
        assert (text["kind"], text["session"], text["stdout"]) == ("session", "main", "a\nb\n")


async def test_a_report_of_a_call_waits_until_its_output_is_stored(coordinator: Serving) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        sent = opening()
        client.send(sent)
        start = await worker.expect(StartAttempt)
        worker.started(start)
        pieces = [text_events("one\n"), text_events("two\n")]
        worker.output(start, 0, pieces[0])
        worker.finish_call(start, 0, stream_bytes=len(b"".join(pieces)))
        await worker.expect(OutputResend)
        worker.output(start, 0, b"".join(pieces))
        worker.finish_call(start, 0, stream_bytes=len(b"".join(pieces)))
        await worker.expect(CallSettled, call=0)
        await ended_call(client, 0)
        assert client.output(id_of(sent)) == b"".join(pieces)
        before = len(worker.received)
        worker.finish_call(start, 0, stream_bytes=len(b"".join(pieces)))
        await worker.expect(CallSettled, after=before, call=0)
        before = len(worker.received)
        worker.finish_call(start, 3)
        stopped = await worker.expect(StopAttempt, after=before)
        assert stopped.fenced


async def test_the_reports_of_a_call_and_of_its_session_are_taken_in_the_order_they_came(
    coordinator: Serving,
) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        sent = opening()
        client.send(sent)
        start = await worker.expect(StartAttempt)
        worker.started(start)
        client.send(EndSession(job_id=id_of(sent)))
        await worker.expect(EndAttempt)
        piece = text_events("bye\n")
        worker.output(start, 0, piece)
        worker.finish_call(start, 0, stream_bytes=len(piece), result=b"kept")
        worker.finish(start, stream_bytes=len(piece))
        assert (await ended_call(client, 0)).result == b"kept"
        assert (await client.final(id_of(sent))).job.status == "completed"
        kinds = [
            type(m).__name__
            for m in client.received
            if (isinstance(m, CallChanged) and m.status == "completed")
            or (isinstance(m, JobChanged) and m.job.status == "completed")
        ]
        assert kinds == ["CallChanged", "JobChanged"]


async def test_an_idle_session_is_closed_and_its_user_told(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        sent = opening(idle_s=0.2)
        client.send(sent)
        await worker.expect(EndAttempt)
        final = await client.final(id_of(sent))
        assert final.job.status == "completed"
        assert final.job.reason is not None
        assert "without a call" in final.job.reason.message


async def test_a_session_at_its_limit_is_closed_with_its_call(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        sent = opening("wait", open_s=1.2)
        client.send(sent)
        await worker.expect(EndAttempt)
        final = await client.final(id_of(sent))
        assert final.job.status == "completed"
        assert (await ended_call(client, 0, "failed")).reason.code == "timeout"  # type: ignore[union-attr]


async def test_a_worker_of_the_release_before_gets_no_session(coordinator: Serving) -> None:
    old = WorkerByHand(coordinator.ws_url)
    await old.connect(protocol_max=1)
    async with ScriptedClient(coordinator.http_url) as client:
        sent = opening()
        client.send(sent)
        waiting = await client.expect(JobChanged)
        assert waiting.job.waiting == (
            "1 worker online: 1 is of an older release, without large data and sessions"
        )
        client.send(EndSession(job_id=id_of(sent)))
        assert (await client.final(id_of(sent))).job.status == "cancelled"
    await old.leave()


async def test_a_client_of_the_release_before_hears_of_no_calls(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        sent = opening()
        client.send(sent)
        await ended_call(client, 0)
        old = ScriptedClient(coordinator.http_url)
        await old.open()
        old.send(ClientHello(user="alice", protocol_min=1, protocol_max=1))
        old.send(Watch(job_id=id_of(sent)))
        await old.expect(Output)
        client.send(EndSession(job_id=id_of(sent)))
        await old.final(id_of(sent))
        assert not [m for m in old.received if isinstance(m, CallChanged)]
        await old.close()


async def test_a_session_keeps_its_worker_s_slot_and_gives_it_back(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url, capability=offer(slots=1))
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        first, second = opening(), opening("z")
        client.send(first)
        await ended_call(client, 0)
        client.send(second)
        waiting = await client.expect(JobChanged, after=len(client.received))
        assert waiting.job.job_id == id_of(second)
        assert (waiting.job.status, waiting.job.waiting) == ("queued", "1 worker online: 1 busy")
        client.send(Cancel(job_id=id_of(first)))
        assert (await client.final(id_of(first))).job.status == "cancelled"
        await client.expect(CallChanged, job_id=id_of(second), status="completed")


async def test_the_events_of_a_session_name_its_calls_and_hold_all_of_its_output(
    coordinator: Serving,
) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        sent = opening()
        client.send(sent)
        await ended_call(client, 0)
        client.send(next_call(id_of(sent), 1, "b"))
        await ended_call(client, 1)
        client.send(EndSession(job_id=id_of(sent)))
        await client.final(id_of(sent))
        answer = await Rest(coordinator.http_url).fetch("GET", f"/jobs/{id_of(sent)}/events")
        events = [
            dict(line.split(": ", 1) for line in block.split("\n"))
            for block in answer.body.decode().strip().split("\n\n")
        ]
        shown = [(e["event"], msgspec.json.decode(e["data"])) for e in events]
        assert [data["text"] for kind, data in shown if kind == "output"] == ["a\n", "b\n"]
        kind, call = shown[-2]
        assert (kind, call["call"], call["status"], call["result"]) == (
            "call",
            1,
            "completed",
            None,
        )
        assert (shown[-1][0], shown[-1][1]["status"]) == ("job", "completed")


async def test_rest_cancels_a_session_and_its_call(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        sent = opening("wait")
        client.send(sent)
        await client.expect(CallChanged, call=0, status="running")
        await Rest(coordinator.http_url).post(f"/jobs/{id_of(sent)}/cancel", {})
        await ended_call(client, 0, "cancelled")
        assert (await client.final(id_of(sent))).job.status == "cancelled"


async def test_a_worker_that_vanishes_loses_the_session_and_everybody_is_told(
    coordinator: Serving,
) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with ScriptedClient(coordinator.http_url) as client:
        await worker.connect()
        sent = opening("wait")
        client.send(sent)
        await client.expect(CallChanged, call=0, status="running")
        worker.vanish()
        call = await ended_call(client, 0, "failed")
        final = await client.final(id_of(sent))
        for reason in (call.reason, final.job.reason):
            assert reason is not None
            assert reason.code == "worker_lost"
            assert "variables there are gone" in reason.message
        assert (final.cost_ucr, final.balance_ucr) == (0, 100_000_000)
        before = len(client.received)
        client.send(next_call(id_of(sent), 1, "b"))
        assert (await client.expect(Refused, after=before)).error.code == "worker_lost"
        await worker.leave()


async def test_a_worker_that_hands_an_open_session_back_loses_it(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        sent = opening()
        client.send(sent)
        await ended_call(client, 0)
        worker.send(HandBack(job_id=id_of(sent), attempt=1, message="the worker stops"))
        final = await client.final(id_of(sent))
        assert final.job.status == "failed"
        assert final.job.reason is not None and final.job.reason.code == "worker_lost"


async def test_a_call_that_came_while_the_worker_was_away_is_sent_when_it_is_back(
    settings: Settings,
) -> None:
    patient = msgspec.structs.replace(settings, grace_s=30.0)
    async with serving(patient) as coordinator, ScriptedClient(coordinator.http_url) as client:
        worker = WorkerByHand(coordinator.ws_url)
        await worker.connect()
        sent = opening()
        job_id = id_of(sent)
        client.send(sent)
        start = await worker.expect(StartAttempt)
        worker.started(start)
        worker.finish_call(start, 0)
        await worker.expect(CallSettled)
        worker.vanish()
        await worker.leave()
        client.send(next_call(job_id, 1, "b"))
        await client.expect(CallChanged, call=1, status="queued")
        client.send(Interrupt(job_id=job_id, call=1))

        back = WorkerByHand(coordinator.ws_url, worker_id=worker.worker_id)
        welcome = await back.connect(running=(AttemptRef(job_id=job_id, attempt=1),))
        assert isinstance(welcome, Welcome)
        told = await back.expect(StartCall, call=1)
        assert (told.code, told.inputs) == ("b", b"1")
        await back.expect(InterruptCall, call=1)
        back.finish_call(told, 1, cause=Cause.CANCELLED)
        await ended_call(client, 1, "cancelled")
        client.send(EndSession(job_id=job_id))
        await back.expect(EndAttempt)
        back.finish(start)
        assert (await client.final(job_id)).job.status == "completed"
        await back.leave()


async def test_a_killed_coordinator_finds_its_sessions_and_their_calls_again(
    tmp_path: Path,
) -> None:
    program = CoordinatorProgram(tmp_path, "--heartbeat-s", "0.3", "--grace-s", "30")
    await program.start()
    worker = WorkerByHand(program.ws_url)
    await worker.connect()
    sent = opening()
    job_id = id_of(sent)
    piece = text_events("zero\n")
    async with ScriptedClient(program.http_url) as client:
        client.send(sent)
        start = await worker.expect(StartAttempt)
        worker.started(start)
        worker.output(start, 0, piece)
        worker.finish_call(start, 0, stream_bytes=len(piece), result=b"r0")
        await ended_call(client, 0)
        client.send(next_call(job_id, 1, "b"))
        await client.expect(CallChanged, call=1)
        await worker.expect(StartCall, call=1)
        await program.kill()
    await worker.leave()

    await program.start()
    back = WorkerByHand(program.ws_url, worker_id=worker.worker_id)
    await back.connect(running=(AttemptRef(job_id=job_id, attempt=1),))
    told = await back.expect(StartCall, call=1)  # maybe it had not heard of it
    # its report of call 0 was not answered, as far as it knows
    back.finish_call(start, 0, stream_bytes=len(piece), result=b"r0")
    await back.expect(CallSettled, call=0)
    async with ScriptedClient(program.http_url) as again:
        again.send(Watch(job_id=job_id, after=Position(attempt=1, offset=0), newest_call=True))
        await again.expect(CallChanged, call=1)
        more = text_events("one\n", call=1)
        back.started(told, 1)
        back.output(told, len(piece), more, 1)
        back.finish_call(told, 1, stream_bytes=len(piece) + len(more), result=b"r1")
        done = await ended_call(again, 1)
        assert done.result == b"r1"
        got = b"".join(m.data for m in again.received if isinstance(m, Output))
        assert got == more
        again.send(EndSession(job_id=job_id))
        await back.expect(EndAttempt)
        back.finish(start, stream_bytes=len(piece) + len(more), call=1)
        final = await again.final(job_id)
        assert final.cost_ucr > 0
        assert final.balance_ucr == 100_000_000 - final.cost_ucr
    await back.leave()
    await program.kill()
    store = Store(f"sqlite:///{tmp_path / 'gridx.db'}")
    await store.open()
    assert await store.read(run_audit) == ()
    await store.close()


async def test_many_calls_with_much_output_arrive_whole_at_a_client_that_comes_and_goes(
    coordinator: Serving,
) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker):
        sent = opening()
        job_id = id_of(sent)
        async with ScriptedClient(coordinator.http_url) as client:
            client.send(sent)
            await ended_call(client, 0)
        for number in range(1, 8):
            async with ScriptedClient(coordinator.http_url) as client:
                begin = len(worker.streams[job_id])
                client.send(Watch(job_id=job_id, newest_call=True))
                await client.expect(CallChanged, call=number - 1)
                client.send(next_call(job_id, number, f"{number}" * 20_000))
                await ended_call(client, number)
                pieces = [m for m in client.received if isinstance(m, Output) and m.offset >= begin]
                assert b"".join(m.data for m in pieces) == worker.streams[job_id][begin:]
