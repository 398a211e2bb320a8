"""Accounts and grants. Work moves credits; only a grant creates them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection, bindparam

from ..store.prepared import Prepared, insert_into
from ..store.records import Balance
from ..store.tables import MINT_ID, accounts, transfers, users

_open = Prepared(insert_into(accounts, "user_id", "kind").returning(accounts.c.id))
_balance = Prepared(
    sa.select(users.c.name, accounts.c.posted_ucr, accounts.c.held_ucr)
    .join_from(accounts, users, users.c.id == accounts.c.user_id)
    .where(users.c.name == bindparam("name"), accounts.c.kind == "user")
)
_add = Prepared(
    accounts.update()
    .where(accounts.c.id == bindparam("account"))
    .values(posted_ucr=accounts.c.posted_ucr + bindparam("amount"))
)
_has = Prepared(sa.select(transfers.c.id).where(transfers.c.idem == bindparam("key")))


def open_account(tx: Connection, user_id: int) -> int:
    """Give a user an account with nothing in it, and return its id."""
    account_id: int = _open.value(tx, {"user_id": user_id, "kind": "user"})
    return account_id


def find_balance(tx: Connection, user: str) -> Balance | None:
    """Return a user's credits, if there is such a user."""
    row = _balance.first(tx, {"name": user})
    return None if row is None else Balance(user=row[0], posted_ucr=row[1], held_ucr=row[2])


def grant(tx: Connection, account_id: int, amount_ucr: int, key: str, now_us: int) -> bool:
    """Create credits in an account, once for each ``key``; False when that was done before."""
    if amount_ucr <= 0 or _has.first(tx, {"key": key}) is not None:
        return False
    tx.execute(
        transfers.insert(),
        {
            "idem": key,
            "debit_id": MINT_ID,
            "credit_id": account_id,
            "amount_ucr": amount_ucr,
            "kind": "grant",
            "created_us": now_us,
        },
    )
    _add.run(tx, {"account": account_id, "amount": amount_ucr})
    return True
