"""Blobs over real HTTP and a real disk: who may put, ask and read, and what jobs do with them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from tornado.httpclient import HTTPResponse

from coordinator.app import Serving, serving
from coordinator.settings import Settings
from coordinator.store import blobs as stored_blobs
from coordinator.store import jobs as stored_jobs
from gridx.blobs import CHUNK_BYTES, Blob, cut, digest, to_blob
from gridx.client import Client, Job
from gridx.errors import BlobMismatch, NotFound, PayloadTooLarge, StorageError, TransportError
from gridx.ids import new_job_id
from gridx.protocol import Refused, StartAttempt, Submit
from gridx.resources import KIB, MIB
from gridx.schemas import BlobRef, CellSpec, JobRequest
from gridx.settings import ConnectionSettings
from gridx.states import Cause
from tests.support.coordinator_program import CoordinatorProgram
from tests.support.scripted_client import Rest, ScriptedClient, until
from tests.support.scripted_worker import ScriptedWorker, WorkerByHand, workers

OCTETS = "application/octet-stream"
CELL = CellSpec(python="3.11")


def noise(seed: int, size: int = 100 * KIB) -> bytes:
    return random.Random(seed).randbytes(size)


def blob_of(data: bytes) -> Blob:
    return to_blob(memoryview(data))


def blobs_of(data: bytes) -> list[Blob]:
    return [to_blob(chunk) for chunk in cut(data)]


def settings_of(url: str, user: str) -> ConnectionSettings:
    return ConnectionSettings(url=url, user=user, file=Path("none"))


class Http:
    """Puts and reads blobs as bare HTTP, so that a test sees each status."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._rest = Rest(url)
        self._login = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def put(
        self, data: bytes, *, name: str | None = None, size: int | None = None, **query: Any
    ) -> HTTPResponse:
        encoding = query.pop("encoding", None)
        raw = query.pop("raw", data)
        fields = {"size": len(raw) if size is None else size, **query}
        path = "&".join(f"{key}={value}" for key, value in fields.items())
        return await self._rest.fetch(
            "PUT",
            f"/blobs/{name or digest(raw)}?{path}",
            data,
            Content_Type=OCTETS,
            Content_Encoding=encoding,
            **self._login,
        )

    async def get(self, name: str, encoding: str | None = None, **query: Any) -> HTTPResponse:
        path = "&".join(f"{key}={value}" for key, value in query.items())
        return await self._rest.fetch(
            "GET", f"/blobs/{name}?{path}", Accept_Encoding=encoding, **self._login
        )

    async def missing(self, user: str, *names: str) -> list[str]:
        body = {"user_id": user, "digests": names}
        answer = await self._rest.fetch(
            "POST",
            "/blobs/missing",
            msgspec.json.encode(body),
            Content_Type="application/json",
            **self._login,
        )
        assert answer.code == 200, answer.body
        found: list[str] = msgspec.json.decode(answer.body)["missing"]
        return found


def code_of(answer: HTTPResponse) -> tuple[int, str]:
    return answer.code, msgspec.json.decode(answer.body)["error"]["code"]


@pytest.fixture(autouse=True)
async def no_program_is_left() -> AsyncIterator[None]:
    """A test that fails leaves no coordinator to the tests after it."""
    yield
    await CoordinatorProgram.kill_what_is_left()


@pytest.fixture
def http(coordinator: Serving) -> Http:
    return Http(coordinator.http_url)


@pytest.fixture
async def ada(coordinator: Serving) -> Any:
    async with Client(settings_of(coordinator.http_url, "ada"), patience_s=20) as client:
        yield client


# --- put and ask -----------------------------------------------------------------------------


async def test_a_blob_is_put_once_and_then_known_to_its_owner_alone(http: Http) -> None:
    one, two = noise(1), noise(2)
    names = digest(one), digest(two)
    assert await http.missing("ada", *names) == list(names)
    for _ in range(2):
        answer = await http.put(one, user_id="ada")
        assert answer.code == 200
        assert msgspec.json.decode(answer.body) == {"digest": names[0], "size": len(one)}
    assert await http.missing("ada", *names) == [names[1]]
    # Another user learns nothing: not by asking, and not by putting what the first one has.
    assert await http.missing("bob", *names) == list(names)
    assert (await http.put(one, user_id="bob")).body == answer.body


