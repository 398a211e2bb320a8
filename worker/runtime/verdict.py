"""Why a call ended. Pure: a wait status, what the job said, what the kernel counted."""

from __future__ import annotations

import os
import signal
from typing import Final, NamedTuple

from gridx.states import Cause

from .records import Done

OUT_OF_MEMORY: Final = "It needed more memory than it was given."
GARBAGE: Final = "The job wrote into the runtime's own pipe."
NOT_WARM: Final = "The runtime did not start; see the sandbox's stderr."


class Verdict(NamedTuple):
    """Why a call ended, its exit code as a shell shows it, and a sentence."""

    cause: Cause
    exit_code: int
    message: str = ""


class Kill(NamedTuple):
    """Why the supervisor killed the job."""

    cause: Cause
    message: str


def judge_done(
    done: Done, *, memory_error_is_the_limit: bool, out_of_memory: bool = False
) -> Verdict:
    """Judge a job that came to its end and said so.

    Args:
        memory_error_is_the_limit: the memory limit shows itself as MemoryError, not as a kill.
        out_of_memory: the kernel killed something of this container for its memory limit. What a
            shell says of a command that was killed is its exit code, and then the script's.
    """
    if done.completed:
        return Verdict(Cause.COMPLETED, done.exit_code)
    if out_of_memory and done.exit_code == 128 + signal.SIGKILL:
        return Verdict(Cause.OUT_OF_MEMORY, done.exit_code, OUT_OF_MEMORY)
    if done.memory_error and memory_error_is_the_limit:
        return Verdict(Cause.OUT_OF_MEMORY, done.exit_code, OUT_OF_MEMORY)
    return Verdict(Cause.ERROR, done.exit_code, done.message)


def judge_call(done: Done, *, stopped: Kill | None, memory_error_is_the_limit: bool) -> Verdict:
    """Judge a call of a session that came to its end.

    Args:
        done: what it said.
        stopped: why it was interrupted, and what it would have been killed for. Its time limit
            stays the cause; an interrupt on the user's wish is one only if the code let it be.
        memory_error_is_the_limit: as for ``judge_done``.
    """
    if stopped is not None and stopped.cause is Cause.TIMEOUT:
        return Verdict(Cause.TIMEOUT, done.exit_code, stopped.message)
    if stopped is not None and done.interrupted:
        return Verdict(Cause.CANCELLED, done.exit_code, "Interrupted.")
    return judge_done(done, memory_error_is_the_limit=memory_error_is_the_limit)


def judge_death(
    status: int, kind: str | None, *, warm: bool, kill: Kill | None, out_of_memory: bool
) -> Verdict:
    """Judge a job whose process ended before it was done.

    Args:
        status: of wait4.
        kind: of the job; None when it had none yet.
        out_of_memory: the kernel killed something of this container for its memory limit.
    """
    exit_code = exit_code_of_status(status)
    if not warm:
        return Verdict(Cause.SANDBOX_FAILED, exit_code, NOT_WARM)
    if kill is not None:
        return Verdict(kill.cause, exit_code, kill.message)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL and out_of_memory:
            return Verdict(Cause.OUT_OF_MEMORY, exit_code, OUT_OF_MEMORY)
        name = _signal_name(number)
        return Verdict(Cause.CRASHED, exit_code, f"Its process was ended by {name}.")
    if exit_code == 0 and kind == "script":
        # A script has no result to lose: os._exit(0) is success, as in a terminal.
        return Verdict(Cause.COMPLETED, exit_code)
    return Verdict(
        Cause.CRASHED,
        exit_code,
        f"Its process left with exit code {exit_code} before it was done.",
    )


def exit_code_of_status(status: int) -> int:
    """Return a wait status as a shell shows it: 128 and the signal for one that was killed."""
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:  # a real-time signal has a number only
        return f"signal {number}"
