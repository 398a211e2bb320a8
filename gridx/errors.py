"""Errors: a code for programs, a sentence for people, a hint that says what to do next.

GridXError
├── InvalidRequest            the request itself is wrong
│   ├── UnknownLanguage
│   └── BlobMismatch          its bytes are not those that it names
├── PayloadTooLarge           more bytes than the limit that the sentence names
├── AuthError                 who you are could not be shown
├── Forbidden                 you may not do this
├── NotFound                  no such thing, or not yours
├── Conflict                  the same id with another body, or a state that forbids it
│   └── BlobsMissing          a job names blobs that were not put before
├── LedgerError
│   ├── InsufficientCredits   the account cannot cover the hold
│   └── AlreadySettled        the hold was closed before
├── LeaseError
│   └── StaleLease            the attempt is no longer live
├── JobError                  a job ended badly
│   ├── JobFailed             its own error
│   ├── RemoteTimeout
│   ├── RemoteOutOfMemory
│   ├── RemoteCrash
│   ├── EnvironmentFailed     its packages could not be installed
│   ├── JobCancelled
│   └── WorkerLost
├── CaptureError              a variable cannot travel
├── SandboxError              a worker cannot isolate or run
├── StorageError              the coordinator's disk cannot be written or read
├── TransportError            the coordinator cannot be reached
├── ProtocolError             the other side sent something that is not in the protocol
├── ProgramEnded              a program that `gridx up` started ended by itself
├── NotBuilt                  asked for something that this release does not have
└── SettingsError             a setting is wrong
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """An error on the wire."""

    code: str
    message: str
    hint: str = ""
    details: dict[str, Any] = {}


class GridXError(Exception):
    """Base of every refusal of Grid-X. ``code`` is API and never changes; the sentence may."""

    code: ClassVar[str] = "error"
    default_hint: ClassVar[str] = "Run `gridx doctor` and look at the last lines of the log."

    def __init__(self, message: str, *, hint: str | None = None, **details: Any) -> None:
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        self.details = details
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def to_body(self) -> ErrorBody:
        """Return the error as it travels."""
        return ErrorBody(code=self.code, message=self.message, hint=self.hint, details=self.details)


class InvalidRequest(GridXError):
    """The request itself is wrong."""

    code = "invalid_request"
    default_hint = "Correct the field that is named and send it again."


class UnknownLanguage(InvalidRequest):
    """No image here speaks this language."""

    code = "unknown_language"


class BlobMismatch(InvalidRequest):
    """A blob's bytes are not those that its name and size say."""

    code = "blob_mismatch"
    default_hint = "Send it again; if it fails again, the data changed while it was being sent."


class PayloadTooLarge(GridXError):
    """More bytes than the limit that the sentence names."""

    code = "payload_too_large"
    default_hint = "Send less: select or aggregate first, or create the data inside the cell."


class AuthError(GridXError):
    """Who you are could not be shown."""

    code = "not_authenticated"
    default_hint = "Log in again: `gridx login URL`, or `%gridx login URL` in a notebook."


class Forbidden(GridXError):
    """You may not do this."""

    code = "forbidden"
    default_hint = "Use an account that may, or ask the grid's admin."


class NotFound(GridXError):
    """No such thing, or not yours."""

    code = "not_found"
    default_hint = "List what there is with `gridx jobs` or `gridx workers`."


class Conflict(GridXError):
    """The same id with another body, or a state that forbids the request."""

    code = "conflict"
    default_hint = "Use a new id, or look at the state first."


class BlobsMissing(Conflict):
    """A job names blobs that the coordinator does not have for its user."""

    code = "blobs_missing"
    default_hint = "Ask POST /blobs/missing which they are, put them, and submit again."


class LedgerError(GridXError):
    """Base of what the ledger refuses."""

    code = "ledger"


class InsufficientCredits(LedgerError):
    """The account cannot cover the hold that a job needs."""

    code = "insufficient_credits"
    default_hint = "Shorten the timeout, ask for fewer cores, or lend a worker to earn credits."