async def test_a_packed_blob_is_known_by_its_raw_bytes(http: Http) -> None:
    zeros = bytes(CHUNK_BYTES)
    packed = zstandard.compress(zeros)
    assert (await http.put(packed, raw=zeros, encoding="zstd", user_id="ada")).code == 200
    assert await http.missing("ada", digest(zeros)) == []


DATA = noise(3)
ZEROS = bytes(CHUNK_BYTES + 1)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ({"data": DATA[:-1] + b"x", "name": digest(DATA)}, 400, "blob_mismatch"),
        ({"data": DATA, "size": len(DATA) - 1}, 400, "blob_mismatch"),
        ({"data": DATA, "encoding": "zstd"}, 400, "blob_mismatch"),
        ({"data": zstandard.compress(bytes(512 * MIB)), "raw": DATA, "encoding": "zstd"}, 400,
         "blob_mismatch"),
        ({"data": DATA, "encoding": "gzip"}, 415, "unsupported_content_type"),
        ({"data": DATA, "name": "0" * 63}, 400, "invalid_request"),
        ({"data": DATA, "name": digest(DATA).upper()}, 400, "invalid_request"),
        ({"data": DATA, "size": -1}, 400, "invalid_request"),
        ({"data": DATA, "size": CHUNK_BYTES + 1}, 413, "payload_too_large"),
        ({"data": ZEROS}, 413, "payload_too_large"),
        ({"data": zstandard.compress(ZEROS), "raw": ZEROS, "encoding": "zstd"}, 413,
         "payload_too_large"),
        ({"data": DATA, "job_id": new_job_id()}, 400, "invalid_request"),
        ({"data": DATA, "folder": "x"}, 400, "invalid_request"),
        ({"data": DATA, "user_id": "no such name"}, 400, "invalid_request"),
    ],
)  # fmt: skip
async def test_what_is_no_blob_is_refused_and_not_kept(
    http: Http, settings: Settings, sent: dict[str, Any], status: int, code: str
) -> None:
    query = {"user_id": "ada", **sent}
    query["user_id"] = query["user_id"].replace(" ", "%20")
    answer = await http.put(query.pop("data"), **query)
    assert code_of(answer) == (status, code), answer.body
    assert msgspec.json.decode(answer.body)["error"]["hint"]
    assert [path for path in settings.blobs_dir.rglob("*") if path.is_file()] == []


async def test_a_blob_needs_an_owner(http: Http) -> None:
    answer = await http.put(DATA)
    assert code_of(answer) == (400, "invalid_request")
    assert "user_id" in answer.body.decode()


