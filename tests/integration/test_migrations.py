"""The migrations lead to the tables that the code has, and back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from coordinator.store import schema
from coordinator.store.engine import writer_engine
from coordinator.store.tables import metadata


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = writer_engine(tmp_path / "migrated.db")
    yield made
    made.dispose()


def tables(engine: Engine) -> dict[str, list[str]]:
    """Every table and index as a set of its clauses: SQLite keeps the text of each."""
    with engine.connect() as tx:
        rows = tx.execute(
            sa.text(
                "SELECT name, sql FROM sqlite_master"
                " WHERE sql IS NOT NULL AND name <> 'alembic_version'"
            )
        ).all()
    return {
        name: sorted(
            clause.strip() for clause in re.split(r",\s(?![^()]*\))", " ".join(sql.split()))
        )
        for name, sql in rows
    }


def accounts_of(engine: Engine) -> list[tuple[int, str]]:
    with engine.connect() as tx:
        return [tuple(r) for r in tx.execute(sa.text("SELECT id, kind FROM accounts ORDER BY id"))]


def test_the_newest_migration_is_the_one_that_the_code_names() -> None:
    script = ScriptDirectory.from_config(schema.alembic_config())
    assert script.get_heads() == [schema.HEAD]


def test_up_down_up_leads_to_the_tables_of_the_code(engine: Engine) -> None:
    schema.migrate(engine, schema.HEAD)
    up = tables(engine)
    schema.migrate(engine, "base")
    assert tables(engine) == {}
    schema.migrate(engine, schema.HEAD)
    assert tables(engine) == up
    with engine.connect() as tx:
        context = MigrationContext.configure(
            tx, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []
        assert schema.find_version(tx) == schema.HEAD


def test_a_new_database_is_what_the_migrations_make(engine: Engine, tmp_path: Path) -> None:
    schema.migrate(engine, schema.HEAD)
    fresh = writer_engine(tmp_path / "fresh.db")
    schema.upgrade(fresh, before=lambda version: pytest.fail("nothing to copy"))

    def comparable(found: dict[str, list[str]]) -> dict[str, set[str]]:
        # The order in which a table names its constraints means nothing.
        return {
            name: set(re.findall(r"\w+|[^\w\s]", " ".join(clauses)))
            for name, clauses in found.items()
        }

    assert comparable(tables(fresh)) == comparable(tables(engine))
    assert accounts_of(fresh) == accounts_of(engine) == [(1, "mint"), (2, "fee")]
    with fresh.connect() as tx:
        assert schema.find_version(tx) == schema.HEAD
    fresh.dispose()
