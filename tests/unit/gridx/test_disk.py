"""How the memory of a sandbox is shared out among its folders."""

from __future__ import annotations

import pytest

from gridx.disk import check_disk, most_disk_bytes, shared_bytes, tmp_bytes, work_bytes
from gridx.errors import InvalidRequest
from gridx.resources import GIB, MIB


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("memory_bytes", [64 * MIB, 512 * MIB, GIB, 64 * GIB])
def test_without_a_wish_half_of_the_memory_is_disk_and_fits(memory_bytes: int, gpus: int) -> None:
    disk = work_bytes(memory_bytes)
    assert disk == memory_bytes // 2
    folders = disk + tmp_bytes(memory_bytes) + shared_bytes(memory_bytes, gpus=gpus)
    assert folders <= memory_bytes * 7 // 8  # the rest is for the processes
    check_disk(memory_bytes, disk, gpus=gpus)
    check_disk(memory_bytes, None, gpus=gpus)


def test_a_disk_up_to_what_the_other_folders_leave_is_taken() -> None:
    most = most_disk_bytes(GIB)
    assert most == GIB - 128 * MIB
    check_disk(GIB, most)
    assert work_bytes(GIB, most) == most


def test_a_disk_that_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(InvalidRequest, match=r"2 GiB .* 1 GiB of memory.* 896 MiB are left") as no:
        check_disk(GIB, 2 * GIB)
    assert "more memory" in no.value.hint


def test_a_disk_that_leaves_no_room_for_tmp_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        check_disk(GIB, GIB)


@pytest.mark.parametrize("disk_bytes", [0, -1])
def test_no_disk_at_all_is_refused(disk_bytes: int) -> None:
    with pytest.raises(InvalidRequest, match="is none"):
        check_disk(GIB, disk_bytes)
