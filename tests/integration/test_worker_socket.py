"""The workers' socket: hello, fencing, resending, adoption, loss; all over real sockets."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from coordinator.app import Serving, serving
from coordinator.settings import Settings
from gridx.ids import new_job_id, new_worker_id
from gridx.protocol import (
    PROTOCOL,
    AttemptRef,
    CapabilityChanged,
    Heartbeat,
    Output,
    OutputAck,
    OutputResend,
    Refused,
    Settled,
    StartAttempt,
    StopAttempt,
    Welcome,
)
from gridx.resources import Load
from tests.support.scripted_client import Rest, until
from tests.support.scripted_worker import (
    ScriptedWorker,
    WorkerByHand,
    WorkerThatFails,
    WorkerThatHandsBack,
    WorkerThatNeverStarts,
    WorkerThatResends,
    WorkerThatVanishes,
    offer,
    text_events,
    workers,
)
from worker.signing import Signer

JOB = {"user_id": "alice", "code": "print(1)"}


@pytest.fixture
def rest(coordinator: Serving) -> Rest:
    return Rest(coordinator.http_url)


# --- hello -----------------------------------------------------------------------------------


async def test_a_hello_is_welcomed_with_what_a_worker_needs(coordinator: Serving) -> None:
    worker = ScriptedWorker(coordinator.ws_url, password="secret123")
    async with workers(worker):
        assert worker.welcome is not None
        assert worker.welcome.protocol == PROTOCOL
        assert worker.welcome.http_url == coordinator.http_url
        assert worker.welcome.heartbeat_s == 0.2
        assert worker.welcome.max_frame_bytes == 16 * 1024 * 1024
        assert worker.welcome.token is not None
        assert worker.welcome.token.startswith("gxw_")


async def test_the_token_of_the_welcome_replaces_the_password(coordinator: Serving) -> None:
    first = ScriptedWorker(coordinator.ws_url, password="secret123")
    async with workers(first):
        assert first.welcome is not None
        token = first.welcome.token
    again = ScriptedWorker(coordinator.ws_url, worker_id=first.worker_id, token=token)
    async with workers(again):
        assert again.welcome is not None
        assert again.welcome.token is None
    other = ScriptedWorker(coordinator.ws_url, token=token)
    refused = await other.connect()
    assert isinstance(refused, Refused)
    assert refused.error.code == "forbidden"
    await other.leave()


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        ({"password": "wrong password"}, "not_authenticated"),
        ({"token": "gxw_nonsense", "password": None}, "not_authenticated"),
        ({"protocol_min": PROTOCOL + 1, "protocol_max": PROTOCOL + 3}, "protocol"),
        ({"protocol_min": 0, "protocol_max": 0}, "protocol"),
        ({"worker_id": "7"}, "invalid_request"),
        ({"user": "a b"}, "invalid_request"),
        ({"name": ""}, "invalid_request"),
        ({"name": "x\x1b[31m"}, "invalid_request"),
        ({"name": "x" * 500}, "invalid_request"),
        ({"capability": offer(cores=float("inf"))}, "invalid_request"),
        ({"capability": offer(cores=float("nan"))}, "invalid_request"),
        ({"capability": offer(cores=-1)}, "invalid_request"),
        ({"capability": offer(memory_bytes=-1)}, "invalid_request"),
        ({"capability": offer(slots=10**9)}, "invalid_request"),
        ({"capability": offer(sandbox="none")}, "invalid_request"),
    ],
)
async def test_a_wrong_hello_is_refused_with_a_reason(
    coordinator: Serving, hello: dict[str, object], code: str
) -> None:
    async with ScriptedWorker(coordinator.ws_url, password="secret123"):
        pass
    worker = ScriptedWorker(coordinator.ws_url, password="secret123")
    answer = await worker.connect(**hello)
    assert isinstance(answer, Refused)
    assert answer.error.code == code
    assert answer.error.hint
    assert await worker.closed() == 4000
    await worker.leave()


async def test_closed_registration_lets_no_new_name_in(settings: Settings) -> None:
    closed = msgspec.structs.replace(settings, registration_open=False)
    async with serving(closed) as running:
        worker = ScriptedWorker(running.ws_url, user="stranger", password="secret123")
        answer = await worker.connect()
        assert isinstance(answer, Refused)
        assert answer.error.code == "not_authenticated"
        await worker.leave()


async def test_the_id_of_somebody_elses_worker_is_refused(coordinator: Serving) -> None:
    worker_id = new_worker_id()
    async with ScriptedWorker(coordinator.ws_url, user="bob", worker_id=worker_id):
        thief = ScriptedWorker(coordinator.ws_url, user="eve", worker_id=worker_id)
        answer = await thief.connect()
        assert isinstance(answer, Refused)
        assert answer.error.code == "forbidden"
        await thief.leave()


def signed(signer: Signer, worker: ScriptedWorker, user: str = "lender") -> dict[str, object]:
    """Return the fields of a hello that show who the worker is."""
    signed_at, signature = signer.sign_hello(worker.worker_id, user)
    return {
        "public_key": signer.public_key, "signed_at": signed_at, "signature": signature
    }  # fmt: skip


async def test_a_worker_is_shown_by_its_key_and_so_are_its_jobs(
    coordinator: Serving, rest: Rest, tmp_path: Path
) -> None:
    signer = Signer(tmp_path / "key")
    worker = ScriptedWorker(coordinator.ws_url)
    assert isinstance(await worker.connect(**signed(signer, worker)), Welcome)
    (seen,) = (await rest.get("/workers"))["workers"]
    assert seen["public_key"] == signer.public_key
    job = await rest.post("/jobs", JOB)
    assert (await rest.wait_for(job["job_id"]))["worker_key"] == signer.public_key
    await worker.leave()


async def test_a_worker_without_its_key_or_with_another_is_refused(
    coordinator: Serving, tmp_path: Path
) -> None:
    signer, other = Signer(tmp_path / "key"), Signer(tmp_path / "other")
    worker = ScriptedWorker(coordinator.ws_url)
    stale = {**signed(signer, worker), "signed_at": 1}
    forged = {**signed(other, worker), "public_key": signer.public_key}
    for hello in (stale, forged, {**signed(signer, worker), "signature": "AAAA"}):
        refused = ScriptedWorker(coordinator.ws_url, worker_id=worker.worker_id)
        assert isinstance(await refused.connect(**hello), Refused)
        await refused.leave()
    assert isinstance(await worker.connect(), Welcome)  # of an older release: it has no key yet
    await worker.leave()
    first = ScriptedWorker(coordinator.ws_url, worker_id=worker.worker_id)
    assert isinstance(await first.connect(**signed(signer, first)), Welcome)
    await first.leave()
    for hello in ({}, signed(other, worker)):
        later = ScriptedWorker(coordinator.ws_url, worker_id=worker.worker_id)
        answer = await later.connect(**hello)
        assert isinstance(answer, Refused)
        assert "another key" in answer.error.message
        await later.leave()


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x81",
        "text",
        b"\x91" * 10_000,
        msgspec.msgpack.encode({"type": "nonsense"}),
        msgspec.msgpack.encode({"type": "heartbeat", "running": 7}),
        msgspec.msgpack.encode(["heartbeat"]),
    ],
    ids=["empty", "unused byte", "cut", "text", "too deep", "unknown type", "wrong field", "list"],
)
@pytest.mark.parametrize("greeted", [True, False])
async def test_a_malformed_message_is_refused_without_a_traceback(
    coordinator: Serving, frame: bytes | str, greeted: bool
) -> None:
    worker = WorkerByHand(coordinator.ws_url, beats=False)
    async with workers(worker):
        target = worker
        if not greeted:
            target = _Mute(coordinator.ws_url)
            await target.open()
        target.send_raw(frame)
        refused = await target.expect(Refused)
        assert refused.error.code == "protocol"
        assert "Traceback" not in refused.error.message
        assert await target.closed() == 4000
        await target.leave()
    assert (await Rest(coordinator.http_url).get("/health"))["status"] == "ok"


class _Mute(WorkerByHand):
    """Connects and says no hello."""

    async def open(self) -> None:
        from tornado.websocket import websocket_connect

        self._connection = await websocket_connect(self.ws_url)
        self._spawn(self._read(self._connection))


async def test_a_frame_over_the_limit_ends_the_connection(coordinator: Serving) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker):
        worker.send_raw(b"x" * (16 * 1024 * 1024 + 1))
        assert await worker.closed() in (1006, 1009)


async def test_a_silent_worker_is_closed(settings: Settings) -> None:
    quick = msgspec.structs.replace(settings, silence_s=0.5)
    async with serving(quick) as running:
        worker = WorkerByHand(running.ws_url, beats=False)
        async with workers(worker):
            await worker.closed()


# --- doing jobs ------------------------------------------------------------------------------


async def test_a_worker_gets_no_more_than_it_can_start_now(
    coordinator: Serving, rest: Rest
) -> None:
    worker = WorkerByHand(coordinator.ws_url, capability=offer(cores=2))
    async with workers(worker):
        jobs = [await rest.post("/jobs", JOB) for _ in range(3)]
        last = await rest.get(f"/jobs/{jobs[2]['job_id']}")
        assert last["status"] == "queued"
        assert last["waiting"] == "1 worker online: 1 busy"
        start = await worker.expect(StartAttempt, job_id=jobs[0]["job_id"])
        worker.finish(start)
        await worker.expect(StartAttempt, job_id=jobs[2]["job_id"])


async def test_a_start_carries_the_job(coordinator: Serving, rest: Rest) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker):
        job = await rest.post("/jobs", {**JOB, "limits": {"timeout_s": 7}})
        start = await worker.expect(StartAttempt)
    assert (start.job_id, start.attempt, start.user) == (job["job_id"], 1, "alice")
    assert start.job.code == "print(1)"
    assert start.job.limits.timeout_s == 7.0


async def test_a_process_sandbox_gets_its_owners_jobs_only(
    coordinator: Serving, rest: Rest
) -> None:
    worker = ScriptedWorker(coordinator.ws_url, user="bob", capability=offer(sandbox="process"))
    async with workers(worker):
        stranger = await rest.post("/jobs", JOB)
        own = await rest.post("/jobs", {**JOB, "user_id": "bob"})
        done = await rest.wait_for(own["job_id"])
        assert done["cost"] == 0.0
        waits = await rest.get(f"/jobs/{stranger['job_id']}")
        assert waits["status"] == "queued"
        assert "owner's jobs" in waits["waiting"]


async def test_less_on_offer_means_no_more_jobs(coordinator: Serving, rest: Rest) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker):
        worker.send(CapabilityChanged(capability=offer(slots=0)))

        async def is_known() -> bool:
            (shown,) = (await rest.get("/workers"))["workers"]
            return bool(shown["capability"]["slots"] == 0)

        await until(is_known)
        job = await rest.post("/jobs", JOB)
        assert (await rest.get(f"/jobs/{job['job_id']}"))["status"] == "queued"
        worker.send(CapabilityChanged(capability=offer()))
        await worker.expect(StartAttempt, job_id=job["job_id"])


async def test_output_is_acknowledged_when_it_is_stored(coordinator: Serving, rest: Rest) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker):
        job = await rest.post("/jobs", JOB)
        start = await worker.expect(StartAttempt)
        first, second = text_events("one\n"), text_events("two\n")
        worker.output(start, 0, first)
        await worker.expect(OutputAck, job_id=job["job_id"], offset=len(first))
        worker.output(start, len(first), second)
        await worker.expect(OutputAck, job_id=job["job_id"], offset=len(first + second))
        # Known already: acknowledged again, stored once.
        seen = len(worker.received)
        worker.output(start, 0, first)
        await worker.expect(OutputAck, after=seen, job_id=job["job_id"])
        worker.finish(start, stream_bytes=len(first + second))
        await worker.expect(Settled)
        assert (await rest.wait_for(job["job_id"]))["stdout"] == "one\ntwo\n"


async def test_a_gap_is_asked_for_from_the_stored_end(coordinator: Serving, rest: Rest) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker):
        job = await rest.post("/jobs", JOB)
        start = await worker.expect(StartAttempt)
        worker.output(start, 100, text_events("late\n"))
        resend = await worker.expect(OutputResend)
        assert (resend.job_id, resend.offset) == (job["job_id"], 0)


async def test_reordered_doubled_and_cut_output_ends_up_whole(
    coordinator: Serving, rest: Rest
) -> None:
    async with workers(WorkerThatResends(coordinator.ws_url)):
        job = await rest.post("/jobs", JOB)
        done = await rest.wait_for(job["job_id"])
    assert done["stdout"] == "".join(f"line {number}\n" for number in range(20))


async def test_a_piece_that_holds_no_whole_events_ends_the_connection(
    coordinator: Serving, rest: Rest
) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker):
        await rest.post("/jobs", JOB)
        start = await worker.expect(StartAttempt)
        worker.output(start, 0, b"\x00\x00\x10\x00cut")
        refused = await worker.expect(Refused)
        assert refused.error.code == "protocol"


async def test_more_output_than_reported_is_the_workers_fault(
    coordinator: Serving, rest: Rest
) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker):
        job = await rest.post("/jobs", JOB)
        start = await worker.expect(StartAttempt)
        worker.output(start, 0, text_events("a\n", "b\n"))
        worker.finish(start, stream_bytes=3)

        async def is_requeued() -> bool:
            return bool((await rest.get(f"/jobs/{job['job_id']}"))["status"] == "queued")

        await until(is_requeued)


async def test_a_worker_that_floods_the_log_loses_the_job(settings: Settings) -> None:
    small = msgspec.structs.replace(settings, max_log_bytes=100_000)
    async with serving(small) as running:
        rest = Rest(running.http_url)
        flooding = WorkerByHand(running.ws_url, user="flood")
        async with workers(flooding):
            job = await rest.post("/jobs", JOB)
            start = await flooding.expect(StartAttempt)
            piece = text_events("x" * 60_000)
            flooding.output(start, 0, piece)
            flooding.output(start, len(piece), piece)
            await flooding.expect(StopAttempt, fenced=True)
            await rest.wait_for(job["job_id"], "queued")
            async with ScriptedWorker(running.ws_url):
                done = await rest.wait_for(job["job_id"])
    assert (done["status"], done["attempt"]) == ("completed", 2)


async def test_a_report_sent_twice_settles_once(coordinator: Serving, rest: Rest) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker):
        job = await rest.post("/jobs", JOB)
        start = await worker.expect(StartAttempt)
        worker.finish(start)
        await worker.expect(Settled)
        balance = await rest.get("/credits/alice")
        seen = len(worker.received)
        worker.finish(start)
        await worker.expect(Settled, after=seen)
        assert await rest.get("/credits/alice") == balance
        assert (await rest.get(f"/jobs/{job['job_id']}"))["status"] == "completed"


@pytest.mark.parametrize("what", ["output", "started", "finish"])
async def test_a_late_message_is_fenced_off(coordinator: Serving, rest: Rest, what: str) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    other = WorkerByHand(coordinator.ws_url)
    async with workers(worker, other):
        job = await rest.post("/jobs", JOB)
        holder = await _who_got_a_start(worker, other)
        start = await holder.expect(StartAttempt)
        thief = other if holder is worker else worker
        ref = AttemptRef(job_id=job["job_id"], attempt=1)
        match what:
            case "output":
                thief.output(ref, 0, text_events("forged\n"))
            case "started":
                thief.started(ref)
            case "finish":
                thief.finish(ref)
        await thief.expect(StopAttempt, job_id=job["job_id"], fenced=True)
        holder.finish(start)
        done = await rest.wait_for(job["job_id"])
    assert (done["status"], done["stdout"]) == ("completed", "")


async def _who_got_a_start(*many: ScriptedWorker) -> ScriptedWorker:
    def holders() -> list[ScriptedWorker]:
        return [w for w in many if any(isinstance(m, StartAttempt) for m in w.received)]

    async def is_sent() -> bool:
        return bool(holders())

    await until(is_sent)
    return holders()[0]


# --- losing and finding workers --------------------------------------------------------------


async def test_a_worker_that_vanishes_loses_its_job_to_another_after_the_grace(
    coordinator: Serving, rest: Rest
) -> None:
    async with workers(WorkerThatVanishes(coordinator.ws_url, user="gone")):
        job = await rest.post("/jobs", JOB)
        await rest.wait_for(job["job_id"], "queued")
        shown = await rest.get(f"/jobs/{job['job_id']}")
        assert shown["attempt"] == 1
        async with ScriptedWorker(coordinator.ws_url, user="lender") as other:
            done = await rest.wait_for(job["job_id"])
    assert done["status"] == "completed"
    assert done["attempt"] == 2
    assert done["worker_id"] == other.worker_id
    assert done["stdout"] == "print(1)\n"
    assert (await rest.get("/credits/gone"))["balance"] == 100.0


async def test_tries_used_up_fail_the_job_and_release_the_hold(settings: Settings) -> None:
    once = msgspec.structs.replace(settings, max_tries=1)
    async with serving(once) as running:
        rest = Rest(running.http_url)
        async with workers(WorkerThatVanishes(running.ws_url)):
            job = await rest.post("/jobs", JOB)
            done = await rest.wait_for(job["job_id"])
        assert done["status"] == "failed"
        assert done["reason"]["code"] == "worker_lost"
        assert done["cost"] == 0.0
        account = await rest.get("/credits/alice")
        assert account == {"user_id": "alice", "balance": 100.0, "available": 100.0, "held": 0.0}


async def test_a_worker_that_comes_back_in_time_is_adopted_and_goes_on(
    settings: Settings,
) -> None:
    patient = msgspec.structs.replace(settings, grace_s=60.0)
    async with serving(patient) as running:
        rest = Rest(running.http_url)
        worker = WorkerByHand(running.ws_url)
        await worker.connect()
        job = await rest.post("/jobs", JOB)
        start = await worker.expect(StartAttempt)
        worker.started(start)
        first, second = text_events("before\n"), text_events("after\n")
        worker.output(start, 0, first)
        await worker.expect(OutputAck)
        worker.vanish()
        await worker.leave()

        back = WorkerByHand(running.ws_url, worker_id=worker.worker_id)
        ref = AttemptRef(job_id=job["job_id"], attempt=1)
        gone = AttemptRef(job_id=new_job_id(), attempt=1)
        welcome = await back.connect(running=(ref, gone))
        assert isinstance(welcome, Welcome)
        assert [(one.job_id, one.offset) for one in welcome.adopted] == [(ref.job_id, len(first))]
        assert welcome.stop == (gone,)
        back.output(start, len(first), second)
        back.finish(start, stream_bytes=len(first + second))
        done = await rest.wait_for(job["job_id"])
        await back.leave()
    assert (done["status"], done["attempt"]) == ("completed", 1)
    assert done["stdout"] == "before\nafter\n"


async def test_a_worker_that_restarted_loses_what_it_forgot_at_once(settings: Settings) -> None:
    patient = msgspec.structs.replace(settings, grace_s=3600.0)
    async with serving(patient) as running:
        rest = Rest(running.http_url)
        worker = WorkerByHand(running.ws_url)
        await worker.connect()
        job = await rest.post("/jobs", JOB)
        await worker.expect(StartAttempt)
        worker.vanish()
        await worker.leave()
        async with ScriptedWorker(running.ws_url, worker_id=worker.worker_id):
            done = await rest.wait_for(job["job_id"])
    assert (done["status"], done["attempt"]) == ("completed", 2)


async def test_the_newer_connection_of_a_worker_wins(coordinator: Serving, rest: Rest) -> None:
    older = WorkerByHand(coordinator.ws_url)
    newer = WorkerByHand(coordinator.ws_url, worker_id=older.worker_id)
    async with workers(older):
        job = await rest.post("/jobs", JOB)
        start = await older.expect(StartAttempt)
        welcome = await newer.connect(running=(AttemptRef(job_id=job["job_id"], attempt=1),))
        assert isinstance(welcome, Welcome)
        assert len(welcome.adopted) == 1
        assert await older.closed() == 4001
        newer.finish(start)
        done = await rest.wait_for(job["job_id"])
        assert (done["status"], done["attempt"]) == ("completed", 1)
        assert (await rest.get("/status"))["workers_online"] == 1
        await newer.leave()


async def test_an_attempt_that_no_beat_names_is_lost(coordinator: Serving, rest: Rest) -> None:
    async with workers(WorkerThatNeverStarts(coordinator.ws_url, user="mute")):
        job = await rest.post("/jobs", JOB)
        await rest.wait_for(job["job_id"], "queued")
        async with ScriptedWorker(coordinator.ws_url):
            done = await rest.wait_for(job["job_id"])
    assert (done["status"], done["attempt"]) == ("completed", 2)


async def test_an_attempt_that_a_beat_names_and_nobody_knows_is_stopped(
    coordinator: Serving,
) -> None:
    worker = WorkerByHand(coordinator.ws_url, beats=False)
    async with workers(worker):
        unknown = AttemptRef(job_id=new_job_id(), attempt=1)
        worker.send(Heartbeat(running=(unknown,), load=Load()))
        await worker.expect(StopAttempt, job_id=unknown.job_id, fenced=True)


@pytest.mark.parametrize("kind", [WorkerThatHandsBack, WorkerThatFails])
async def test_a_job_that_one_worker_cannot_run_goes_to_another(
    coordinator: Serving, rest: Rest, kind: type[ScriptedWorker]
) -> None:
    async with workers(kind(coordinator.ws_url, user="unwilling")):
        job = await rest.post("/jobs", JOB)
        await rest.wait_for(job["job_id"], "queued")
        async with ScriptedWorker(coordinator.ws_url):
            done = await rest.wait_for(job["job_id"])
    assert (done["status"], done["attempt"]) == ("completed", 2)


async def test_many_jobs_at_once_over_many_workers_are_all_done(
    coordinator: Serving, rest: Rest
) -> None:
    import asyncio

    many = [ScriptedWorker(coordinator.ws_url, name=f"w{n}") for n in range(8)]
    async with workers(*many):
        jobs = await asyncio.gather(
            *(rest.post("/jobs", {"user_id": f"u{n % 20}", "code": f"job {n}"}) for n in range(200))
        )
        done = [await rest.wait_for(job["job_id"]) for job in jobs]
    assert {job["status"] for job in done} == {"completed"}
    assert [job["stdout"] for job in done] == [f"job {n}\n" for n in range(200)]
    assert {job["attempt"] for job in done} == {1}
    held = [(await rest.get(f"/credits/u{n}"))["held"] for n in range(20)]
    assert held == [0.0] * 20


def test_output_messages_name_job_attempt_and_call() -> None:
    assert {"job_id", "attempt", "call", "offset", "data"} == set(Output.__struct_fields__)
