"""The audit of the ledger, for whoever runs the coordinator."""

from __future__ import annotations

from sqlalchemy import Connection

from ..ledger.audit import audit


def run_audit(tx: Connection, now_us: int) -> tuple[str, ...]:
    """Return what is wrong with the books, a sentence each; nothing is, when it is empty."""
    return audit(tx)
