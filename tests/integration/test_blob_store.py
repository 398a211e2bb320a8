"""Blobs on a real disk: there whole or not at all, whatever ends the process."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard

from coordinator.blobs import LocalBlobs
from gridx.blobs import digest, pack, to_blob, unpack
from gridx.errors import BlobMismatch, StorageError
from gridx.resources import MIB
from gridx.schemas import BlobRef

ADA, BOB = 7, 8
NOISE = random.Random(1).randbytes(MIB)
ZEROS = bytes(MIB)

WRITER = """
import asyncio, pathlib, random, sys
from coordinator.blobs import LocalBlobs
from gridx.blobs import to_blob

async def main() -> None:
    blobs = LocalBlobs(pathlib.Path(sys.argv[1]))
    await blobs.open()
    for number in range(10_000):
        data = random.Random(number).randbytes(1 << 20)
        ref = to_blob(memoryview(data)).ref
        await blobs.put(7, ref, [data[:1000], data[1000:]], is_zstd=False)
        print(ref.digest, flush=True)

asyncio.run(main())
"""


def ref_of(data: bytes) -> BlobRef:
    return to_blob(memoryview(data)).ref


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[LocalBlobs]:
    made = LocalBlobs(tmp_path / "blobs")
    await made.open()
    yield made
    await made.close()


@pytest.mark.parametrize("data", [b"", b"x", NOISE, ZEROS], ids=["empty", "one", "noise", "zeros"])
async def test_what_was_put_is_got_as_it_travelled(blobs: LocalBlobs, data: bytes) -> None:
    ref, packed = ref_of(data), pack(data)
    stored_bytes = await blobs.put(ADA, ref, [bytes(packed.body)], is_zstd=packed.is_zstd)
    assert stored_bytes == len(packed.body)
    stored = await blobs.get(ADA, ref.digest)
    assert stored is not None
    assert unpack(stored.body, ref, is_zstd=stored.is_zstd) == data
    assert stored.is_zstd is packed.is_zstd


async def test_a_blob_that_packing_made_larger_is_kept_raw(blobs: LocalBlobs) -> None:
    ref = ref_of(NOISE)
    body = zstandard.ZstdCompressor(level=1).compress(NOISE)
    assert len(body) > len(NOISE)
    assert await blobs.put(ADA, ref, [body], is_zstd=True) == len(NOISE)
    stored = await blobs.get(ADA, ref.digest)
    assert stored is not None
    assert stored.body == NOISE
    assert not stored.is_zstd


async def test_the_same_bytes_of_two_owners_are_two_blobs(
    blobs: LocalBlobs, tmp_path: Path
) -> None:
    ref = ref_of(NOISE)
    await blobs.put(ADA, ref, [NOISE], is_zstd=False)
    assert await blobs.get(BOB, ref.digest) is None
    await blobs.put(BOB, ref, [NOISE], is_zstd=False)
    assert len(files(tmp_path / "blobs")) == 2


async def test_put_again_it_is_one_blob(blobs: LocalBlobs, tmp_path: Path) -> None:
    ref = ref_of(NOISE)
    await asyncio.gather(*(blobs.put(ADA, ref, [NOISE], is_zstd=False) for _ in range(8)))
    assert len(files(tmp_path / "blobs")) == 1


async def test_only_this_user_can_read_them(blobs: LocalBlobs, tmp_path: Path) -> None:
    await blobs.put(ADA, ref_of(NOISE), [NOISE], is_zstd=False)
    for path in (tmp_path / "blobs").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize("body", [NOISE[:-1], NOISE + b"x", NOISE[:-1] + b"x", b""])
async def test_bytes_that_are_not_the_named_ones_leave_nothing(
    blobs: LocalBlobs, tmp_path: Path, body: bytes
) -> None:
    for is_zstd in (False, True):
        with pytest.raises(BlobMismatch):
            await blobs.put(ADA, ref_of(NOISE), [body], is_zstd=is_zstd)
    assert files(tmp_path / "blobs") == []
    assert await blobs.get(ADA, digest(NOISE)) is None


async def test_a_disk_that_refuses_is_named_and_nothing_is_left(
    blobs: LocalBlobs, tmp_path: Path
) -> None:
    (tmp_path / "blobs" / str(ADA)).write_text("in the way")
    with pytest.raises(StorageError, match="File exists"):
        await blobs.put(ADA, ref_of(NOISE), [NOISE], is_zstd=False)
    assert [path.name for path in files(tmp_path / "blobs")] == [str(ADA)]


async def test_a_disk_that_is_full_in_the_middle_of_a_blob_keeps_none_of_it(
    blobs: LocalBlobs, tmp_path: Path
) -> None:
    pieces = [NOISE[:1000], NOISE[1000:]]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(NOISE) // 2, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            await blobs.put(ADA, ref_of(NOISE), pieces, is_zstd=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path / "blobs") == []
    assert await blobs.put(ADA, ref_of(NOISE), pieces, is_zstd=False) == len(NOISE)


async def test_half_a_blob_of_an_earlier_process_is_removed_at_the_start(tmp_path: Path) -> None:
    incoming = tmp_path / "blobs" / "incoming"
    incoming.mkdir(parents=True)
    (incoming / "0").write_bytes(NOISE[:100])
    again = LocalBlobs(tmp_path / "blobs")
    await again.open()
    await again.put(ADA, ref_of(NOISE), [NOISE], is_zstd=False)
    assert len(files(tmp_path / "blobs")) == 1
    await again.close()


def test_killed_while_it_writes_every_blob_with_a_name_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "blobs"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        told = [program.stdout.readline().strip() for _ in range(5)]
        os.kill(program.pid, signal.SIGKILL)
        told += program.stdout.read().split()
    there = {path.name: path for path in files(folder) if path.parent.name != "incoming"}
    assert set(told) <= set(there)
    for name, path in there.items():
        assert digest(path.read_bytes()) == name
    asyncio.run(started_again(folder, told))


async def started_again(folder: Path, names: list[str]) -> None:
    blobs = LocalBlobs(folder)
    await blobs.open()
    assert list((folder / "incoming").iterdir()) == []
    for name in names:
        assert await blobs.get(ADA, name) is not None
    await blobs.close()