async def test_a_put_that_ends_in_the_middle_leaves_nothing(
    coordinator: Serving, settings: Settings
) -> None:
    port = int(coordinator.http_url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"PUT /blobs/{digest(DATA)}?size={len(DATA)}&user_id=ada HTTP/1.1\r\n"
        f"Host: 127.0.0.1:{port}\r\nContent-Type: {OCTETS}\r\nContent-Length: {len(DATA)}\r\n\r\n"
    )
    writer.write(head.encode() + DATA[: len(DATA) // 2])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    http = Http(coordinator.http_url)
    assert await http.missing("ada", digest(DATA)) == [digest(DATA)]
    assert [path for path in settings.blobs_dir.rglob("*") if path.is_file()] == []


# --- read ------------------------------------------------------------------------------------


async def test_a_blob_is_read_through_a_job_that_refers_to_it(
    coordinator: Serving, http: Http, ada: Client
) -> None:
    blob, other = blob_of(bytes(MIB)), blob_of(noise(4))
    await ada.upload([other])
    job = await ada.submit(JobRequest(code="1"), cell=CELL, blobs=[blob])
    other_job = await ada.submit(JobRequest(code="2"))
    name, mine = blob.ref.digest, {"job_id": job.id}
    for encoding in (None, "gzip", "gzip, zstd", "zstd;q=1"):
        answer = await http.get(name, encoding, **mine)
        assert answer.code == 200
        assert answer.headers["Content-Type"] == OCTETS
        if answer.headers.get("Content-Encoding") == "zstd":
            assert encoding is not None
            assert "zstd" in encoding
            assert zstandard.decompress(answer.body) == blob.data
        else:
            assert answer.body == blob.data
    for refused in (
        await http.get(name, job_id=other_job.id),  # an own job that does not refer to it
        await http.get(name, job_id=new_job_id()),
        await http.get(name, **mine, user_id="bob"),
        await http.get(other.ref.digest, **mine),  # an own blob, but not of this job
        await http.get(digest(b"never put"), **mine),
    ):
        assert code_of(refused) == (404, "not_found")
    assert code_of(await http.get(name, job_id="x")) == (400, "invalid_request")
    assert code_of(await http.get(name)) == (400, "invalid_request")


async def test_a_worker_reads_what_its_job_was_submitted_with_while_it_runs_it(
    coordinator: Serving, ada: Client
) -> None:
    here = WorkerByHand(coordinator.ws_url, name="here")
    async with workers(here):
        blob = blob_of(noise(5))
        job = await ada.submit(JobRequest(code="1"), cell=CELL, blobs=[blob])
        start = await here.expect(StartAttempt, job_id=job.id)
        assert start.blobs == (blob.ref,)
        elsewhere = WorkerByHand(coordinator.ws_url, user="thief", name="elsewhere")
        async with workers(elsewhere):
            assert here.welcome is not None
            assert elsewhere.welcome is not None
            mine = Http(coordinator.http_url, here.welcome.token)
            theirs = Http(coordinator.http_url, elsewhere.welcome.token)
            name = blob.ref.digest
            assert (await mine.get(name, job_id=job.id)).body == blob.data
            assert (await mine.get(name, job_id=job.id, attempt=1)).body == blob.data
            assert code_of(await mine.get(name, job_id=job.id, attempt=2)) == (404, "not_found")
            assert code_of(await theirs.get(name, job_id=job.id)) == (404, "not_found")
            # Of what the user has beside this job, a worker sees and learns nothing.
            secret = blob_of(noise(6))
            await ada.upload([secret])
            answer = await mine.get(secret.ref.digest, job_id=job.id)
            assert code_of(answer) == (404, "not_found")
            asked = Rest(coordinator.http_url).fetch(
                "POST",
                "/blobs/missing",
                b'{"user_id": "ada", "digests": []}',
                Content_Type="application/json",
                Authorization=f"Bearer {here.welcome.token}",
            )
            assert code_of(await asked) == (403, "forbidden")
            here.finish(start)
            await job.wait()
            assert code_of(await mine.get(name, job_id=job.id)) == (404, "not_found")


async def test_a_token_that_is_none_is_refused(coordinator: Serving) -> None:
    answer = await Http(coordinator.http_url, "gxw_wrong").get(digest(b""), job_id=new_job_id())
    assert code_of(answer) == (401, "not_authenticated")


# --- submit ----------------------------------------------------------------------------------


async def test_a_job_that_names_a_missing_blob_is_refused_and_holds_nothing(
    coordinator: Serving, http: Http
) -> None:
    there, lacking = blob_of(noise(7)), blob_of(noise(8))
    await http.put(bytes(there.data), user_id="alice")
    await http.put(bytes(lacking.data), user_id="bob")  # somebody else's does not count
    async with ScriptedClient(coordinator.http_url) as client:
        job = JobRequest(code="1", job_id=new_job_id())
        client.send(Submit(job=job, cell=CELL, blobs=(there.ref, lacking.ref)))
        refused = await client.expect(Refused, job_id=job.job_id)
        assert refused.error.code == "blobs_missing"
        assert "1 of the 2 blobs" in refused.error.message
        assert refused.error.details == {
            "missing": 1,
            "named": 2,
            "first": [lacking.ref.digest],
        }
        account = await Rest(coordinator.http_url).get("/credits/alice")
        assert account["held"] == 0
        # Another size is another blob.
        wrong = BlobRef(digest=there.ref.digest, size=there.ref.size + 1)
        job = JobRequest(code="1", job_id=new_job_id())
        client.send(Submit(job=job, cell=CELL, blobs=(wrong,)))
        assert (await client.expect(Refused, job_id=job.job_id)).error.code == "blob_mismatch"


async def test_the_client_sends_what_is_missing_and_nothing_twice(
    coordinator: Serving, ada: Client
) -> None:
    data = noise(9, 2 * CHUNK_BYTES + 1000)
    blobs = blobs_of(data)
    told: list[tuple[int, int]] = []
    first = await ada.submit(
        JobRequest(code="1"),
        cell=CELL,
        inputs=b"head",
        blobs=blobs,
        on_progress=lambda *now: told.append(now),
    )
    assert first.sent_bytes == len(data) + 4
    assert told[-1] == (len(data), len(data))
    assert told == sorted(told)
    again = await ada.submit(JobRequest(code="2"), cell=CELL, inputs=b"head", blobs=blobs)
    assert again.sent_bytes == 4
    edited = bytearray(data)
    edited[CHUNK_BYTES + 17] ^= 1
    third = await ada.submit(JobRequest(code="3"), cell=CELL, blobs=blobs_of(bytes(edited)))
    assert third.sent_bytes == CHUNK_BYTES


async def test_what_packs_well_travels_packed(ada: Client) -> None:
    job = await ada.submit(JobRequest(code="1"), cell=CELL, blobs=blobs_of(bytes(3 * MIB)))
    assert 0 < job.sent_bytes < 10 * KIB


async def test_data_that_changes_while_it_is_sent_is_refused(ada: Client) -> None:
    data = bytearray(noise(10))
    blob = to_blob(memoryview(data))
    data[5] ^= 1
    with pytest.raises(BlobMismatch, match="other bytes than its name"):
        await ada.submit(JobRequest(code="1"), cell=CELL, blobs=[blob])


async def test_a_disk_that_refuses_is_told_at_once_and_not_asked_again(
    settings: Settings, ada: Client
) -> None:
    await ada.connect()
    (settings.blobs_dir / "1").write_text("in the way")  # where her blobs would lie
    with pytest.raises(StorageError, match="File exists"):
        await ada.submit(JobRequest(code="1"), cell=CELL, blobs=[blob_of(noise(24))])


async def test_a_job_names_at_most_so_many_blobs(ada: Client) -> None:
    with pytest.raises(PayloadTooLarge, match="4,097 blobs"):
        await ada.submit(JobRequest(code="1"), blobs=[blob_of(b"x")] * 4097)


async def test_a_blob_that_was_collected_in_between_is_sent_again(
    coordinator: Serving, ada: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = blob_of(noise(11))
    watch: Callable[[Job], Awaitable[Job]] = ada._watch
    tries = 0

    async def watch_after_a_collection(job: Job) -> Job:
        nonlocal tries
        tries += 1
        if tries == 1:
            await coordinator.context.store.run(
                lambda tx, now_us: tx.exec_driver_sql("DELETE FROM blobs").rowcount
            )
        return await watch(job)

    monkeypatch.setattr(ada, "_watch", watch_after_a_collection)
    job = await ada.submit(JobRequest(code="1"), cell=CELL, blobs=[blob])
    assert tries == 2
    assert job.sent_bytes == 2 * blob.ref.size


# --- what a job keeps of them ----------------------------------------------------------------


async def test_an_attempt_that_is_lost_is_given_the_same_blobs_again(
    coordinator: Serving, ada: Client
) -> None:
    blobs = blobs_of(noise(12, CHUNK_BYTES + 1))
    refs = tuple(blob.ref for blob in blobs)
    first, second = (WorkerByHand(coordinator.ws_url, name=name) for name in ("one", "two"))
    async with workers(first):
        job = await ada.submit(JobRequest(code="1"), cell=CELL, blobs=blobs)
        assert (await first.expect(StartAttempt, job_id=job.id)).blobs == refs
        first.vanish()
        async with workers(second):
            start = await second.expect(StartAttempt, job_id=job.id)
            assert (start.attempt, start.blobs) == (2, refs)
            second.finish(start)
            assert (await job.wait()).view.status == "completed"


async def test_a_job_that_waits_has_its_blobs_after_a_restart(settings: Settings) -> None:
    blob = blob_of(noise(13))
    async with serving(settings) as running:
        async with Client(settings_of(running.http_url, "ada")) as client:
            job_id = (await client.submit(JobRequest(code="1"), cell=CELL, blobs=[blob])).id
    async with serving(settings) as running:
        async with WorkerByHand(running.ws_url) as worker:
            start = await worker.expect(StartAttempt, job_id=job_id)
            assert start.blobs == (blob.ref,)
            assert worker.welcome is not None
            http = Http(running.http_url, worker.welcome.token)
            assert (await http.get(blob.ref.digest, job_id=job_id)).body == blob.data


async def test_a_job_that_has_ended_refers_to_its_inputs_no_more(
    coordinator: Serving, http: Http, ada: Client
) -> None:
    blob = blob_of(noise(14))

    async def refers(job_id: str) -> bool:
        job = await coordinator.context.store.read(lambda tx, _: stored_jobs.find(tx, job_id))
        assert job is not None
        return bool(
            await coordinator.context.store.read(
                lambda tx, _: stored_blobs.list_refs(tx, job.job.row_id, 0, "inputs")
            )
        )

    waiting = await ada.submit(JobRequest(code="1"), cell=CELL, blobs=[blob])
    assert await refers(waiting.id)
    await waiting.cancel()
    async with ScriptedWorker(coordinator.ws_url):
        ran = await ada.submit(JobRequest(code="2"), cell=CELL, blobs=[blob])
        assert (await ran.wait()).view.status == "completed"
    assert not await refers(waiting.id)
    assert not await refers(ran.id)
    assert await http.missing("ada", blob.ref.digest) == []  # it is there for the next run


# --- large results ---------------------------------------------------------------------------


class WorkerWithLargeResult(ScriptedWorker):
    """Puts its result as blobs, then reports them."""

    def __init__(self, http_url: str, ws_url: str, result: bytes) -> None:
        super().__init__(ws_url)
        self.http_url, self.result = http_url, result

    async def run(self, start: StartAttempt) -> None:
        assert self.welcome is not None
        http = Http(self.http_url, self.welcome.token)
        blobs = blobs_of(self.result)
        for blob in blobs:
            answer = await http.put(bytes(blob.data), job_id=start.job_id, attempt=start.attempt)
            assert answer.code == 200, answer.body
        self.started(start)
        self.finish(start, result_blobs=tuple(blob.ref for blob in blobs))


async def test_a_large_result_comes_home_in_order_and_by_its_names(
    coordinator: Serving, ada: Client
) -> None:
    same = noise(15, CHUNK_BYTES)
    result = same + noise(16, CHUNK_BYTES) + same + b"the end"  # one blob occurs twice
    async with workers(WorkerWithLargeResult(coordinator.http_url, coordinator.ws_url, result)):
        job = await ada.submit(JobRequest(code="1"), cell=CELL)
        end = await job.wait()
    assert end.result is None
    assert [ref.size for ref in end.result_blobs] == [CHUNK_BYTES] * 3 + [7]
    told: list[tuple[int, int]] = []
    whole = await job.download(end.result_blobs, lambda *now: told.append(now))
    assert whole == result
    assert told[-1] == (len(result), len(result))
    whole.clear()  # nothing holds on to it
    attached = await ada.attach(job.id)
    again = await attached.wait()
    assert again.result_blobs == end.result_blobs
    with pytest.raises(PayloadTooLarge, match=r"24\.0 MiB"):
        await ada.download(job.id, end.result_blobs, limit_bytes=CHUNK_BYTES)
    async with Client(settings_of(coordinator.http_url, "bob")) as bob:
        with pytest.raises(NotFound):
            await bob.download(job.id, end.result_blobs)


async def test_a_worker_puts_results_for_its_own_jobs_only(
    coordinator: Serving, http: Http, ada: Client
) -> None:
    here, elsewhere = (WorkerByHand(coordinator.ws_url, name=name) for name in ("one", "two"))
    async with workers(here):
        job = await ada.submit(JobRequest(code="1"), cell=CELL)
        start = await here.expect(StartAttempt, job_id=job.id)
        async with workers(elsewhere):
            assert here.welcome is not None
            assert elsewhere.welcome is not None
            mine = Http(coordinator.http_url, here.welcome.token)
            theirs = Http(coordinator.http_url, elsewhere.welcome.token)
            data = noise(17)
            for refused in (
                await theirs.put(data, job_id=job.id),
                await mine.put(data, job_id=job.id, attempt=2),
                await mine.put(data, job_id=new_job_id()),
            ):
                assert code_of(refused) == (404, "not_found")
            for refused in (
                await mine.put(data),
                await mine.put(data, user_id="ada"),
                await mine.put(data, user_id="ada", job_id=job.id),
            ):
                assert code_of(refused) == (400, "invalid_request")
            assert await http.missing("ada", digest(data)) == [digest(data)]
            # What the user has already is answered as what is new.
            known = blob_of(noise(18))
            await ada.upload([known])
            answers = [await mine.put(bytes(d), job_id=job.id) for d in (known.data, data)]
            assert [answer.code for answer in answers] == [200, 200]
            assert await http.missing("ada", digest(data)) == []
            # A blob that a worker put cannot be read by it.
            assert code_of(await mine.get(digest(data), job_id=job.id)) == (404, "not_found")
            here.finish(start, result_blobs=(blob_of(data).ref,))
            assert (await job.wait()).result_blobs == (blob_of(data).ref,)
            assert code_of(await mine.put(data, job_id=job.id)) == (404, "not_found")


async def test_a_result_that_was_never_sent_fails_the_attempt_and_the_job_runs_elsewhere(
    coordinator: Serving, ada: Client
) -> None:
    liar = WorkerByHand(coordinator.ws_url, name="liar")
    lost = blob_of(noise(19))
    async with workers(liar):
        job = await ada.submit(JobRequest(code="1", retries=0), cell=CELL)
        start = await liar.expect(StartAttempt, job_id=job.id)
        liar.finish(start, result_blobs=(lost.ref,))
        end = await job.wait()
    assert end.view.status == "failed"
    assert end.view.reason is not None
    assert end.view.reason.code == "worker_lost"
    assert end.view.reason.message == "The worker reported a result that it has not sent."
    assert (end.result, end.result_blobs, end.cost_ucr) == (None, (), 0)


# --- retries and older workers ---------------------------------------------------------------


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 2), (None, 3), (10, 10)])
async def test_a_job_is_tried_as_often_as_it_says(
    coordinator: Serving, settings: Settings, retries: int | None, attempts: int
) -> None:
    failing = WorkerByHand(coordinator.ws_url)
    rest = Rest(coordinator.http_url)
    async with workers(failing):
        body: dict[str, Any] = {"user_id": "ada", "code": "1"}
        if retries is not None:
            body["retries"] = retries
        job_id = (await rest.post("/jobs", body))["job_id"]
        for number in range(1, attempts + 1):
            start = await failing.expect(StartAttempt, job_id=job_id, attempt=number)
            assert start.job.retries is None  # nothing that a worker has to know
            failing.finish(start, cause=Cause.SANDBOX_FAILED, exit_code=None)
            coordinator.context.dispatcher._avoided_until_s.clear()
            if waiting := coordinator.context.scheduler.dequeue(job_id):
                waiting.avoid = frozenset()
                coordinator.context.dispatcher._place_or_wait(waiting)
        done = await rest.wait_for(job_id)
    assert (done["status"], done["attempt"]) == ("failed", attempts)


