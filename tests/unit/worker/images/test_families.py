"""Names and lists of a lender's own images."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridx.errors import SandboxError
from worker.images.families import checked_name, read_list


@pytest.mark.parametrize("name", ["python", "env", "Torch", "a/b", "a:b", "", "1x", "x" * 40])
def test_a_name_that_is_taken_or_no_name_is_refused(name: str) -> None:
    with pytest.raises(SandboxError) as caught:
        checked_name(name)
    assert "such as torch" in caught.value.hint


def test_a_list_is_read_without_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("# ours\ntorch==2.9.0  # CPU\n\nEinops>=0.8\n")
    assert read_list(path) == ("einops>=0.8", "torch==2.9.0")


@pytest.mark.parametrize("line", ["--index-url https://x.test", "./folder", "-r other.txt"])
def test_a_list_with_more_than_names_is_refused_with_its_file(tmp_path: Path, line: str) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(line)
    with pytest.raises(SandboxError) as caught:
        read_list(path)
    assert str(path) in caught.value.message


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SandboxError) as caught:
        read_list(tmp_path / "none.txt")
    assert "--add" in caught.value.hint
