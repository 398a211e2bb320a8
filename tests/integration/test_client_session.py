"""Sessions from the client library, on a real coordinator with a scripted worker."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from coordinator.app import Serving, serving
from coordinator.settings import Settings
from gridx.blobs import CHUNK_BYTES, cut, to_blob
from gridx.blocking import BlockingClient
from gridx.client import Client
from gridx.errors import (
    Conflict,
    InsufficientCredits,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NotFound,
    SessionEnded,
    WorkerLost,
)
from gridx.events import Stream
from gridx.ids import new_job_id
from gridx.protocol import (
    AttemptRef,
    EndAttempt,
    HandBack,
    InterruptCall,
    StartAttempt,
    StartCall,
    StopAttempt,
)
from gridx.schemas import CellSpec, JobRequest, Limits, SessionSpec
from gridx.session import Session
from gridx.settings import ConnectionSettings
from gridx.updates import EventArrived, Finished, LinkChanged, StateChanged, Update
from tests.support.coordinator_program import CoordinatorProgram
from tests.support.scripted_worker import (
    WorkerByHand,
    WorkerWithSessions,
    text_events,
    workers,
)

CELL = CellSpec(python="3.11", expected=("x",))


def settings_of(url: str, user: str = "alice") -> ConnectionSettings:
    return ConnectionSettings(url=url, user=user, file=Path("none"))


def client_of(coordinator: Serving, user: str = "alice") -> Client:
    return Client(settings_of(coordinator.http_url, user))


async def opened(client: Client, code: str = "a", **options: float) -> Session:
    spec = SessionSpec(name="main", idle_s=options.pop("idle_s", 600))
    job = JobRequest(code=code, limits=Limits(timeout_s=options.pop("open_s", 300)))
    return await client.open_session(job, spec, cell=CELL, inputs=b"in", call_timeout_s=20)


def text_of(updates: list[Update]) -> str:
    return "".join(
        update.event.text
        for update in updates
        if isinstance(update, EventArrived) and isinstance(update.event, Stream)
    )


async def until_printed(session: Session) -> None:
    async for update in session.newest.updates():
        if isinstance(update, EventArrived):
            return


async def test_calls_are_watched_as_jobs_are(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), client_of(coordinator) as client:
        session = await opened(client)
        updates = [update async for update in session.newest.updates()]
        assert isinstance(updates[0], StateChanged)
        assert text_of(updates) == "a\n"
        done = updates[-1]
        assert isinstance(done, Finished)
        assert (done.result, done.view.status, done.view.kind) == (b"a", "completed", "session")
        assert done.error() is None
        assert (session.name, session.id, session.error()) == ("main", session.newest.id, None)
        assert session.newest.sent_bytes == 2

        second = await session.call("b", cell=CELL, inputs=b"more", timeout_s=20)
        assert (second.number, second.sent_bytes) == (1, 4)
        updates = [update async for update in second.updates()]
        assert text_of(updates) == "b\n", "nothing of the call before"
        assert second.finished is not None
        assert second.finished.result == b"a;b"
        assert second.finished.cost_ucr == second.finished.view.cost * 1_000_000
        assert second.finished.view.elapsed_s is not None

        ended: list[Finished] = []
        session.on_end(ended.append)
        end = await session.end()
        assert (end.view.status, end.cost_ucr > 0) == ("completed", True)
        assert ended == [end]
        session.on_end(ended.append)
        assert ended == [end, end]
        error = session.error()
        assert isinstance(error, SessionEnded)
        assert "was closed by its user" in error.message
        with pytest.raises(SessionEnded):
            await session.call("c", cell=CELL)


async def test_one_call_at_a_time(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), client_of(coordinator) as client:
        session = await opened(client, "wait")
        with pytest.raises(Conflict, match="has not ended"):
            await session.call("b", cell=CELL)
        await until_printed(session)
        await session.interrupt()
        done = await session.newest.wait()
        assert isinstance(done.error(), JobFailed)
        assert (await (await session.call("b", cell=CELL)).wait()).result == b"wait;b"


async def test_a_session_that_waits_for_a_worker_says_why_and_is_cancelled_by_an_interrupt(
    coordinator: Serving,
) -> None:
    async with client_of(coordinator) as client:
        session = await opened(client)
        assert (session.newest.view.status, session.view.status) == ("queued", "queued")
        assert session.newest.view.waiting == (
            "No worker is online: it starts as soon as one joins."
        )
        await session.newest.cancel()
        assert isinstance((await session.newest.wait()).error(), JobCancelled)
        assert isinstance(session.error(), JobCancelled)


async def test_what_the_coordinator_refuses_comes_by_its_own_class(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), client_of(coordinator) as client:
        with pytest.raises(InsufficientCredits):
            await opened(client, open_s=3600)
        session = await opened(client)
        await session.newest.wait()
        with pytest.raises(InvalidRequest, match="is not a Python version"):
            await session.call("b", cell=CellSpec(python="3.x"))
        # The call was not accepted: its number is free, and the session as before.
        assert (await (await session.call("b", cell=CELL)).wait()).result == b"a;b"


async def test_a_lost_worker_is_worker_lost_for_the_call_and_for_the_session(
    coordinator: Serving,
) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with client_of(coordinator) as client:
        await worker.connect()
        session = await opened(client, "wait")
        await until_printed(session)
        worker.vanish()
        error = (await session.newest.wait()).error()
        assert isinstance(error, WorkerLost)
        assert "Its variables there are gone." in error.message
        assert "Run the cells again" in error.hint
        lost = asyncio.get_running_loop().create_future()
        session.on_end(lambda end: lost.done() or lost.set_result(end))
        await lost
        assert isinstance(session.error(), WorkerLost)
        with pytest.raises(WorkerLost):
            await session.call("b", cell=CELL)
        await worker.leave()


async def test_a_session_that_is_lost_between_two_calls_is_told_by_the_next(
    coordinator: Serving,
) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), client_of(coordinator) as client:
        session = await opened(client)
        await session.newest.wait()
        ended = asyncio.get_running_loop().create_future()
        session.on_end(ended.set_result)
        worker.send(HandBack(job_id=session.id, attempt=1, message="closing time"))
        await ended
        with pytest.raises(WorkerLost, match="closing time"):
            await session.call("b", cell=CELL)


async def test_an_idle_session_ends_and_says_so(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), client_of(coordinator) as client:
        session = await opened(client, idle_s=0.2)
        ended = asyncio.get_running_loop().create_future()
        session.on_end(ended.set_result)
        await ended
        assert isinstance(session.error(), SessionEnded)
        assert (await session.newest.wait()).result == b"a"


async def test_a_kernel_that_comes_back_attaches_to_its_session(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker):
        async with client_of(coordinator) as client:
            session = await opened(client)
            await session.newest.wait()
            await session.call("wait", cell=CELL)
            await until_printed(session)
        async with client_of(coordinator) as client:
            again = await client.attach_session(session.id)
            assert await client.attach_session(session.id) is again
            assert (again.name, again.newest.number, again.error()) == ("main", 1, None)
            assert again.newest.view.status == "running"
            await again.newest.cancel()
            updates = [update async for update in again.newest.updates()]
            assert text_of(updates) == "wait\nKeyboardInterrupt\n"
            assert (await (await again.call("b", cell=CELL)).wait()).result == b"a;wait;b"
        async with client_of(coordinator) as client:
            later = await client.attach_session(session.id)
            updates = [update async for update in later.newest.updates()]
            assert text_of(updates) == "b\n"
            assert later.newest.finished is not None
            assert later.newest.finished.result == b"a;wait;b"
            await later.end()
        async with client_of(coordinator) as client:
            gone = await client.attach_session(session.id)
            assert isinstance(gone.error(), SessionEnded)
            assert (await gone.newest.wait()).result == b"a;wait;b"
            plain = await client.submit(JobRequest(code="1"))
            with pytest.raises(InvalidRequest, match="is no session"):
                await client.attach_session(plain.id)
            with pytest.raises(NotFound):
                await client.attach_session(new_job_id())
        async with client_of(coordinator, "eve") as eve:
            with pytest.raises(NotFound):
                await eve.attach_session(session.id)


async def test_a_job_that_is_attached_to_a_session_sees_all_of_its_output(
    coordinator: Serving,
) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), client_of(coordinator) as client:
        session = await opened(client)
        await session.newest.wait()
        await (await session.call("b", cell=CELL)).wait()
        job = await client.attach(session.id)
        seen: list[Update] = []
        async for update in job.updates():
            seen.append(update)
            if text_of(seen) == "a\nb\n":
                break
        job.detach()
        # The session is watched as before.
        assert (await (await session.call("c", cell=CELL)).wait()).result == b"a;b;c"


async def test_a_thread_of_an_earlier_call_that_prints_is_not_shown_with_a_later_one(
    coordinator: Serving,
) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), client_of(coordinator) as client:
        session = await opened(client)
        await session.newest.wait()
        start = await worker.expect(StartAttempt)
        late = text_events("late\n", call=0)
        worker.output(start, len(worker.streams[session.id]), late)
        worker.streams[session.id] += late
        call = await session.call("b", cell=CELL)
        assert text_of([update async for update in call.updates()]) == "b\n"


async def test_a_cut_connection_costs_nothing_of_a_call(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), client_of(coordinator) as client:
        session = await opened(client)
        await session.newest.wait()
        call = await session.call("wait", cell=CELL)
        updates: list[Update] = []
        async for update in call.updates():
            updates.append(update)
            if isinstance(update, EventArrived) and len(updates) < 4:
                client._link.drop()
                await call.cancel()  # said again when the connection is back
        assert text_of(updates) == "wait\nKeyboardInterrupt\n"
        assert any(isinstance(update, LinkChanged) for update in updates)
        client._link.drop()
        assert (await (await session.call("b", cell=CELL)).wait()).result == b"a;wait;b"


async def test_output_that_nobody_reads_pauses_the_session_and_nothing_is_lost(
    coordinator: Serving,
) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    settings = settings_of(coordinator.http_url)
    async with workers(worker), Client(settings, feed_limit_bytes=10_000) as client:
        session = await opened(client)
        await session.newest.wait()
        code = "x" * 200_000
        call = await session.call(code, cell=CELL)
        updates = [update async for update in call.updates()]
        assert text_of(updates) == code + "\n"
        assert call.finished is not None and call.finished.result is not None


async def test_who_gives_up_while_it_opens_leaves_no_session_open(coordinator: Serving) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker), client_of(coordinator) as client:
        await client.connect()
        opening = asyncio.create_task(opened(client))
        await worker.expect(StartAttempt)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        start = await worker.expect(StartAttempt)
        await worker.expect(EndAttempt)
        worker.finish(start)


async def test_a_call_goes_on_through_a_restart_of_the_coordinator(tmp_path: Path) -> None:
    program = CoordinatorProgram(tmp_path, "--heartbeat-s", "0.3", "--grace-s", "30")
    await program.start()
    try:
        worker = WorkerByHand(program.ws_url)
        await worker.connect()
        async with Client(settings_of(program.http_url)) as client:
            session = await opened(client)
            start = await worker.expect(StartAttempt)
            worker.started(start)
            worker.finish_call(start, 0, result=b"r0")
            await session.newest.wait()
            call = await session.call("b", cell=CELL)
            told = await worker.expect(StartCall, call=1)
            await program.kill()
            await worker.leave()
            await program.start()
            back = WorkerByHand(program.ws_url, worker_id=worker.worker_id)
            await back.connect(running=(AttemptRef(job_id=session.id, attempt=1),))
            piece = text_events("one\n", call=1)
            back.output(told, 0, piece, 1)
            back.finish_call(told, 1, stream_bytes=len(piece), result=b"r1")
            updates = [update async for update in call.updates()]
            assert text_of(updates) == "one\n"
            assert call.finished is not None and call.finished.result == b"r1"
            await back.leave()
    finally:
        await CoordinatorProgram.kill_what_is_left()


async def test_the_blocking_client_does_the_same(settings: Settings) -> None:
    async with serving(msgspec.structs.replace(settings, grace_s=5.0)) as coordinator:
        worker = WorkerWithSessions(coordinator.ws_url)

        def script() -> None:
            with BlockingClient(settings_of(coordinator.http_url)) as client:
                session = client.open_session(
                    "a", "main", cell=CELL, inputs=b"in", open_limit_s=300, call_timeout_s=20
                )
                assert session.newest.wait(10).result == b"a"
                assert session.newest.stdout == "a\n"
                assert (session.name, session.view.kind, session.error()) == (
                    "main",
                    "session",
                    None,
                )
                call = session.call("wait", cell=CELL, timeout_s=20)
                assert session.newest is call
                for update in call.updates(idle_s=0.1):
                    if isinstance(update, EventArrived):
                        break
                done = call.cancel(10)
                assert done is not None
                assert isinstance(done.error(), JobFailed)
                assert call.number == 1
                again = client.attach_session(session.id)
                assert again.newest.number == 1
                assert session.call("b", cell=CELL).wait(10).result == b"a;wait;b"
                assert [job.session for job in client.jobs().jobs] == ["main"]
                end = session.end(10)
                assert end is not None and end.cost_ucr > 0
                assert session.finished == end
                assert isinstance(session.error(), SessionEnded)

        async with workers(worker):
            await asyncio.to_thread(script)


async def test_a_session_is_open_while_nobody_watches(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), client_of(coordinator) as client:
        session = await opened(client)
        await session.newest.wait()
        session.detach()
        assert (await (await session.call("b", cell=CELL)).wait()).result == b"a;b"
        assert not [m for m in worker.received if isinstance(m, StopAttempt)]


async def test_a_call_s_blobs_go_ahead_of_it_once_and_its_large_result_comes_home(
    coordinator: Serving,
) -> None:
    data = random.Random(5).randbytes(CHUNK_BYTES + 1000)
    blobs = [to_blob(chunk) for chunk in cut(data)]
    refs = tuple(blob.ref for blob in blobs)
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker), client_of(coordinator) as client:
        session = await opened(client)
        start = await worker.expect(StartAttempt)
        worker.finish_call(start, 0)
        await session.newest.wait()
        progress: list[tuple[int, int]] = []
        call = await session.call(
            "b",
            cell=CELL,
            inputs=b"head",
            blobs=blobs,
            on_progress=lambda *now: progress.append(now),
        )
        assert call.sent_bytes == len(data) + 4
        assert progress[-1] == (len(data), len(data))
        told = await worker.expect(StartCall, call=1)
        assert (told.inputs, told.blobs) == (b"head", refs)
        worker.finish_call(start, 1, result_blobs=refs)
        done = await call.wait()
        assert (done.result, done.result_blobs) == (None, refs)
        assert await call.download(refs) == data
        again = await session.call("c", cell=CELL, inputs=b"head", blobs=blobs)
        assert again.sent_bytes == 4, "what was sent is not sent again"
        worker.finish_call(start, 2)
        await again.wait()


async def test_who_gives_up_while_a_call_is_sent_leaves_none_running(
    coordinator: Serving,
) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), client_of(coordinator) as client:
        session = await opened(client)
        await session.newest.wait()
        calling = asyncio.create_task(session.call("wait", cell=CELL))
        while session.newest.number == 0:
            await asyncio.sleep(0)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await worker.expect(InterruptCall, call=1)
        await session.newest.wait()
        assert (await (await session.call("b", cell=CELL)).wait()).result == b"a;wait;b"


async def test_a_call_that_stands_still_with_its_session_says_why(coordinator: Serving) -> None:
    worker = WorkerWithSessions(coordinator.ws_url)
    async with workers(worker), client_of(coordinator) as client:
        session = await opened(client, "wait")
        await until_printed(session)
        ref = AttemptRef(job_id=session.id, attempt=1)
        worker.freeze(ref, message="The owner is using the machine.")
        seen = await _waiting(session, lambda waiting: waiting is not None)
        assert seen is not None
        assert seen.startswith("Paused by its lender: the owner is using the machine.")
        worker.freeze(ref, is_frozen=False)
        assert await _waiting(session, lambda waiting: waiting is None) is None
        await session.interrupt()
        await session.newest.wait()


async def _waiting(session: Session, holds: Callable[[str | None], bool]) -> str | None:
    async for update in session.newest.updates():
        if isinstance(update, StateChanged) and holds(update.view.waiting):
            return update.view.waiting
    raise AssertionError("the call has ended")
