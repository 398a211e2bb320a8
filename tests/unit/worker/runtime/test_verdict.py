"""Every way in which a call can end, and what is said of it."""

from __future__ import annotations

import pytest

from gridx.states import Cause
from worker.runtime.records import Done
from worker.runtime.verdict import Kill, Verdict, judge_call, judge_death, judge_done


def left_with(code: int) -> int:
    """Return the wait status of a process that exited."""
    return code << 8


@pytest.mark.parametrize(
    ("done", "limited", "verdict"),
    [
        (Done(completed=True, exit_code=0), True, Verdict(Cause.COMPLETED, 0)),
        (Done(completed=False, exit_code=3, message="m"), True, Verdict(Cause.ERROR, 3, "m")),
        (
            Done(completed=False, exit_code=1, message="MemoryError", memory_error=True),
            False,
            Verdict(Cause.ERROR, 1, "MemoryError"),
        ),
        (
            Done(completed=False, exit_code=1, message="MemoryError", memory_error=True),
            True,
            Verdict(Cause.OUT_OF_MEMORY, 1, "It needed more memory than it was given."),
        ),
    ],
)
def test_a_job_that_came_to_its_end_is_believed(
    done: Done, limited: bool, verdict: Verdict
) -> None:
    assert judge_done(done, memory_error_is_the_limit=limited) == verdict


LIMIT = Kill(Cause.TIMEOUT, "Stopped at its time limit of 1 s.")
WISH = Kill(Cause.CANCELLED, "It went on.")
INTERRUPTED = Done(completed=False, exit_code=1, message="KeyboardInterrupt", interrupted=True)
FINE = Done(completed=True, exit_code=0)


@pytest.mark.parametrize(
    ("done", "stopped", "cause", "message"),
    [
        (FINE, None, Cause.COMPLETED, ""),
        (INTERRUPTED, None, Cause.ERROR, "KeyboardInterrupt"),
        (INTERRUPTED, WISH, Cause.CANCELLED, "Interrupted."),
        (FINE, WISH, Cause.COMPLETED, ""),
        (Done(completed=False, exit_code=1, message="m"), WISH, Cause.ERROR, "m"),
        (INTERRUPTED, LIMIT, Cause.TIMEOUT, LIMIT.message),
        (FINE, LIMIT, Cause.TIMEOUT, LIMIT.message),
    ],
)
def test_a_call_that_was_interrupted_is_judged_by_what_it_made_of_it(
    done: Done, stopped: Kill | None, cause: Cause, message: str
) -> None:
    verdict = judge_call(done, stopped=stopped, memory_error_is_the_limit=False)
    assert (verdict.cause, verdict.message) == (cause, message)


@pytest.mark.parametrize(
    ("status", "kind", "kill", "out_of_memory", "cause", "exit_code"),
    [
        (9, "cell", None, True, Cause.OUT_OF_MEMORY, 137),
        (9, "cell", None, False, Cause.CRASHED, 137),
        (11, "cell", None, True, Cause.CRASHED, 139),
        (left_with(3), "cell", None, False, Cause.CRASHED, 3),
        (left_with(3), "script", None, False, Cause.CRASHED, 3),
        (left_with(0), "cell", None, False, Cause.CRASHED, 0),
        (left_with(0), "script", None, False, Cause.COMPLETED, 0),
        (9, "cell", Kill(Cause.TIMEOUT, "t"), True, Cause.TIMEOUT, 137),
        (9, "cell", Kill(Cause.CANCELLED, "c"), False, Cause.CANCELLED, 137),
        (9, None, Kill(Cause.CANCELLED, "c"), False, Cause.CANCELLED, 137),
    ],
)
def test_a_job_that_died_has_a_cause(
    status: int,
    kind: str | None,
    kill: Kill | None,
    out_of_memory: bool,
    cause: Cause,
    exit_code: int,
) -> None:
    verdict = judge_death(status, kind, warm=True, kill=kill, out_of_memory=out_of_memory)
    assert (verdict.cause, verdict.exit_code) == (cause, exit_code)
    assert (verdict.message == "") is (cause is Cause.COMPLETED)


def test_a_runtime_that_never_started_is_the_infrastructures_fault() -> None:
    verdict = judge_death(left_with(70), None, warm=False, kill=None, out_of_memory=False)
    assert verdict.cause is Cause.SANDBOX_FAILED


def test_a_signal_without_a_name_has_its_number() -> None:
    verdict = judge_death(45, "cell", warm=True, kill=None, out_of_memory=False)
    assert verdict.message == "Its process was ended by signal 45."
