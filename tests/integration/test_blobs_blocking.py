"""Blobs by plain calls: progress in the caller's own thread, and an interrupt at once."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridx.blobs import CHUNK_BYTES, Blob, to_blob
from gridx.blocking import BlockingClient
from gridx.errors import InvalidRequest
from gridx.schemas import CellSpec
from gridx.settings import ConnectionSettings
from tests.support.programs import Coordinator, wait_for

CELL = CellSpec(python="3.11")
MANY = 24
DATA = random.Random(1).randbytes(CHUNK_BYTES + MANY)
BLOBS = [to_blob(memoryview(DATA)[at : at + CHUNK_BYTES]) for at in range(MANY)]


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    with Coordinator(tmp_path / "data") as running:
        yield running


@pytest.fixture
def client(coordinator: Coordinator) -> Iterator[BlockingClient]:
    with BlockingClient(ConnectionSettings(url=coordinator.http_url, user="ada")) as made:
        yield made


def submit(client: BlockingClient, blobs: list[Blob], code: str = "1") -> int:
    job = client.submit(code, cell=CELL, inputs=b"head", blobs=blobs)
    job.cancel()
    return job.sent_bytes


def test_progress_is_told_in_the_thread_that_asked(client: BlockingClient) -> None:
    told: list[tuple[int, int, int]] = []
    job = client.submit(
        "1",
        cell=CELL,
        blobs=BLOBS[:3],
        on_progress=lambda *now: told.append((*now, threading.get_ident())),
    )
    assert told[-1] == (3 * CHUNK_BYTES, 3 * CHUNK_BYTES, threading.get_ident())
    assert job.sent_bytes == 3 * CHUNK_BYTES
    told.clear()
    refs = [blob.ref for blob in BLOBS[:2]]
    whole = job.download(refs, lambda *now: told.append((*now, threading.get_ident())))
    assert whole == b"".join(blob.data for blob in BLOBS[:2])
    assert told[-1] == (2 * CHUNK_BYTES, 2 * CHUNK_BYTES, threading.get_ident())
    assert client.download(job.id, refs) == whole
    told.clear()
    job.cancel()
    again = client.submit("2", cell=CELL, blobs=BLOBS[:3], on_progress=lambda *now: told.append(()))
    assert (again.sent_bytes, told) == (0, [])
    again.cancel()


def test_an_interrupt_ends_an_upload_at_once_and_nothing_was_submitted(
    coordinator: Coordinator,
    client: BlockingClient,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client.connect()
    folder = tmp_path / "data" / "blobs"

    def freeze_and_interrupt() -> None:
        # With the coordinator frozen the upload can come neither to its end nor to an error.
        wait_for(lambda: any(len(path.name) == 64 for path in folder.rglob("*")))
        os.kill(coordinator.process.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGINT)

    helper = threading.Thread(target=freeze_and_interrupt)
    helper.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            submit(client, BLOBS)
    finally:
        helper.join()
        os.kill(coordinator.process.pid, signal.SIGCONT)
    assert client.jobs().jobs == ()
    sent_bytes = submit(client, BLOBS)  # only what was not there yet
    assert 0 <= sent_bytes - 4 < MANY * CHUNK_BYTES
    assert submit(client, BLOBS) == 4
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_the_number_of_retries_is_checked_before_anything_is_sent(client: BlockingClient) -> None:
    with pytest.raises(InvalidRequest, match="0 to 10 times, not 11"):
        client.submit("1", retries=11, blobs=BLOBS)
    assert client.submit("1", retries=10).cancel() is not None
