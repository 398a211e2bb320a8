"""The one place that knows the database engine.

``Store.run`` executes a function in a transaction and answers when it is durable. SQLite takes
one writer at a time, and its commit waits for the disk; so one thread writes, and operations
that arrive while a commit is under way share the next one. Each runs in a savepoint: one that
is refused does not hurt its neighbours.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.pool import StaticPool

from gridx import clock
from gridx.errors import SettingsError, TransportError

from . import schema

P = ParamSpec("P")
T = TypeVar("T")

GROUP = 256  # operations that one commit carries at most
_READERS = 2
_LOG_BYTES = 4_300_000  # SQLite's own checkpoint comes at 1,000 pages of 4 KiB
_BUSY_TIMEOUT_MS = 5000


class _Op(NamedTuple):
    work: Callable[[Connection, int], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class _Done(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: BaseException | None


class Store:
    """A database: ``run`` to change it, ``read`` to look at one moment of it.

    Args:
        url: ``sqlite:///path``. Its folder belongs to one process at a time.
        clock: microseconds since 1970 UTC; a test may move it.
    """

    def __init__(self, url: str, *, clock: Callable[[], int] = clock.now_us) -> None:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite" or not parsed.database:
            raise SettingsError(
                f"{parsed.get_backend_name()} is not a database that this release can use.",
                hint="Use sqlite:///PATH.",
            )
        self.path = Path(parsed.database)
        self._clock = clock
        self._last_us = 0
        self._queue: queue.SimpleQueue[_Op | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._reader_connections = threading.local()
        self._open_readers: list[tuple[Engine, Connection]] = []
        self._lock_fd: int | None = None
        self._is_open = False

    # --- opening and closing ----------------------------------------------------------------

    async def open(self) -> None:
        """Lock the folder, bring the schema up to date, start the threads.

        Raises:
            SettingsError: another process has the folder, or the database is newer than this
                release.
        """
        try:
            await asyncio.to_thread(self._prepare)
        except BaseException:
            self._unlock()
            raise
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="store-read")
        self._writer = threading.Thread(target=self._write_loop, name="store-write", daemon=True)
        self._writer.start()
        self._is_open = True

    async def close(self) -> None:
        """Finish what is queued, then close every connection and give the folder back."""
        if not self._is_open:
            return
        self._is_open = False
        await asyncio.to_thread(self._shut_down)

    def _prepare(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock()
        engine = writer_engine(self.path)
        try:
            schema.upgrade(engine, before=lambda version: _back_up(self.path, version))
        finally:
            engine.dispose()

    def _shut_down(self) -> None:
        self._queue.put(None)
        if self._writer is not None:
            self._writer.join()
        if self._readers is not None:
            self._readers.shutdown()
        for engine, connection in self._open_readers:
            connection.close()
            engine.dispose()
        self._open_readers.clear()
        self._unlock()

    def _lock(self) -> None:
        path = self.path.parent / "lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "another process"
            os.close(fd)
            raise SettingsError(
                f"The data folder {self.path.parent} is in use by process {holder}.",
                hint="Stop that coordinator, or give this one a folder of its own with"
                " --data-dir DIR.",
                data_dir=str(self.path.parent),
                pid=holder,
            ) from None
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        self._lock_fd = fd

    def _unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)  # closing ends the lock
            self._lock_fd = None

    # --- the two ways in --------------------------------------------------------------------

    def now_us(self) -> int:
        """Return the time, never earlier than one that was returned before."""
        self._last_us = max(self._last_us, self._clock())
        return self._last_us

    async def run(
        self, fn: Callable[Concatenate[Connection, int, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``fn(tx, now_us, *args, **kwargs)`` in a transaction; its value is durable.

        Whatever ``fn`` raises undoes its own writes, and is raised here. A caller that is
        cancelled while it waits undoes nothing: the operation may have been written.
        """
        if not self._is_open:
            raise _closed()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put(_Op(lambda tx, now_us: fn(tx, now_us, *args, **kwargs), future, loop))
        return await future

    async def read(
        self, fn: Callable[Concatenate[Connection, int, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``fn(tx, now_us, *args, **kwargs)`` on one read-only snapshot."""
        if not self._is_open or self._readers is None:
            raise _closed()

        def work() -> T:
            tx = self._reader()
            with tx.begin():
                return fn(tx, self.now_us(), *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    def _reader(self) -> Connection:
        connection: Connection | None = getattr(self._reader_connections, "it", None)
        if connection is None:
            engine = reader_engine(self.path)
            connection = engine.connect()
            self._reader_connections.it = connection
            self._open_readers.append((engine, connection))
        return connection

    # --- the writer thread ------------------------------------------------------------------

    def _write_loop(self) -> None:
        engine = writer_engine(self.path)
        try:
            with engine.connect() as tx:
                try:
                    _grow_log(tx)
                except sqlite3.Error:  # a full disk: slower commits, or errors of their own
                    tx.connection.driver_connection.rollback()  # type: ignore[union-attr]
                while (group := self._next_group()) is not None:
                    self._answer(self._commit(tx, group))
        finally:
            engine.dispose()

    def _next_group(self) -> list[_Op] | None:
        first = self._queue.get()
        if first is None:
            return None
        group = [first]
        while len(group) < GROUP:
            try:
                op = self._queue.get_nowait()
            except queue.Empty:
                break
            if op is None:
                self._queue.put(None)  # close after this group
                break
            group.append(op)
        return group

    def _commit(self, tx: Connection, group: list[_Op]) -> list[_Done]:
        try:
            if len(group) == 1:
                return [self._run_alone(tx, group[0])]
            with tx.begin():
                done = [self._run_one(tx, op) for op in group]
        except Exception as exc:
            # The group is gone as a whole: a full disk, an I/O error. Nobody was answered yet.
            error = TransportError(
                f"The database could not be written: {exc}.",
                hint="Look at the free space and the health of the coordinator's disk.",
            )
            error.__cause__ = exc
            return [_Done(op.future, None, error) for op in group]
        return done

    def _run_alone(self, tx: Connection, op: _Op) -> _Done:
        with tx.begin() as transaction:
            raw: Any = tx.connection.driver_connection
            try:
                value = op.work(tx, self.now_us())
            except Exception as exc:
                if not raw.in_transaction:
                    raise  # SQLite has given the transaction up: not this operation's own fault
                transaction.rollback()
                return _Done(op.future, None, exc)
            if not raw.in_transaction:
                raise sqlite3.OperationalError("the transaction was given up")
        return _Done(op.future, value, None)

    def _run_one(self, tx: Connection, op: _Op) -> _Done:
        with _savepoint(tx) as savepoint:
            try:
                return _Done(op.future, op.work(tx, self.now_us()), None)
            except Exception as exc:
                savepoint.rollback()
                return _Done(op.future, None, exc)

    def _answer(self, done: list[_Done]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[_Done]] = {}
        for each in done:
            by_loop.setdefault(each.future.get_loop(), []).append(each)
        for loop, part in by_loop.items():
            with contextlib.suppress(RuntimeError):  # that loop has ended: nobody waits
                loop.call_soon_threadsafe(_resolve, part)


def _resolve(done: list[_Done]) -> None:
    for future, value, error in done:
        if future.done():  # its caller was cancelled
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


def _closed() -> TransportError:
    return TransportError("The database is closed.", hint="The coordinator is stopping.")


# --- SQLite ---------------------------------------------------------------------------------


class _Savepoint:
    """A savepoint by two plain statements: SQLAlchemy's own costs more than a use case."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def rollback(self) -> None:
        # Raises when SQLite has rolled back the whole transaction (disk full): the group fails.
        self._raw.execute("ROLLBACK TO op")


@contextlib.contextmanager
def _savepoint(tx: Connection) -> Iterator[_Savepoint]:
    raw = tx.connection.driver_connection
    assert raw is not None
    raw.execute("SAVEPOINT op")
    yield _Savepoint(raw)
    raw.execute("RELEASE op")


def writer_engine(path: Path) -> Engine:
    """Return the engine of the one connection that writes to the file (or ":memory:")."""
    engine = sa.create_engine(
        f"sqlite:///{path}", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def _connect(raw: Any, _record: Any) -> None:
        raw.isolation_level = None  # the driver's own BEGIN breaks savepoints
        raw.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("PRAGMA synchronous=FULL")  # a ledger must not lose its last commits
        raw.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(tx: Connection) -> None:
        raw: Any = tx.connection.driver_connection
        raw.execute("BEGIN IMMEDIATE")  # past SQLAlchemy, which takes longer than all of it

    return engine


def _grow_log(tx: Connection) -> None:
    """Bring the write-ahead log to the size at which it is reused from its beginning.

    A commit that overwrites allocated blocks is one flush of the disk; one that makes the file
    longer waits for the file system's journal besides.
    """
    raw: Any = tx.connection.driver_connection
    raw.execute("DROP TABLE IF EXISTS log_growth")  # of a start that was killed just here
    raw.execute("BEGIN IMMEDIATE")
    raw.execute("CREATE TABLE log_growth (filler BLOB)")
    raw.execute("INSERT INTO log_growth VALUES (zeroblob(?))", (_LOG_BYTES,))
    raw.execute("COMMIT")
    raw.execute("DROP TABLE log_growth")  # its pages are the next ones that the tables use
    raw.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()


def reader_engine(path: Path) -> Engine:
    """Return the engine of a connection that only reads."""
    engine = sa.create_engine(
        f"sqlite:///file:{path}?mode=ro&uri=true",
        poolclass=StaticPool,
        connect_args={"check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _connect(raw: Any, _record: Any) -> None:
        raw.isolation_level = None
        raw.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        raw.execute("PRAGMA query_only=ON")

    @event.listens_for(engine, "begin")
    def _begin(tx: Connection) -> None:
        tx.exec_driver_sql("BEGIN")

    return engine


def _back_up(path: Path, version: str) -> None:
    """Write a whole, consistent copy beside the database at ``path``, named for its schema."""
    target = path.with_name(f"{path.stem}-schema-{version}{path.suffix}")
    target.unlink(missing_ok=True)
    source = sqlite3.connect(path)
    try:
        source.execute("VACUUM INTO ?", (str(target),))
    finally:
        source.close()
