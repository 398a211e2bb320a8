"""User ids are distinct over all workers of one engine, also of those that share no folder."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gridx.ids import new_worker_id
from tests.support.sandbox_contract import call
from worker.sandbox.base import DEFAULT_REQUEST, Sandbox
from worker.sandbox.docker import DockerEngine
from worker.sandbox.limits import UIDS_LABEL
from worker.sandbox.uids import UIDS_IN_RANGE

pytestmark = pytest.mark.docker


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Let what is locked from now on be locked in another folder, as in another container."""

    def move(name: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))

    return move


@pytest.fixture
async def two(
    docker_api: Any, elsewhere: Callable[[str], None]
) -> AsyncIterator[tuple[DockerEngine, DockerEngine]]:
    engines = (DockerEngine(worker_id=new_worker_id()), DockerEngine(worker_id=new_worker_id()))
    try:
        yield engines
    finally:
        await asyncio.gather(*(engine.close() for engine in engines))


async def uid_in(sandbox: Sandbox) -> int:
    return int((await call(sandbox, "import os; print(os.getuid())")).stdout)


def range_of(uid: int) -> int:
    return uid // UIDS_IN_RANGE


async def test_a_range_that_a_live_container_shows_is_left_out(
    two: tuple[DockerEngine, DockerEngine], elsewhere: Callable[[str], None], docker_api: Any
) -> None:
    one, other = two
    elsewhere("one")
    await one.prepare()
    first = await one.start(DEFAULT_REQUEST)
    elsewhere("other")
    await other.prepare()
    second = await other.start(DEFAULT_REQUEST)
    uids = [await uid_in(sandbox) for sandbox in (first, second)]
    assert range_of(uids[0]) != range_of(uids[1])
    labels = docker_api.inspect_container(second.id)["Config"]["Labels"]
    assert range_of(int(labels[UIDS_LABEL])) == range_of(uids[1])


async def test_two_workers_that_took_the_same_range_part_with_their_first_containers(
    two: tuple[DockerEngine, DockerEngine], elsewhere: Callable[[str], None]
) -> None:
    for engine, name in zip(two, ("one", "other"), strict=True):
        elsewhere(name)
        await engine.prepare()  # nobody has a container yet: both take the first free range
    started = await asyncio.gather(
        *(engine.start(DEFAULT_REQUEST) for engine in two for _ in range(2))
    )
    uids = [await uid_in(sandbox) for sandbox in started]
    assert len(set(uids)) == 4
    assert {range_of(uid) for uid in uids[:2]}.isdisjoint({range_of(uid) for uid in uids[2:]})


async def test_a_worker_that_had_no_container_for_a_while_looks_again(
    two: tuple[DockerEngine, DockerEngine], elsewhere: Callable[[str], None]
) -> None:
    one, other = two
    elsewhere("one")
    await one.prepare()
    gone = await one.start(DEFAULT_REQUEST)
    await gone.kill()
    elsewhere("other")
    await other.prepare()
    second = await other.start(DEFAULT_REQUEST)
    first = await one.start(DEFAULT_REQUEST)
    assert range_of(await uid_in(first)) != range_of(await uid_in(second))
