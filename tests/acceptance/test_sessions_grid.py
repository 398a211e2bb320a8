"""Sessions over the whole product: three real programs, real containers, the client library."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridx.blocking import BlockingCall, BlockingClient, BlockingSession
from gridx.errors import (
    JobCancelled,
    JobFailed,
    RemoteOutOfMemory,
    RemoteTimeout,
    SessionEnded,
    WorkerLost,
)
from gridx.schemas import CellSpec
from gridx.settings import ConnectionSettings
from gridx.updates import EventArrived, Finished
from tests.support.programs import Coordinator, Worker, containers_of, grid, wait_for

pytestmark = pytest.mark.docker
WAIT_S = 60.0
CELL = CellSpec(python="3.11", expected=("total", "seen"))
SLEEP = "print('begun', flush=True)\nimport time\nfor _ in range(600):\n    time.sleep(0.1)"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Coordinator, Worker]]:
    with grid(tmp_path_factory.mktemp("grid")) as pair:
        yield pair


@pytest.fixture
def client(running: tuple[Coordinator, Worker]) -> Iterator[BlockingClient]:
    with client_of(running[0]) as client:
        yield client


def client_of(coordinator: Coordinator) -> BlockingClient:
    settings = ConnectionSettings(url=coordinator.http_url, user="scientist", file=Path("none"))
    return BlockingClient(settings)


def opened(
    client: BlockingClient, code: str, *, idle_s: float = 600, memory_bytes: int | None = None
) -> BlockingSession:
    return client.open_session(
        code,
        "work",
        cell=CELL,
        idle_s=idle_s,
        open_limit_s=300,
        call_timeout_s=40,
        memory_bytes=memory_bytes,
    )


def run(session: BlockingSession, code: str, *, timeout_s: float = 40) -> tuple[str, Finished]:
    call = session.call(code, cell=CELL, timeout_s=timeout_s)
    done = call.wait(WAIT_S)
    return call.stdout, done


def until_begun(call: BlockingCall) -> None:
    for update in call.updates():
        assert not isinstance(update, Finished), update
        if isinstance(update, EventArrived):
            return


def end_of(session: BlockingSession) -> Finished:
    ended = threading.Event()
    session.on_end(lambda end: ended.set())
    assert ended.wait(WAIT_S)
    assert session.finished is not None
    return session.finished


def test_what_a_call_binds_is_there_in_the_next_and_the_whole_is_paid_once(
    client: BlockingClient,
) -> None:
    client.connect()  # opens the account
    before = client.balance().balance
    session = opened(client, "total = 40\ndef add(n):\n    return total + n\nprint('zero')")
    assert session.newest.wait(WAIT_S).error() is None
    assert session.newest.stdout == "zero\n"
    assert run(session, "total += 1\nprint(add(1))")[0] == "42\n"
    text, failed = run(session, "print('here')\n1 / 0")
    assert (text, type(failed.error())) == ("here\n", JobFailed)
    text, done = run(session, "print(add(1), 'total' in dir())")
    assert text == "42 True\n"
    assert (done.view.status, done.view.kind, done.view.session) == (
        "completed",
        "session",
        "work",
    )
    end = session.end(WAIT_S)
    assert end is not None and end.view.status == "completed"
    assert end.view.elapsed_s is not None
    # by the coordinator's clock, and no more than the worker metered
    assert 0 < end.cost_ucr <= end.view.elapsed_s * 100_000 + 1
    assert client.balance().balance == pytest.approx(before - end.cost_ucr / 1_000_000)
    assert client.balance().held == 0
    with pytest.raises(SessionEnded):
        session.call("1", cell=CELL)


def test_an_interrupt_keeps_the_session_and_what_it_has(client: BlockingClient) -> None:
    session = opened(client, "total = 7")
    session.newest.wait(WAIT_S)
    call = session.call("total += 1\n" + SLEEP, cell=CELL)
    until_begun(call)
    done = call.cancel(WAIT_S)
    assert done is not None
    assert isinstance(done.error(), JobCancelled)
    assert session.error() is None
    assert run(session, "print(total)")[0] == "8\n"
    session.end(WAIT_S)


def test_a_call_over_its_own_limit_keeps_the_session_if_it_obeys(client: BlockingClient) -> None:
    session = opened(client, "total = 7")
    session.newest.wait(WAIT_S)
    _, late = run(session, SLEEP, timeout_s=1)
    assert isinstance(late.error(), RemoteTimeout)
    assert "time limit of 1 s" in str(late.error())
    assert run(session, "print(total)")[0] == "7\n"
    session.end(WAIT_S)


def test_a_call_that_needs_too_much_memory_ends_the_session_with_its_reason(
    client: BlockingClient,
) -> None:
    session = opened(client, "total = 7", memory_bytes=256 << 20)
    session.newest.wait(WAIT_S)
    _, died = run(
        session, "seen = bytearray(2 << 30)\nfor i in range(0, len(seen), 4096): seen[i] = 1"
    )
    error = died.error()
    assert isinstance(error, RemoteOutOfMemory)
    assert "Its variables there are gone." in error.message
    assert isinstance(end_of(session).error(), RemoteOutOfMemory)


def test_an_idle_session_ends_by_itself_and_leaves_no_container(
    client: BlockingClient, running: tuple[Coordinator, Worker]
) -> None:
    session = opened(client, "total = 7", idle_s=1)
    session.newest.wait(WAIT_S)
    end_of(session)
    error = session.error()
    assert isinstance(error, SessionEnded)
    assert "without a call" in error.message
    job = running[0].get(f"/jobs/{session.id}")
    assert (job["status"], job["reason"]["code"]) == ("completed", "session_ended")


def test_a_kernel_that_starts_again_finds_its_session(
    running: tuple[Coordinator, Worker],
) -> None:
    with client_of(running[0]) as client:
        session = opened(client, "total = 1")
        session.newest.wait(WAIT_S)
        session.call("total = 2\n" + SLEEP, cell=CELL)
        until_begun(session.newest)
    with client_of(running[0]) as client:
        again = client.attach_session(session.id)
        assert (again.name, again.newest.number) == ("work", 1)
        again.newest.cancel(WAIT_S)
        assert again.newest.stdout == "begun\n"
        assert run(again, "print(total)")[0] == "2\n"
        again.end(WAIT_S)


def test_a_killed_coordinator_keeps_its_sessions(tmp_path: Path) -> None:
    data_dir = tmp_path / "coordinator"
    with Coordinator(data_dir) as first, Worker(first, tmp_path / "worker") as _:
        with client_of(first) as client:
            session = opened(client, "total = 1")
            session.newest.wait(WAIT_S)
            call = session.call(
                "total += 1\nimport time\nfor i in range(20):\n    print(i, flush=True)\n"
                "    time.sleep(0.1)",
                cell=CELL,
            )
            until_begun(call)
            first.kill()
            with Coordinator(data_dir, like=first) as second:
                done = call.wait(WAIT_S)
                assert done.error() is None
                assert call.stdout == "".join(f"{i}\n" for i in range(20))
                assert run(session, "print(total)")[0] == "2\n"
                end = session.end(WAIT_S)
                assert end is not None and end.view.status == "completed"
                assert second.get("/credits/scientist")["held"] == 0


@pytest.mark.parametrize("at", ["idle", "busy"])
def test_a_killed_worker_loses_the_session_and_says_what_to_do(tmp_path: Path, at: str) -> None:
    with (
        Coordinator(tmp_path / "coordinator", "--grace-s", "1") as coordinator,
        Worker(coordinator, tmp_path / "worker") as worker,
        client_of(coordinator) as client,
    ):
        session = opened(client, "total = 1")
        session.newest.wait(WAIT_S)
        call = None
        if at == "busy":
            call = session.call(SLEEP, cell=CELL)
            until_begun(call)
        worker.kill()
        end = end_of(session)
        assert end.cost_ucr == 0
        errors = [session.error(), *([call.wait(WAIT_S).error()] if call else [])]
        for error in errors:
            assert isinstance(error, WorkerLost)
            assert "Its variables there are gone." in error.message
            assert "Run the cells again" in error.hint
        with pytest.raises(WorkerLost):
            session.call("print(total)", cell=CELL)
        assert client.balance().held == 0
        # a worker of the same folder takes away what the killed one has left
        with Worker(coordinator, tmp_path / "worker") as back:
            wait_for(lambda: coordinator.get("/workers")["workers"][0]["status"] == "online")
        assert containers_of(back.worker_id) == []
