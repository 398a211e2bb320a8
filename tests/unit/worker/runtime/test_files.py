"""Files before and after a cell, in a folder of the test's own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridx.blobs import digest
from gridx.schemas import BlobRef, FileSpec
from worker.runtime import files
from worker.runtime.files import FilesError, gather, lay_out


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has got no module yet."""
    monkeypatch.setattr(files, "_modules_folder", "")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    for name in ("shipped_helper", "shipped_package", "shipped_package.part"):
        sys.modules.pop(name, None)


def store(blobs: Path, data: bytes) -> BlobRef:
    ref = BlobRef(digest=digest(data), size=len(data))
    (blobs / ref.digest).write_bytes(data)
    return ref


def put(work: Path, blobs: Path, *specs: FileSpec) -> None:
    lay_out(specs, work=str(work), blobs=str(blobs))


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def names(work: Path, *patterns: str, max_bytes: int = 1 << 20) -> list[str]:
    return [name for name, _ in gather(patterns, work=str(work), max_bytes=max_bytes).files]


# ---------------------------------------------------------------- before the cell


def test_files_lie_where_they_are_named(work: Path, blobs: Path) -> None:
    parts = (store(blobs, b"first,"), store(blobs, b"second"))
    put(
        work,
        blobs,
        FileSpec(path="a.txt", data=b"small"),
        FileSpec(path="data/deep/b.txt", blobs=parts),
        FileSpec(path="data/empty"),
    )
    assert (work / "a.txt").read_bytes() == b"small"
    assert (work / "data/deep/b.txt").read_bytes() == b"first,second"
    assert (work / "data/empty").read_bytes() == b""
    assert inside(work) == ["a.txt", "data"]


def test_a_file_that_comes_again_replaces_the_one_before(work: Path, blobs: Path) -> None:
    put(work, blobs, FileSpec(path="a", data=b"old and longer"))
    put(work, blobs, FileSpec(path="a", data=b"new"))
    assert (work / "a").read_bytes() == b"new"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../up",
        "a/../../up",
        "..",
        ".",
        "a//b",
        "a/",
        "a/./b",
        "nul\0byte",
    ],
)
@pytest.mark.parametrize("kind", ["work", "module"])
def test_a_path_that_leads_elsewhere_is_refused(
    work: Path, blobs: Path, modules: None, path: str, kind: str
) -> None:
    with pytest.raises(FilesError, match="not a path below"):
        put(work, blobs, FileSpec(path=path, kind=kind, data=b"x"))  # type: ignore[arg-type]
    assert inside(work) == []


def test_a_link_that_a_cell_has_made_is_not_followed(
    work: Path, blobs: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    (work / "folder").symlink_to(outside)
    (work / "file").symlink_to(outside / "kept")
    with pytest.raises(FilesError, match="'folder' is no folder"):
        put(work, blobs, FileSpec(path="folder/new", data=b"x"))
    put(work, blobs, FileSpec(path="file", data=b"x"))
    assert inside(outside) == ["kept"]
    assert (outside / "kept").read_bytes() == b"kept"
    assert not (work / "file").is_symlink()


def test_a_file_cannot_be_a_folder_too(work: Path, blobs: Path) -> None:
    put(work, blobs, FileSpec(path="a", data=b"x"), FileSpec(path="f/g", data=b"x"))
    with pytest.raises(FilesError, match="'a' is no folder"):
        put(work, blobs, FileSpec(path="a/b", data=b"x"))
    with pytest.raises(FilesError, match="'f' cannot be laid out"):
        put(work, blobs, FileSpec(path="f", data=b"x"))
    assert inside(work) == ["a", "f"]


def test_a_blob_that_is_missing_or_short_is_said(work: Path, blobs: Path) -> None:
    short = store(blobs, b"whole")
    (blobs / short.digest).write_bytes(b"who")
    missing = BlobRef(digest="0" * 64, size=5)
    for ref, why in ((missing, "has not arrived"), (short, "not arrived whole")):
        with pytest.raises(FilesError, match=why):
            put(work, blobs, FileSpec(path="a", blobs=(ref,)))
    assert inside(work) == []


def test_a_file_without_room_says_what_to_do(
    work: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write_all", full)
    with pytest.raises(FilesError, match=r"'a' \(5 B\) does not fit.*--mem"):
        put(work, blobs, FileSpec(path="a", data=b"12345"))


def test_modules_are_found_by_this_process_and_by_those_it_starts(
    work: Path, blobs: Path, modules: None
) -> None:
    put(
        work,
        blobs,
        FileSpec(path="shipped_helper.py", kind="module", data=b"answer = 42"),
        FileSpec(path="shipped_package/__init__.py", kind="module"),
        FileSpec(path="shipped_package/part.py", kind="module", data=b"from . import __name__"),
    )
    assert importlib.import_module("shipped_helper").answer == 42
    importlib.import_module("shipped_package.part")
    assert inside(work) == []
    assert sys.path[0] == "" and sys.path[1] in os.environ["PYTHONPATH"].split(":")
    put(work, blobs, FileSpec(path="second.py", kind="module"))
    assert len([path for path in sys.path if "gridx-modules" in path]) == 1


# ---------------------------------------------------------------- after the cell


@pytest.fixture
def tree(work: Path) -> Path:
    for path in (
        "a.csv",
        "b.txt",
        "out/c.csv",
        "out/deep/d.csv",
        ".hidden.csv",
        ".cache/e.csv",
    ):
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_bytes(path.encode())
    return work


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["*.csv"], ["a.csv"]),
        (["**/*.csv"], ["a.csv", "out/c.csv", "out/deep/d.csv"]),
        (["out/*"], ["out/c.csv"]),
        (["out/**"], ["out/c.csv", "out/deep/d.csv"]),
        (["out"], ["out/c.csv", "out/deep/d.csv"]),
        (["out/"], ["out/c.csv", "out/deep/d.csv"]),
        (["./b.txt"], ["b.txt"]),
        (["?.txt", "a*"], ["a.csv", "b.txt"]),
        (["**/deep/*"], ["out/deep/d.csv"]),
        (["**"], ["a.csv", "b.txt", "out/c.csv", "out/deep/d.csv"]),
        ([".*"], [".hidden.csv"]),
        ([".cache/*"], [".cache/e.csv"]),
        (["[ab].*"], ["a.csv", "b.txt"]),
    ],
)
def test_patterns_mean_what_they_mean_in_a_shell(
    tree: Path, patterns: list[str], found: list[str]
) -> None:
    assert names(tree, *patterns) == found


