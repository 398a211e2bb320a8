"""Full disks: bytes, files, and single files that are too large."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from gridx.errors import SandboxError
from gridx.resources import GIB, MIB, ResourceRequest
from tests.support.hostile_cells import HostileCells
from worker.sandbox.limits import FILES

pytestmark = pytest.mark.docker

SIZES = {"/work": 128 * MIB, "/tmp": 32 * MIB, "/dev/shm": 32 * MIB}  # of 256 MiB of memory

FILL = """
import shutil
def filled(folder):
    size = number = 0
    piece = bytes(1 << 20)
    try:
        while True:
            with open(f"{folder}/f/{number}", "wb", 0) as file:
                for _ in range(16):
                    size += file.write(piece)
            number += 1
    except OSError as error:
        return size, errno.errorcode[error.errno]
def many(folder):
    made = 0
    try:
        while made < 100_000:
            open(f"{folder}/f/{made}", "w").close()
            made += 1
    except OSError as error:
        return made, errno.errorcode[error.errno]
    return made, "done"
def nested(folder):
    made = 0
    os.chdir(folder + "/f")
    try:
        while made < 100_000:
            os.mkdir("d")
            os.chdir("d")
            made += 1
    except OSError as error:
        return made, errno.errorcode[error.errno]
    return made, "done"
def tries(act, folder):
    os.mkdir(folder + "/f")
    try:
        return act(folder)
    finally:
        os.chdir("/")
        shutil.rmtree(folder + "/f", ignore_errors=True)
def mounted(folder):
    rows = [line.split(" - ") for line in read("/proc/self/mountinfo").splitlines()]
    (row,) = [row for row in rows if row[0].split()[4] == folder]
    return row[0].split()[5].split(",")
folder = "FOLDER"
"""


Found = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def full(cells: HostileCells) -> Found:
    """What a folder has come to, filled in a container of its own."""

    @functools.cache
    def fill(folder: str) -> dict[str, Any]:
        acts = "mounted=mounted(folder), full=tries(filled, folder), many=tries(many, folder)"
        code = FILL.replace("FOLDER", folder)
        return cells.probe(f"{code}say({acts})", memory_bytes=256 * MIB)

    return fill


def each_folder(name: str) -> pytest.MarkDecorator:
    """Return the mark of a test of every folder's ``name``."""
    return pytest.mark.parametrize(
        "folder",
        [
            pytest.param(folder, marks=pytest.mark.guards(f"Tmpfs {folder} {name}"))
            for folder in SIZES
        ],
    )


@each_folder("size")
def test_a_folder_ends_at_its_size(full: Found, folder: str) -> None:
    size, why = full(folder)["full"]
    assert why == "ENOSPC"
    assert SIZES[folder] - MIB < size <= SIZES[folder]  # the runtime has a few pages of /tmp


@each_folder("nr_inodes")
def test_a_hundred_thousand_files_end_at_their_number(full: Found, folder: str) -> None:
    made, why = full(folder)["many"]
    assert why == "ENOSPC"
    assert FILES * 0.95 < made < FILES


@each_folder("noexec")
def test_nothing_in_a_folder_is_executed(full: Found, folder: str) -> None:
    assert "noexec" in full(folder)["mounted"]


@each_folder("nosuid")
def test_a_setuid_program_in_a_folder_is_none(full: Found, folder: str) -> None:
    assert "nosuid" in full(folder)["mounted"]


@each_folder("nodev")
def test_a_device_in_a_folder_is_none(full: Found, folder: str) -> None:
    assert "nodev" in full(folder)["mounted"]


def test_folders_in_folders_end_at_the_same_number(cells: HostileCells) -> None:
    code = FILL.replace("FOLDER", "/work") + "os.mkdir('/work/f')\nsay(nested=nested(folder))"
    made, why = cells.probe(code)["nested"]
    assert why == "ENOSPC"
    assert made < FILES


@pytest.fixture(scope="module")
def large(cells: HostileCells) -> dict[str, Any]:
    """One file, larger than a file may be, on a disk that would have room for it."""
    return cells.probe(
        """
limit = 256 << 20
def written():
    with open("/work/w", "wb", 0) as file:
        file.seek(limit - 10)
        assert file.write(bytes(10)) == 10
        file.write(b"x")
def sparse():
    with open("/work/s", "wb") as file:
        file.truncate(limit + 1)
def allocated():
    with open("/work/a", "wb") as file:
        os.posix_fallocate(file.fileno(), limit, 1)
def in_memory():
    os.truncate(os.memfd_create("m"), limit + 1)
say(written=tried(written), sparse=tried(sparse), allocated=tried(allocated),
    in_memory=tried(in_memory), room=os.statvfs("/work").f_blocks * 4096 > limit)
""",
        memory_bytes=GIB,
    )


@pytest.mark.guards("Ulimits fsize")
@pytest.mark.parametrize("how", ["written", "sparse", "allocated", "in_memory"])
def test_one_file_is_never_larger_than_a_file_may_be(large: dict[str, Any], how: str) -> None:
    assert large["room"]
    assert large[how] == "EFBIG"


def test_a_job_gets_the_disk_that_it_asks_for(cells: HostileCells) -> None:
    found = cells.probe(
        "s = os.statvfs('/work')\nsay(size=s.f_blocks * s.f_frsize,"
        " file=tried(lambda: open('/work/x', 'wb').truncate(300 << 20)))",
        memory_bytes=512 * MIB,
        disk_bytes=320 * MIB,
    )
    assert found == {"size": 320 * MIB, "file": "done"}


def test_a_disk_beyond_the_memory_is_refused_and_leaves_nothing(cells: HostileCells) -> None:
    before = set(cells.engine._live)
    with pytest.raises(SandboxError, match="does not fit"):
        cells.wait(cells.engine.start(ResourceRequest(memory_bytes=GIB, disk_bytes=GIB)))
    assert set(cells.engine._live) == before
