"""Alembic migrations, run by ``coordinator.store.schema``."""
