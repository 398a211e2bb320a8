"""Brings a database to this release's schema: made at once when it is new, migrated when it is
older, refused when it is newer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from gridx.errors import SettingsError

from .tables import FEE_ID, MINT_ID, accounts, metadata

# The newest migration. A test compares it with the folder, so that a start at head need not
# load Alembic (0.2 s).
HEAD: Final = "0005"
_MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(engine: Engine, before: Callable[[str], None]) -> None:
    """Bring the database to HEAD; ``before(version)`` is called when an older one is changed.

    Raises:
        SettingsError: it was written by a newer release.
    """
    with engine.connect() as tx:
        found = find_version(tx)
    if found == HEAD:
        return
    if found is None:
        with engine.begin() as tx:
            create(tx)
        return
    _refuse_newer(found, engine)
    before(found)
    migrate(engine, HEAD)


def find_version(tx: Connection) -> str | None:
    """Return the migration that the database stands at, or None when it has no tables."""
    if not sa.inspect(tx).has_table("alembic_version"):
        return None
    version: str | None = tx.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return version


def create(tx: Connection) -> None:
    """Make all tables at HEAD. A test shows that the migrations lead to the same."""
    metadata.create_all(tx)
    seed(tx)
    tx.execute(
        sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    )
    tx.execute(sa.text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})


def seed(tx: Connection) -> None:
    """Add the two accounts that belong to nobody."""
    tx.execute(accounts.insert(), [{"id": MINT_ID, "kind": "mint"}, {"id": FEE_ID, "kind": "fee"}])


def migrate(engine: Engine, revision: str) -> None:
    """Go up, or down, to ``revision`` ("base": no tables)."""
    from alembic import command
    from alembic.script import ScriptDirectory

    config = alembic_config()
    with engine.begin() as tx:
        config.attributes["connection"] = tx
        script = ScriptDirectory.from_config(config)
        order = ["base", *(r.revision for r in reversed(list(script.walk_revisions())))]
        here = find_version(tx) or "base"
        if order.index(revision) >= order.index(here):
            command.upgrade(config, revision)
        else:
            command.downgrade(config, revision)


def alembic_config() -> Any:
    """Return Alembic's configuration for the migrations that are packaged here."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config


def _refuse_newer(found: str, engine: Engine) -> None:
    from alembic.script import ScriptDirectory

    known = {r.revision for r in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
    if found not in known:
        raise SettingsError(
            f"The database {engine.url.database} was written by a newer release (schema {found}, this one"
            f" knows up to {HEAD}).",
            hint="Upgrade this coordinator: `pip install -U gridx-jupyter`, or use another"
            " folder with --data-dir DIR.",
            found=found,
            known=HEAD,
        )
