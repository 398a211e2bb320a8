"""The worker daemon with blobs: a scripted coordinator, a scripted server of blobs, real disk."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gridx.codec.results import apply_result
from gridx.errors import Forbidden
from gridx.protocol import AttemptFinished, AttemptRef, CapabilityChanged, StopAttempt
from gridx.schemas import CellSpec, FileSpec
from gridx.states import Cause
from tests.support.blob_server import BlobServer, blob_server
from tests.support.worker_coordinator import WorkerCoordinator, worker_coordinator
from tests.support.worker_program import WorkerProgram, worker_program

PROCESS = ("--sandbox", "process", "--warm", "1", "--cores", "2", "--memory", "4G")
LARGE = "import os\nr = os.urandom(20_000_000)"
LARGE_CELL = CellSpec(python="", expected=("r",))


@pytest.fixture
async def server() -> AsyncIterator[BlobServer]:
    async with blob_server() as made:
        yield made


@pytest.fixture
async def coordinator(server: BlobServer) -> AsyncIterator[WorkerCoordinator]:
    async with worker_coordinator() as made:
        made.http_url = server.url
        yield made
        server.flow.set()


@pytest.fixture
async def worker(coordinator: WorkerCoordinator, tmp_path: Path) -> AsyncIterator[WorkerProgram]:
    async with worker_program(coordinator.url, tmp_path, *PROCESS, user="lender") as program:
        await program.wait_ready()
        yield program


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


def home(server: BlobServer, report: AttemptFinished) -> Any:
    namespace: dict[str, Any] = {}
    data = server.whole(report.result_blobs)
    apply_result(data, namespace, expected={"r"}, cell_source=LARGE)
    return namespace["r"]


async def uploading(coordinator: WorkerCoordinator, server: BlobServer) -> AttemptRef:
    """Give a job with a large result; return when its upload has begun and cannot end."""
    server.flow.clear()
    ref = coordinator.give(LARGE, user="lender", cell=LARGE_CELL)
    await coordinator.wait(lambda: server.queries)
    return ref


async def test_files_of_a_job_come_from_its_blobs(
    coordinator: WorkerCoordinator, worker: WorkerProgram, server: BlobServer, tmp_path: Path
) -> None:
    data = os.urandom(9_000_000)
    refs = server.offer(data)
    cell = CellSpec(python="", files=(FileSpec(path="d/large.bin", blobs=refs),))
    for _ in range(2):
        code = "import os, zlib\nprint(zlib.crc32(open('d/large.bin', 'rb').read()))"
        ref = coordinator.give(code, user="lender", cell=cell, blobs=refs)
        report = await coordinator.wait_settled(ref)
        assert report.cause is Cause.COMPLETED, coordinator.text(ref, "stderr")
    assert len(server.got) == 2  # the second job fetched nothing
    assert server.tokens == {"Bearer gxw_scripted"}
    assert len(files(tmp_path, "blobs/*/*")) == 2


async def test_a_lying_coordinator_gets_its_job_back(
    coordinator: WorkerCoordinator, worker: WorkerProgram, server: BlobServer, tmp_path: Path
) -> None:
    (blob,) = server.offer(b"what it says it is")
    server.blobs[blob.digest] = b"something else    "
    ref = coordinator.give("print(1)", user="lender", cell=True, blobs=(blob,))
    (back,) = await coordinator.wait(lambda: coordinator.handed_back(ref))
    assert "other bytes than its name says" in back.message
    assert not coordinator.has_started(ref)
    assert files(tmp_path, "blobs/*/*") == []


async def test_a_stop_ends_the_transfer_and_nothing_was_used(
    coordinator: WorkerCoordinator, worker: WorkerProgram, server: BlobServer
) -> None:
    (blob,) = server.offer(b"bytes")
    server.flow.clear()
    ref = coordinator.give("print(1)", user="lender", cell=True, blobs=(blob,))
    await coordinator.wait(lambda: server.queries)
    coordinator.send(StopAttempt(job_id=ref.job_id, attempt=1))
    report = await coordinator.wait_settled(ref)
    assert report.cause is Cause.CANCELLED
    assert report.usage.wall_s == 0
    assert not coordinator.has_started(ref)


async def test_a_large_result_is_there_before_its_report(
    coordinator: WorkerCoordinator, worker: WorkerProgram, server: BlobServer, tmp_path: Path
) -> None:
    ref = await uploading(coordinator, server)
    assert coordinator.of(AttemptFinished) == []
    server.flow.set()
    report = await coordinator.wait_settled(ref)
    assert (report.cause, report.result) == (Cause.COMPLETED, None)
    assert len(home(server, report)) == 20_000_000
    await coordinator.wait(lambda: not files(tmp_path, "outbox/*"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
async def test_a_worker_that_ends_in_mid_upload_goes_on_after_its_restart(
    coordinator: WorkerCoordinator, server: BlobServer, tmp_path: Path, number: int
) -> None:
    options = (*PROCESS, "--drain-s", "0.1")
    async with worker_program(coordinator.url, tmp_path, *options, user="lender") as first:
        await first.wait_ready()
        ref = await uploading(coordinator, server)
        await coordinator.wait(lambda: files(tmp_path, "outbox/*/report"))
        first.signal(number)
        await first.wait_exit()
    assert len(files(tmp_path, "outbox/*/*.blob")) == 3
    server.flow.set()
    async with worker_program(coordinator.url, tmp_path, *PROCESS, user="lender"):
        report = await coordinator.wait_settled(ref)
        assert report.cause is Cause.COMPLETED
        assert len(home(server, report)) == 20_000_000
        await coordinator.wait(lambda: not files(tmp_path, "outbox/*"))


async def test_a_worker_that_is_stopped_waits_for_its_uploads(
    coordinator: WorkerCoordinator, worker: WorkerProgram, server: BlobServer, tmp_path: Path
) -> None:
    ref = await uploading(coordinator, server)
    await coordinator.wait(lambda: files(tmp_path, "outbox/*/report"))
    worker.signal(signal.SIGTERM)
    await coordinator.wait(lambda: coordinator.of(CapabilityChanged))  # it has begun to stop
    server.flow.set()
    assert await worker.wait_exit() == 0
    assert (await coordinator.wait_settled(ref)).cause is Cause.COMPLETED


async def test_a_cancelled_job_does_not_upload_on(
    coordinator: WorkerCoordinator, worker: WorkerProgram, server: BlobServer, tmp_path: Path
) -> None:
    ref = await uploading(coordinator, server)
    await coordinator.wait(lambda: files(tmp_path, "outbox/*/report"))
    coordinator.send(StopAttempt(job_id=ref.job_id, attempt=1))
    report = await coordinator.wait_settled(ref)
    assert (report.cause, report.result_blobs) == (Cause.CANCELLED, ())
    assert report.usage.wall_s > 0  # what it used, it used
    await coordinator.wait(lambda: not files(tmp_path, "outbox/*"))


async def test_a_result_that_is_refused_fails_the_attempt_with_the_reason(
    coordinator: WorkerCoordinator, worker: WorkerProgram, server: BlobServer
) -> None:
    server.refusal, server.refusal_status = Forbidden("No room for this user."), 403
    ref = coordinator.give(LARGE, user="lender", cell=LARGE_CELL)
    report = await coordinator.wait_settled(ref)
    assert (report.cause, report.result_blobs) == (Cause.SANDBOX_FAILED, ())
    assert report.message == "The result could not be delivered: No room for this user."
