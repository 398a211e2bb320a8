"""Every table, once, for SQLite now and PostgreSQL later.

Amounts are whole micro-credits (``_ucr``), times whole microseconds since 1970 UTC (``_us``).
JSON is for what is only carried (specs, usage), never for what is queried. The database keeps
the invariants too: no negative balance, one hold a job, one live attempt a job.

Invites, replicas and an admin's audit trail get their tables with the features that use
them; nothing here is empty on purpose.
"""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    TextClause,
    UniqueConstraint,
    text,
)

NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

metadata = MetaData(naming_convention=NAMING)

# SQLite makes an alias of its row id only of a column that is exactly INTEGER.
Id = BigInteger().with_variant(Integer, "sqlite")

MINT_ID: Final = 1  # grants come from here: its balance is minus all credits there are
FEE_ID: Final = 2  # what is left of a charge after the lender's share


def _id() -> Column[int]:
    return Column("id", Id, primary_key=True)


def _ref(name: str, table: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, Id, ForeignKey(f"{table}.id"), nullable=nullable)


def _us(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable)


def _ucr(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0")


# With their values written out: a partial index serves a query only if the query says the same.
IS_LIVE: Final = text("attempts.state IN ('leased', 'running')")
IS_QUEUED: Final = text("jobs.state = 'queued'")
IS_UNFINISHED: Final = text("jobs.state IN ('queued', 'running', 'verifying')")
IS_CALL_LIVE: Final = text("calls.state IN ('queued', 'running')")


def _where(condition: TextClause) -> dict[str, Any]:
    plain = text(re.sub(r"\b(attempts|jobs|calls)\.", "", condition.text))
    return {"sqlite_where": plain, "postgresql_where": plain}


users = Table(
    "users",
    metadata,
    _id(),
    Column("name", String(64), nullable=False),
    Column("pw_hash", String(160)),  # argon2id; null: nobody has set a password yet
    _us("created_us"),
    UniqueConstraint("name"),
)

accounts = Table(
    "accounts",
    metadata,
    _id(),
    _ref("user_id", "users", nullable=True),
    Column("kind", String(8), nullable=False),
    # Kept sums, for user accounts only. Mint and fee would be the hottest rows of all: their
    # balance is the sum of their transfers.
    _ucr("posted_ucr"),
    _ucr("held_ucr"),
    Column("vfinish", Float, nullable=False, server_default="0"),  # fair queueing, see rules
    UniqueConstraint("user_id", "kind"),
    CheckConstraint("kind IN ('user', 'mint', 'fee')", name="kind"),
    CheckConstraint("(kind = 'user') = (user_id IS NOT NULL)", name="owner"),
    CheckConstraint("held_ucr >= 0", name="held"),
    CheckConstraint("posted_ucr >= held_ucr", name="available"),
)

workers = Table(
    "workers",
    metadata,
    _id(),
    Column("public_id", String(40), nullable=False),
    _ref("owner_id", "users"),
    Column("name", String(64), nullable=False),
    Column("capability", Text, nullable=False),
    Column("public_key", String(64), nullable=False, server_default=text("''")),  # none
    _us("created_us"),
    _us("seen_us"),
    UniqueConstraint("public_id"),
    Index("ix_workers_owner_id", "owner_id"),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    _id(),
    _ref("user_id", "users"),
    _ref("worker_id", "workers", nullable=True),  # a worker's token is good for that worker
    Column("digest", LargeBinary(32), nullable=False),
    Column("scopes", String(200), nullable=False),
    _us("created_us"),
    _us("expires_us"),
    _us("revoked_us", nullable=True),
    UniqueConstraint("digest"),
    Index("ix_api_tokens_user_id", "user_id"),
)

jobs = Table(
    "jobs",
    metadata,
    _id(),
    Column("public_id", String(40), nullable=False),
    _ref("user_id", "users"),
    Column("body_digest", LargeBinary(32), nullable=False),
    Column("state", String(10), nullable=False),
    Column("tag", Float, nullable=False),
    Column("spec", Text, nullable=False),
    Column("own_only", Boolean, nullable=False),
    _ucr("rate_ucr_per_s"),
    _ucr("hold_ucr"),
    _ucr("cost_ucr"),
    Column("attempt", SmallInteger, nullable=False, server_default="0"),  # the newest number
    Column("tries", SmallInteger, nullable=False, server_default="0"),  # that were lost or failed
    Column("max_tries", SmallInteger, nullable=False),
    _us("created_us"),
    _us("cancel_us", nullable=True),  # when its user wished it stopped
    _us("finished_us", nullable=True),
    Column("exit_code", Integer),
    Column("reason", Text),
    Column("spared", SmallInteger, nullable=False, server_default="0"),  # attempts not counted
    UniqueConstraint("public_id"),
    CheckConstraint(
        "state IN ('queued', 'running', 'verifying', 'completed', 'failed', 'cancelled')",
        name="state",
    ),
    CheckConstraint("cost_ucr >= 0", name="cost"),
    CheckConstraint(
        "(state IN ('completed', 'failed', 'cancelled')) = (finished_us IS NOT NULL)",
        name="finished",
    ),
    Index("ix_jobs_user_id_id", "user_id", "id"),
)
Index("ix_jobs_queued", jobs.c.tag, jobs.c.id, **_where(IS_QUEUED))
Index(
    "ix_jobs_live",
    jobs.c.state,
    **_where(IS_UNFINISHED),
)

job_payloads = Table(
    "job_payloads",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id"), primary_key=True),
    Column("role", String(8), primary_key=True),
    Column("data", LargeBinary, nullable=False),
    CheckConstraint("role IN ('inputs', 'result')", name="role"),
)

attempts = Table(
    "attempts",
    metadata,
    _id(),
    _ref("job_id", "jobs"),
    Column("n", SmallInteger, nullable=False),
    _ref("worker_id", "workers"),
    Column("state", String(10), nullable=False),
    _us("claimed_us"),
    _us("started_us", nullable=True),
    _us("finished_us", nullable=True),
    _us("lease_us", nullable=True),  # null while the worker is connected
    _us("heard_us", nullable=True),  # when a worker that is gone was last heard
    _us("due_us"),  # given up after this, connected or not
    Column("cause", String(16)),  # null: no report was accepted
    Column("message", Text),
    Column("usage", Text),
    Column("stream_bytes", BigInteger),
    _ucr("charge_ucr"),
    # It stands still since then, and is given up after that; null while it goes on.
    _us("frozen_since_us", nullable=True),
    _us("frozen_until_us", nullable=True),
    Column("frozen_us", BigInteger, nullable=False, server_default="0"),  # that it stood before
    UniqueConstraint("job_id", "n"),
    CheckConstraint(
        "state IN ('leased', 'running', 'reported', 'accepted', 'rejected', 'failed', 'lost',"
        " 'cancelled')",
        name="state",
    ),
)
Index("uq_attempts_live", attempts.c.job_id, unique=True, **_where(IS_LIVE))
Index("ix_attempts_worker_live", attempts.c.worker_id, **_where(IS_LIVE))
Index("ix_attempts_lease_live", attempts.c.lease_us, **_where(IS_LIVE))
Index("ix_attempts_due_live", attempts.c.due_us, **_where(IS_LIVE))
Index("ix_attempts_frozen_live", attempts.c.frozen_until_us, **_where(IS_LIVE))

blobs = Table(
    "blobs",
    metadata,
    # The owner is part of the name: whether anybody else has the same bytes nobody can tell.
    Column("owner_id", Id, ForeignKey("users.id"), primary_key=True),
    Column("digest", LargeBinary(32), primary_key=True),  # BLAKE3 of the raw bytes
    Column("size_bytes", BigInteger, nullable=False),  # raw
    Column("stored_bytes", BigInteger, nullable=False),  # on disk, maybe compressed
    _us("created_us"),
    _us("touched_us"),  # when it was last put, or last of use to a job
    CheckConstraint("size_bytes >= 0 AND stored_bytes >= 0", name="size"),
)

blob_refs = Table(
    "blob_refs",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id"), primary_key=True),
    Column("call", Integer, primary_key=True, server_default="0"),
    Column("role", String(8), primary_key=True),
    Column("place", Integer, primary_key=True),  # a result is its blobs in order, maybe one twice
    Column("owner_id", Id, nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    ForeignKeyConstraint(["owner_id", "digest"], ["blobs.owner_id", "blobs.digest"]),
    CheckConstraint("role IN ('inputs', 'result')", name="role"),
    Index("ix_blob_refs_owner_id_digest", "owner_id", "digest"),
)

streams = Table(
    "streams",
    metadata,
    Column("attempt_id", Id, ForeignKey("attempts.id"), primary_key=True),
    Column("data", LargeBinary, nullable=False),  # a short output, stored with its report
)

# One row while the session lives: when it ends by itself, and since when it has to end.
open_sessions = Table(
    "open_sessions",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id"), primary_key=True),
    _us("idle_us", nullable=True),  # null while a call waits or runs
    _us("limit_us", nullable=True),  # null until it has started
    _us("end_us", nullable=True),
    Column("why", String(8)),
    CheckConstraint("why IN ('asked', 'idle', 'limit')", name="why"),
    CheckConstraint("(end_us IS NULL) = (why IS NULL)", name="ending"),
)

calls = Table(
    "calls",
    metadata,
    _id(),
    _ref("job_id", "jobs"),
    Column("n", Integer, nullable=False),
    Column("state", String(10), nullable=False),
    Column("body_digest", LargeBinary(32), nullable=False),
    Column("spec", Text, nullable=False),
    Column("inputs", LargeBinary),  # null once it has ended, and for call 0: the job has them
    Column("result", LargeBinary),  # null again once the next call is there
    Column("begin_bytes", BigInteger, nullable=False),  # its part of the attempt's output
    Column("end_bytes", BigInteger),
    _us("created_us"),
    _us("started_us", nullable=True),
    _us("finished_us", nullable=True),
    _us("due_us", nullable=True),  # its attempt is given up after this
    _us("interrupt_us", nullable=True),  # when its user wished it interrupted
    Column("cause", String(16)),  # null: no report of it was accepted
    Column("reason", Text),
    Column("exit_code", Integer),
    Column("usage", Text),
    _ucr("cost_ucr"),
    Column("frozen_us", BigInteger, nullable=False, server_default="0"),  # it stood still so long
    UniqueConstraint("job_id", "n"),
    CheckConstraint(
        "state IN ('queued', 'running', 'completed', 'failed', 'cancelled')", name="state"
    ),
    CheckConstraint(
        "(state IN ('completed', 'failed', 'cancelled')) = (finished_us IS NOT NULL)",
        name="finished",
    ),
    CheckConstraint("n >= 0", name="number"),
    CheckConstraint("cost_ucr >= 0", name="cost"),
    CheckConstraint(
        "begin_bytes >= 0 AND (end_bytes IS NULL OR end_bytes >= begin_bytes)", name="output"
    ),
)
Index("uq_calls_live", calls.c.job_id, unique=True, **_where(IS_CALL_LIVE))

holds = Table(
    "holds",
    metadata,
    _id(),
    _ref("account_id", "accounts"),
    _ref("job_id", "jobs"),
    Column("amount_ucr", BigInteger, nullable=False),
    _ucr("captured_ucr"),
    Column("state", String(8), nullable=False),
    _us("created_us"),
    _us("closed_us", nullable=True),
    UniqueConstraint("job_id"),
    CheckConstraint("state IN ('open', 'settled', 'released')", name="state"),
    CheckConstraint("amount_ucr > 0", name="amount"),
    CheckConstraint("captured_ucr >= 0 AND captured_ucr <= amount_ucr", name="captured"),
    CheckConstraint("captured_ucr = 0 OR state = 'settled'", name="closed"),
    CheckConstraint("(state = 'open') = (closed_us IS NULL)", name="closing"),
)
Index("ix_holds_open", holds.c.account_id, **_where(text("state = 'open'")))

transfers = Table(
    "transfers",
    metadata,
    _id(),
    Column("idem", String(120), nullable=False),
    _ref("debit_id", "accounts"),
    _ref("credit_id", "accounts"),
    Column("amount_ucr", BigInteger, nullable=False),
    Column("kind", String(8), nullable=False),
    _ref("hold_id", "holds", nullable=True),
    _us("created_us"),
    UniqueConstraint("idem"),
    CheckConstraint("amount_ucr > 0", name="amount"),
    CheckConstraint("debit_id <> credit_id", name="sides"),
    CheckConstraint("kind IN ('grant', 'work', 'fee')", name="kind"),
    Index("ix_transfers_debit_id_id", "debit_id", "id"),
    Index("ix_transfers_credit_id_id", "credit_id", "id"),
    Index("ix_transfers_hold_id", "hold_id"),
)
