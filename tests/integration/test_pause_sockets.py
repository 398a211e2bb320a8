"""What users see of workers that prepare, pause, freeze and choose; all over real sockets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from coordinator.app import Serving, serving
from coordinator.settings import Settings
from gridx.ids import new_job_id
from gridx.protocol import (
    AttemptRef,
    CapabilityChanged,
    Heartbeat,
    JobChanged,
    OutputAck,
    Refused,
    Settled,
    StartAttempt,
    StopAttempt,
    Submit,
    Welcome,
)
from gridx.resources import (
    GIB,
    Accepts,
    Check,
    Gpu,
    Image,
    Isolation,
    Load,
    Pause,
    PauseReason,
    Usage,
)
from gridx.schemas import CellSpec, JobRequest
from gridx.states import Cause
from tests.support.scripted_client import Rest, ScriptedClient, until
from tests.support.scripted_worker import (
    PYTHON_IMAGE,
    ScriptedWorker,
    WorkerByHand,
    WorkerThatPauses,
    offer,
    text_events,
    workers,
)

JOB: dict[str, Any] = {"user_id": "alice", "code": "print(1)"}
IN_USE = Pause(reason=PauseReason.ACTIVE, message="The owner is using the machine.")


@pytest.fixture
def rest(coordinator: Serving) -> Rest:
    return Rest(coordinator.http_url)


async def waits(rest: Rest, job_id: str, sentence: str | None) -> None:
    """Return once the job says that it waits for this."""

    async def says_so() -> bool:
        return bool((await rest.get(f"/jobs/{job_id}"))["waiting"] == sentence)

    await until(says_so)


# --- preparing ----------------------------------------------------------------------------------


async def test_a_job_whose_packages_are_installed_says_how_far_that_is(
    coordinator: Serving, rest: Rest
) -> None:
    worker = WorkerByHand(coordinator.ws_url, capability=offer(environments=True))
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        job_id = new_job_id()
        client.send(Submit(job=JobRequest(code="1", job_id=job_id, pip=("Tqdm >= 4", "polars"))))
        start = await worker.expect(StartAttempt)
        assert start.job.pip == ("polars", "tqdm>=4")
        worker.prepare(start, "Installing 2 packages:\x1b[31m downloading\n")
        told = "Installing 2 packages: downloading"
        await waits(rest, job_id, told)
        shown = await rest.get(f"/jobs/{job_id}")
        assert (shown["status"], shown["started_at"]) == ("running", None)

        async def is_told() -> bool:
            return any(isinstance(m, JobChanged) and m.job.waiting == told for m in client.received)

        await until(is_told)
        worker.started(start)
        await waits(rest, job_id, None)
        worker.prepare(start, "too late")
        worker.finish(start)
        done = await client.final(job_id)
        assert done.job.waiting is None


async def test_a_flood_of_news_is_told_now_and_then_with_the_newest_last(
    coordinator: Serving, rest: Rest
) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        job_id = new_job_id()
        client.send(Submit(job=JobRequest(code="1", job_id=job_id)))
        start = await worker.expect(StartAttempt)
        for number in range(2000):
            worker.prepare(start, f"step {number} " + "x" * 1000)

        def told() -> list[str]:
            return [
                m.job.waiting
                for m in client.received
                if isinstance(m, JobChanged) and m.job.waiting
            ]

        async def has_newest() -> bool:
            return any(text.startswith("step 1999 ") for text in told())

        await until(has_newest)
        assert len(told()) < 200
        assert max(map(len, told())) == 200


async def test_packages_that_fail_fail_the_job_with_the_end_of_the_log(
    coordinator: Serving, rest: Rest
) -> None:
    worker = WorkerByHand(coordinator.ws_url, capability=offer(environments=True))
    async with workers(worker):
        job = await rest.post("/jobs", {**JOB, "pip": ["polras"]})
        start = await worker.expect(StartAttempt)
        worker.finish(
            start, cause=Cause.ENVIRONMENT, exit_code=None, message="x" * 5000 + " no such package"
        )
        await worker.expect(Settled)
        done = await rest.wait_for(job["job_id"])
    assert (done["status"], done["attempt"], done["cost"]) == ("failed", 1, 0.0)
    assert done["reason"]["code"] == "environment_failed"
    assert done["reason"]["message"].endswith("no such package")
    assert (await rest.get("/credits/alice"))["held"] == 0.0


# --- frozen attempts ----------------------------------------------------------------------------


async def test_a_job_that_stands_still_says_so_and_goes_on(
    coordinator: Serving, rest: Rest
) -> None:
    worker = WorkerByHand(coordinator.ws_url)
    async with workers(worker), ScriptedClient(coordinator.http_url) as client:
        job_id = new_job_id()
        client.send(Submit(job=JobRequest(code="1", job_id=job_id)))
        start = await worker.expect(StartAttempt)
        worker.started(start)
        worker.announce(offer(slots=0, pause=IN_USE))
        worker.freeze(start, message=IN_USE.message)
        told = "Paused by its lender: the owner is using the machine. Time and cost stand still."
        await waits(rest, job_id, told)

        async def is_told() -> bool:
            return any(isinstance(m, JobChanged) and m.job.waiting == told for m in client.received)

        await until(is_told)
        metrics = (await rest.fetch("GET", "/metrics")).body.decode()
        assert "gridx_attempts_frozen 1\n" in metrics
        assert 'gridx_workers_paused{reason="owner_active"} 1\n' in metrics
        assert 'gridx_workers_paused{reason="on_battery"} 0\n' in metrics
        frozen_at = len(client.received)
        worker.freeze(start, is_frozen=False)
        await client.expect(JobChanged, after=frozen_at)
        await waits(rest, job_id, None)
        worker.output(start, 0, text_events("done\n"))
        worker.finish(
            start,
            stream_bytes=len(text_events("done\n")),
            usage=Usage(wall_s=1e6, cpu_s=1e6, frozen_s=1e6, peak_memory_bytes=5, source="host"),
        )
        assert (await client.final(job_id)).job.status == "completed"
        usage = (await rest.get(f"/jobs/{job_id}"))["usage"]
    assert usage["source"] == "host"
    assert usage["peak_memory_bytes"] == 5
    assert 0 < usage["frozen_s"] < 60
    assert 0 <= usage["wall_s"] < 60
    assert usage["cpu_s"] <= usage["wall_s"] * 1.1


async def test_what_stands_still_survives_a_restart_of_the_coordinator(
    settings: Settings,
) -> None:
    patient = msgspec.structs.replace(settings, grace_s=60.0)
    worker = WorkerByHand("")
    async with serving(patient) as running:
        worker.ws_url = running.ws_url
        await worker.connect()
        rest = Rest(running.http_url)
        job_id = (await rest.post("/jobs", JOB))["job_id"]
        start = await worker.expect(StartAttempt)
        worker.started(start)
        worker.output(start, 0, text_events("before\n"))
        await worker.expect(OutputAck)
        worker.freeze(start)
        await waits(
            rest,
            job_id,
            "Paused by its lender: its owner is using it. Time and cost stand still.",
        )
    await worker.leave()
    async with serving(patient) as running:
        rest = Rest(running.http_url)
        await waits(rest, job_id, "Paused by its lender. Time and cost stand still.")
        back = WorkerByHand(running.ws_url, worker_id=worker.worker_id)
        ref = AttemptRef(job_id=job_id, attempt=1)
        assert isinstance(await back.connect(running=(ref,)), Welcome)
        back.started(start)
        back.freeze(start, message="Too hot.")
        await waits(rest, job_id, "Paused by its lender: too hot. Time and cost stand still.")
        back.freeze(start, is_frozen=False)
        await waits(rest, job_id, None)
        back.finish(
            start,
            stream_bytes=len(text_events("before\n")),
            usage=Usage(wall_s=1e6, frozen_s=1e6),
        )
        done = await rest.wait_for(job_id)
        await back.leave()
    assert (done["status"], done["attempt"], done["stdout"]) == ("completed", 1, "before\n")
    assert 0 < done["usage"]["frozen_s"] < 120


async def test_a_job_that_stands_still_for_too_long_goes_to_another_worker(
    settings: Settings,
) -> None:
    strict = msgspec.structs.replace(settings, max_frozen_s=0.3)
    async with serving(strict) as running:
        rest = Rest(running.http_url)
        paused = WorkerByHand(running.ws_url, user="polite")
        async with workers(paused):
            job_id = (await rest.post("/jobs", JOB))["job_id"]
            start = await paused.expect(StartAttempt)
            paused.started(start)
            paused.announce(offer(slots=0, pause=IN_USE))
            paused.freeze(start)
            await paused.expect(StopAttempt, job_id=job_id, fenced=True)
            async with ScriptedWorker(running.ws_url) as other:
                done = await rest.wait_for(job_id)
            earned = (await rest.get("/credits/polite"))["balance"] - 100.0
    assert (done["status"], done["attempt"]) == ("completed", 2)
    assert done["worker_id"] == other.worker_id
    assert earned == 0.0


async def test_what_is_said_of_an_attempt_that_is_no_longer_live_is_fenced_off(
    coordinator: Serving, rest: Rest
) -> None:
    worker, stranger = WorkerByHand(coordinator.ws_url), WorkerByHand(coordinator.ws_url)
    async with workers(worker):
        job_id = (await rest.post("/jobs", JOB))["job_id"]
        start = await worker.expect(StartAttempt)
        worker.started(start)
        async with workers(stranger):
            stranger.freeze(start)
            await stranger.expect(StopAttempt, job_id=job_id, fenced=True)
            stranger.prepare(start, "mine")
            stranger.started(start)
            await waits(rest, job_id, None)
        worker.finish(start)
        await rest.wait_for(job_id)
        worker.freeze(start)
        await worker.expect(StopAttempt, job_id=job_id, fenced=True)


# --- pauses -------------------------------------------------------------------------------------


async def test_a_worker_that_pauses_is_shown_as_paused_and_takes_nothing(
    coordinator: Serving, rest: Rest
) -> None:
    worker = ScriptedWorker(coordinator.ws_url, capability=offer(pause=IN_USE))
    async with workers(worker):
        (shown,) = (await rest.get("/workers"))["workers"]
        assert shown["status"] == "paused"
        assert shown["capability"]["pause"] == {
            "reason": "owner_active",
            "message": "The owner is using the machine.",
            "until": None,
        }
        status = await rest.get("/status")
        assert (status["workers_online"], status["workers_paused"]) == (0, 1)
        assert status["cores"] == 0
        job = await rest.post("/jobs", JOB)
        assert job["waiting"] == "1 worker online: 1 paused (its owner is using it)"
        worker.announce(offer())
        done = await rest.wait_for(job["job_id"])
        assert done["status"] == "completed"
        (shown,) = (await rest.get("/workers"))["workers"]
        assert (shown["status"], shown["capability"]["pause"]) == ("online", None)
        status = await rest.get("/status")
        assert (status["workers_online"], status["workers_paused"]) == (1, 0)


async def test_many_polite_lenders_do_not_fail_a_job_and_are_welcome_again_at_once(
    settings: Settings,
) -> None:
    few = msgspec.structs.replace(settings, max_attempts=2)
    async with serving(few) as running:
        rest = Rest(running.http_url)
        lenders = [WorkerThatPauses(running.ws_url, user=f"polite{number}") for number in range(5)]
        async with workers(*lenders):
            job_id = (await rest.post("/jobs", JOB))["job_id"]
            await waits(rest, job_id, "5 workers online: 5 paused (their owners are using them)")
            assert (await rest.get(f"/jobs/{job_id}"))["attempt"] == 5
            # It was given back a moment ago by this one, which has room again: no time is lost.
            again = lenders[3]
            before = len(again.received)
            again.announce(offer())
            await again.expect(StartAttempt, after=before, job_id=job_id, attempt=6)
            await waits(rest, job_id, "5 workers online: 5 paused (their owners are using them)")
            async with ScriptedWorker(running.ws_url):
                done = await rest.wait_for(job_id)
    assert (done["status"], done["attempt"]) == ("completed", 7)


# --- whose jobs, languages, images ----------------------------------------------------------------


async def test_a_worker_for_named_users_gets_theirs_and_its_list_is_its_owners(
    coordinator: Serving, rest: Rest
) -> None:
    choosy = offer(accepts=Accepts.USERS, users=("bob",))
    async with ScriptedWorker(coordinator.ws_url, capability=choosy):
        hers = await rest.post("/jobs", JOB)
        his = await rest.post("/jobs", {**JOB, "user_id": "bob"})
        assert (await rest.wait_for(his["job_id"]))["status"] == "completed"
        assert (await rest.get(f"/jobs/{hers['job_id']}"))["waiting"] == (
            "1 worker online: 1 takes only named users' jobs"
        )
        (shown,) = (await rest.get("/workers"))["workers"]
        assert (shown["capability"]["accepts"], shown["capability"]["users"]) == ("users", ["bob"])


@pytest.mark.parametrize(
    ("said", "meant"), [("bash", "bash"), ("node", "node"), ("javascript", "node")]
)
async def test_other_languages_go_where_their_image_is(
    coordinator: Serving, rest: Rest, said: str, meant: str
) -> None:
    image = Image(name=f"gridx/{meant}:1", digest="sha256:1", language=meant, python="")
    plain = ScriptedWorker(coordinator.ws_url, user="plain")
    other = ScriptedWorker(
        coordinator.ws_url, user="other", capability=offer(images=(PYTHON_IMAGE, image))
    )
    async with workers(plain):
        job = await rest.post("/jobs", {**JOB, "language": said})
        assert job["language"] == meant
        assert job["waiting"] == f"1 worker online: 1 lacks {meant}"
        async with workers(other):
            done = await rest.wait_for(job["job_id"])
            start = await other.expect(StartAttempt)
    assert done["worker_id"] == other.worker_id
    assert start.job.language == meant


async def test_the_socket_refuses_what_no_worker_should_see(coordinator: Serving) -> None:
    wrong = {
        "unknown_language": Submit(job=JobRequest(code="1", job_id=new_job_id(), language="cobol")),
        "invalid_request": Submit(
            job=JobRequest(code="ls", job_id=new_job_id(), language="bash"),
            cell=CellSpec(python="3.11"),
        ),
    }
    async with ScriptedClient(coordinator.http_url) as client:
        for code, message in wrong.items():
            client.send(message)
            refused = await client.expect(Refused, job_id=message.job.job_id)
            assert refused.error.code == code
            assert refused.error.hint


async def test_wrong_packages_and_disks_are_refused_at_submission(rest: Rest) -> None:
    for field, value, named in (
        ("pip", ["git+https://host/evil"], "git+https://host/evil"),
        ("pip", ["tqdm", "-r /etc/passwd"], "-r /etc/passwd"),
        ("limits", {"memory_bytes": GIB, "disk_bytes": GIB}, "disk"),
        ("limits", {"gpu_model": "A100"}, "gpu_model"),
        ("image", "../evil", "$.image"),
    ):
        answer = await rest.post("/jobs", {**JOB, field: value}, status=400)
        assert answer["error"]["code"] == "invalid_request"
        assert named in answer["error"]["message"]
        assert answer["error"]["hint"]


# --- hostile offers -----------------------------------------------------------------------------

_MANY = tuple(Check(name=str(number), kept=True) for number in range(100))


@pytest.mark.parametrize(
    "hostile",
    [
        offer(users=tuple(f"user{number}" for number in range(1000))),
        offer(users=("not a name",)),
        offer(images=(PYTHON_IMAGE,) * 100),
        offer(images=(msgspec.structs.replace(PYTHON_IMAGE, name="x" * 10_000),)),
        offer(
            images=(
                msgspec.structs.replace(
                    PYTHON_IMAGE, packages={f"p{number}": "1" for number in range(5000)}
                ),
            )
        ),
        offer(gpus=(Gpu(uuid="a\nb", name="T4", memory_bytes=1),)),
        offer(isolation=Isolation(runtime="runc", checks=_MANY)),
    ],
    ids=["users", "a user", "images", "a name", "packages", "a card", "checks"],
)
async def test_a_hostile_offer_is_refused_with_a_sentence_first_and_later(
    coordinator: Serving, hostile: Any
) -> None:
    worker = ScriptedWorker(coordinator.ws_url)
    refused = await worker.connect(capability=hostile)
    assert isinstance(refused, Refused)
    assert refused.error.code == "invalid_request"
    assert refused.error.message.endswith(".")
    assert await worker.closed() == 4000
    await worker.leave()

    later = ScriptedWorker(coordinator.ws_url)
    async with workers(later):
        later.send(CapabilityChanged(capability=hostile))
        again = await later.expect(Refused)
        assert again.error.message == refused.error.message
        assert await later.closed() == 4000


async def test_a_hostile_load_is_shown_inside_what_can_be(coordinator: Serving, rest: Rest) -> None:
    worker = WorkerByHand(coordinator.ws_url, beats=False)
    async with workers(worker):
        worker.send(
            Heartbeat(
                running=(), load=Load(cpu=float("nan"), gpu=(1e9,) * 1000, warm_sandboxes=10**9)
            )
        )

        async def is_there() -> bool:
            (shown,) = (await rest.get("/workers"))["workers"]
            return shown["load"] is not None

        await until(is_there)
        (shown,) = (await rest.get("/workers"))["workers"]
    assert shown["load"]["cpu"] == 0.0
    assert shown["load"]["gpu"] == [1.0] * 64
    assert shown["load"]["warm_sandboxes"] == 4096
