"""Files that travel with a cell, and what a stranger may not do with those that come home."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridx.errors import InvalidRequest
from gridx_jupyter.magics.files import Fetched, find_files, matches, pack_files

JOB = "job_0123456789abcdef0123456789abcdef"


def write(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)


def test_patterns_folders_and_single_files_are_found(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "data/b.csv", "data/deep/c.txt", "other/d.csv")
    found = {file.path for file in find_files(["a.csv", "data"], tmp_path)}
    assert found == {"a.csv", "data/b.csv", "data/deep/c.txt"}
    assert {f.path for f in find_files(["**/*.csv"], tmp_path)} == {
        "a.csv",
        "data/b.csv",
        "other/d.csv",
    }


def test_a_pattern_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no file matches"):
        find_files(["*.csv"], tmp_path)


def test_a_link_that_leads_out_is_refused_and_one_inside_is_followed(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    write(tmp_path, "outside/secret", "inside/a")
    (inside / "b").symlink_to(inside / "a")
    assert {file.path for file in find_files(["b"], inside)} == {"b"}
    (inside / "c").symlink_to(outside / "secret")
    with pytest.raises(InvalidRequest, match="leads out"):
        find_files(["c"], inside)


def test_small_files_travel_in_the_message_and_large_ones_beside_it(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x")
    (tmp_path / "large").write_bytes(bytes(9 << 20))
    packed = pack_files(find_files(["*"], tmp_path))
    large, small = packed.specs
    assert (small.data, small.blobs) == (b"x", ())
    assert [ref.size for ref in large.blobs] == [8 << 20, 1 << 20]
    assert packed.size_bytes == (9 << 20) + 1


@pytest.mark.parametrize(
    ("path", "pattern", "is_match"),
    [
        ("a.png", "a.png", True),
        ("out/a.png", "out", True),
        ("out/a.png", "out/", True),
        ("out/a.png", "out/*.png", True),
        ("out/x/a.png", "out/*.png", False),
        ("out/x/a.png", "out/**/*.png", True),
        ("out/a.png", "**/*.png", True),
        ("output/a.png", "out", False),
        ("a.pngx", "*.png", False),
    ],
)
def test_a_path_is_what_was_asked_for_or_not(path: str, pattern: str, is_match: bool) -> None:
    assert matches(path, pattern) is is_match


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../up", "a/../../up", "~/x", "a\\b", "C:x", "a\nb", "", "asked/../x"],
)
def test_a_path_that_leaves_the_folder_is_never_written(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    written, notes = Fetched(folder).write([(path, b"x")], patterns=["**"], sent={}, job_id=JOB)
    assert written == {}
    assert len(notes) == 1
    assert list(tmp_path.rglob("*")) == [folder]


def test_a_file_that_was_not_asked_for_is_left_out(tmp_path: Path) -> None:
    files = [("out/a", b"1"), (".bashrc", b"2")]
    written, notes = Fetched(tmp_path).write(files, patterns=["out"], sent={}, job_id=JOB)
    assert written == {"out/a": tmp_path / "out/a"}
    assert "was not asked for" in notes[0]


def test_a_link_on_the_way_is_not_followed(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (home / "out").symlink_to(elsewhere)
    (home / "file").symlink_to(elsewhere / "target")
    written, notes = Fetched(home).write(
        [("out/a", b"1"), ("file", b"2")], patterns=["**"], sent={}, job_id=JOB
    )
    assert list(elsewhere.iterdir()) == []
    assert "behind a link" in notes[0]
    assert (home / "file").is_symlink()
    assert written["file"].read_bytes() == b"2"


def test_a_file_of_the_users_own_stays_and_the_new_one_stands_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    written, notes = Fetched(tmp_path).write(
        [("a.txt", b"theirs")], patterns=["a.txt"], sent={}, job_id=JOB
    )
    assert (tmp_path / "a.txt").read_text() == "mine"
    assert written["a.txt"].name == "a.89abcdef.txt"
    assert written["a.txt"].read_text() == "theirs"
    assert "is yours and stays" in notes[0]


def test_what_the_cell_sent_or_an_earlier_fetch_wrote_is_replaced_unless_changed(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").write_text("sent")
    packed = pack_files(find_files(["a"], tmp_path))
    fetched = Fetched(tmp_path)

    def fetch(data: bytes, sent: dict[str, str]) -> list[str]:
        return fetched.write([("a", data)], patterns=["a"], sent=sent, job_id=JOB)[1]

    assert fetch(b"changed there", packed.digests) == []
    assert fetch(b"again", {}) == []
    assert (tmp_path / "a").read_text() == "again"
    (tmp_path / "a").write_text("edited here")
    assert len(fetch(b"third", packed.digests)) == 1
    assert (tmp_path / "a").read_text() == "edited here"