def test_contents_come_with_their_names(tree: Path) -> None:
    (tree / "empty").touch()
    found = gather(["*"], work=str(tree), max_bytes=1000)
    contents = {name: bytes(data) for name, data in found.files}
    assert contents == {"a.csv": b"a.csv", "b.txt": b"b.txt", "empty": b""}
    assert found.notes == []


def test_what_matches_nothing_or_leads_elsewhere_is_said(tree: Path) -> None:
    found = gather(["*.png", "../*", "/etc/passwd", "out/../../x"], work=str(tree), max_bytes=1000)
    assert found.files == []
    assert found.notes == [
        "'../*' is not a pattern below the job's folder.",
        "'/etc/passwd' is not a pattern below the job's folder.",
        "'out/../../x' is not a pattern below the job's folder.",
        "No file matches '*.png'.",
    ]


def test_links_pipes_and_folders_of_others_are_left_out(work: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(b"key")
    (work / "link").symlink_to(secret / "key")
    (work / "folder").symlink_to(secret)
    os.mkfifo(work / "pipe")
    found = gather(["**", "folder/key"], work=str(work), max_bytes=1000)
    assert found.files == []
    assert [note.split(" was")[0] for note in found.notes[:3]] == ["'folder'", "'link'", "'pipe'"]
    assert found.notes[3:] == ["No file matches 'folder/key'."]


def test_what_is_too_much_is_left_out_and_the_rest_comes(work: Path) -> None:
    for name, size in (("a", 600), ("b", 600), ("c", 300)):
        (work / name).write_bytes(b"x" * size)
    found = gather(["*"], work=str(work), max_bytes=1000)
    assert [name for name, _ in found.files] == ["a", "c"]
    (note,) = found.notes
    assert note.startswith("'b' was left out: its 600 B are more")


def test_names_that_cannot_be_written_down_are_left_out(work: Path) -> None:
    for name in (b"bad\xff", b"line\nbreak", b"bell\x07", "ok é".encode()):
        (work / os.fsdecode(name)).write_bytes(b"x")
    found = gather(["*"], work=str(work), max_bytes=1000)
    assert [name for name, _ in found.files] == ["ok é"]
    assert len(found.notes) == 3
    assert all(note.isprintable() and note.isascii() for note in found.notes)


def test_no_more_than_so_many_files_and_notes(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 3)
    for number in range(40):
        (work / f"{number:02}").write_bytes(b"x")
    found = gather(["*"], work=str(work), max_bytes=1000)
    assert len(found.files) == 3
    assert len(found.notes) == files.MAX_NOTES + 1
    assert found.notes[0] == "'03' was left out: 3 files can come home."
    assert found.notes[-1] == "And 17 more."
