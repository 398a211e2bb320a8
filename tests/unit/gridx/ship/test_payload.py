"""Large parts of a payload travel as blobs, each change costs one of them, and none is copied."""

from __future__ import annotations

import gc
import mmap
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gridx.blobs import CHUNK_BYTES, Blob, digest
from gridx.ship.capture import Captured, capture
from gridx.ship.chunk_digests import ChunkDigests
from gridx.ship.restore import RestoreError, restore

from ..fresh_process import FreshProcesses

MIB = 1 << 20


def _laid_out(blobs: Iterable[Blob], folder: Path) -> str:
    for blob in blobs:
        (folder / blob.ref.digest).write_bytes(blob.data)
    return str(folder)


def _there_and_back(captured: Captured, folder: Path) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    restore(captured.payload, namespace, _laid_out(captured.blobs, folder))
    return namespace


def test_large_buffers_travel_as_blobs_of_the_notebooks_own_memory(
    notebook: dict[str, Any], tmp_path: Path
) -> None:
    array = np.arange(2 * MIB + 5)  # 16 MiB and 40 bytes
    notebook.update(a=array, small=np.arange(1000))
    captured = capture("a; small", notebook, with_blobs=True)
    assert sorted(ref.size for ref in captured.blob_refs) == [40, CHUNK_BYTES, CHUNK_BYTES]
    assert len(captured.payload) < 16_000
    assert captured.size_bytes > array.nbytes
    for blob in captured.blobs:
        assert np.shares_memory(np.frombuffer(blob.data, np.uint8), array)
        assert digest(blob.data) == blob.ref.digest
    back = _there_and_back(captured, tmp_path)
    assert np.array_equal(back["a"], array)
    assert np.array_equal(back["small"], notebook["small"])


def test_a_restored_array_is_one_writable_block_and_its_files_stay_as_they_are(
    notebook: dict[str, Any], tmp_path: Path
) -> None:
    notebook.update(a=np.arange(2 * MIB + 5), b=np.arange(1 << 17), c=np.arange(9_000))
    captured = capture("a; b; c", notebook, with_blobs=True)
    back = _there_and_back(captured, tmp_path)
    for name in "abc":
        assert back[name].flags.c_contiguous
        back[name][:] = -1
        assert int(back[name].sum()) == -back[name].size
    again = _there_and_back(captured, tmp_path)
    assert np.array_equal(again["a"], notebook["a"])
    assert np.array_equal(again["b"], notebook["b"])


def test_blobs_are_mapped_and_not_copied(notebook: dict[str, Any], tmp_path: Path) -> None:
    notebook.update(a=np.arange(2 * MIB + 5))
    back = _there_and_back(capture("a", notebook, with_blobs=True), tmp_path)
    base = back["a"]
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, memoryview)
    assert isinstance(base.obj, mmap.mmap)
    digests = [
        line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line
    ]
    assert len(digests) == 3
    del back, base
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_one_changed_element_is_one_new_blob(notebook: dict[str, Any]) -> None:
    array = notebook["a"] = np.arange(5 * MIB)
    first = {ref.digest for ref in capture("a", notebook, with_blobs=True).blob_refs}
    again = {ref.digest for ref in capture("a", notebook, with_blobs=True).blob_refs}
    array[3 * MIB] = -1
    edited = {ref.digest for ref in capture("a", notebook, with_blobs=True).blob_refs}
    assert first == again
    assert len(first) == 5
    assert len(edited - first) == 1


def test_memory_that_was_hashed_before_is_not_hashed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gridx.ship import chunk_digests

    hashed: list[int] = []

    def to_blob(data: memoryview) -> Blob:
        hashed.append(len(data))
        return original(data)

    original = chunk_digests.to_blob
    monkeypatch.setattr(chunk_digests, "to_blob", to_blob)
    array, digests = np.arange(3 * MIB), ChunkDigests()
    raw = memoryview(array).cast("B")
    first = digests.start(raw).result()
    assert len(hashed) == 3
    assert [b.ref for b in digests.start(raw).result()] == [b.ref for b in first]
    assert len(hashed) == 3
    array[0] = 7
    changed = digests.start(raw).result()
    assert len(hashed) == 4
    assert [a.ref == b.ref for a, b in zip(first, changed, strict=True)] == [False, True, True]


