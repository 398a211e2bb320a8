"""What a sandbox refuses, and what it does instead."""

from __future__ import annotations

import pytest
from IPython.core.error import UsageError

from worker.runtime import magics
from worker.runtime.magics import inline_backend, refuse_magics


class _Shell:
    """Keeps what is registered."""

    def __init__(self) -> None:
        self.magics_manager = self
        self.registered: dict[str, object] = {}

    def register_function(self, function: object, kind: str, name: str) -> None:
        assert kind == "line"
        self.registered[name] = function


def test_every_refusal_names_the_magic_and_says_what_to_do() -> None:
    shell = _Shell()
    refuse_magics(shell)  # type: ignore[arg-type]
    assert {"pip", "history", "edit", "debug", "gui"} <= set(shell.registered)
    for name, refuse in shell.registered.items():
        with pytest.raises(UsageError, match=f"%{name} ") as caught:
            refuse("anything")  # type: ignore[operator]
        assert refuse.__doc__ == str(caught.value)
        assert "{" not in str(caught.value)


@pytest.mark.parametrize("gui", [None, "auto", "inline", "agg"])
def test_figures_are_inline_without_a_word(gui: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert inline_backend(gui) == "inline"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("gui", ["qt", "widget", "notebook", "tk"])
def test_another_backend_is_told(gui: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inline_backend(gui) == "inline"
    assert f"%matplotlib {gui} needs a screen" in capsys.readouterr().err


def test_every_sentence_is_used() -> None:
    sentences = {value for name, value in vars(magics).items() if name.startswith("_NO_")}
    assert sentences == set(magics._REFUSED.values())
