"""The ledger on real SQLite: against a plain model, in any order, replayed, raced and attacked."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import Connection

from coordinator.ledger import accounts, escrow
from coordinator.ledger.audit import CHECKS, audit
from coordinator.rules import pricing
from coordinator.services import views
from coordinator.services.accounts import ensure_user
from coordinator.services.submit import submit
from coordinator.settings import Settings
from coordinator.store.engine import Store
from coordinator.store.tables import FEE_ID, MINT_ID, jobs
from gridx.errors import AlreadySettled, InsufficientCredits
from tests.support.database import Database, order

NAMES = ("ada", "ben", "cid")
SHARE = 85


class LedgerMachine(RuleBasedStateMachine):
    """Grants, holds, settlements and releases in any order, against sums kept in Python.

    Jobs are bare rows here: what they mean is the services' business.
    """

    @initialize()
    def open(self) -> None:
        self.database = Database(settings=Settings(signup_grant_ucr=1000))
        self.account: dict[str, int] = {}
        self.posted = dict.fromkeys(NAMES, 1000)
        self.fee = 0
        self.granted = 1000 * len(NAMES)
        self.holds: dict[int, tuple[str, int, bool]] = {}  # job: payer, amount, is open
        for name in NAMES:
            self.database.add_user(name)
            with self.database.engine.begin() as tx:
                found = tx.execute(
                    sa.text(
                        "SELECT a.id FROM accounts a JOIN users u ON u.id = a.user_id"
                        " WHERE u.name = :name"
                    ),
                    {"name": name},
                ).scalar_one()
            self.account[name] = found

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.database.close()

    def free(self, name: str) -> int:
        return self.posted[name] - sum(
            amount for payer, amount, is_open in self.holds.values() if payer == name and is_open
        )

    @rule(name=st.sampled_from(NAMES), amount=st.integers(1, 1500))
    def hold(self, name: str, amount: int) -> None:
        job = len(self.holds) + 1

        def place(tx: Connection, now_us: int) -> bool:
            placed = escrow.set_aside(tx, name, amount, virtual_time=0.0, cost=1.0)
            if placed is None:
                return False
            tx.execute(
                jobs.insert(),
                {
                    "id": job,
                    "public_id": f"job_{job}",
                    "user_id": placed.user_id,
                    "body_digest": b"",
                    "state": "queued",
                    "tag": placed.tag,
                    "spec": "{}",
                    "own_only": False,
                    "hold_ucr": amount,
                    "max_tries": 1,
                    "created_us": now_us,
                },
            )
            escrow.place(tx, placed.account_id, job, amount, now_us)
            return True

        placed = self.database.run(place)
        assert placed == (amount <= self.free(name))
        if placed:
            self.holds[job] = (name, amount, True)

    @rule(data=st.data(), lender=st.sampled_from(NAMES), percent=st.integers(0, 130))
    def settle(self, data: st.DataObject, lender: str, percent: int) -> None:
        if not self.holds:
            return
        job = data.draw(st.sampled_from(sorted(self.holds)))
        payer, amount, is_open = self.holds[job]
        charge = amount * percent // 100

        def settle(tx: Connection, now_us: int) -> escrow.Closed:
            closed = escrow.settle(
                tx,
                job,
                key=f"settle:job_{job}:1",
                charge_ucr=charge,
                lender_account_id=self.account[lender],
                worker_share_percent=SHARE,
                now_us=now_us,
            )
            self._end(tx, job, closed.charge_ucr, now_us)
            return closed

        if not is_open or charge > amount:
            with pytest.raises(AlreadySettled):
                self.database.run(settle)
            return
        closed = self.database.run(settle)
        self.holds[job] = (payer, amount, False)
        paid = 0 if lender == payer else charge
        share, fee = pricing.split(paid, SHARE)
        self.posted[payer] -= paid
        self.posted[lender] += share
        self.fee += fee
        assert closed.charge_ucr == paid
        assert closed.posted_ucr == self.posted[payer]

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if not self.holds:
            return
        job = data.draw(st.sampled_from(sorted(self.holds)))
        payer, amount, is_open = self.holds[job]

        def release(tx: Connection, now_us: int) -> None:
            escrow.release(tx, job, now_us)
            self._end(tx, job, 0, now_us)

        if not is_open:
            with pytest.raises(AlreadySettled):
                self.database.run(release)
            return
        self.database.run(release)
        self.holds[job] = (payer, amount, False)

    @rule(name=st.sampled_from(NAMES), amount=st.integers(-5, 50), key=st.integers(0, 3))
    def grant(self, name: str, amount: int, key: int) -> None:
        seen = getattr(self, "keys", set())

        def grant(tx: Connection, now_us: int) -> bool:
            return accounts.grant(tx, self.account[name], amount, f"grant:test:{key}", now_us)

        granted = self.database.run(grant)
        assert granted == (amount > 0 and key not in seen)
        if granted:
            self.keys = seen | {key}
            self.posted[name] += amount
            self.granted += amount

    @staticmethod
    def _end(tx: Connection, job: int, cost: int, now_us: int) -> None:
        tx.execute(
            jobs.update()
            .where(jobs.c.id == job)
            .values(state="failed", finished_us=now_us, cost_ucr=cost)
        )

    @invariant()
    def books_agree_with_the_model(self) -> None:
        if not hasattr(self, "database"):
            return
        with self.database.engine.connect() as tx:
            # these jobs have no attempts, whose charges add up to nothing
            findings = [f for f in audit(tx) if "attempts add up" not in f]
            assert findings == []
            for name in NAMES:
                balance = accounts.find_balance(tx, name)
                assert balance is not None
                assert balance.posted_ucr == self.posted[name]
                assert balance.available_ucr == self.free(name)
                assert balance.available_ucr >= 0
        assert sum(self.posted.values()) + self.fee == self.granted


LedgerMachine.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLedgerAgainstAModel = LedgerMachine.TestCase


async def test_concurrent_submits_on_one_balance_accept_exactly_what_it_covers(
    tmp_path: Path,
) -> None:
    policy = Settings(data_dir=tmp_path, signup_grant_ucr=40 * 6_000_000 + 5_999_999)
    store = Store(policy.database_url)
    await store.open()
    try:
        await store.run(ensure_user, policy, "ada")
        answers = await asyncio.gather(
            *(store.run(submit, policy, order("ada"), 0.0) for _ in range(160)),
            return_exceptions=True,
        )
        refused = [a for a in answers if isinstance(a, InsufficientCredits)]
        assert len(answers) - len(refused) == 40
        assert all(isinstance(a, InsufficientCredits) or a.is_new for a in answers)  # type: ignore[union-attr]
        balance = await store.read(views.get_balance, "ada")
        assert balance.held_ucr == 40 * 6_000_000
        assert refused[-1].details["missing_ucr"] == 1
        assert await store.read(lambda tx, now_us: audit(tx)) == ()
    finally:
        await store.close()


@pytest.fixture
def database() -> Iterator[Database]:
    made = Database()
    yield made
    made.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE accounts SET held_ucr = -1 WHERE kind = 'user'",
        "UPDATE accounts SET held_ucr = posted_ucr + 1 WHERE kind = 'user'",
        "UPDATE accounts SET posted_ucr = -1 WHERE kind = 'user'",
        "UPDATE holds SET captured_ucr = amount_ucr + 1",
        "UPDATE holds SET state = 'settled'",
        "UPDATE holds SET amount_ucr = 0",
        "UPDATE transfers SET amount_ucr = 0",
        "UPDATE transfers SET credit_id = debit_id",
        "INSERT INTO transfers SELECT 99, idem, debit_id, credit_id, 5, kind, NULL, 1"
        " FROM transfers",
        "INSERT INTO holds SELECT 99, account_id, job_id, 5, 0, 'open', 1, NULL FROM holds",
        "UPDATE jobs SET state = 'completed'",
    ],
)
def test_the_database_itself_refuses_what_the_ledger_forbids(
    database: Database, statement: str
) -> None:
    database.run(submit, database.settings, order("ada"), 0.0)
    with pytest.raises(sqlite3.IntegrityError), database.engine.begin() as tx:
        raw = tx.connection.driver_connection
        assert raw is not None
        raw.execute(statement)


@pytest.mark.parametrize(
    ("edit", "finding"),
    [
        ("UPDATE accounts SET posted_ucr = posted_ucr + 1 WHERE kind = 'user'", "sum of its"),
        ("UPDATE accounts SET posted_ucr = posted_ucr + 1 WHERE kind = 'user'", "up to zero"),
        ("UPDATE accounts SET posted_ucr = 5 WHERE kind = 'fee'", "no stored balance"),
        ("UPDATE accounts SET held_ucr = held_ucr - 1 WHERE kind = 'user'", "open holds"),
        ("DELETE FROM holds", "has one of that size"),
        ("UPDATE jobs SET state = 'failed', finished_us = 1", "exactly while its job lives"),
        ("UPDATE jobs SET state = 'running'", "one live attempt"),
        ("UPDATE jobs SET cost_ucr = 1", "costs what was captured"),
        ("UPDATE transfers SET kind = 'fee'", "only by grants"),
        ("UPDATE holds SET state = 'settled', captured_ucr = 1, closed_us = 1", "transferred"),
    ],
)
def test_the_audit_finds_books_that_were_edited(
    database: Database, edit: str, finding: str
) -> None:
    database.run(submit, database.settings, order("ada"), 0.0)
    assert database.audit() == ()
    with database.engine.begin() as tx:
        tx.execute(sa.text(edit))
    assert any(finding in found for found in database.audit()), database.audit()


def test_every_rule_of_the_audit_is_a_query_that_runs(database: Database) -> None:
    with database.engine.connect() as tx:
        for rule_, query in CHECKS.items():
            assert tx.execute(sa.text(query)).all() == [], rule_


def test_mint_and_fee_are_the_first_two_accounts(database: Database) -> None:
    with database.engine.connect() as tx:
        rows = tx.execute(sa.text("SELECT id, kind FROM accounts ORDER BY id")).all()
    assert [tuple(row) for row in rows] == [(MINT_ID, "mint"), (FEE_ID, "fee")]