async def test_more_retries_than_may_be_asked_for_are_refused(coordinator: Serving) -> None:
    answer = await Rest(coordinator.http_url).fetch(
        "POST",
        "/jobs",
        b'{"user_id": "ada", "code": "1", "retries": 11}',
        Content_Type="application/json",
    )
    assert code_of(answer) == (400, "invalid_request")
    assert "retries" in answer.body.decode()


async def test_a_worker_of_the_release_before_gets_plain_jobs_only(
    coordinator: Serving, ada: Client
) -> None:
    old = ScriptedWorker(coordinator.ws_url)
    await old.connect(protocol_max=1)
    assert old.welcome is not None
    assert old.welcome.protocol == 1
    waiting = await ada.submit(JobRequest(code="1"), cell=CELL, blobs=[blob_of(noise(20))])
    assert waiting.view.status == "queued"
    assert waiting.view.waiting == (
        "1 worker online: 1 is of an older release, without large data and sessions"
    )
    plain = await ada.submit(JobRequest(code="2", retries=2), cell=CELL)
    assert (await plain.wait()).view.status == "completed"
    sent = await old.expect(StartAttempt, job_id=plain.id)
    # Its JobRequest refuses a field that it does not know.
    assert "retries" not in msgspec.msgpack.decode(msgspec.msgpack.encode(sent))["job"]
    async with ScriptedWorker(coordinator.ws_url, name="new"):
        assert (await waiting.wait()).view.status == "completed"
    await old.leave()


