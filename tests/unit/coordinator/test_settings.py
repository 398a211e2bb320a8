"""The defaults that the documents promise."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from coordinator.settings import Settings, default_data_dir


def test_the_defaults_are_loopback_open_and_the_documented_ports() -> None:
    settings = Settings()
    assert (settings.host, settings.http_port, settings.ws_port) == ("127.0.0.1", 8081, 8080)
    assert settings.is_open
    assert settings.registration_open


def test_the_defaults_of_credits_are_the_documented_ones() -> None:
    settings = Settings()
    assert settings.signup_grant_ucr == 100_000_000
    assert settings.worker_share_percent == 85
    assert settings.rates.core_ucr_per_s == 100_000


def test_a_lease_outlives_more_than_one_missed_beat() -> None:
    settings = Settings()
    assert settings.heartbeat_s * 2 < settings.silence_s < settings.grace_s


def test_everything_on_record_lies_in_the_data_folder() -> None:
    settings = Settings(data_dir=Path("/somewhere"))
    assert settings.database_url == "sqlite:////somewhere/gridx.db"
    assert settings.log_dir == Path("/somewhere/streams")


def test_the_data_folder_follows_the_desktop_convention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_data_dir() == Path("/data/gridx/coordinator")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert default_data_dir() == Path("/home/ada/.local/share/gridx/coordinator")


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(msgspec.ValidationError, match="hartbeat_s"):
        msgspec.convert({"hartbeat_s": 1.0}, Settings)
