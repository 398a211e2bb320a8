"""The REST surface over a real coordinator: shapes word for word, and every bad body."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from coordinator.app import Serving
from coordinator.bus.base import job_subject
from gridx.ids import new_job_id
from gridx.resources import GIB
from gridx.schemas import MAX_CODE_BYTES
from gridx.states import Cause
from tests.support.scripted_client import Rest, until
from tests.support.scripted_worker import (
    ScriptedWorker,
    StartAttempt,
    WorkerByHand,
    offer,
    text_events,
    workers,
)

JOB = {"user_id": "alice", "code": "print(1)", "language": "python"}


@pytest.fixture
def rest(coordinator: Serving) -> Rest:
    return Rest(coordinator.http_url)


# --- compatibility, word for word ------------------------------------------------------------


async def test_the_two_calls_of_the_quick_start_run_a_job(coordinator: Serving, rest: Rest) -> None:
    async with ScriptedWorker(coordinator.ws_url, user="alice", password="secret123"):
        job = await rest.post("/jobs", JOB, status=201)
        assert job["status"] == "queued"
        assert job["reserved"] == 6.0
        done = await rest.wait_for(job["job_id"])
    assert done["status"] == "completed"
    assert done["stdout"] == "print(1)\n"
    assert done["stderr"] == ""


async def test_a_job_is_queued_without_a_worker_and_says_why(rest: Rest) -> None:
    job = await rest.post("/jobs", JOB)
    assert job["status"] == "queued"
    shown = await rest.get(f"/jobs/{job['job_id']}")
    assert shown["status"] == "queued"
    assert shown["waiting"] == "No worker is online: it starts as soon as one joins."
    assert (shown["stdout"], shown["stderr"]) == ("", "")


async def test_a_new_account_has_a_hundred_credits_and_the_hold_is_taken_from_them(
    rest: Rest,
) -> None:
    await rest.post("/jobs", JOB)
    account = await rest.get("/credits/alice")
    assert account == {"user_id": "alice", "balance": 100.0, "available": 94.0, "held": 6.0}


async def test_limits_set_the_hold(rest: Rest) -> None:
    job = await rest.post("/jobs", {**JOB, "limits": {"timeout_s": 10, "cpus": 2}})
    assert job["reserved"] == 2.0
    assert job["limits"]["timeout_s"] == 10.0


async def test_a_charge_is_split_between_lender_and_fee_and_the_rest_is_released(
    coordinator: Serving, rest: Rest
) -> None:
    async with ScriptedWorker(coordinator.ws_url, user="lender"):
        job = await rest.post("/jobs", JOB)
        done = await rest.wait_for(job["job_id"])
        payer, lender = await rest.get("/credits/alice"), await rest.get("/credits/lender")
    assert done["cost"] > 0
    assert done["reserved"] == 0.0
    assert payer["held"] == 0.0
    assert payer["balance"] == pytest.approx(100.0 - done["cost"])
    assert lender["balance"] == pytest.approx(100.0 + 0.85 * done["cost"], abs=2e-6)


async def test_jobs_are_listed_newest_first_and_by_pages(rest: Rest) -> None:
    ids = [(await rest.post("/jobs", JOB))["job_id"] for _ in range(5)]
    await rest.post("/jobs", {**JOB, "user_id": "bob"})
    page = await rest.get("/jobs?user_id=alice&limit=3")
    assert [job["job_id"] for job in page["jobs"]] == ids[:1:-1]
    rest_of_it = await rest.get(f"/jobs?user_id=alice&limit=3&before={page['next']}")
    assert [job["job_id"] for job in rest_of_it["jobs"]] == ids[1::-1]
    assert rest_of_it["next"] is None
    everybody = await rest.get("/jobs")
    assert len(everybody["jobs"]) == 6


async def test_jobs_are_listed_by_status(rest: Rest) -> None:
    first = await rest.post("/jobs", JOB)
    second = await rest.post("/jobs", JOB)
    await rest.post(f"/jobs/{first['job_id']}/cancel")
    queued = await rest.get("/jobs?user_id=alice&status=queued")
    assert [job["job_id"] for job in queued["jobs"]] == [second["job_id"]]
    cancelled = await rest.get("/jobs?status=cancelled")
    assert [job["job_id"] for job in cancelled["jobs"]] == [first["job_id"]]


async def test_workers_are_shown_with_what_is_free(coordinator: Serving, rest: Rest) -> None:
    worker = WorkerByHand(coordinator.ws_url, name="bench", capability=offer(cores=2))
    async with workers(worker):
        await rest.post("/jobs", JOB)
        await worker.expect(StartAttempt)
        (shown,) = (await rest.get("/workers"))["workers"]
        assert shown["worker_id"] == worker.worker_id
        assert (shown["name"], shown["owner"], shown["status"]) == ("bench", "lender", "online")
        assert (shown["running"], shown["free_cores"]) == (1, 1.0)
        assert shown["free_memory_bytes"] == 7 * GIB
        status = await rest.get("/status")
        assert (status["workers_online"], status["cores"]) == (1, 2.0)
        assert status["jobs_running"] == 1

    async def is_offline() -> bool:
        return bool((await rest.get("/workers"))["workers"][0]["status"] == "offline")

    await until(is_offline)


async def test_health_status_page_and_description_answer(rest: Rest) -> None:
    assert (await rest.get("/health"))["status"] == "ok"
    status = await rest.get("/status")
    assert status["auth"] == "open"
    assert status["worker_share"] == 0.85
    assert status["rates"]["core_ucr_per_s"] == 100_000
    described = await rest.get("/openapi.json")
    assert "/jobs/{job_id}" in described["paths"]
    page = await rest.fetch("GET", "/")
    assert page.code == 200
    assert b"/jobs" in page.body
    metrics = await rest.fetch("GET", "/metrics")
    assert b'gridx_jobs{state="queued"} 0' in metrics.body


async def test_head_is_a_get_without_a_body(rest: Rest) -> None:
    response = await rest.fetch("HEAD", "/health")
    assert (response.code, response.body) == (200, b"")


# --- idempotency -----------------------------------------------------------------------------


async def test_the_same_id_and_body_is_the_same_job(rest: Rest) -> None:
    body = {**JOB, "job_id": new_job_id()}
    first = await rest.post("/jobs", body, status=201)
    again = await rest.post("/jobs", body, status=200)
    assert first["job_id"] == again["job_id"] == body["job_id"]
    assert (await rest.get("/credits/alice"))["held"] == 6.0


async def test_the_same_id_with_another_body_is_a_conflict(rest: Rest) -> None:
    body = {**JOB, "job_id": new_job_id()}
    await rest.post("/jobs", body)
    refused = await rest.post("/jobs", {**body, "code": "print(2)"}, status=409)
    assert refused["error"]["code"] == "conflict"
    refused = await rest.post("/jobs", {**body, "user_id": "bob"}, status=409)
    assert refused["error"]["code"] == "conflict"


async def test_many_submissions_cannot_spend_more_than_the_balance(rest: Rest) -> None:
    answers = await asyncio.gather(
        *(
            rest.fetch("POST", "/jobs", json.dumps(JOB), Content_Type="application/json")
            for _ in range(40)
        )
    )
    codes = sorted(answer.code for answer in answers)
    assert codes == [201] * 16 + [402] * 24  # 100 credits hold 16 jobs of 6
    account = await rest.get("/credits/alice")
    assert account["held"] == 96.0


# --- the ends of a job -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cause", "status", "code"),
    [
        (Cause.ERROR, "failed", "job_failed"),
        (Cause.TIMEOUT, "failed", "timeout"),
        (Cause.OUT_OF_MEMORY, "failed", "out_of_memory"),
        (Cause.CRASHED, "failed", "crashed"),
    ],
)
async def test_a_job_that_ends_badly_says_why_and_pays_its_time(
    coordinator: Serving, rest: Rest, cause: Cause, status: str, code: str
) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker):
        job = await rest.post("/jobs", JOB)
        start = await worker.expect(StartAttempt)
        worker.started(start)
        piece = text_events("Traceback\n", name="stderr")
        worker.output(start, 0, piece)
        worker.finish(start, cause=cause, exit_code=1, stream_bytes=len(piece))
        done = await rest.wait_for(job["job_id"])
    assert done["status"] == status
    assert done["reason"]["code"] == code
    assert done["reason"]["message"]
    assert done["stderr"] == "Traceback\n"
    assert done["cost"] > 0
    assert (await rest.get("/credits/alice"))["held"] == 0.0


async def test_a_queued_job_is_cancelled_at_once_and_costs_nothing(rest: Rest) -> None:
    job = await rest.post("/jobs", JOB)
    done = await rest.post(f"/jobs/{job['job_id']}/cancel", status=200)
    assert done["status"] == "cancelled"
    assert (await rest.get("/credits/alice"))["available"] == 100.0
    again = await rest.post(f"/jobs/{job['job_id']}/cancel", status=200)
    assert again["status"] == "cancelled"


async def test_a_running_job_is_stopped_by_its_worker_and_pays_its_time(
    coordinator: Serving, rest: Rest
) -> None:
    from gridx.protocol import StopAttempt

    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker):
        job = await rest.post("/jobs", JOB)
        start = await worker.expect(StartAttempt)
        worker.started(start)
        await rest.post(f"/jobs/{job['job_id']}/cancel")
        await worker.expect(StopAttempt, job_id=job["job_id"], fenced=False)
        done = await rest.wait_for(job["job_id"])
    assert done["status"] == "cancelled"
    assert done["cost"] > 0
    assert (await rest.get("/credits/alice"))["held"] == 0.0


# --- every bad body --------------------------------------------------------------------------


def _bad(name: str, body: Any, status: int, code: str, *words: str) -> Any:
    return pytest.param(body, status, code, words, id=name)


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        _bad("empty", b"", 400, "invalid_request", "JSON"),
        _bad("not JSON", b"print(1)", 400, "invalid_request", "not JSON"),
        _bad("cut", b'{"user_id": "alice", ', 400, "invalid_request", "not JSON"),
        _bad("not an object", b"[1]", 400, "invalid_request", "object", "array"),
        _bad("null", b"null", 400, "invalid_request", "null"),
        _bad("a string", b'"code"', 400, "invalid_request", "str"),
        _bad("not UTF-8", b'{"code": "\xff\xfe"}', 400, "invalid_request", "JSON"),
        _bad(
            "NaN", b'{"code":"1","user_id":"a","limits":{"timeout_s":NaN}}', 400, "invalid_request"
        ),
        _bad(
            "infinite",
            b'{"code":"1","user_id":"a","limits":{"cpus":1e999}}',
            400,
            "invalid_request",
        ),
        _bad("too deep", b"[" * 100_000, 400, "invalid_request"),
        _bad("no code", {"user_id": "alice"}, 400, "invalid_request", "code"),
        _bad("code is a number", {"user_id": "alice", "code": 1}, 400, "invalid_request", "$.code"),
        _bad("code is null", {"user_id": "alice", "code": None}, 400, "invalid_request", "$.code"),
        _bad("no user", {"code": "1"}, 400, "invalid_request", "user_id"),
        _bad("user is a number", {"code": "1", "user_id": 7}, 400, "invalid_request", "$.user_id"),
        _bad("bad user", {"code": "1", "user_id": "a b"}, 400, "invalid_request", "'a b'"),
        _bad("user with a slash", {"code": "1", "user_id": "../x"}, 400, "invalid_request"),
        _bad("user too long", {"code": "1", "user_id": "a" * 65}, 400, "invalid_request"),
        _bad("empty user", {"code": "1", "user_id": ""}, 400, "invalid_request"),
        _bad("bad job id", {**JOB, "job_id": "7"}, 400, "invalid_request", "job id"),
        _bad("unknown language", {**JOB, "language": "cobol"}, 422, "unknown_language", "python"),
        _bad("empty language", {**JOB, "language": ""}, 422, "unknown_language", "python"),
        _bad("language is a list", {**JOB, "language": []}, 400, "invalid_request", "$.language"),
        _bad("unknown field", {**JOB, "nmae": 1}, 400, "invalid_request", "nmae"),
        _bad(
            "unknown limit",
            {**JOB, "limits": {"timout": 1}},
            400,
            "invalid_request",
            "timout",
            "limits",
        ),
        _bad("no time", {**JOB, "limits": {"timeout_s": 0}}, 400, "invalid_request", "timeout_s"),
        _bad("negative time", {**JOB, "limits": {"timeout_s": -1}}, 400, "invalid_request"),
        _bad("a week", {**JOB, "limits": {"timeout_s": 604800}}, 400, "invalid_request"),
        _bad(
            "time is text",
            {**JOB, "limits": {"timeout_s": "60"}},
            400,
            "invalid_request",
            "timeout_s",
        ),
        _bad("time is true", {**JOB, "limits": {"timeout_s": True}}, 400, "invalid_request"),
        _bad("no cores", {**JOB, "limits": {"cpus": 0}}, 400, "invalid_request", "cpus"),
        _bad("little memory", {**JOB, "limits": {"memory_bytes": 1}}, 400, "invalid_request"),
        _bad(
            "memory is a float",
            {**JOB, "limits": {"memory_bytes": 1.5e9 + 0.5}},
            400,
            "invalid_request",
        ),
        _bad("half a GPU", {**JOB, "limits": {"gpus": 0.5}}, 400, "invalid_request", "gpus"),
        _bad("limits is a list", {**JOB, "limits": []}, 400, "invalid_request", "$.limits"),
        _bad(
            "too much code",
            {**JOB, "code": "x" * (MAX_CODE_BYTES + 1)},
            413,
            "payload_too_large",
            "1 MiB",
        ),
        _bad("long in UTF-8", {**JOB, "code": "é" * 600_000}, 413, "payload_too_large"),
        _bad(
            "too dear",
            {**JOB, "limits": {"timeout_s": 3600}},
            402,
            "insufficient_credits",
            "360.00",
            "260.00",
        ),
    ],
)
async def test_a_bad_body_is_refused_precisely(
    rest: Rest, body: Any, status: int, code: str, words: tuple[str, ...]
) -> None:
    sent = body if isinstance(body, bytes) else json.dumps(body)
    response = await rest.fetch("POST", "/jobs", sent, Content_Type="application/json")
    answer = json.loads(response.body)
    assert (response.code, answer["error"]["code"]) == (status, code), answer
    assert answer["detail"] == answer["error"]["message"]
    assert answer["error"]["hint"]
    assert set(answer) == {"error", "detail"}
    assert set(answer["error"]) == {"code", "message", "hint", "details"}
    for word in words:
        assert word in answer["detail"], answer
    assert response.headers["Content-Type"] == "application/json"
    assert (await rest.get("/jobs"))["jobs"] == []


async def test_what_is_missing_for_the_hold_is_a_number_too(rest: Rest) -> None:
    refused = await rest.post("/jobs", {**JOB, "limits": {"timeout_s": 3600}}, status=402)
    details = refused["error"]["details"]
    assert details["missing_ucr"] == 260_000_000
    assert details["needed_ucr"] == 360_000_000


async def test_code_of_exactly_the_limit_is_taken(rest: Rest) -> None:
    await rest.post("/jobs", {**JOB, "code": "#" * MAX_CODE_BYTES}, status=201)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_read_and_refused_with_json(
    coordinator: Serving, chunked: bool
) -> None:
    host, port = coordinator.http_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    size = 9 * 1024 * 1024
    head = f"POST /jobs HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    if chunked:
        writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n".encode())
        writer.write(b"x" * size + b"\r\n0\r\n\r\n")
    else:
        writer.write(f"{head}Content-Length: {size}\r\n\r\n".encode() + b"x" * size)
    await writer.drain()
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "unknown_route"),
        ("GET", "/jobs/", 404, "unknown_route"),
        ("GET", "//jobs", 404, "unknown_route"),
        ("POST", "/ws/worker", 404, "unknown_route"),
        ("GET", "/ws/client", 404, "upgrade_needed"),
        ("PUT", "/jobs", 405, "method_not_allowed"),
        ("DELETE", "/jobs/job_00000000000070008000000000000000", 405, "method_not_allowed"),
        ("PATCH", "/health", 405, "method_not_allowed"),
        ("OPTIONS", "/jobs", 405, "method_not_allowed"),
        ("GET", "/jobs/7", 400, "invalid_request"),
        ("GET", "/jobs/job_00000000000070008000000000000000", 404, "not_found"),
        ("POST", "/jobs/job_00000000000070008000000000000000/cancel", 404, "not_found"),
        ("GET", "/jobs/job_00000000000070008000000000000000/events", 404, "not_found"),
        ("GET", "/credits/nobody", 404, "not_found"),
        ("GET", "/credits/a%20b", 400, "invalid_request"),
        ("GET", "/jobs?limit=0", 400, "invalid_request"),
        ("GET", "/jobs?limit=ten", 400, "invalid_request"),
        ("GET", "/jobs?limit=1&limit=2", 400, "invalid_request"),
        ("GET", "/jobs?usr=alice", 400, "invalid_request"),
        ("GET", "/jobs?user_id=a%20b", 400, "invalid_request"),
        ("GET", "/jobs?user_id=%ff", 400, "invalid_request"),
        ("GET", "/jobs?status=done", 400, "invalid_request"),
        ("GET", "/jobs?before=7", 400, "invalid_request"),
    ],
)
async def test_a_bad_address_is_refused_in_json(
    rest: Rest, method: str, path: str, status: int, code: str
) -> None:
    response = await rest.fetch(method, path)
    answer = json.loads(response.body)
    assert (response.code, answer["error"]["code"]) == (status, code), answer
    assert answer["error"]["hint"]
    if status == 405:
        assert "GET" in response.headers["Allow"] or "POST" in response.headers["Allow"]


# --- accounts --------------------------------------------------------------------------------


async def test_a_name_is_registered_once_and_its_password_opens_it(rest: Rest) -> None:
    account = {"user_id": "carol", "password": "correct horse"}
    made = await rest.post("/auth/register", account, status=201)
    assert made["user_id"] == "carol"
    assert made["token"].startswith("gxu_")
    again = await rest.post("/auth/register", account, status=409)
    assert again["error"]["code"] == "conflict"
    opened = await rest.post("/auth/login", account, status=200)
    assert opened["token"] != made["token"]
    wrong = await rest.post("/auth/login", {**account, "password": "wrong horse"}, status=401)
    assert wrong["error"]["code"] == "not_authenticated"
    unknown = await rest.post("/auth/login", {**account, "user_id": "dave"}, status=401)
    assert unknown["detail"] == wrong["detail"]


async def test_a_name_that_a_job_made_gets_its_first_password_by_registering(rest: Rest) -> None:
    await rest.post("/jobs", JOB)
    account = {"user_id": "alice", "password": "correct horse"}
    await rest.post("/auth/register", account, status=201)
    await rest.post("/auth/register", account, status=409)
    assert (await rest.get("/credits/alice"))["balance"] == 100.0


@pytest.mark.parametrize("password", ["", "short", "x" * 2000])
async def test_a_password_of_an_unfit_length_is_refused(rest: Rest, password: str) -> None:
    body = {"user_id": "carol", "password": password}
    refused = await rest.post("/auth/register", body, status=400)
    assert "password" in refused["detail"]


# --- server-sent events ----------------------------------------------------------------------


async def _events(rest: Rest, path: str, **headers: str) -> list[dict[str, str]]:
    response = await rest.fetch("GET", path, **headers)
    assert response.code == 200, response.body
    assert response.headers["Content-Type"] == "text/event-stream"
    found = []
    for block in response.body.decode().split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            found.append(dict(line.split(": ", 1) for line in lines))
    return found


async def test_events_of_a_finished_job_can_be_read_from_any_position(
    coordinator: Serving, rest: Rest
) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker):
        job = await rest.post("/jobs", JOB)
        start = await worker.expect(StartAttempt)
        worker.started(start)
        whole = text_events(*(f"line {number}\n" for number in range(10)))
        worker.output(start, 0, whole)
        worker.finish(start, stream_bytes=len(whole))
        await rest.wait_for(job["job_id"])
    path = f"/jobs/{job['job_id']}/events"
    everything = await _events(rest, path)
    output = [event for event in everything if event["event"] == "output"]
    assert [json.loads(event["data"])["text"] for event in output] == [
        f"line {number}\n" for number in range(10)
    ]
    assert json.loads(everything[-1]["data"])["status"] == "completed"
    for number, event in enumerate(output):
        after = await _events(rest, f"{path}?after={event['id']}")
        assert after == everything[number + 1 :]
        resumed = await _events(rest, path, Last_Event_ID=event["id"])
        assert resumed == after


async def test_events_of_a_running_job_arrive_while_it_runs(
    coordinator: Serving, rest: Rest
) -> None:
    from tornado.httpclient import AsyncHTTPClient

    seen: asyncio.Queue[bytes] = asyncio.Queue()
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker):
        job = await rest.post("/jobs", JOB)
        start = await worker.expect(StartAttempt)
        url = f"{coordinator.http_url}/jobs/{job['job_id']}/events"
        following = asyncio.ensure_future(
            AsyncHTTPClient().fetch(url, streaming_callback=seen.put_nowait)
        )
        text = b""
        async with asyncio.timeout(10):
            while b"event: job" not in text:
                text += await seen.get()
            piece = text_events("now\n")
            worker.output(start, 0, piece)
            while b"now" not in text:
                text += await seen.get()
            worker.finish(start, stream_bytes=len(piece))
            response = await following
        assert response.code == 200


async def test_who_leaves_a_stream_of_events_causes_no_error(
    coordinator: Serving, rest: Rest, caplog: pytest.LogCaptureFixture
) -> None:
    bus = coordinator.context.bus
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker):
        job = await rest.post("/jobs", JOB)
        start = await worker.expect(StartAttempt)
        host = coordinator.http_url.removeprefix("http://")
        reader, writer = await asyncio.open_connection(*host.split(":"))
        writer.write(f"GET /jobs/{job['job_id']}/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        await reader.readuntil(b"event: job")
        writer.close()

        async def is_left() -> bool:
            return not bus.has_subscribers(job_subject(job["job_id"]))

        worker.output(start, 0, text_events("nobody reads this\n"))
        await until(is_left)
        await rest.get("/health")
    assert [line.getMessage() for line in caplog.records if line.levelname == "ERROR"] == []


@pytest.mark.parametrize("after", ["1", "1:", ":1", "-1:0", "1:x", "1:99999999999999999999"])
async def test_a_malformed_position_is_refused(rest: Rest, after: str) -> None:
    job = await rest.post("/jobs", JOB)
    refused = await rest.get(f"/jobs/{job['job_id']}/events?after={after}", status=400)
    assert "position" in refused["detail"]
