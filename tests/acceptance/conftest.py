"""A real engine with the real image, or a sentence that says what to type: never a silent skip."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from gridx.errors import SandboxError
from gridx.ids import new_worker_id
from tests.support.second_engine import SecondEngine, second_engine
from worker.images import engine_client, ensure_image
from worker.sandbox.docker import DockerEngine


@pytest.fixture(scope="session")
def docker_api() -> Iterator[Any]:
    """A client of the engine that the worker would use, with the sandbox image on it."""
    missing = ""
    try:
        api = engine_client()
        ensure_image(api)
    except SandboxError as error:
        missing = str(error)
    if missing:
        pytest.fail(missing, pytrace=False)
    try:
        yield api
    finally:
        api.close()


@pytest.fixture
async def engine(docker_api: Any) -> AsyncIterator[DockerEngine]:
    """A prepared engine under a worker id of its own; nothing of it is left afterwards."""
    worker_id = new_worker_id()
    made = DockerEngine(worker_id=worker_id)
    await made.prepare()
    try:
        yield made
    finally:
        await made.close()
    label = {"label": f"gridx.worker={worker_id}"}
    assert docker_api.containers(all=True, filters=label) == []


@pytest.fixture(scope="session")
def second(docker_api: Any) -> Iterator[SecondEngine]:
    """An engine that a test may kill; whoever ended it starts it again."""
    try:
        making = second_engine()
        made = making.__enter__()
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)
    try:
        yield made
    finally:
        making.__exit__(None, None, None)