# --- cuts ------------------------------------------------------------------------------------


async def test_a_coordinator_killed_in_the_middle_of_uploads_gets_only_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = noise(21, 12 * CHUNK_BYTES)
    blobs = blobs_of(data)
    program = CoordinatorProgram(tmp_path / "data")
    await program.start()
    folder = tmp_path / "data" / "blobs"
    told: list[int] = []

    def named() -> list[Path]:
        return [path for path in folder.rglob("*") if len(path.name) == 64]

    async def is_half_way() -> bool:
        return len(named()) >= 4

    def on_progress(sent_bytes: int, total_bytes: int) -> None:
        assert 0 < sent_bytes <= total_bytes == len(data)
        told.append(sent_bytes)

    async with Client(settings_of(program.http_url, "ada"), patience_s=60) as client:
        submitting = asyncio.create_task(
            client.submit(JobRequest(code="1"), cell=CELL, blobs=blobs, on_progress=on_progress)
        )
        await until(is_half_way)
        await program.kill()
        assert 4 <= len(named()) < 12
        await program.start()
        job = await submitting
        # What was on its way at the kill travelled twice; or it was kept, and its answer was lost:
        # then it counts as there before. Nothing else travelled again.
        assert abs(job.sent_bytes - len(data)) <= 3 * CHUNK_BYTES
        assert told[-1] == len(data)
        assert {path.name for path in named()} == {blob.ref.digest for blob in blobs}
        assert all(digest(path.read_bytes()) == path.name for path in named())
        assert list((folder / "incoming").iterdir()) == []
        assert await client.download(job.id, [blob.ref for blob in blobs]) == data
        await job.cancel()
    await program.kill()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_download_goes_on_after_a_kill(tmp_path: Path) -> None:
    data = noise(22, 8 * CHUNK_BYTES)
    blobs = blobs_of(data)
    program = CoordinatorProgram(tmp_path / "data")
    await program.start()
    some = asyncio.Event()
    async with Client(settings_of(program.http_url, "ada"), patience_s=60) as client:
        job = await client.submit(JobRequest(code="1"), cell=CELL, blobs=blobs)
        downloading = asyncio.create_task(
            client.download(job.id, [blob.ref for blob in blobs], lambda *_: some.set())
        )
        await some.wait()
        await program.kill()
        await program.start()
        assert await downloading == data
        await job.cancel()
    await program.kill()


async def test_a_coordinator_that_stays_away_is_said_after_the_patience(tmp_path: Path) -> None:
    async with CoordinatorProgram(tmp_path / "data") as program:
        client = Client(settings_of(program.http_url, "ada"), patience_s=0.3)
        await client.connect()
    with pytest.raises(TransportError, match="No coordinator answers"):
        await client.upload([blob_of(noise(23))])
    await client.close()