def test_the_same_bytes_under_two_names_are_one_blob(notebook: dict[str, Any]) -> None:
    notebook.update(a=np.zeros(MIB), b=np.zeros(2 * MIB))
    assert len(capture("a; b", notebook, with_blobs=True).blobs) == 1


def test_a_large_pickle_travels_as_blobs_too_and_the_same_one_twice_is_known(
    notebook: dict[str, Any], tmp_path: Path
) -> None:
    notebook["text"] = [f"line {i}" * 10 for i in range(150_000)]
    notebook["blob"] = b"x" * (3 * MIB)
    captured = capture("text; blob", notebook, with_blobs=True)
    assert len(captured.payload) < 1_000
    assert len(captured.blobs) > 1
    assert capture("text; blob", notebook, with_blobs=True).blob_refs == captured.blob_refs
    back = _there_and_back(captured, tmp_path)
    assert back["text"] == notebook["text"]
    assert back["blob"] == notebook["blob"]


def test_many_middling_buffers_never_make_a_large_head(
    notebook: dict[str, Any], tmp_path: Path
) -> None:
    notebook["parts"] = [np.full(8_000, i) for i in range(500)]  # 64,000 bytes each
    notebook["text"] = [str(i) for i in range(200_000)]
    captured = capture("parts; text", notebook, with_blobs=True)
    assert len(captured.payload) < 1_000
    namespace = _there_and_back(captured, tmp_path)
    assert namespace["text"] == notebook["text"]
    back = namespace["parts"]
    assert [int(part[0]) for part in back] == list(range(500))
    back[0][0] = 5


def test_a_read_only_array_stays_read_only_as_a_blob(
    notebook: dict[str, Any], tmp_path: Path
) -> None:
    array = np.arange(MIB)
    array.flags.writeable = False
    notebook["a"] = array
    back = _there_and_back(capture("a", notebook, with_blobs=True), tmp_path)
    assert not back["a"].flags.writeable


def test_detached_blobs_do_not_see_what_the_notebook_changes_later(
    notebook: dict[str, Any],
) -> None:
    array = notebook["a"] = np.zeros(MIB)
    captured = capture("a", notebook, with_blobs=True).detached()
    array[:] = 1
    assert [digest(blob.data) for blob in captured.blobs] == [r.digest for r in captured.blob_refs]


@pytest.mark.parametrize(
    ("damage", "sentence"), [("missing", "did not arrive"), ("short", "damaged"), ("", "without")]
)
def test_a_blob_that_is_missing_or_short_is_an_error_with_a_sentence(
    notebook: dict[str, Any], tmp_path: Path, damage: str, sentence: str
) -> None:
    notebook["a"] = np.arange(2 * MIB)
    captured = capture("a", notebook, with_blobs=True)
    folder = _laid_out(captured.blobs, tmp_path)
    victim = tmp_path / captured.blob_refs[0].digest
    if damage == "missing":
        victim.unlink()
    elif damage == "short":
        victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(RestoreError, match=re.escape(sentence)):
        restore(captured.payload, {}, folder if damage else None)


def test_without_blobs_a_payload_holds_everything(notebook: dict[str, Any]) -> None:
    notebook["a"] = np.arange(MIB)
    captured = capture("a", notebook)
    assert not captured.blobs
    namespace: dict[str, Any] = {}
    restore(captured.payload, namespace)
    assert np.array_equal(namespace["a"], notebook["a"])


def test_children_of_the_cell_do_not_share_what_they_write(
    notebook: dict[str, Any], fresh: FreshProcesses
) -> None:
    notebook["a"] = np.zeros(2 * MIB)
    cell = (
        "import os\npid = os.fork()\nif pid == 0:\n    a[:] = 9\n    os._exit(0)\n"
        "os.waitpid(pid, 0)\nprint(a.sum())"
    )
    captured = capture(cell, notebook, with_blobs=True)
    assert fresh.run(cell, captured.payload, blobs=captured.blobs)["out"] == "0.0\n"
