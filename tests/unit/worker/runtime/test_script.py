"""How a script's end is put into words and codes."""

from __future__ import annotations

import traceback

import pytest

from worker.runtime import script
from worker.runtime.script import MAX_MESSAGE_CHARS, exit_code_of, hide_runtime_frames, one_line


@pytest.mark.parametrize(
    ("code", "status"), [(None, 0), (0, 0), (3, 3), (256, 0), (-1, 255), (True, 1), ("bye", 1)]
)
def test_the_exit_code_is_the_interpreters(code: object, status: int) -> None:
    assert exit_code_of(SystemExit(code)) == status


def test_an_error_in_one_line_names_its_type() -> None:
    assert one_line(ValueError("a\n b")) == "ValueError: a b"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(one_line(ValueError("x" * 10_000))) == MAX_MESSAGE_CHARS


def test_an_error_whose_text_cannot_be_had_still_has_a_line() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert one_line(Broken()).endswith("Broken: <str() failed: RuntimeError>")


def test_the_runtimes_own_frames_are_hidden_at_both_ends() -> None:
    def compiled(file: str, body: str) -> dict[str, object]:
        names: dict[str, object] = {}
        exec(compile(body, file, "exec"), names)
        return names

    ours = f"{script._HERE}/made_up.py"
    inner = compiled(ours, "def ask(): raise EOFError('nobody')")
    job = compiled("<job>", "def job(ask): ask()")
    outer = compiled(ours, "def run(job, ask): job(ask)")
    with pytest.raises(EOFError) as caught:
        outer["run"](job["job"], inner["ask"])  # type: ignore[operator]
    error = caught.value
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # this test's own
    hide_runtime_frames(error)
    assert [frame.filename for frame in traceback.extract_tb(error.__traceback__)] == ["<job>"]
