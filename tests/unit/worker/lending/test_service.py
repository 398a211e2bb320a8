"""The unit that makes a worker a service, and what deploy/ has of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.lending.service import EXAMPLE_COMMAND, UNIT, folder_of_units, main, unit

ROOT = Path(__file__).parents[4]


def lines(text: str, key: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(f"{key}=")]


def test_the_example_is_what_the_command_makes() -> None:
    assert (ROOT / "deploy" / UNIT).read_text() == unit(EXAMPLE_COMMAND)


def test_paths_with_marks_of_systemd_arrive_as_they_are() -> None:
    text = unit(["/opt/a b/gridx-worker", "--name", "100%", "$HOME", 'say "x"'])
    assert lines(text, "ExecStart") == [
        'ExecStart="/opt/a b/gridx-worker" --name 100%% $$HOME "say \\"x\\""'
    ]


def test_a_worker_of_another_engine_stays_with_it() -> None:
    text = unit(["/bin/gridx-worker"], {"DOCKER_HOST": "unix:///run/user/1000/docker.sock"})
    assert lines(text, "Environment") == [
        "Environment=DOCKER_HOST=unix:///run/user/1000/docker.sock"
    ]


def test_it_is_started_again_when_it_fails_and_not_when_it_drained_or_was_refused() -> None:
    text = unit(EXAMPLE_COMMAND)
    assert lines(text, "Restart") == ["Restart=on-failure"]
    assert lines(text, "RestartPreventExitStatus") == ["RestartPreventExitStatus=2"]
    assert lines(text, "CPUWeight") == ["CPUWeight=idle"]


def test_printing_touches_nothing_and_installing_writes_where_systemd_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    where = folder_of_units() / UNIT
    assert where == tmp_path / "systemd" / "user" / UNIT
    assert main(["--data-dir", "/srv/w", "--", "--cores", "2"]) == 0
    printed = capsys.readouterr().out
    assert not where.exists()
    assert lines(printed, "ExecStart")[0].endswith(" --data-dir /srv/w --cores 2")
    assert main(["--install", "--data-dir", "/srv/w", "--", "--cores", "2"]) == 0
    assert where.read_text() == printed
    assert "systemctl --user enable --now gridx-worker" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "systemd").write_text("a file")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["--install"]) == 1
    assert "cannot be written" in capsys.readouterr().err
