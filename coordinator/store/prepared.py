"""Core statements that are compiled once and then handed to the driver as they are.

A use case is a dozen statements, and SQLAlchemy spends several times longer on each execution
than SQLite does. The statements stay Core expressions; only their execution is short. On a
driver that this module does not know they are executed the usual way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, bindparam

Row = Sequence[Any]
Params = Mapping[str, Any]


class Prepared:
    """A statement with named parameters (``bindparam``), whose values are ints, floats, text,
    bytes or None: no type of SQLAlchemy converts them on the way in or out.
    """

    def __init__(self, statement: Any) -> None:
        self._statement: Any = statement
        self._sql: str | None = None
        self._names: tuple[str, ...] = ()
        self._constants: dict[str, Any] = {}

    def first(self, tx: Connection, params: Params) -> Row | None:
        """Execute, and return the first row."""
        rows = self.all(tx, params)
        return rows[0] if rows else None

    def value(self, tx: Connection, params: Params) -> Any:
        """Execute, and return the first column of the first row, None without one."""
        rows = self.all(tx, params)
        return rows[0][0] if rows else None

    def all(self, tx: Connection, params: Params) -> Sequence[Row]:
        """Execute, and return the rows."""
        if self._sql is None and not self._prepare(tx):
            return tx.execute(self._statement, dict(params)).all()
        # Fetched to the end: a statement that is still open keeps its savepoint from ending.
        rows: list[Row] = _driver(tx).execute(self._sql, self._order(params)).fetchall()
        return rows

    def each(self, tx: Connection, params: Params) -> Iterator[Row]:
        """Execute, and yield the rows as they are read; to be read to the end."""
        if self._sql is None and not self._prepare(tx):
            yield from tx.execute(self._statement, dict(params))
            return
        yield from _driver(tx).execute(self._sql, self._order(params))

    def run(self, tx: Connection, params: Params) -> int:
        """Execute, and return how many rows it changed."""
        if self._sql is None and not self._prepare(tx):
            return tx.execute(self._statement, dict(params)).rowcount
        count: int = _driver(tx).execute(self._sql, self._order(params)).rowcount
        return count

    def run_many(self, tx: Connection, many: Iterable[Params]) -> None:
        """Execute once for each of ``many``."""
        if self._sql is None and not self._prepare(tx):
            tx.execute(self._statement, [dict(params) for params in many])
            return
        _driver(tx).executemany(self._sql, [self._order(params) for params in many])

    def _order(self, params: Params) -> list[Any]:
        constants = self._constants
        return [params[n] if n in params else constants[n] for n in self._names]

    def _prepare(self, tx: Connection) -> bool:
        if tx.dialect.name != "sqlite":
            return False
        compiled: Any = self._statement.compile(dialect=tx.dialect)
        required = {n for n, bind in compiled.binds.items() if bind.required}
        self._constants = {n: v for n, v in compiled.params.items() if n not in required}
        self._names = tuple(compiled.positiontup or ())
        self._sql = str(compiled)
        return True


def _driver(tx: Connection) -> Any:
    return tx.connection.driver_connection


def insert_into(table: Table, *columns: str) -> Any:
    """Return an INSERT of these columns, each a parameter of the same name."""
    return table.insert().values({name: bindparam(name) for name in columns})
