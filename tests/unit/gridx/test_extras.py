"""Who starts a program without its packages is told what to type."""

from __future__ import annotations

import pytest

import coordinator.main
import worker.main
from gridx.errors import SettingsError
from gridx.extras import explain_missing


def test_a_missing_package_names_the_extra_that_brings_it() -> None:
    told = explain_missing(ModuleNotFoundError(name="sqlalchemy.orm"), "coordinator")
    assert isinstance(told, SettingsError)
    assert "sqlalchemy" in told.message
    assert told.hint == "In a clone, type: pip install '.[coordinator]'"


@pytest.mark.parametrize("name", ["gridx.nothing", "worker", None])
def test_a_missing_module_of_ours_stays_a_fault(name: str | None) -> None:
    with pytest.raises(ModuleNotFoundError):
        explain_missing(ModuleNotFoundError(name=name), "worker")


def test_the_programs_end_with_the_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError(name="docker")

    monkeypatch.setattr(worker.main, "_run", missing)
    assert worker.main.main(["--user", "alice"]) == 2
    assert "pip install '.[worker]'" in capsys.readouterr().err
    monkeypatch.setattr(coordinator.main, "serve", missing)
    assert coordinator.main.main([]) == 2
    assert "pip install '.[coordinator]'" in capsys.readouterr().err
