"""The asynchronous client against a coordinator that does what the test says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from gridx.client import Client, Job
from gridx.errors import (
    AuthError,
    InsufficientCredits,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NotFound,
    PayloadTooLarge,
    TransportError,
)
from gridx.events import Stream
from gridx.protocol import Cancel, ClientHello, Position, Submit, Watch
from gridx.schemas import JobRequest, Reason
from gridx.settings import ConnectionSettings
from gridx.updates import EventArrived, Finished, LinkChanged, Restarted, StateChanged, Update
from tests.support.scripted_coordinator import (
    ScriptedCoordinator,
    ScriptedJob,
    scripted_coordinator,
)

REQUEST = JobRequest(code="print('hello')")


@pytest.fixture
async def grid() -> AsyncIterator[ScriptedCoordinator]:
    async with scripted_coordinator() as running:
        yield running


@pytest.fixture
async def client(grid: ScriptedCoordinator) -> AsyncIterator[Client]:
    async with client_of(grid) as opened:
        yield opened


def client_of(grid: ScriptedCoordinator, *, feed_limit_bytes: int = 8 << 20) -> Client:
    return Client(ConnectionSettings(url=grid.url, user="ada"), feed_limit_bytes=feed_limit_bytes)


def say(text: str) -> Stream:
    return Stream(name="stdout", text=text)


async def read(job: Job) -> list[Update]:
    return [update async for update in job.updates()]


def text_of(updates: list[Update]) -> str:
    """What a screen shows in the end: a restart clears it."""
    text = ""
    for update in updates:
        if isinstance(update, Restarted):
            text = ""
        elif isinstance(update, EventArrived) and isinstance(update.event, Stream):
            text += update.event.text
    return text


async def runs_and_prints(grid: ScriptedCoordinator, job: ScriptedJob) -> None:
    grid.start(job)
    grid.emit(job, say("hel"), say("lo\n"))
    grid.finish(job, result=b"\x01")


async def test_a_job_goes_from_submit_to_its_result(
    grid: ScriptedCoordinator, client: Client
) -> None:
    grid.on_submit = lambda job: runs_and_prints(grid, job)
    job = await client.submit(REQUEST, inputs=b"xyz")
    updates = await read(job)

    assert text_of(updates) == "hello\n"
    states = [u.view.status for u in updates if isinstance(u, StateChanged)]
    assert states == ["queued", "running"]
    end = updates[-1]
    assert isinstance(end, Finished)
    assert (end.cost_ucr, end.balance_ucr, end.held_ucr) == (1_500_000, 90_000_000, 0)
    assert (end.result, end.error()) == (b"\x01", None)
    assert job.finished is end
    assert await job.wait() is end
    assert await read(job) == []
    submit = grid.received[1]
    assert isinstance(submit, Submit)
    assert submit.inputs == b"xyz"
    assert submit.job.job_id == job.id


async def test_the_position_of_each_event_is_where_the_output_goes_on(
    grid: ScriptedCoordinator, client: Client
) -> None:
    grid.on_submit = lambda job: runs_and_prints(grid, job)
    job = await client.submit(REQUEST)
    first = next(u for u in await read(job) if isinstance(u, EventArrived))
    again = await client.attach(job.id, after=first.position)
    assert text_of(await read(again)) == "lo\n"


async def test_two_readers_of_one_job_both_get_all_of_it(
    grid: ScriptedCoordinator, client: Client
) -> None:
    job = await client.submit(REQUEST)
    second = await client.attach(job.id)
    await runs_and_prints(grid, grid.only_job())
    one, two = await asyncio.gather(read(job), read(second))
    assert text_of(one) == text_of(two) == "hello\n"


async def test_a_refusal_comes_back_as_its_own_class(
    grid: ScriptedCoordinator, client: Client
) -> None:
    grid.refusals[Submit] = InsufficientCredits("You have 1.00.", hint="Lend.", needed_ucr=5)
    with pytest.raises(InsufficientCredits, match=r"You have 1\.00\. Lend\.") as caught:
        await client.submit(REQUEST)
    assert caught.value.details == {"needed_ucr": 5}
    del grid.refusals[Submit]
    assert (await client.submit(REQUEST)).view.status == "queued"


async def test_a_refused_hello_is_not_tried_again(grid: ScriptedCoordinator) -> None:
    grid.refusals[ClientHello] = AuthError("The token has expired.")
    async with client_of(grid) as client:
        with pytest.raises(AuthError, match="expired"):
            await client.connect()
    assert len(grid.received) == 1


async def test_nobody_there_is_said_at_once_with_the_address_and_a_way_out() -> None:
    async with Client(ConnectionSettings(url="http://127.0.0.1:9", user="ada")) as client:
        with pytest.raises(TransportError, match=r"http://127\.0\.0\.1:9: .*refused.*gridx up"):
            await client.submit(REQUEST)
        with pytest.raises(TransportError, match=r"gridx up"):
            await client.health()


async def test_an_address_without_a_coordinator_is_told_apart(grid: ScriptedCoordinator) -> None:
    async with Client(ConnectionSettings(url=grid.url + "/elsewhere", user="ada")) as client:
        with pytest.raises(TransportError, match=r"not a Grid-X coordinator \(HTTP 404"):
            await client.connect()
        with pytest.raises(TransportError, match="not a Grid-X coordinator"):
            await client.workers()


async def test_an_unknown_job_cannot_be_attached(client: Client) -> None:
    with pytest.raises(NotFound):
        await client.attach("job_" + "0" * 32)
    with pytest.raises(InvalidRequest, match="not a job id"):
        await client.attach("job_1")


async def test_inputs_that_are_too_big_are_refused_before_they_are_sent(
    grid: ScriptedCoordinator, client: Client
) -> None:
    with pytest.raises(PayloadTooLarge, match="16 MiB"):
        await client.submit(REQUEST, inputs=bytes(16 << 20))
    assert not any(isinstance(message, Submit) for message in grid.received)


async def test_an_unanswered_submit_is_sent_again_with_the_same_id(
    grid: ScriptedCoordinator, client: Client
) -> None:
    cuts = iter([True, True, False])
    grid.cut_after = lambda message: isinstance(message, Submit) and next(cuts)
    grid.silent_for = {Submit}

    async def runs(job: ScriptedJob) -> None:
        grid.silent_for = set()

    grid.on_submit = runs
    grid.silent_for = {Submit}
    job = await client.submit(REQUEST)
    ids = {m.job.job_id for m in grid.received if isinstance(m, Submit)}
    assert ids == {job.id}
    assert len(grid.jobs) == 1


async def test_after_a_cut_the_output_goes_on_at_its_byte(
    grid: ScriptedCoordinator, client: Client
) -> None:
    job = await client.submit(REQUEST)
    scripted = grid.only_job()
    grid.start(scripted)
    grid.emit(scripted, say("one "))
    updates: list[Update] = []
    async for update in job.updates():
        updates.append(update)
        if isinstance(update, EventArrived) and len(scripted.stream) == job.position.offset:
            if text_of(updates) == "one ":
                grid.cut()
                grid.emit(scripted, say("two "))  # while nobody listens
            elif text_of(updates) == "one two ":
                grid.finish(scripted)
    assert text_of(updates) == "one two "
    links = [u.connected for u in updates if isinstance(u, LinkChanged)]
    assert links == [False, True]
    watches = [m for m in grid.received if isinstance(m, Watch)]
    assert watches[0].after.attempt == 1
    assert watches[0].after.offset > 0


async def test_a_new_attempt_clears_what_the_earlier_one_said(
    grid: ScriptedCoordinator, client: Client
) -> None:
    job = await client.submit(REQUEST)
    scripted = grid.only_job()
    grid.start(scripted)
    grid.emit(scripted, say("lost"))
    grid.start(scripted)
    grid.emit(scripted, say("kept"))
    grid.finish(scripted)
    updates = await read(job)
    assert [u.attempt for u in updates if isinstance(u, Restarted)] == [2]
    assert text_of(updates) == "kept"


async def test_a_cancelled_job_says_what_it_cost(grid: ScriptedCoordinator, client: Client) -> None:
    job = await client.submit(REQUEST)
    grid.start(grid.only_job())
    await job.cancel()
    end = await job.wait()
    assert end.cost_ucr == 250_000
    assert isinstance(end.error(), JobCancelled)
    await job.cancel()  # once more is no error


async def test_a_cancel_outlives_a_cut(grid: ScriptedCoordinator, client: Client) -> None:
    job = await client.submit(REQUEST)
    grid.start(grid.only_job())
    grid.silent_for = {Cancel}
    cuts = iter([True])

    def cut(message: object) -> bool:
        if not isinstance(message, Cancel):
            return False
        grid.silent_for = set()
        return next(cuts, False)

    grid.cut_after = cut
    await job.cancel()
    assert (await job.wait()).view.status == "cancelled"
    assert sum(isinstance(m, Cancel) for m in grid.received) >= 2


async def given_up(grid: ScriptedCoordinator, client: Client) -> ScriptedJob:
    """Submit, and leave before the answer."""
    submitted = asyncio.Event()

    async def note(job: ScriptedJob) -> None:
        submitted.set()

    grid.on_submit = note
    grid.silent_for = {Submit}
    submitting = asyncio.create_task(client.submit(REQUEST))
    async with asyncio.timeout(30):
        await submitted.wait()
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    return grid.only_job()


async def end_of(grid: ScriptedCoordinator, job: ScriptedJob) -> str:
    async with client_of(grid) as other:
        end = await (await other.attach(job.view.job_id)).wait()
    return end.view.status


async def test_a_submission_that_was_given_up_is_cancelled_when_its_answer_comes(
    grid: ScriptedCoordinator, client: Client
) -> None:
    job = await given_up(grid, client)
    assert not any(isinstance(message, Cancel) for message in grid.received)
    grid.start(job)
    assert await end_of(grid, job) == "cancelled"


async def test_a_submission_that_was_given_up_is_cancelled_when_the_link_returns(
    grid: ScriptedCoordinator, client: Client
) -> None:
    job = await given_up(grid, client)
    await grid.stop()
    grid.silent_for = set()
    grid.listen()
    assert await end_of(grid, job) == "cancelled"
    assert len(grid.jobs) == 1


async def test_a_client_is_not_closed_before_what_was_given_up_is_cancelled(
    grid: ScriptedCoordinator,
) -> None:
    async with client_of(grid) as client:
        job = await given_up(grid, client)
        asyncio.get_running_loop().call_later(0.1, grid.start, job)
    assert job.view.status == "cancelled"


async def test_a_submission_that_was_given_up_and_refused_leaves_nothing_behind(
    grid: ScriptedCoordinator, client: Client
) -> None:
    job = await given_up(grid, client)
    grid.refusals[Submit] = InsufficientCredits("You have 1.00.")
    grid.cut()  # it is sent again, and refused
    (unseen,) = client._unseen
    await unseen
    assert client._jobs == {}
    assert job.view.status == "queued"


async def test_an_attachment_that_was_given_up_leaves_the_job_alone(
    grid: ScriptedCoordinator, client: Client
) -> None:
    job = await client.submit(REQUEST)
    grid.silent_for = {Watch}
    attaching = asyncio.create_task(client.attach(job.id))
    while not any(isinstance(message, Watch) for message in grid.received):
        await asyncio.sleep(0)
    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching
    grid.finish(grid.only_job())
    assert (await job.wait()).view.status == "completed"
    assert not any(isinstance(message, Cancel) for message in grid.received)


async def test_a_cancel_that_comes_too_late_is_no_error(
    grid: ScriptedCoordinator, client: Client
) -> None:
    job = await client.submit(REQUEST)
    scripted = grid.only_job()
    grid.start(scripted)
    cancelling = asyncio.create_task(job.cancel())
    grid.finish(scripted)
    await cancelling
    assert (await job.wait()).view.status == "completed"


async def test_a_failed_job_becomes_its_error(grid: ScriptedCoordinator, client: Client) -> None:
    job = await client.submit(REQUEST)
    reason = Reason(code="error", message="ValueError: no.", hint="Read it.")
    grid.finish(grid.only_job(), "failed", reason=reason)
    error = (await job.wait()).error()
    assert isinstance(error, JobFailed)
    assert str(error) == "ValueError: no. Read it."


async def test_a_coordinator_that_stays_away_ends_the_wait(grid: ScriptedCoordinator) -> None:
    settings = ConnectionSettings(url=grid.url, user="ada")
    async with Client(settings, patience_s=0.1) as client:
        job = await client.submit(REQUEST)
        await grid.stop()
        with pytest.raises(TransportError, match="did not come back"):
            await job.wait()


async def test_a_coordinator_that_returns_is_found_again(
    grid: ScriptedCoordinator, client: Client
) -> None:
    job = await client.submit(REQUEST)
    scripted = grid.only_job()
    grid.start(scripted)
    grid.emit(scripted, say("a"))
    await grid.stop()
    grid.listen()
    grid.emit(scripted, say("b"))
    grid.finish(scripted)
    assert text_of(await read(job)) == "ab"


async def test_a_closed_client_ends_its_readers(grid: ScriptedCoordinator) -> None:
    client = client_of(grid)
    job = await client.submit(REQUEST)
    reading = asyncio.create_task(job.wait())
    await client.close()
    with pytest.raises(TransportError, match="closed"):
        await reading


async def test_a_slow_reader_pauses_its_own_job_and_loses_nothing(
    grid: ScriptedCoordinator,
) -> None:
    async with client_of(grid, feed_limit_bytes=1000) as client:
        slow, quick = await client.submit(REQUEST), await client.submit(REQUEST)
        for job in grid.jobs.values():
            grid.start(job)
            for number in range(200):
                grid.emit(job, say(f"{number:09d} "))
            grid.finish(job)
        whole = "".join(f"{number:09d} " for number in range(200))
        assert text_of(await read(quick)) == whole
        assert text_of(await read(slow)) == whole


async def test_a_job_that_ended_long_ago_is_attached_with_all_its_output(
    grid: ScriptedCoordinator,
) -> None:
    async with client_of(grid, feed_limit_bytes=1000) as client:
        job = await client.submit(REQUEST)
        scripted = grid.only_job()
        grid.start(scripted)
        grid.emit(scripted, say("x" * 5000))
        grid.finish(scripted)
        job.detach()
        again = await client.attach(job.id)
        assert again.view.status == "completed"
        assert text_of(await read(again)) == "x" * 5000


async def test_a_missing_part_that_never_comes_is_an_error(
    grid: ScriptedCoordinator, client: Client
) -> None:
    job = await client.submit(REQUEST)
    scripted = grid.only_job()
    grid.start(scripted)
    grid.emit(scripted, say("a"))
    scripted.stream = scripted.stream + b"\0" * 4  # claims an end that is no event
    grid.finish(scripted)
    with pytest.raises(Exception, match=r"malformed|did not come"):
        await read(job)


@pytest.mark.parametrize("seed", range(12))
async def test_what_arrives_is_what_was_sent_under_any_cuts(
    grid: ScriptedCoordinator, seed: int
) -> None:
    chance = random.Random(seed)
    grid.overlap_bytes = chance.choice([0, 40, 10_000])
    sent: list[str] = []
    async with client_of(grid, feed_limit_bytes=chance.choice([200, 5_000, 8 << 20])) as client:
        job = await client.submit(REQUEST)
        scripted = grid.only_job()

        async def script() -> None:
            grid.start(scripted)
            for number in range(chance.randrange(50, 300)):
                texts = [f"{number}.{k} " for k in range(chance.randrange(1, 5))]
                sent.extend(texts)
                grid.emit(scripted, *map(say, texts))
                if chance.random() < 0.05:
                    grid.cut()
                if chance.random() < 0.01:
                    grid.start(scripted)
                    sent.clear()
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
            grid.finish(scripted)

        script_task = asyncio.create_task(script())
        updates: list[Update] = []
        async for update in job.updates():
            updates.append(update)
            if chance.random() < 0.2:
                await asyncio.sleep(0)
        await script_task
    assert text_of(updates) == "".join(sent)
    assert sum(isinstance(u, Finished) for u in updates) == 1
    assert job.position == Position(attempt=scripted.view.attempt, offset=len(scripted.stream))


async def test_the_rest_calls_return_their_types(grid: ScriptedCoordinator, client: Client) -> None:
    await client.submit(REQUEST)
    assert (await client.health()).status == "ok"
    assert (await client.status()).auth == "open"
    assert await client.workers() == ()
    account = await client.balance()
    assert (account.user_id, account.available) == ("ada", 94.0)
    assert [view.status for view in (await client.jobs()).jobs] == ["queued"]
    with pytest.raises(NotFound, match="no account nobody"):
        await client.balance("nobody")
