"""`gridx-worker image`."""

from __future__ import annotations

import pytest

from worker.images.command import main, words


def test_without_an_engine_the_command_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    assert main(["--python", "3.11"]) == 1
    said = capsys.readouterr().err
    assert "No Docker engine answers." in said
    assert "docs/howto/install-docker.md" in said


def test_a_name_without_packages_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--name", "torch"]) == 2
    assert "--add" in capsys.readouterr().err


def test_a_list_has_each_word_once() -> None:
    assert words(" 3.11, 3.12,,3.11") == ["3.11", "3.12"]
