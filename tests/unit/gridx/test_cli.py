from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from gridx import __version__, cli
from gridx.cli import EXIT_REFUSED, EXIT_USAGE, _language_of, main, parser
from gridx.console import Console
from gridx.doctor import Row, needs_care
from gridx.events import (
    ClearOutput,
    DisplayData,
    ExecuteResult,
    OutputDropped,
    Stream,
)
from gridx.protocol import Position
from gridx.resources import GIB, MIB
from gridx.schemas import JobView, Limits, Reason
from gridx.up import choose_sandbox, kept_password
from gridx.updates import EventArrived, Finished, LinkChanged, Restarted, StateChanged, Update

COMMANDS = (
    "up",
    "login",
    "submit",
    "jobs",
    "logs",
    "cancel",
    "balance",
    "workers",
    "status",
    "doctor",
)


def view(status: str = "completed", **fields: Any) -> JobView:
    given: dict[str, Any] = {
        "job_id": "job_" + "0" * 32,
        "user_id": "ada",
        "status": status,
        "language": "python",
        "kind": "script",
        "limits": Limits(),
        "reserved": 6.0,
        "cost": 0.0,
        "attempt": 1,
        "created_at": dt.datetime(2026, 11, 24, tzinfo=dt.UTC),
        **fields,
    }
    return JobView(**given)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("submit x.py", {"file": "x.py", "timeout": None, "mem": None, "detach": False}),
        ("submit - --timeout 10m --mem 2G", {"file": "-", "timeout": 600.0, "mem": 2 * GIB}),
        ("submit x.py --cpus 1.5 --gpus 2 --detach", {"cpus": 1.5, "gpu": (2, ""), "detach": True}),
        ("submit x.py --gpu 2:A100 --disk 1G", {"gpu": (2, "A100"), "disk": GIB}),
        ("submit x.sh --language sh --image torch", {"language": "bash", "image": "torch"}),
        ("submit x.py --pip polars tqdm>=4", {"file": "x.py", "pip": ["polars", "tqdm>=4"]}),
        ("submit --mem 512M x.py --url h:1", {"mem": 512 * MIB, "url": "h:1", "file": "x.py"}),
        ("up", {"http_port": 8081, "ws_port": 8080, "sandbox": "auto", "data_dir": None}),
        ("up --http-port 0 --ws-port 0 --sandbox process", {"http_port": 0, "sandbox": "process"}),
        ("login", {"address": None, "user": None, "register": False}),
        ("login grid:9 --user bob", {"address": "grid:9", "user": "bob"}),
        ("jobs --all --json", {"all": True, "json": True}),
        ("logs job_1 -f", {"job": "job_1", "follow": True}),
        ("cancel job_1", {"job": "job_1"}),
        ("balance bob", {"account": "bob", "json": False}),
        ("workers --json --user ada", {"json": True, "user": "ada"}),
        ("status", {"json": False, "url": None}),
        ("doctor", {"json": False}),
    ],
)
def test_a_command_line_is_understood(line: str, expected: dict[str, object]) -> None:
    options = vars(parser().parse_args(line.split()))
    assert {key: options[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sumbit x.py", "Did you mean 'submit'?"),
        ("job", "Did you mean 'jobs'?"),
        ("frobnicate", "`gridx --help` lists"),
        ("submit x.py --timout 5", "Did you mean '--timeout'?"),
        ("submit x.py --timeout soon", "'soon' is not a time"),
        ("submit x.py --mem lots", "'lots' is not a size"),
        ("submit x.py --gpu f(x)", "'f(x)' asks for no GPU"),
        ("submit x.rb --language ruby", "'ruby' is none of python, bash, node"),
        ("submit", "required: FILE"),
        ("up --http-port 99999", "'99999' is not a port"),
        ("up --sandbox dokcer", "Did you mean 'docker'?"),
        ("", "required: COMMAND"),
    ],
)
def test_a_typing_error_is_told_with_the_nearest_word(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == EXIT_USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"gridx {command}" in capsys.readouterr().out


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n    {command} " in out for command in COMMANDS)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"gridx {__version__}\n"


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("a.py", "python"),
        ("dir.js/a", "python"),
        ("-", "python"),
        (".sh", "python"),
        ("a.sh", "bash"),
        ("a.SH", "bash"),
        ("a.b.js", "node"),
        ("a.mjs", "node"),
    ],
)
def test_a_files_name_says_its_language(name: str, language: str) -> None:
    assert _language_of(name) == language


