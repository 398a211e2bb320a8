"""The first schema: users, tokens, workers, jobs, attempts, and the ledger.

Revision: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("pw_hash", sa.String(length=160), nullable=True),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("name", name=op.f("uq_users_name")),
    )
    op.create_table(
        "accounts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("user_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("posted_ucr", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("held_ucr", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("vfinish", sa.Float(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "(kind = 'user') = (user_id IS NOT NULL)", name=op.f("ck_accounts_owner")
        ),
        sa.CheckConstraint("kind IN ('user', 'mint', 'fee')", name=op.f("ck_accounts_kind")),
        sa.CheckConstraint("held_ucr >= 0", name=op.f("ck_accounts_held")),
        sa.CheckConstraint("posted_ucr >= held_ucr", name=op.f("ck_accounts_available")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_accounts_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("user_id", "kind", name=op.f("uq_accounts_user_id_kind")),
    )
    # The two accounts that belong to nobody, see store/tables.py.
    op.execute("INSERT INTO accounts (id, kind) VALUES (1, 'mint'), (2, 'fee')")
    op.create_table(
        "jobs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("public_id", sa.String(length=40), nullable=False),
        sa.Column("user_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("body_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("tag", sa.Float(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("own_only", sa.Boolean(), nullable=False),
        sa.Column("rate_ucr_per_s", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("hold_ucr", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cost_ucr", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("attempt", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("tries", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("max_tries", sa.SmallInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("cancel_us", sa.BigInteger(), nullable=True),
        sa.Column("finished_us", sa.BigInteger(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(state IN ('completed', 'failed', 'cancelled')) = (finished_us IS NOT NULL)",
            name=op.f("ck_jobs_finished"),
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'verifying', 'completed', 'failed', 'cancelled')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint("cost_ucr >= 0", name=op.f("ck_jobs_cost")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_jobs_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("public_id", name=op.f("uq_jobs_public_id")),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.create_index(
            "ix_jobs_live",
            ["state"],
            unique=False,
            sqlite_where=sa.text("state IN ('queued', 'running', 'verifying')"),
            postgresql_where=sa.text("state IN ('queued', 'running', 'verifying')"),
        )
        batch_op.create_index(
            "ix_jobs_queued",
            ["tag", "id"],
            unique=False,
            sqlite_where=sa.text("state = 'queued'"),
            postgresql_where=sa.text("state = 'queued'"),
        )
        batch_op.create_index("ix_jobs_user_id_id", ["user_id", "id"], unique=False)

    op.create_table(
        "workers",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("public_id", sa.String(length=40), nullable=False),
        sa.Column("owner_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("capability", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("seen_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_workers_owner_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
        sa.UniqueConstraint("public_id", name=op.f("uq_workers_public_id")),
    )
    with op.batch_alter_table("workers", schema=None) as batch_op:
        batch_op.create_index("ix_workers_owner_id", ["owner_id"], unique=False)

    op.create_table(
        "api_tokens",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("user_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("worker_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("scopes", sa.String(length=200), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.Column("revoked_us", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_api_tokens_user_id_users")
        ),
        sa.ForeignKeyConstraint(
            ["worker_id"], ["workers.id"], name=op.f("fk_api_tokens_worker_id_workers")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_tokens")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_tokens_digest")),
    )
    with op.batch_alter_table("api_tokens", schema=None) as batch_op:
        batch_op.create_index("ix_api_tokens_user_id", ["user_id"], unique=False)

    op.create_table(
        "attempts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("n", sa.SmallInteger(), nullable=False),
        sa.Column(
            "worker_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("claimed_us", sa.BigInteger(), nullable=False),
        sa.Column("started_us", sa.BigInteger(), nullable=True),
        sa.Column("finished_us", sa.BigInteger(), nullable=True),
        sa.Column("lease_us", sa.BigInteger(), nullable=True),
        sa.Column("heard_us", sa.BigInteger(), nullable=True),
        sa.Column("due_us", sa.BigInteger(), nullable=False),
        sa.Column("cause", sa.String(length=16), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("usage", sa.Text(), nullable=True),
        sa.Column("stream_bytes", sa.BigInteger(), nullable=True),
        sa.Column("charge_ucr", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "state IN ('leased', 'running', 'reported', 'accepted', 'rejected', 'failed', 'lost', 'cancelled')",
            name=op.f("ck_attempts_state"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_attempts_job_id_jobs")),
        sa.ForeignKeyConstraint(
            ["worker_id"], ["workers.id"], name=op.f("fk_attempts_worker_id_workers")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint("job_id", "n", name=op.f("uq_attempts_job_id_n")),
    )
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.create_index(
            "ix_attempts_due_live",
            ["due_us"],
            unique=False,
            sqlite_where=sa.text("state IN ('leased', 'running')"),
            postgresql_where=sa.text("state IN ('leased', 'running')"),
        )
        batch_op.create_index(
            "ix_attempts_lease_live",
            ["lease_us"],
            unique=False,
            sqlite_where=sa.text("state IN ('leased', 'running')"),
            postgresql_where=sa.text("state IN ('leased', 'running')"),
        )
        batch_op.create_index(
            "ix_attempts_worker_live",
            ["worker_id"],
            unique=False,
            sqlite_where=sa.text("state IN ('leased', 'running')"),
            postgresql_where=sa.text("state IN ('leased', 'running')"),
        )
        batch_op.create_index(
            "uq_attempts_live",
            ["job_id"],
            unique=True,
            sqlite_where=sa.text("state IN ('leased', 'running')"),
            postgresql_where=sa.text("state IN ('leased', 'running')"),
        )

    op.create_table(
        "holds",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "account_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("amount_ucr", sa.BigInteger(), nullable=False),
        sa.Column("captured_ucr", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("closed_us", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("(state = 'open') = (closed_us IS NULL)", name=op.f("ck_holds_closing")),
        sa.CheckConstraint("captured_ucr = 0 OR state = 'settled'", name=op.f("ck_holds_closed")),
        sa.CheckConstraint("state IN ('open', 'settled', 'released')", name=op.f("ck_holds_state")),
        sa.CheckConstraint("amount_ucr > 0", name=op.f("ck_holds_amount")),
        sa.CheckConstraint(
            "captured_ucr >= 0 AND captured_ucr <= amount_ucr", name=op.f("ck_holds_captured")
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_holds_account_id_accounts")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_holds_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holds")),
        sa.UniqueConstraint("job_id", name=op.f("uq_holds_job_id")),
    )
    with op.batch_alter_table("holds", schema=None) as batch_op:
        batch_op.create_index(
            "ix_holds_open",
            ["account_id"],
            unique=False,
            sqlite_where=sa.text("state = 'open'"),
            postgresql_where=sa.text("state = 'open'"),
        )

    op.create_table(
        "job_payloads",
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("role", sa.String(length=8), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("role IN ('inputs', 'result')", name=op.f("ck_job_payloads_role")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_payloads_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", "role", name=op.f("pk_job_payloads")),
    )
    op.create_table(
        "streams",
        sa.Column(
            "attempt_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name=op.f("fk_streams_attempt_id_attempts")
        ),
        sa.PrimaryKeyConstraint("attempt_id", name=op.f("pk_streams")),
    )
    op.create_table(
        "transfers",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("idem", sa.String(length=120), nullable=False),
        sa.Column("debit_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "credit_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("amount_ucr", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("hold_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('grant', 'work', 'fee')", name=op.f("ck_transfers_kind")),
        sa.CheckConstraint("amount_ucr > 0", name=op.f("ck_transfers_amount")),
        sa.CheckConstraint("debit_id <> credit_id", name=op.f("ck_transfers_sides")),
        sa.ForeignKeyConstraint(
            ["credit_id"], ["accounts.id"], name=op.f("fk_transfers_credit_id_accounts")
        ),
        sa.ForeignKeyConstraint(
            ["debit_id"], ["accounts.id"], name=op.f("fk_transfers_debit_id_accounts")
        ),
        sa.ForeignKeyConstraint(["hold_id"], ["holds.id"], name=op.f("fk_transfers_hold_id_holds")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transfers")),
        sa.UniqueConstraint("idem", name=op.f("uq_transfers_idem")),
    )
    with op.batch_alter_table("transfers", schema=None) as batch_op:
        batch_op.create_index("ix_transfers_credit_id_id", ["credit_id", "id"], unique=False)
        batch_op.create_index("ix_transfers_debit_id_id", ["debit_id", "id"], unique=False)
        batch_op.create_index("ix_transfers_hold_id", ["hold_id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("transfers", schema=None) as batch_op:
        batch_op.drop_index("ix_transfers_hold_id")
        batch_op.drop_index("ix_transfers_debit_id_id")
        batch_op.drop_index("ix_transfers_credit_id_id")

    op.drop_table("transfers")
    op.drop_table("streams")
    op.drop_table("job_payloads")
    with op.batch_alter_table("holds", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_holds_open",
            sqlite_where=sa.text("state = 'open'"),
            postgresql_where=sa.text("state = 'open'"),
        )

    op.drop_table("holds")
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_attempts_live",
            sqlite_where=sa.text("state IN ('leased', 'running')"),
            postgresql_where=sa.text("state IN ('leased', 'running')"),
        )
        batch_op.drop_index(
            "ix_attempts_worker_live",
            sqlite_where=sa.text("state IN ('leased', 'running')"),
            postgresql_where=sa.text("state IN ('leased', 'running')"),
        )
        batch_op.drop_index(
            "ix_attempts_lease_live",
            sqlite_where=sa.text("state IN ('leased', 'running')"),
            postgresql_where=sa.text("state IN ('leased', 'running')"),
        )
        batch_op.drop_index(
            "ix_attempts_due_live",
            sqlite_where=sa.text("state IN ('leased', 'running')"),
            postgresql_where=sa.text("state IN ('leased', 'running')"),
        )

    op.drop_table("attempts")
    with op.batch_alter_table("api_tokens", schema=None) as batch_op:
        batch_op.drop_index("ix_api_tokens_user_id")

    op.drop_table("api_tokens")
    with op.batch_alter_table("workers", schema=None) as batch_op:
        batch_op.drop_index("ix_workers_owner_id")

    op.drop_table("workers")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index("ix_jobs_user_id_id")
        batch_op.drop_index(
            "ix_jobs_queued",
            sqlite_where=sa.text("state = 'queued'"),
            postgresql_where=sa.text("state = 'queued'"),
        )
        batch_op.drop_index(
            "ix_jobs_live",
            sqlite_where=sa.text("state IN ('queued', 'running', 'verifying')"),
            postgresql_where=sa.text("state IN ('queued', 'running', 'verifying')"),
        )

    op.drop_table("jobs")
    op.drop_table("accounts")
    op.drop_table("users")
