"""The client against a real grid: every byte, through cuts, pauses and a killed coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gridx.client import Client, Job
from gridx.errors import PayloadTooLarge, UnknownLanguage
from gridx.events import Stream
from gridx.schemas import MAX_CODE_BYTES, JobRequest, Limits
from gridx.settings import ConnectionSettings
from gridx.updates import EventArrived, Finished, LinkChanged, Restarted, Update
from tests.support.gridx_command import Up, environment
from tests.support.programs import Coordinator, Worker

LINES = 400
PRINTS = f"""
import time
for number in range({LINES}):
    print(number, 'x' * 50, flush=number % 7 == 0)
    if number % 40 == 0:
        time.sleep(0.05)
"""
PRINTED = "".join(f"{number} {'x' * 50}\n" for number in range(LINES))


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    home = tmp_path_factory.mktemp("grid")
    with Up(home / "up", "--sandbox", "process", env=environment(home)) as up:
        assert up.url, up.err
        yield up


def client_of(grid: Up, feed_limit_bytes: int = 8 << 20) -> Client:
    settings = ConnectionSettings(url=grid.url, user="ada", file=Path("none"))
    return Client(settings, feed_limit_bytes=feed_limit_bytes)


def text_of(updates: list[Update]) -> str:
    return "".join(
        update.event.text
        for update in updates
        if isinstance(update, EventArrived)
        and isinstance(update.event, Stream)
        and update.event.name == "stdout"
    )


async def read(job: Job, *, slowly: bool = False) -> list[Update]:
    updates = []
    async for update in job.updates():
        updates.append(update)
        if slowly:
            await asyncio.sleep(0.002)  # a reader that draws; nothing is waited for
    assert isinstance(updates[-1], Finished)
    assert not any(isinstance(update, Restarted) for update in updates)
    return updates


async def test_every_line_arrives_once_and_in_order(grid: Up) -> None:
    async with client_of(grid) as client:
        job = await client.submit(JobRequest(code=PRINTS))
        assert text_of(await read(job)) == PRINTED
        again = await client.attach(job.id)
        assert again.view.status == "completed"
        assert text_of(await read(again)) == PRINTED


async def test_a_cut_connection_costs_nothing_of_the_output(grid: Up) -> None:
    async with client_of(grid) as client:
        job = await client.submit(JobRequest(code=PRINTS))
        updates: list[Update] = []
        cuts = 0
        async for update in job.updates():
            updates.append(update)
            if isinstance(update, EventArrived) and cuts < 5:
                cuts += 1
                client._link.drop()
        assert text_of(updates) == PRINTED
        assert sum(isinstance(update, LinkChanged) for update in updates) >= 2
        assert isinstance(updates[-1], Finished)


async def test_a_slow_reader_gets_everything(grid: Up) -> None:
    async with client_of(grid, feed_limit_bytes=2_000) as client:
        job = await client.submit(JobRequest(code=PRINTS))
        assert text_of(await read(job, slowly=True)) == PRINTED


async def test_the_same_id_twice_is_the_same_job(grid: Up) -> None:
    async with client_of(grid) as client:
        first = await client.submit(JobRequest(code="print('once')"))
        again = await client.submit(JobRequest(code="print('once')", job_id=first.id))
        assert again.id == first.id
        one, two = await asyncio.gather(read(first), read(again))
        assert text_of(one) == text_of(two) == "once\n"


async def test_what_cannot_run_is_refused_by_its_own_class(grid: Up) -> None:
    async with client_of(grid) as client:
        with pytest.raises(UnknownLanguage, match="python"):
            await client.submit(JobRequest(code="1", language="cobol"))
        with pytest.raises(PayloadTooLarge):
            await client.submit(JobRequest(code="#" * (MAX_CODE_BYTES + 1)))


async def test_a_running_job_is_cancelled_from_another_client(grid: Up) -> None:
    async with client_of(grid) as client, client_of(grid) as other:
        code = "import time\nprint('begun', flush=True)\ntime.sleep(60)"
        job = await client.submit(JobRequest(code=code, limits=Limits(timeout_s=90)))
        async for update in job.updates():
            if isinstance(update, EventArrived):
                await other.cancel(job.id)
        assert job.finished is not None
        assert job.finished.view.status == "cancelled"
        assert job.finished.held_ucr == 0


async def test_a_killed_coordinator_comes_back_and_the_output_goes_on_without_a_gap(
    tmp_path: Path,
) -> None:
    code = "import time\nfor n in range(60):\n    print(n, flush=True)\n    time.sleep(0.05)"
    env = environment(tmp_path)
    with ExitStack() as stack:
        first = stack.enter_context(Coordinator(tmp_path / "c", env=env))
        stack.enter_context(Worker(first, tmp_path / "w", user="ada", sandbox="process", env=env))
        async with Client(ConnectionSettings(url=first.http_url, user="ada")) as client:
            job = await client.submit(JobRequest(code=code))
            updates: list[Update] = []
            was_killed = False
            async for update in job.updates():
                updates.append(update)
                if isinstance(update, EventArrived) and not was_killed:
                    was_killed = True
                    await asyncio.to_thread(first.kill)
                    stack.enter_context(
                        await asyncio.to_thread(Coordinator, tmp_path / "c", like=first, env=env)
                    )
            assert text_of(updates) == "".join(f"{n}\n" for n in range(60))
            assert [u.connected for u in updates if isinstance(u, LinkChanged)] == [False, True]
            assert not any(isinstance(update, Restarted) for update in updates)
            assert job.finished is not None
            assert job.finished.view.status == "completed"
