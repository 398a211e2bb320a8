"""The store: one writer, group commit, and nothing lost that was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from coordinator.services import accounts, views
from coordinator.services.audit import run_audit
from coordinator.services.enroll import enroll
from coordinator.services.expire import find_due
from coordinator.services.submit import submit
from coordinator.settings import Settings
from coordinator.store import attempts, jobs, schema
from coordinator.store.engine import GROUP, Store, writer_engine
from coordinator.store.tables import users
from gridx.errors import NotFound, SettingsError, TransportError
from gridx.ids import new_worker_id
from tests.support.database import DOCKER, Database, order

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def policy(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
async def store(policy: Settings) -> AsyncIterator[Store]:
    opened = Store(policy.database_url)
    await opened.open()
    yield opened
    await opened.close()


def add(tx: Connection, now_us: int, name: str) -> int:
    return tx.execute(
        users.insert().returning(users.c.id), {"name": name, "created_us": now_us}
    ).scalar_one()


def names(tx: Connection, now_us: int) -> list[str]:
    return list(tx.execute(sa.select(users.c.name).order_by(users.c.id)).scalars())


async def test_what_run_returns_is_there_for_readers_and_after_a_restart(
    store: Store, policy: Settings
) -> None:
    assert await store.run(add, "ada") == 1
    assert await store.read(names) == ["ada"]
    await store.close()
    again = Store(policy.database_url)
    await again.open()
    assert await again.read(names) == ["ada"]
    await again.close()


async def test_one_that_is_refused_does_not_hurt_those_that_share_its_commit(
    store: Store,
) -> None:
    gate = threading.Event()

    def wait(tx: Connection, now_us: int) -> None:
        gate.wait(30)

    def add_then_refuse(tx: Connection, now_us: int, name: str) -> None:
        add(tx, now_us, name)
        raise ValueError(name)

    first = asyncio.create_task(store.run(wait))
    await asyncio.sleep(0)
    rest = [
        store.run(add_then_refuse if n % 2 else add, f"user{n}")  # type: ignore[arg-type]
        for n in range(20)
    ]
    group = asyncio.gather(*rest, return_exceptions=True)
    await asyncio.sleep(0)
    gate.set()
    await first
    answers = await group
    assert [isinstance(a, ValueError) for a in answers] == [bool(n % 2) for n in range(20)]
    assert await store.read(names) == [f"user{n}" for n in range(0, 20, 2)]


async def test_operations_that_wait_share_commits(store: Store) -> None:
    commits: list[int] = []
    per_commit = itertools.count()
    original = store._commit

    def counted(tx: Connection, group: list[object]) -> object:
        commits.append(len(group))
        return original(tx, group)  # type: ignore[arg-type]

    store._commit = counted  # type: ignore[assignment, method-assign]
    await asyncio.gather(*(store.run(add, f"user{next(per_commit)}") for _ in range(3 * GROUP)))
    assert sum(commits) == 3 * GROUP
    assert len(commits) < GROUP
    assert max(commits) <= GROUP


async def test_a_database_error_of_one_operation_is_its_own(store: Store) -> None:
    await store.run(add, "ada")
    answers = await asyncio.gather(
        store.run(add, "ada"), store.run(add, "ben"), return_exceptions=True
    )
    assert isinstance(answers[0], Exception)
    assert answers[1] == 2


async def test_a_group_that_cannot_be_committed_answers_nobody_with_success(
    store: Store,
) -> None:
    def break_commit(tx: Connection, now_us: int) -> None:
        # what a full disk does: SQLite gives the whole transaction up
        raw = tx.connection.driver_connection
        assert raw is not None
        raw.execute("ROLLBACK")

    with pytest.raises(TransportError, match="could not be written"):
        await store.run(break_commit)
    assert await store.run(add, "ada") == 1
    assert await store.read(names) == ["ada"]


async def test_a_caller_that_was_cancelled_does_not_stop_the_writer(store: Store) -> None:
    gate = threading.Event()
    waiting = asyncio.create_task(store.run(lambda tx, now_us: gate.wait(30)))
    lost = asyncio.create_task(store.run(add, "ada"))
    await asyncio.sleep(0)
    lost.cancel()
    gate.set()
    await waiting
    assert await store.run(add, "ben") == 2


async def test_a_start_that_was_killed_while_the_log_grew_is_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "gridx.db"
    first = Store(f"sqlite:///{path}")
    await first.open()
    await first.close()
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.execute("CREATE TABLE log_growth (filler BLOB)")
    second = Store(f"sqlite:///{path}")
    await second.open()
    assert await second.run(add, "ada") == 1
    await second.close()
    with contextlib.closing(sqlite3.connect(path)) as raw:
        left = raw.execute("SELECT count(*) FROM sqlite_master WHERE name = 'log_growth'")
        assert left.fetchone() == (0,)


async def test_readers_cannot_write(store: Store) -> None:
    with pytest.raises(Exception, match="readonly"):
        await store.read(add, "ada")
    assert await store.read(names) == []


async def test_a_reader_sees_one_moment_while_the_writer_goes_on(store: Store) -> None:
    await store.run(add, "ada")
    in_read, go_on = threading.Event(), threading.Event()

    def look_twice(tx: Connection, now_us: int) -> tuple[list[str], list[str]]:
        before = names(tx, now_us)
        in_read.set()
        go_on.wait(30)
        return before, names(tx, now_us)

    looking = asyncio.create_task(store.read(look_twice))
    await asyncio.to_thread(in_read.wait, 30)
    await store.run(add, "ben")
    go_on.set()
    before, after = await looking
    assert before == after == ["ada"]


async def test_the_time_never_goes_back(policy: Settings) -> None:
    times = iter((50, 40, 60))
    store = Store(policy.database_url, clock=lambda: next(times))
    await store.open()
    assert [await store.run(lambda tx, now_us: now_us) for _ in range(3)] == [50, 50, 60]
    await store.close()


async def test_the_folder_belongs_to_one_process(store: Store, policy: Settings) -> None:
    with pytest.raises(SettingsError, match=f"in use by process {os.getpid()}") as refused:
        await Store(policy.database_url).open()
    assert "--data-dir" in refused.value.hint
    await store.close()
    again = Store(policy.database_url)
    await again.open()
    await again.close()


async def test_a_closed_store_says_so(store: Store) -> None:
    await store.close()
    for way in (store.run, store.read):
        with pytest.raises(TransportError, match="closed"):
            await way(names)  # type: ignore[operator]
    await store.close()


def test_a_database_of_another_kind_is_refused() -> None:
    with pytest.raises(SettingsError, match="postgresql"):
        Store("postgresql://localhost/gridx")


async def test_a_commit_waits_for_the_disk_and_keeps_foreign_keys(store: Store) -> None:
    def pragmas(tx: Connection, now_us: int) -> list[object]:
        return [
            tx.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]

    assert await store.run(pragmas) == ["wal", 2, 1]


@pytest.mark.parametrize(
    ("use_case", "indexes"),
    [
        (find_due, {"ix_attempts_lease_live", "ix_attempts_due_live"}),
        (lambda tx, now_us: attempts.list_live(tx, 5), {"ix_attempts_worker_live"}),
        (lambda tx, now_us: list(jobs.list_queued(tx)), {"ix_jobs_queued"}),
        (views.count_jobs, {"ix_jobs_live"}),
        (lambda tx, now_us: views.get_job(tx, now_us, "job_1"), {"uq_jobs"}),
        (lambda tx, now_us: views.list_jobs(tx, now_us, "ada", "job_1"), {"ix_jobs_user_id_id"}),
    ],
)
def test_the_queries_of_a_busy_grid_walk_their_indexes(
    use_case: Callable[[Connection, int], object], indexes: set[str]
) -> None:
    database = Database()
    with database.engine.begin() as tx:
        raw = tx.connection.driver_connection
        assert raw is not None
        said: list[str] = []
        raw.set_trace_callback(said.append)
        with contextlib.suppress(NotFound):
            use_case(tx, 0)
        raw.set_trace_callback(None)
        plan = [
            row[3]
            for query in said
            for row in raw.execute(f"EXPLAIN QUERY PLAN {query}")
            if query.startswith("SELECT")
        ]
    for index in indexes:
        wanted = "sqlite_autoindex_jobs" if index == "uq_jobs" else index
        assert any(wanted in step for step in plan), plan
    assert not [step for step in plan if step.startswith("SCAN") and "USING" not in step], plan
    database.close()


@pytest.fixture
def killed() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for program in started:
        program.kill()
        program.wait()


@pytest.mark.slow
async def test_a_writer_that_is_killed_under_load_loses_nothing_it_acknowledged(
    policy: Settings, killed: list[subprocess.Popen[bytes]]
) -> None:
    store = Store(policy.database_url)
    await store.open()
    for n in range(10):
        await store.run(accounts.ensure_user, policy, f"user{n}")
    lender = await store.run(accounts.ensure_user, policy, "lee")
    await store.run(enroll, lender.user_id, new_worker_id(), "box", DOCKER)
    await store.close()
    said: dict[str, str] = {}
    for lines in (40, 150, 400):
        for line in await asyncio.to_thread(write_until_killed, policy.data_dir, lines, killed):
            if line.endswith(b"\n"):
                state, job_id = line.decode().split()
                said[job_id] = state
        store = Store(policy.database_url)
        await store.open()
        on_record = await store.read(states)
        for job_id, state in said.items():
            if state == "submitted":  # its end may have been written and not be told
                assert job_id in on_record
            else:
                assert on_record[job_id] == state
        assert await store.read(run_audit) == ()
        await store.close()
    assert set(said.values()) >= {"completed", "cancelled"}


def write_until_killed(
    folder: Path, lines: int, killed: list[subprocess.Popen[bytes]]
) -> list[bytes]:
    """Return what the writer said before and while it was killed after its n-th line."""
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.support.crashing_writer", str(folder)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    killed.append(program)
    assert program.stdout is not None
    heard = [program.stdout.readline() for _ in range(lines)]
    os.kill(program.pid, signal.SIGKILL)
    heard += program.stdout.read().splitlines(keepends=True)
    program.wait()
    program.stdout.close()
    return heard


def states(tx: Connection, now_us: int) -> dict[str, str]:
    rows = tx.execute(sa.text("SELECT public_id, state FROM jobs")).all()
    return {row[0]: row[1] for row in rows}


async def test_an_older_database_is_copied_before_it_is_changed(
    policy: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(policy.database_url)
    await store.open()
    await store.run(submit, policy, order("ada"), 0.0)
    await store.close()
    changed: list[str] = []
    before = schema.HEAD
    monkeypatch.setattr(schema, "HEAD", "9998")
    monkeypatch.setattr(schema, "migrate", lambda engine, revision: changed.append(revision))
    await (store := Store(policy.database_url)).open()
    await store.close()
    assert changed == ["9998"]
    copy = policy.data_dir / f"gridx-schema-{before}.db"
    engine = writer_engine(copy)
    with engine.connect() as tx:
        assert tx.execute(sa.text("SELECT count(*) FROM jobs")).scalar() == 1
    engine.dispose()


async def test_a_newer_database_is_refused_and_the_folder_is_free_again(
    policy: Settings,
) -> None:
    store = Store(policy.database_url)
    await store.open()
    await store.run(
        lambda tx, now_us: (
            tx.execute(sa.text("UPDATE alembic_version SET version_num = '9999'")) and None
        )
    )
    await store.close()
    for _ in range(2):
        with pytest.raises(SettingsError, match="newer release"):
            await Store(policy.database_url).open()
