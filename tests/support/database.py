"""A real database without threads, for tests of single use cases, and a clock that they move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from coordinator.services import accounts, enroll
from coordinator.services.audit import run_audit
from coordinator.services.submit import Order, make_order
from coordinator.services.submit_call import CallOrder, make_call_order
from coordinator.settings import Settings
from coordinator.store import schema
from coordinator.store.engine import writer_engine
from coordinator.store.records import WorkerRecord
from gridx.ids import new_worker_id
from gridx.protocol import AttemptFinished, CallFinished
from gridx.resources import GIB, Capability, Usage
from gridx.schemas import CellSpec, JobRequest, Limits, SessionSpec
from gridx.states import Cause

P = ParamSpec("P")
T = TypeVar("T")

START_US = 1_700_000_000_000_000
DOCKER = Capability(cores=4, memory_bytes=8 * GIB, slots=4, sandbox="docker")
PROCESS = Capability(cores=4, memory_bytes=8 * GIB, slots=4, sandbox="process")


class Database:
    """Runs each use case in a transaction of its own, at the time that the test has set."""

    def __init__(self, path: Path | str = ":memory:", settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.engine = writer_engine(Path(path))
        schema.upgrade(self.engine, before=lambda version: None)
        self.now_us = START_US

    def run(
        self, fn: Callable[Concatenate[Connection, int, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with self.engine.begin() as tx:
            return fn(tx, self.now_us, *args, **kwargs)

    def pass_time(self, seconds: float) -> None:
        self.now_us += round(seconds * 1_000_000)

    def close(self) -> None:
        self.engine.dispose()

    def add_user(self, name: str) -> int:
        return self.run(accounts.ensure_user, self.settings, name).user_id

    def add_worker(self, owner: str, capability: Capability = DOCKER) -> WorkerRecord:
        return self.run(
            enroll.enroll, self.add_user(owner), new_worker_id(), f"{owner}-box", capability
        )

    def audit(self) -> tuple[str, ...]:
        return self.run(run_audit)


def order(
    user: str,
    *,
    timeout_s: float = 60.0,
    code: str = "print(1)",
    cell: CellSpec | None = None,
    inputs: bytes = b"",
    own_only: bool = False,
    job_id: str | None = None,
    session: SessionSpec | None = None,
    call_timeout_s: float | None = None,
    pip: tuple[str, ...] = (),
) -> Order:
    """Return a job of one core, ready to be submitted; a session with ``session``."""
    return make_order(
        user,
        JobRequest(code=code, limits=Limits(timeout_s=timeout_s), job_id=job_id, pip=pip),
        cell,
        inputs,
        own_only=own_only,
        session=session,
        call_timeout_s=call_timeout_s,
    )


def call_order(
    user: str, job_id: str, call: int, *, code: str = "x", timeout_s: float = 60.0
) -> CallOrder:
    """Return a call of a session, ready to be submitted."""
    return make_call_order(
        user,
        job_id,
        call,
        code=code,
        timeout_s=timeout_s,
        cell=CellSpec(python="3.11"),
        inputs=f"inputs {call}".encode(),
    )


def call_report(
    job_id: str,
    call: int = 0,
    cause: Cause = Cause.COMPLETED,
    *,
    attempt: int = 1,
    wall_s: float = 1000.0,
    stream_bytes: int = 0,
    result: bytes | None = None,
    message: str = "",
) -> CallFinished:
    """Return a worker's report of a session's call."""
    return CallFinished(
        job_id=job_id,
        attempt=attempt,
        call=call,
        cause=cause,
        message=message,
        stream_bytes=stream_bytes,
        result=result,
        usage=Usage(wall_s=wall_s),
    )


def report(
    job_id: str,
    attempt: int = 1,
    cause: Cause = Cause.COMPLETED,
    *,
    wall_s: float = 1000.0,
    stream_bytes: int = 0,
    result: bytes | None = None,
    exit_code: int | None = None,
    message: str = "",
    call: int = 0,
    usage: Usage | None = None,
) -> AttemptFinished:
    """Return a worker's report."""
    return AttemptFinished(
        job_id=job_id,
        attempt=attempt,
        call=call,
        cause=cause,
        exit_code=exit_code,
        message=message,
        stream_bytes=stream_bytes,
        result=result,
        usage=usage or Usage(wall_s=wall_s),
    )