@pytest.mark.parametrize("command", ["jobs", "balance", "workers", "status", "cancel job_1"])
def test_without_a_coordinator_every_command_says_what_to_do(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIDX_URL", "http://127.0.0.1:9")
    assert main([*command.split()]) == EXIT_REFUSED
    assert "gridx up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (view(), 0),
        (view("failed", exit_code=3), 3),
        (view("failed"), 1),
        (view("failed", exit_code=-9), 1),
        (view("failed", exit_code=512), 1),
        (view("failed", exit_code=137, reason=Reason(code="timeout", message="")), 124),
        (view("cancelled"), 130),
    ],
)
def test_the_exit_code_is_the_jobs_own(ended: JobView, code: int) -> None:
    assert cli._exit_code(ended) == code


def test_a_summary_says_where_how_long_and_how_much() -> None:
    end = Finished(
        view=view(worker_name="b\x1b[31mox", elapsed_s=1.25),
        cost_ucr=125_000,
        balance_ucr=99_875_000,
        held_ucr=0,
        result=None,
    )
    assert cli._summary(end) == "completed on box in 1.2 s; cost 0.13, balance 99.88"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("there is none.py", None, "No such file"),
        ("binary.py", b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_submitted_is_named(
    tmp_path: Path,
    name: str,
    content: bytes | None,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert main(["submit", str(path)]) == EXIT_REFUSED
    err = capsys.readouterr().err
    assert message in err
    assert name in err


def arrived(*texts: str, name: Any = "stdout") -> list[Update]:
    return [EventArrived(Stream(name=name, text=text), Position()) for text in texts]


def shown(capsys: pytest.CaptureFixture[str], *updates: Update) -> tuple[str, str]:
    console = Console("job_1")
    for update in updates:
        console.show(update)
    console.close()
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_output_goes_where_it_came_from_without_what_a_terminal_would_obey(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, err = shown(
        capsys,
        *arrived("one \x1b[31mred\x1b[0m \x1b]0;ti", "tle\x07two\n"),
        *arrived("warned\n", name="stderr"),
    )
    assert (out, err) == ("one red two\n", "warned\n")


def test_a_remark_begins_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = shown(
        capsys,
        *arrived("half a line", name="stderr"),
        Restarted(2),
        LinkChanged(False),
        LinkChanged(True),
        EventArrived(OutputDropped(dropped_bytes=2048), Position()),
    )
    lines = err.splitlines()
    assert lines[0] == "half a line"
    assert [line.startswith("gridx: ") for line in lines[1:]] == [True] * 4
    assert "attempt 2" in lines[1]
    assert "2 KiB of output left out" in lines[4]


def test_a_reason_to_wait_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = StateChanged(view("queued", waiting="no worker online"))
    _, err = shown(capsys, waiting, waiting, StateChanged(view("running")))
    assert err == "gridx: waiting: no worker online\n"


def test_displays_are_shown_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(
        capsys,
        EventArrived(ExecuteResult(data={"text/plain": "4\x1b[2J2"}), Position()),
        EventArrived(DisplayData(binary={"image/png": bytes(2048)}), Position()),
        EventArrived(ClearOutput(), Position()),
    )
    assert out == "42\n[image/png, 2 KiB]\n"


def test_only_a_failing_row_of_the_doctor_needs_care() -> None:
    rows = [Row("Python", "ok", "3.11"), Row("Docker here", "note", "none")]
    assert not needs_care(rows)
    assert needs_care([*rows, Row("workers", "care", "none online", "Start one.")])


def test_the_password_that_up_makes_is_kept_and_private(tmp_path: Path) -> None:
    first = kept_password("ada", tmp_path / "new")
    assert kept_password("ada", tmp_path / "new") == first
    assert kept_password("bob", tmp_path / "new") != first
    (path,) = (tmp_path / "new").iterdir()
    assert path.stat().st_mode & 0o077 == 0


def test_without_an_engine_up_falls_back_to_processes_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = {"DOCKER_HOST": f"unix://{tmp_path}/docker.sock"}
    assert choose_sandbox("docker", nowhere) == "docker"
    assert choose_sandbox("process", nowhere) == "process"
    assert capsys.readouterr().err == ""
    assert choose_sandbox("auto", nowhere) == "process"
    assert "NOTICE: no Docker engine here" in capsys.readouterr().err


def test_the_reference_page_has_every_command_and_every_option() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "command.md").read_text("utf-8")
    headings = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert sorted(headings) == sorted(COMMANDS)
    options = {
        name
        for action in cli._actions(parser())
        for name in action.option_strings
        if name not in ("-h", "--help", "--version")
    }
    assert {name for name in options if f"`{name}" not in page and f"[{name}" not in page} == set()
