"""The coordinator as a real process: killed in mid-job, started again, stopped in order."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from tornado.httpclient import HTTPClientError

import coordinator
from coordinator.services.audit import run_audit
from coordinator.services.submit import make_order, submit
from coordinator.settings import Settings
from coordinator.store.engine import Store
from gridx.clock import now_us, to_datetime
from gridx.ids import new_job_id
from gridx.protocol import (
    AttemptRef,
    JobChanged,
    Output,
    OutputAck,
    Position,
    StartAttempt,
    Submit,
    Watch,
    Welcome,
)
from gridx.resources import MIB
from gridx.schemas import JobRequest
from gridx.states import FINAL_JOB_STATES
from tests.support.coordinator_program import CoordinatorProgram
from tests.support.scripted_client import Rest, ScriptedClient, until
from tests.support.scripted_worker import ScriptedWorker, WorkerByHand, text_events, workers

JOB = {"user_id": "alice", "code": "print(1)"}
QUICK = ("--heartbeat-s", "0.3", "--grace-s", "30")


async def _audit(data_dir: Path) -> tuple[str, ...]:
    store = Store(f"sqlite:///{data_dir / 'gridx.db'}")
    await store.open()
    try:
        return await store.read(run_audit)
    finally:
        await store.close()


@pytest.fixture(autouse=True)
async def _no_program_outlives_its_test() -> AsyncIterator[None]:
    yield
    await CoordinatorProgram.kill_what_is_left()


async def test_a_killed_coordinator_comes_back_and_the_output_goes_on_without_a_gap(
    tmp_path: Path,
) -> None:
    program = CoordinatorProgram(tmp_path, *QUICK)
    await program.start()
    worker = WorkerByHand(program.ws_url)
    client = ScriptedClient(program.http_url)
    job_id = new_job_id()
    first, lost, last = (text_events(f"{word}\n") for word in ("stored", "not stored", "after"))
    await worker.connect()
    await client.__aenter__()
    client.send(Submit(job=JobRequest(code="1", job_id=job_id)))
    start = await worker.expect(StartAttempt)
    worker.started(start)
    worker.output(start, 0, first)
    await worker.expect(OutputAck, offset=len(first))
    worker.output(start, len(first), lost)
    await client.expect(Output, offset=len(first))
    await program.kill()
    await worker.leave()
    await client.close()
    seen = client.output(job_id)
    assert seen == first + lost

    await program.start()
    back = WorkerByHand(program.ws_url, worker_id=worker.worker_id)
    welcome = await back.connect(running=(AttemptRef(job_id=job_id, attempt=1),))
    assert isinstance(welcome, Welcome)
    (adopted,) = welcome.adopted
    assert (adopted.job_id, adopted.attempt) == (job_id, 1)
    whole = first + lost + last
    async with ScriptedClient(program.http_url) as again:
        again.send(Watch(job_id=job_id, after=Position(attempt=1, offset=len(seen))))
        await again.expect(JobChanged)
        back.output(start, adopted.offset, whole[adopted.offset :])
        back.finish(start, stream_bytes=len(whole))
        final = await again.final(job_id)
        for message in again.received:
            if isinstance(message, Output):
                assert message.offset == len(seen)
                seen += message.data
    assert seen == whole
    assert (final.job.status, final.job.attempt) == ("completed", 1)
    assert (final.balance_ucr, final.held_ucr) == (100_000_000 - final.cost_ucr, 0)
    shown = await Rest(program.http_url).get(f"/jobs/{job_id}")
    assert shown["stdout"] == "stored\nnot stored\nafter\n"
    await back.leave()
    await program.kill()
    assert await _audit(tmp_path) == ()


async def test_a_job_whose_coordinator_died_at_once_is_paid_from_before_the_death(
    tmp_path: Path,
) -> None:
    program = CoordinatorProgram(tmp_path, *QUICK)
    await program.start()
    worker = WorkerByHand(program.ws_url)
    await worker.connect()
    job_id = new_job_id()
    async with ScriptedClient(program.http_url) as client:
        client.send(Submit(job=JobRequest(code="1", job_id=job_id)))
        start = await worker.expect(StartAttempt)
        worker.started(start)  # written about a second later, which this coordinator never sees
        await program.kill()
        killed_us = now_us()
        await worker.leave()

    await program.start()
    back = WorkerByHand(program.ws_url, worker_id=worker.worker_id)
    await back.connect(running=(AttemptRef(job_id=job_id, attempt=1),))
    back.started(start)
    async with ScriptedClient(program.http_url) as again:
        again.send(Watch(job_id=job_id))
        await again.expect(JobChanged)
        back.finish(start, stream_bytes=0)
        final = await again.final(job_id)
    assert final.job.started_at is not None
    assert final.job.started_at < to_datetime(killed_us)
    await back.leave()
    await program.kill()


async def test_a_worker_that_never_returns_loses_its_job_after_the_grace(tmp_path: Path) -> None:
    program = CoordinatorProgram(tmp_path, "--heartbeat-s", "0.3", "--grace-s", "0.5")
    await program.start()
    worker = WorkerByHand(program.ws_url)
    await worker.connect()
    job = await Rest(program.http_url).post("/jobs", JOB)
    await worker.expect(StartAttempt)
    await program.kill()
    await worker.leave()
    async with program:
        async with ScriptedWorker(program.ws_url, user="lender"):
            done = await Rest(program.http_url).wait_for(job["job_id"])
    assert (done["status"], done["attempt"]) == ("completed", 2)
    assert await _audit(tmp_path) == ()


async def test_the_queue_is_there_after_a_restart(tmp_path: Path) -> None:
    program = CoordinatorProgram(tmp_path, *QUICK)
    async with program:
        rest = Rest(program.http_url)
        jobs = [await rest.post("/jobs", JOB) for _ in range(5)]
        await rest.post(f"/jobs/{jobs[4]['job_id']}/cancel")
    async with program:
        rest = Rest(program.http_url)
        async with ScriptedWorker(program.ws_url):
            done = [await rest.wait_for(job["job_id"]) for job in jobs]
        assert [job["status"] for job in done] == ["completed"] * 4 + ["cancelled"]
        assert (await rest.get("/credits/alice"))["held"] == 0.0


async def _send(rest: Rest, user: str, job_id: str, acknowledged: set[str]) -> None:
    body = {"user_id": user, "code": job_id, "job_id": job_id, "limits": {"timeout_s": 5}}
    try:
        answer = await rest.post("/jobs", body)
    except (OSError, HTTPClientError, AssertionError):
        return  # not acknowledged: sent again in the next round, under the same id
    acknowledged.add(answer["job_id"])


async def test_kills_under_load_lose_no_job_that_was_acknowledged(tmp_path: Path) -> None:
    options = ("--heartbeat-s", "0.2", "--grace-s", "0.5", "--max-tries", "50")
    program = CoordinatorProgram(tmp_path, *options)
    acknowledged: set[str] = set()
    wanted = [(f"u{number % 7}", new_job_id()) for number in range(60)]
    for round_number in range(4):
        await program.start()
        rest = Rest(program.http_url)
        many = [ScriptedWorker(program.ws_url, name=f"w{number}") for number in range(3)]
        async with workers(*many):
            todo = [one for one in wanted if one[1] not in acknowledged]
            sending = [
                asyncio.ensure_future(_send(rest, user, job_id, acknowledged))
                for user, job_id in todo
            ]
            enough = 15 * (round_number + 1)

            await until(partial(_reached, acknowledged, enough))
            await program.kill()
            await asyncio.gather(*sending)
    async with program:
        rest = Rest(program.http_url)
        async with ScriptedWorker(program.ws_url):
            done = [await rest.wait_for(job_id) for job_id in sorted(acknowledged)]
    assert {job["status"] for job in done} == {"completed"}
    assert [job["stdout"] for job in done] == [f"{job['job_id']}\n" for job in done]
    assert await _audit(tmp_path) == ()


async def _reached(acknowledged: set[str], enough: int) -> bool:
    return len(acknowledged) >= enough


# --- the program -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    program = CoordinatorProgram(tmp_path, "--log-level", "debug")
    await program.start()
    async with ScriptedWorker(program.ws_url) as worker:
        assert await program.end(number) == 0
        await worker.closed()
    actions = [line["action"] for line in program.log_objects()]
    assert "coordinator.stopping" in actions
    assert "worker.joined" in actions
    with socket.socket() as free:
        free.bind(("127.0.0.1", program.http_port))


async def test_it_starts_inside_its_own_folder_as_the_oldest_quick_start_says(
    tmp_path: Path,
) -> None:
    folder = Path(coordinator.__file__).parent
    async with CoordinatorProgram(tmp_path, cwd=folder) as program:
        assert (await Rest(program.http_url).get("/health"))["status"] == "ok"


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "coordinator.main", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_port_in_use_is_named_with_a_way_out(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = _run("--http-port", port, "--ws-port", "0", "--data-dir", str(tmp_path))
        assert ended.returncode == 2
        assert f"Port {port} on 127.0.0.1 is in use." in ended.stderr
        assert "--http-port" in ended.stderr
        ended = _run("--http-port", "0", "--ws-port", port, "--data-dir", str(tmp_path))
        assert "--ws-port" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


async def test_a_data_folder_belongs_to_one_process(tmp_path: Path) -> None:
    async with CoordinatorProgram(tmp_path) as program:
        ended = await asyncio.to_thread(
            _run, "--http-port", "0", "--ws-port", "0", "--data-dir", str(tmp_path)
        )
        assert ended.returncode == 2
        assert str(program.pid) in ended.stderr
        assert "--data-dir" in ended.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--host", "0.0.0.0"), "other machines"),
        (("--host", "192.0.2.1"), "other machines"),
        (("--host", "localhost.example"), "other machines"),
        (("--auth", "accounts"), "not built yet"),
        (("--behind-proxy",), "not built yet"),
        (("--http-port", "70000"), "--http-port"),
        (("--http-port", "8100", "--ws-port", "8100"), "two ports"),
        (("--heartbeat-s", "0"), "--heartbeat-s"),
        (("--grace-s", "-1"), "--grace-s"),
        (("--max-tries", "0"), "--max-tries"),
    ],
)
def test_what_it_cannot_do_is_refused_with_a_sentence(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    ended = _run(*options, "--data-dir", str(tmp_path / "never"))
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "never").exists()


async def test_check_ledger_says_that_the_ledger_is_clean(tmp_path: Path) -> None:
    async with CoordinatorProgram(tmp_path) as program:
        await Rest(program.http_url).post("/jobs", JOB)
    ended = await asyncio.to_thread(_run, "--data-dir", str(tmp_path), "check-ledger")
    assert (ended.returncode, ended.stdout) == (0, "The ledger is clean.\n")
    ended = await asyncio.to_thread(_run, "--data-dir", str(tmp_path / "no"), "check-ledger")
    assert ended.returncode == 2
    assert "no ledger" in ended.stderr


@pytest.mark.slow
async def test_ten_thousand_stored_jobs_leave_it_under_150_mb(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    store = Store(settings.database_url)
    await store.open()
    free = {"cpus": 0.001, "timeout_s": 0.001}
    from gridx.schemas import Limits

    async def put(number: int) -> None:
        job = JobRequest(code=f"print({number})\n" * 20, job_id=new_job_id(), limits=Limits(**free))  # type: ignore[arg-type]
        await store.run(submit, settings, make_order(f"u{number % 50}", job), 0.0)

    for begin in range(0, 10_000, 500):
        await asyncio.gather(*(put(number) for number in range(begin, begin + 500)))
    await store.close()
    async with CoordinatorProgram(tmp_path, *QUICK) as program:
        rest = Rest(program.http_url)
        assert (await rest.get("/status"))["jobs_queued"] == 10_000
        for _ in range(20):
            await rest.get("/jobs?limit=200")
        async with ScriptedWorker(program.ws_url):
            job = await rest.post("/jobs", {"user_id": "late", "code": "1"})
            await rest.get(f"/jobs/{job['job_id']}")
            size = program.memory_bytes()
    print(f"coordinator with 10,000 jobs: {size / MIB:.0f} MiB resident")
    assert size < 150_000_000


def test_final_states_are_what_the_tests_wait_for() -> None:
    from tests.support.scripted_client import FINAL

    assert {state.value for state in FINAL_JOB_STATES} == set(FINAL)
