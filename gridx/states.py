"""The states of jobs and attempts. Which change may follow which is in ``coordinator/rules``."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class JobState(StrEnum):
    """Where a job stands. The REST API shows ``verifying`` as ``running``."""

    QUEUED = "queued"  # accepted and paid for by a hold; waits for a worker
    RUNNING = "running"  # one attempt is live
    VERIFYING = "verifying"  # every wanted attempt has reported; the results are compared
    COMPLETED = "completed"  # the code ran to its end
    FAILED = "failed"  # its own error, a limit, or no attempts left
    CANCELLED = "cancelled"  # somebody who may do so stopped it


class AttemptState(StrEnum):
    """Where one execution of a job on one worker stands."""

    LEASED = "leased"  # promised to a worker that has not started it yet
    RUNNING = "running"  # the worker said that it started
    REPORTED = "reported"  # finished; waits for verification
    ACCEPTED = "accepted"  # its result is the job's
    REJECTED = "rejected"  # its result was refused
    FAILED = "failed"  # the worker could not run it
    LOST = "lost"  # its lease expired
    CANCELLED = "cancelled"  # stopped on the user's wish


class CallState(StrEnum):
    """Where one call of a session stands."""

    QUEUED = "queued"  # accepted; its sandbox has not begun it
    RUNNING = "running"  # its sandbox has it
    COMPLETED = "completed"  # the code ran to its end
    FAILED = "failed"  # its own error, a limit, or its session was lost
    CANCELLED = "cancelled"  # stopped on its user's wish, or its session was closed


FINAL_JOB_STATES: Final = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})
FINAL_CALL_STATES: Final = frozenset({CallState.COMPLETED, CallState.FAILED, CallState.CANCELLED})
LIVE_ATTEMPT_STATES: Final = frozenset({AttemptState.LEASED, AttemptState.RUNNING})


class Cause(StrEnum):
    """Why a call ended, as the worker's machine saw it."""

    COMPLETED = "completed"  # ran to its end
    ERROR = "error"  # raised, or exited with another code than 0
    TIMEOUT = "timeout"  # killed at its own time limit
    OUT_OF_MEMORY = "out_of_memory"  # killed at its own memory limit
    CRASHED = "crashed"  # ended by a signal, or without a result
    CANCELLED = "cancelled"  # stopped on the user's wish
    ENVIRONMENT = "environment"  # what ``pip`` lists could not be installed
    SANDBOX_FAILED = "sandbox_failed"  # the worker could not run it: the infrastructure's fault
