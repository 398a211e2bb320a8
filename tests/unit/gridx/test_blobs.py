"""Blobs: cut at fixed places, packed where it pays, and unpacked to exactly what was declared."""

from __future__ import annotations

import random
import tracemalloc

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gridx.blobs import CHUNK_BYTES, Blob, Packed, cut, digest, pack, to_blob, unpack
from gridx.errors import BlobMismatch
from gridx.resources import KIB, MIB
from gridx.schemas import BlobRef

NOISE = random.Random(3).randbytes(256 * KIB)


def ref_of(data: bytes) -> BlobRef:
    return to_blob(memoryview(data)).ref


def frame(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(data)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_the_chunks_of_a_buffer_are_the_buffer(size: int) -> None:
    data = bytes(size)
    chunks = list(cut(data))
    assert b"".join(chunks) == data
    assert all(len(chunk) == CHUNK_BYTES for chunk in chunks[:-1])


def test_a_change_of_one_byte_changes_one_chunk() -> None:
    data = bytearray(3 * CHUNK_BYTES)
    before = [digest(chunk) for chunk in cut(data)]
    data[CHUNK_BYTES + 5] = 1
    after = [digest(chunk) for chunk in cut(data)]
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, False, True]


def test_a_buffer_of_another_type_is_cut_by_its_bytes() -> None:
    numbers = memoryview(bytearray(64)).cast("d")
    assert [len(chunk) for chunk in cut(numbers)] == [64]


def test_a_digest_is_that_of_the_raw_bytes() -> None:
    # The test vector of the BLAKE3 authors for no input at all.
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert digest(b"") == empty
    assert to_blob(memoryview(b"")) == Blob(ref=BlobRef(digest=empty, size=0), data=memoryview(b""))


def test_zeros_travel_packed_and_noise_as_it_is() -> None:
    zeros = pack(bytes(MIB))
    assert zeros.is_zstd
    assert len(zeros.body) < KIB
    view = memoryview(NOISE)
    assert pack(view) == Packed(view, is_zstd=False)
    assert pack(view).body is view  # not copied


def test_what_is_packable_in_its_middle_alone_is_not_sent_larger() -> None:
    mixed = NOISE + bytes(64 * KIB) + NOISE
    packed = pack(mixed)
    assert len(packed.body) <= len(mixed)
    assert unpack(bytes(packed.body), ref_of(mixed), is_zstd=packed.is_zstd) == mixed


@given(st.binary(max_size=3000).map(lambda data: data * 50) | st.binary(max_size=3000))
@settings(max_examples=200, deadline=None)
def test_what_is_packed_comes_out_as_it_was(data: bytes) -> None:
    packed = pack(data)
    assert unpack(bytes(packed.body), ref_of(data), is_zstd=packed.is_zstd) == data


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_blob_is_refused_and_nothing_else_happens(draw: st.DataObject) -> None:
    data = b"some text that packs well " * 40
    body = bytearray(frame(data))
    for at in draw.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[at] = draw.draw(st.integers(0, 255))
    body = body[: draw.draw(st.integers(0, len(body)))]
    try:
        assert unpack(bytes(body), ref_of(data), is_zstd=True) == data
    except BlobMismatch:
        pass


@pytest.mark.parametrize(
    "body",
    [
        frame(bytes(512 * MIB)),  # says its size, which is not the declared one
        frame(b"x" * 101),
        frame(b"x" * 100, write_content_size=False),
        frame(b"x" * 100) + frame(bytes(64)),
        frame(b"x" * 100)[:-1],
        b"",
        b"x" * 100,
    ],
    ids=["bomb", "longer", "no size", "a second frame", "cut", "empty", "raw"],
)
def test_a_frame_that_is_not_what_was_declared_is_refused(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BlobMismatch):
            unpack(body, ref_of(b"x" * 100), is_zstd=True)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    # The head says 100 bytes, the blocks behind it are those of far more.
    honest, bomb = frame(b"x" * 100), frame(bytes(8 * MIB))
    head = zstandard.frame_header_size(honest), zstandard.frame_header_size(bomb)
    with pytest.raises(BlobMismatch):
        unpack(honest[: head[0]] + bomb[head[1] :], ref_of(b"x" * 100), is_zstd=True)


@pytest.mark.parametrize("data", [b"", b"x" * 99, b"y" * 100, b"x" * 101])
def test_raw_bytes_of_another_size_or_digest_are_refused(data: bytes) -> None:
    with pytest.raises(BlobMismatch):
        unpack(data, ref_of(b"x" * 100), is_zstd=False)
