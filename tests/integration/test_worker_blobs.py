"""Blobs of the worker: its cache on a real disk, and its transfers over real sockets."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gridx.blobs import CHUNK_BYTES
from gridx.errors import BlobMismatch, Forbidden, GridXError, NotFound, SandboxError, TransportError
from gridx.ids import new_job_id
from gridx.protocol import MAX_PAYLOAD_BYTES, AttemptRef
from gridx.resources import MIB
from gridx.schemas import BlobRef
from tests.support.blob_server import BlobServer, blob_server
from worker.blob_cache import BlobCache
from worker.results import Results
from worker.transfers import BlobTransfers

HANG_S = 30.0


@pytest.fixture
async def server() -> AsyncIterator[BlobServer]:
    async with blob_server() as made:
        yield made


@pytest.fixture
async def transfers(server: BlobServer) -> AsyncIterator[BlobTransfers]:
    made = BlobTransfers()
    made.connect(server.url, "gxw_token")
    yield made
    server.flow.set()
    await asyncio.to_thread(made.close)


@pytest.fixture
def ref() -> AttemptRef:
    return AttemptRef(job_id=new_job_id(), attempt=1)


def cache(folder: Path, transfers: BlobTransfers, limit_bytes: int = 64 * MIB) -> BlobCache:
    return BlobCache(folder / "blobs", transfers, limit_bytes=limit_bytes)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def joined(paths: dict[str, Path], refs: tuple[BlobRef, ...]) -> bytes:
    return b"".join(paths[ref.digest].read_bytes() for ref in refs)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def change(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(HANG_S):
        while not holds():
            await asyncio.sleep(0.005)


# ---------------------------------------------------------------- fetching


async def test_missing_blobs_are_fetched_checked_and_kept(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    data = os.urandom(CHUNK_BYTES * 2 + 1000)
    refs = server.offer(data)
    loan = cache(tmp_path, transfers).loan("anna", ref)
    paths = await loan.take(refs)
    assert joined(paths, refs) == data
    assert sorted(server.got) == sorted(blob.digest for blob in refs)
    assert server.tokens == {"Bearer gxw_token"}
    assert all(query == {"job_id": ref.job_id, "attempt": "1"} for query in server.queries)
    assert loan.fetched_bytes == len(data)
    assert {mode(path) for path in paths.values()} == {0o444}
    assert mode(tmp_path / "blobs") == mode(next(iter(paths.values())).parent) == 0o700


async def test_the_next_job_of_the_same_user_fetches_nothing(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    refs = server.offer(os.urandom(CHUNK_BYTES + 5))
    kept = cache(tmp_path, transfers)
    first = kept.loan("anna", ref)
    await first.take(refs)
    first.end()
    server.got.clear()
    loan = kept.loan("anna", AttemptRef(job_id=new_job_id(), attempt=1))
    await loan.take(refs)
    assert server.got == []
    assert loan.fetched_bytes == 0


async def test_the_same_bytes_of_another_user_are_fetched_again(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    refs = server.offer(b"the same bytes" * 10_000)
    kept = cache(tmp_path, transfers)
    annas = await kept.loan("anna", ref).take(refs)
    bobs = await kept.loan("bob", AttemptRef(job_id=new_job_id(), attempt=1)).take(refs)
    assert len(server.got) == 2
    assert set(annas.values()).isdisjoint(bobs.values())
    assert not any("anna" in str(path.relative_to(tmp_path)) for path in annas.values())
    assert "anna" not in [path.name for path in (tmp_path / "blobs").iterdir()]


async def test_packed_blobs_are_unpacked(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    data = b"\0" * CHUNK_BYTES + b"1, 2, 3\n" * 100_000
    refs = server.offer(data)
    server.pack_all()
    assert server.packed
    paths = await cache(tmp_path, transfers).loan("anna", ref).take(refs)
    assert joined(paths, refs) == data


async def test_a_frame_that_would_become_larger_than_its_blob_is_refused(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    bomb = server.offer(b"\0" * CHUNK_BYTES)[0]
    server.pack_all()
    small = BlobRef(digest="0" * 64, size=1000)
    server.blobs[small.digest] = server.blobs[bomb.digest]
    server.packed.add(small.digest)
    with pytest.raises(BlobMismatch):
        await cache(tmp_path, transfers).loan("anna", ref).take((small,))
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "lie", [b"other bytes", b"", b"x" * 9 * MIB], ids=["other", "none", "more"]
)
async def test_a_lying_coordinator_is_found_out_and_nothing_is_kept(
    server: BlobServer,
    ref: AttemptRef,
    tmp_path: Path,
    lie: bytes,
) -> None:
    (blob,) = server.offer(b"true bytes!")
    server.blobs[blob.digest] = lie
    transfers = BlobTransfers(patience_s=0.0)
    transfers.connect(server.url, None)
    try:
        with pytest.raises((BlobMismatch, TransportError)) as caught:
            await cache(tmp_path, transfers).loan("anna", ref).take((blob,))
        assert blob.digest[:16] in str(caught.value) or "answered more than" in str(caught.value)
    finally:
        await asyncio.to_thread(transfers.close)
    assert files(tmp_path) == []


async def test_what_the_coordinator_refuses_is_said_with_its_own_words(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    refs = server.offer(b"bytes")
    server.refusal = NotFound("There is no such blob of this job.")
    with pytest.raises(NotFound, match="no such blob of this job"):
        await cache(tmp_path, transfers).loan("anna", ref).take(refs)


async def test_a_cut_answer_is_asked_for_again(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    data = os.urandom(CHUNK_BYTES * 3)
    refs = server.offer(data)
    server.cuts = 2
    paths = await cache(tmp_path, transfers).loan("anna", ref).take(refs)
    assert joined(paths, refs) == data
    assert len(server.got) == 5


async def test_a_coordinator_that_comes_back_is_waited_for(
    server: BlobServer,
    transfers: BlobTransfers,
    ref: AttemptRef,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refs = server.offer(b"bytes")
    await server.stop()
    failed = asyncio.Event()
    monkeypatch.setattr("worker.transfers.reconnect_wait_s", lambda failures: failed.set() or 0.01)
    taking = asyncio.create_task(cache(tmp_path, transfers).loan("anna", ref).take(refs))
    await failed.wait()
    server.listen()
    async with asyncio.timeout(HANG_S):
        assert len(await taking) == 1


async def test_one_that_does_not_come_back_is_given_up(
    server: BlobServer, ref: AttemptRef, tmp_path: Path
) -> None:
    refs = server.offer(b"bytes")
    await server.stop()
    impatient = BlobTransfers(patience_s=0.0)
    impatient.connect(server.url, None)
    try:
        with pytest.raises(TransportError, match="could not be reached"):
            await cache(tmp_path, impatient).loan("anna", ref).take(refs)
    finally:
        await asyncio.to_thread(impatient.close)


async def test_a_stopped_attempt_stops_its_transfer(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    refs = server.offer(os.urandom(CHUNK_BYTES * 6))
    server.flow.clear()
    taking = asyncio.create_task(cache(tmp_path, transfers).loan("anna", ref).take(refs))
    await until(lambda: len(server.queries) == 4)  # as many as go at once
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    await asyncio.to_thread(transfers.close)  # no thread still waits for an answer
    assert server.got == []
    assert files(tmp_path) == []


async def test_two_jobs_of_one_user_fetch_a_blob_once(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    refs = server.offer(os.urandom(1000))
    kept = cache(tmp_path, transfers)
    loans = [kept.loan("anna", ref), kept.loan("anna", AttemptRef(job_id=new_job_id(), attempt=1))]
    await asyncio.gather(*(loan.take(refs) for loan in loans))
    assert len(server.got) == 1


# ---------------------------------------------------------------- room


async def test_the_least_recently_used_go_first_and_what_is_in_use_stays(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    old, newer, used, new = (server.offer(os.urandom(1000))[0] for _ in range(4))
    kept = cache(tmp_path, transfers, limit_bytes=3000)
    loan = kept.loan("anna", ref)
    await loan.take((used,))
    for blob in (old, newer):
        brief = kept.loan("anna", ref)
        await brief.take((blob,))
        brief.end()
    again = kept.loan("anna", ref)
    await again.take((old,))  # used again, so the other one is the oldest now
    again.end()
    last = kept.loan("anna", ref)
    await last.take((new,))
    assert {path.name for path in files(tmp_path)} == {used.digest, old.digest, new.digest}
    assert kept.used_bytes == 3000


async def test_a_job_may_bring_more_than_the_cache_holds_and_leaves_no_more_than_that(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    data = os.urandom(CHUNK_BYTES + 1000)
    refs = server.offer(data)
    kept = cache(tmp_path, transfers, limit_bytes=2000)
    loan = kept.loan("anna", ref)
    assert joined(await loan.take(refs), refs) == data
    loan.end()
    assert kept.used_bytes == sum(path.stat().st_size for path in files(tmp_path)) <= 2000


async def test_a_full_disk_is_said_before_anything_is_fetched(
    server: BlobServer,
    transfers: BlobTransfers,
    ref: AttemptRef,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.blob_cache.RESERVE_BYTES", 1 << 60)
    with pytest.raises(SandboxError, match="disk has"):
        await cache(tmp_path, transfers).loan("anna", ref).take(server.offer(b"bytes"))
    assert server.got == []


async def test_another_run_finds_what_was_kept_and_looks_at_it_once_more(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    good, bad = (server.offer(os.urandom(1000))[0] for _ in range(2))
    paths = await cache(tmp_path, transfers).loan("anna", ref).take((good, bad))
    change(paths[bad.digest], b"x" * 1000)
    change(paths[bad.digest].with_name("half.part"), b"half")
    server.got.clear()
    kept = cache(tmp_path, transfers)
    assert kept.used_bytes == 2000
    again = await kept.loan("anna", ref).take((good, bad))
    assert server.got == [bad.digest]
    assert joined(again, (bad,)) == server.blobs[bad.digest]
    assert {path.name for path in files(tmp_path)} == {good.digest, bad.digest}


async def test_one_blob_of_two_sizes_is_refused(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    (blob,) = server.offer(b"bytes")
    other = BlobRef(digest=blob.digest, size=4)
    with pytest.raises(SandboxError, match="two sizes"):
        await cache(tmp_path, transfers).loan("anna", ref).take((blob, other))


# ---------------------------------------------------------------- results


def results(folder: Path, transfers: BlobTransfers, **more: Any) -> Results:
    folder.mkdir(exist_ok=True)
    return Results(transfers, folder=lambda ref: folder, **more)


async def spooled(made: Results, ref: AttemptRef, data: bytes) -> tuple[Any, ...]:
    spool = made.spool(ref, 0)
    for at in range(0, len(data), 300_000):
        await spool.add(data[at : at + 300_000])
    return await spool.finish()


async def test_a_small_result_stays_in_memory(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    made = results(tmp_path, transfers)
    assert await spooled(made, ref, b"x" * MAX_PAYLOAD_BYTES) == (b"x" * MAX_PAYLOAD_BYTES, ())
    assert await spooled(made, ref, b"") == (None, ())
    assert (server.puts, files(tmp_path)) == ([], [])


async def test_a_large_result_is_put_while_it_comes_and_leaves_no_file(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    made = results(tmp_path, transfers)
    data = os.urandom(CHUNK_BYTES * 2) + b"\0" * CHUNK_BYTES * 2 + b"end"
    spool = made.spool(ref, 0)
    for at in range(0, len(data), MIB):
        await spool.add(data[at : at + MIB])
        if at == CHUNK_BYTES * 3:
            await until(lambda: server.puts)  # before its end is known
    inline, refs = await spool.finish()
    await made.deliver(ref, 0, refs)
    assert inline is None
    assert [blob.size for blob in refs] == [CHUNK_BYTES] * 4 + [3]
    assert server.whole(refs) == data
    assert len(server.puts) == 4  # the two chunks of zeros are one blob
    assert {query["job_id"] for query in server.queries} == {ref.job_id}
    assert files(tmp_path) == []


async def test_a_cut_upload_goes_on_and_another_run_puts_what_is_left(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    made = results(tmp_path, transfers)
    data = os.urandom(CHUNK_BYTES * 4)
    await server.stop()
    _, refs = await spooled(made, ref, data)
    await made.close()  # as a worker that stops does
    assert len(files(tmp_path)) == 4
    (tmp_path / f"{refs[0].digest}.blob").unlink()  # this one was put by then
    server.listen()
    server.cuts = 1
    again = results(tmp_path, transfers)
    await again.deliver(ref, 0, refs)
    assert set(server.puts) == {blob.digest for blob in refs[1:]}
    assert len(server.puts) == 4  # one of them twice
    assert files(tmp_path) == []


async def test_a_refused_upload_says_why(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    made = results(tmp_path, transfers)
    server.refusal, server.refusal_status = Forbidden("This worker may not."), 403
    _, refs = await spooled(made, ref, os.urandom(CHUNK_BYTES * 2))
    with pytest.raises(GridXError, match="may not"):
        await made.deliver(ref, 0, refs)
    made.forget(ref)


async def test_a_sandbox_that_sends_too_much_is_stopped(
    server: BlobServer, transfers: BlobTransfers, ref: AttemptRef, tmp_path: Path
) -> None:
    made = results(tmp_path, transfers, limit_bytes=MIB)
    with pytest.raises(SandboxError, match="more than 1 MiB"):
        await spooled(made, ref, b"x" * (MIB + 1))
