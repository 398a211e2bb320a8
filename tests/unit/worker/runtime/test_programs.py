"""Scripts of other languages: what they are run by, and what their end means."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridx.schemas import LANGUAGES
from worker.runtime.programs import PROGRAMS, NoSuchProgram, done_of, program_of


def test_every_language_but_python_has_a_program() -> None:
    assert set(PROGRAMS) == set(LANGUAGES) - {"python"}


def test_a_language_that_the_image_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NoSuchProgram, match="This image has no node, so it cannot run"):
        program_of("node")


def test_an_unknown_language_has_no_program() -> None:
    with pytest.raises(NoSuchProgram, match="no cobol"):
        program_of("cobol")


def test_nodes_older_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodejs = tmp_path / "nodejs"
    nodejs.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program_of("node") == str(nodejs)


def test_exit_code_0_is_completed_without_a_word() -> None:
    done = done_of(0)
    assert (done.completed, done.exit_code, done.message) == (True, 0, "")


def test_another_exit_code_is_said() -> None:
    done = done_of(3)
    assert not done.completed
    assert done.message == "The script left with exit code 3."
