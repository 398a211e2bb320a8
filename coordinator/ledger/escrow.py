"""Holds: credits set aside for a job. Placed once, closed once: settled or released.

The gate comes first: one conditional UPDATE closes the hold, and who finds it closed moves
nothing. Balances change in the order of the account ids, so that two settlements never wait for
each other. Mint and fee have no stored balance: theirs is the sum of their transfers.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, bindparam

from gridx.errors import AlreadySettled

from ..rules import pricing
from ..store.prepared import Prepared, insert_into
from ..store.tables import FEE_ID, accounts, holds, transfers, users

_place = Prepared(
    accounts.update()
    .where(
        accounts.c.user_id
        == sa.select(users.c.id).where(users.c.name == bindparam("name")).scalar_subquery(),
        accounts.c.kind == "user",
        accounts.c.posted_ucr - accounts.c.held_ucr >= bindparam("amount"),
    )
    .values(
        held_ucr=accounts.c.held_ucr + bindparam("amount"),
        vfinish=sa.case(
            (accounts.c.vfinish > bindparam("virtual_time"), accounts.c.vfinish),
            else_=bindparam("virtual_time"),
        )
        + bindparam("cost"),
    )
    .returning(
        accounts.c.id,
        accounts.c.user_id,
        accounts.c.vfinish,
        accounts.c.posted_ucr,
        accounts.c.held_ucr,
    )
)
_insert = Prepared(insert_into(holds, "account_id", "job_id", "amount_ucr", "state", "created_us"))
_gate = Prepared(
    holds.update()
    .where(
        holds.c.job_id == bindparam("job"),
        holds.c.state == "open",
        holds.c.amount_ucr >= bindparam("charge"),
    )
    .values(
        # on the payer's own worker nothing is charged
        captured_ucr=sa.case(
            (holds.c.account_id == bindparam("lender"), 0), else_=bindparam("charge")
        ),
        state=sa.case(
            (holds.c.account_id == bindparam("lender"), "released"), else_=bindparam("to_state")
        ),
        closed_us=bindparam("at_us"),
    )
    .returning(holds.c.id, holds.c.account_id, holds.c.amount_ucr, holds.c.captured_ucr)
)
_changed = (
    accounts.update()
    .where(accounts.c.id == bindparam("account"))
    .values(
        posted_ucr=accounts.c.posted_ucr + bindparam("posted"),
        held_ucr=accounts.c.held_ucr + bindparam("held"),
    )
)
_change = Prepared(_changed)
_change_payer = Prepared(_changed.returning(accounts.c.posted_ucr, accounts.c.held_ucr))
_transfer = Prepared(
    insert_into(
        transfers, "idem", "debit_id", "credit_id", "amount_ucr", "kind", "hold_id", "created_us"
    )
)


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """A user's account after a hold was placed on it, and the queue tag that goes with it."""

    account_id: int
    user_id: int
    tag: float
    posted_ucr: int
    held_ucr: int


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """What was charged, and the payer's account after it."""

    charge_ucr: int
    posted_ucr: int
    held_ucr: int


def set_aside(
    tx: Connection, user: str, amount_ucr: int, *, virtual_time: float, cost: float
) -> Placed | None:
    """Set credits of ``user`` aside and move the user's fair-queueing clock on by ``cost``.

    None: there is no such user, or less is free than ``amount_ucr``.
    """
    row = _place.first(
        tx, {"name": user, "amount": amount_ucr, "virtual_time": virtual_time, "cost": cost}
    )
    if row is None:
        return None
    return Placed(account_id=row[0], user_id=row[1], tag=row[2], posted_ucr=row[3], held_ucr=row[4])


def place(tx: Connection, account_id: int, job_row_id: int, amount_ucr: int, now_us: int) -> None:
    """Write the hold for credits that ``set_aside`` has set aside."""
    _insert.run(
        tx,
        {
            "account_id": account_id,
            "job_id": job_row_id,
            "amount_ucr": amount_ucr,
            "state": "open",
            "created_us": now_us,
        },
    )


def settle(
    tx: Connection,
    job_row_id: int,
    *,
    key: str,
    charge_ucr: int,
    lender_account_id: int,
    worker_share_percent: int,
    now_us: int,
) -> Closed:
    """Close a job's hold: pay ``charge_ucr`` from it, return the rest.

    A lender who is the payer gets and pays nothing, the fee included: all is returned.

    Args:
        key: names the settlement; a key pays once, whatever happens.

    Raises:
        AlreadySettled: the hold is closed, or smaller than the charge. Nothing has moved.
    """
    hold = _close(tx, job_row_id, charge_ucr, lender_account_id, now_us)
    charge_ucr = hold.captured_ucr
    share, fee = pricing.split(charge_ucr, worker_share_percent)
    payer = {"account": hold.account_id, "posted": -charge_ucr, "held": -hold.amount_ucr}
    lender = {"account": lender_account_id, "posted": share, "held": 0}
    # ascending account ids
    if share and lender_account_id < hold.account_id:
        _change.run(tx, lender)
    posted_ucr, held_ucr = _change_payer.all(tx, payer)[0]
    if share and lender_account_id > hold.account_id:
        _change.run(tx, lender)
    legs = [
        {
            "idem": f"{key}:{kind}",
            "debit_id": hold.account_id,
            "credit_id": to,
            "amount_ucr": amount,
            "kind": kind,
            "hold_id": hold.row_id,
            "created_us": now_us,
        }
        for kind, to, amount in (("work", lender_account_id, share), ("fee", FEE_ID, fee))
        if amount
    ]
    if legs:
        _transfer.run_many(tx, legs)
    return Closed(charge_ucr=charge_ucr, posted_ucr=posted_ucr, held_ucr=held_ucr)


def release(tx: Connection, job_row_id: int, now_us: int) -> Closed:
    """Close a job's hold and return all of it.

    Raises:
        AlreadySettled: it is closed.
    """
    hold = _close(tx, job_row_id, 0, 0, now_us)
    posted_ucr, held_ucr = _change_payer.all(
        tx, {"account": hold.account_id, "posted": 0, "held": -hold.amount_ucr}
    )[0]
    return Closed(charge_ucr=0, posted_ucr=posted_ucr, held_ucr=held_ucr)


class _Hold(msgspec.Struct, frozen=True):
    row_id: int
    account_id: int
    amount_ucr: int
    captured_ucr: int


def _close(
    tx: Connection, job_row_id: int, charge_ucr: int, lender_account_id: int, now_us: int
) -> _Hold:
    row = _gate.first(
        tx,
        {
            "job": job_row_id,
            "charge": charge_ucr,
            "lender": lender_account_id,
            "to_state": "settled" if charge_ucr else "released",
            "at_us": now_us,
        },
    )
    if row is None:
        raise AlreadySettled("This job's hold is closed, or smaller than the charge.")
    return _Hold(*row)
