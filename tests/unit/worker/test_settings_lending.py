"""What a lender sets about hours, heat, GPUs and people, in words and in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gridx.errors import SettingsError
from gridx.resources import GIB, Accepts, Gpu
from worker.lending.policy import OnPause
from worker.settings import WorkerSettings, from_arguments, options_of

FILE = Path("worker.toml")
GPUS = tuple(Gpu(uuid=f"GPU-{name}", name="A100", memory_bytes=40 * GIB) for name in "ab")


def settings(*arguments: str) -> WorkerSettings:
    return from_arguments(["--user", "alice", *arguments], {"XDG_DATA_HOME": "/nowhere"})


def from_file(found: dict[str, Any]) -> WorkerSettings:
    return settings(*options_of(found, FILE))


def test_what_is_on_by_itself_is_polite_and_surprises_no_server() -> None:
    given = settings()
    assert given.pause_on_battery
    assert (given.max_cpu_temp_c, given.max_gpu_temp_c) == (90.0, 85.0)
    assert given.pause_when_active is None  # where there is a desktop
    assert given.hours is None and given.gpus is None
    assert (given.on_pause, given.freeze_for_s) == (OnPause.FREEZE, 600.0)
    assert (given.accepts, given.users) == (Accepts.ANYONE, ())


def test_every_option_is_understood() -> None:
    given = settings(
        *("--hours", "mon-fri 18-8", "--pause-when-active", "on", "--idle-for", "3m"),
        *("--pause-on-battery", "off", "--max-cpu-temp", "75", "--max-gpu-temp", "off"),
        *("--on-pause", "hand-back", "--freeze-for", "30m", "--accept", "users:bob, carl"),
        *("--disk", "10G", "--gpus", "0,GPU-b"),
    )
    assert given.hours is not None and given.hours.text == "mon-fri 18-8"
    assert given.pause_when_active is True and given.idle_for_s == 180
    assert not given.pause_on_battery
    assert (given.max_cpu_temp_c, given.max_gpu_temp_c) == (75.0, None)
    assert (given.on_pause, given.freeze_for_s) == (OnPause.HAND_BACK, 1800.0)
    assert (given.accepts, given.users) == (Accepts.USERS, ("bob", "carl"))
    assert given.cache_bytes == given.environments_bytes == 5 * GIB
    assert given.gpus == ("0", "GPU-b")


def test_a_cache_of_its_own_size_goes_before_half_of_the_disk() -> None:
    given = settings("--disk", "10G", "--cache", "1G")
    assert (given.cache_bytes, given.environments_bytes) == (GIB, 5 * GIB)


@pytest.mark.parametrize(
    ("gpus", "lent"),
    [("all", GPUS), ("none", ()), ("1", GPUS[1:]), ("GPU-b,0", GPUS), ("0,0", GPUS[:1])],
)
def test_gpus_are_lent_by_uuid_or_index(gpus: str, lent: tuple[Gpu, ...]) -> None:
    assert settings("--gpus", gpus).lent_gpus(GPUS) == lent


@pytest.mark.parametrize(("there", "hint"), [(GPUS, "0 GPU-a"), ((), "leave --gpus out")])
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(
    there: tuple[Gpu, ...], hint: str
) -> None:
    with pytest.raises(SettingsError, match="no GPU '7'") as refused:
        settings("--gpus", "7").lent_gpus(there)
    assert hint in refused.value.hint


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--hours", "sometimes", "'sometimes' is not a day"),
        ("--pause-when-active", "maybe", "neither on nor off"),
        ("--idle-for", "soon", "is not a time"),
        ("--max-cpu-temp", "hot", "no temperature"),
        ("--max-cpu-temp", "5", "no temperature"),
        ("--on-pause", "kill", "kill"),
        ("--accept", "friends", "users:NAME"),
        ("--accept", "users:", "users:NAME"),
        ("--accept", "users:a b", "a b"),
    ],
)
def test_a_wrong_value_is_refused_with_what_to_write(
    option: str, value: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        settings(option, value)
    said = capsys.readouterr().err
    assert option in said and says in said
    key = option.removeprefix("--")
    with pytest.raises(SettingsError, match=r"^worker\.toml: ") as refused:
        options_of({key: value}, FILE)
    assert says in str(refused.value)


def test_a_file_says_the_same_in_its_own_types() -> None:
    given = from_file(
        {
            "cores": 2,
            "memory": "4G",
            "hours": "sat, sun",
            "pause_when_active": True,
            "pause-on-battery": False,
            "gpus": [0, "GPU-b"],
            "accept": "mine",
            "max-cpu-temp": 70.5,
        }
    )
    assert (given.cores, given.memory_bytes) == (2.0, 4 * GIB)
    assert given.pause_when_active is True and not given.pause_on_battery
    assert given.gpus == ("0", "GPU-b")
    assert (given.accepts, given.max_cpu_temp_c) == (Accepts.MINE, 70.5)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"core": 2}, "no setting 'core'"),
        ({"password": "x"}, "password cannot be set there"),
        ({"data-dir": "/x"}, "data-dir cannot be set there"),
        ({"config": "x"}, "config cannot be set there"),
        ({"cores": {"least": 1}}, "cores is not a text"),
        ({"cores": "many"}, "--cores"),
    ],
)
def test_a_file_with_a_mistake_is_refused_by_name(found: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says) as refused:
        options_of(found, FILE)
    assert refused.value.hint


def test_the_file_of_the_data_folder_is_read_and_the_command_line_goes_first(
    tmp_path: Path,
) -> None:
    (tmp_path / "worker.toml").write_text('user = "carl"\ncores = 2\nhours = "sat"\n')
    given = from_arguments(["--data-dir", str(tmp_path), "--cores", "3"], {})
    assert (given.user, given.cores) == ("carl", 3.0)
    assert given.hours is not None


def test_another_file_can_be_named_and_must_be_there(tmp_path: Path) -> None:
    other = tmp_path / "nights.toml"
    with pytest.raises(SettingsError, match="there is no file"):
        from_arguments(["--user", "a", "--config", str(other)], {})
    other.write_text('hours = "22-6"\n')
    assert from_arguments(["--user", "a", "--config", str(other)], {}).hours is not None
    other.write_text("hours = \n")
    with pytest.raises(SettingsError, match=r"nights\.toml cannot be read"):
        from_arguments(["--user", "a", "--config", str(other)], {})
