"""Workers and clients that come and go at random: no byte, no job and no credit gets lost."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from coordinator.app import Serving, serving
from coordinator.services.audit import run_audit
from coordinator.settings import Settings
from gridx.ids import new_job_id
from gridx.protocol import Cancel, JobChanged, Output, Position, Submit, Watch
from gridx.schemas import CellSpec, JobRequest, Limits
from tests.support.scripted_client import FINAL, Rest, ScriptedClient
from tests.support.scripted_worker import WorkerWithSpool, offer, workers

JOBS = 60


class PersonWithABadLine:
    """Submits one job and follows it over connections that break again and again."""

    def __init__(self, running: Serving, number: int, chance: random.Random) -> None:
        self.running, self.chance = running, chance
        self.user = f"u{number % 5}"
        self.code = f"job {number}"
        self.job_id = new_job_id()
        self.wants_cancel = number % 10 == 3
        self.attempt, self.data = 0, b""
        self.final: JobChanged | None = None

    def _take(self, message: object) -> None:
        if isinstance(message, Output):
            if message.attempt > self.attempt:
                self.attempt, self.data = message.attempt, b""
            assert message.attempt == self.attempt
            assert message.offset == len(self.data)
            self.data += message.data
        elif isinstance(message, JobChanged) and message.job.status in FINAL:
            self.final = message

    async def live(self) -> None:
        while self.final is None:
            client = ScriptedClient(self.running.http_url, user=self.user)
            await client.__aenter__()
            if self.attempt == 0:
                job = JobRequest(code=self.code, job_id=self.job_id, limits=Limits(timeout_s=5))
                client.send(Submit(job=job, cell=CellSpec(python="3.11")))
            else:
                after = Position(attempt=self.attempt, offset=len(self.data))
                client.send(Watch(job_id=self.job_id, after=after))
            patience = self.chance.randint(2, 8)
            for index in range(patience):
                begin = index + 1  # the welcome came first
                await client.expect((Output, JobChanged), after=begin)
                if any(
                    isinstance(m, JobChanged) and m.job.status in FINAL for m in client.received
                ):
                    break
                if self.wants_cancel and self.chance.random() < 0.3:
                    client.send(Cancel(job_id=self.job_id))
            await client.close()
            for message in client.received:
                self._take(message)


@pytest.mark.parametrize("seed", [1, 2, 41])
async def test_everything_ends_right_whatever_breaks_in_between(
    settings: Settings, seed: int
) -> None:
    chance = random.Random(seed)
    patient = msgspec.structs.replace(settings, grace_s=2.0, max_tries=20)
    async with serving(patient) as running:
        many = [
            WorkerWithSpool(running.ws_url, name=f"w{n}", capability=offer(slots=3))
            for n in range(3)
        ]
        people = [PersonWithABadLine(running, number, chance) for number in range(JOBS)]
        async with workers(*many):
            living = asyncio.gather(*(person.live() for person in people))

            async def break_things() -> None:
                while not living.done():
                    await asyncio.sleep(chance.uniform(0.005, 0.05))
                    await chance.choice(many).reconnect()

            breaking = asyncio.ensure_future(break_things())
            try:
                async with asyncio.timeout(60):
                    await living
            finally:
                await breaking  # it ends by itself, between two reconnects

        rest = Rest(running.http_url)
        for person in people:
            assert person.final is not None
            whole = b"".join(WorkerWithSpool.text_of(person.code))
            if person.final.job.status == "completed":
                assert person.data == whole
                assert person.final.result == person.code.encode()
            else:
                assert person.wants_cancel
                assert person.final.job.status == "cancelled"
            shown = await rest.get(f"/jobs/{person.job_id}")
            assert shown["status"] == person.final.job.status
        for number in range(5):
            assert (await rest.get(f"/credits/u{number}"))["held"] == 0.0
        assert await running.context.store.read(run_audit) == ()
        status = await rest.get("/status")
        assert (status["jobs_queued"], status["jobs_running"]) == (0, 0)
        assert running.context.outputs.live() == ()