class AlreadySettled(LedgerError):
    """The hold was closed before; nothing has moved."""

    code = "already_settled"
    default_hint = "Nothing to do: each hold is closed exactly once."


class LeaseError(GridXError):
    """Base of what a lease refuses."""

    code = "lease"


class StaleLease(LeaseError):
    """The attempt is no longer live: a late report is fenced off."""

    code = "stale_lease"
    default_hint = "Stop this attempt: the job has ended or runs elsewhere."


class JobError(GridXError):
    """A job ended badly."""

    code = "job"


class JobFailed(JobError):
    """The job's own code raised, or exited with another code than 0."""

    code = "job_failed"
    default_hint = "Read its last lines; `gridx logs JOB` shows the whole output."


class RemoteTimeout(JobError):
    """The job was stopped at its own time limit."""

    code = "timeout"
    default_hint = "Give it more time with --timeout 30m, or less to do."


class RemoteOutOfMemory(JobError):
    """The job was stopped at its own memory limit."""

    code = "out_of_memory"
    default_hint = "Give it more memory with --mem 4G, or work on less data at a time."


class RemoteCrash(JobError):
    """The job's process ended by a signal or without a result."""

    code = "crashed"
    default_hint = "Look at the last lines of its output; native code may have failed."


class EnvironmentFailed(JobError):
    """What a job lists under ``pip`` could not be installed. Nothing was run or charged."""

    code = "environment_failed"
    default_hint = "Correct the requirement that the last lines name, or leave it out."


class JobCancelled(JobError):
    """Somebody who may do so stopped the job."""

    code = "cancelled"
    default_hint = "Run the cell again when you want its result."


class WorkerLost(JobError):
    """The worker vanished, and no attempt is left."""

    code = "worker_lost"
    default_hint = "Run the cell again; `%gridx workers` shows who is online."


class SessionEnded(JobError):
    """The session was closed: by its user, after it was idle, or at its limit."""

    code = "session_ended"
    default_hint = "Run the cells again: that opens a new session, with none of the old variables."


class CaptureError(GridXError):
    """A variable that the cell needs cannot travel."""

    code = "not_picklable"
    default_hint = "Create the object inside the cell, or leave it out with --without NAME."


class SandboxError(GridXError):
    """A worker cannot isolate or run a job."""

    code = "sandbox"
    default_hint = "Run `gridx doctor` on the worker's machine."


class StorageError(GridXError):
    """The coordinator's disk cannot be written or read."""

    code = "storage"
    default_hint = "Look at the free space and the health of the coordinator's disk."


class TransportError(GridXError):
    """The coordinator cannot be reached."""

    code = "unreachable"
    default_hint = "Start one with `gridx up`, or check the address with `gridx doctor`."


class ProtocolError(GridXError):
    """The other side sent something that is not in the protocol."""

    code = "protocol"
    default_hint = "Upgrade the older side: `pip install -U gridx-jupyter`."


class ProgramEnded(GridXError):
    """A program that ``gridx up`` started ended by itself."""

    code = "program_ended"
    default_hint = "Read its last lines, above; `gridx doctor` looks for the usual causes."


class NotBuilt(GridXError):
    """Asked for something that this release does not have yet."""

    code = "not_built"
    default_hint = "See the CHANGELOG for what this release has."


class SettingsError(GridXError):
    """A setting is wrong."""

    code = "settings"
    default_hint = "Correct the setting that is named; `--help` lists them all."


def _tree(cls: type[GridXError]) -> list[type[GridXError]]:
    return [cls, *(sub for child in cls.__subclasses__() for sub in _tree(child))]


def error_classes() -> dict[str, type[GridXError]]:
    """Return every error class by its code."""
    return {cls.code: cls for cls in _tree(GridXError)}


def from_body(body: ErrorBody) -> GridXError:
    """Return the error that ``body`` describes; an unknown code becomes a plain GridXError."""
    error = error_classes().get(body.code, GridXError)(body.message, hint=body.hint)
    error.details = dict(body.details)
    return error
