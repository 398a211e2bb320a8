"""Sessions that are open, and the calls of each.

Revision: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_IS_LIVE = sa.text("state IN ('queued', 'running')")


def upgrade() -> None:
    op.create_table(
        "open_sessions",
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("idle_us", sa.BigInteger(), nullable=True),
        sa.Column("limit_us", sa.BigInteger(), nullable=True),
        sa.Column("end_us", sa.BigInteger(), nullable=True),
        sa.Column("why", sa.String(length=8), nullable=True),
        sa.CheckConstraint("why IN ('asked', 'idle', 'limit')", name=op.f("ck_open_sessions_why")),
        sa.CheckConstraint(
            "(end_us IS NULL) = (why IS NULL)", name=op.f("ck_open_sessions_ending")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_open_sessions_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_open_sessions")),
    )
    op.create_table(
        "calls",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("body_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("inputs", sa.LargeBinary(), nullable=True),
        sa.Column("result", sa.LargeBinary(), nullable=True),
        sa.Column("begin_bytes", sa.BigInteger(), nullable=False),
        sa.Column("end_bytes", sa.BigInteger(), nullable=True),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("started_us", sa.BigInteger(), nullable=True),
        sa.Column("finished_us", sa.BigInteger(), nullable=True),
        sa.Column("due_us", sa.BigInteger(), nullable=True),
        sa.Column("interrupt_us", sa.BigInteger(), nullable=True),
        sa.Column("cause", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("usage", sa.Text(), nullable=True),
        sa.Column("cost_ucr", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'completed', 'failed', 'cancelled')",
            name=op.f("ck_calls_state"),
        ),
        sa.CheckConstraint(
            "(state IN ('completed', 'failed', 'cancelled')) = (finished_us IS NOT NULL)",
            name=op.f("ck_calls_finished"),
        ),
        sa.CheckConstraint("n >= 0", name=op.f("ck_calls_number")),
        sa.CheckConstraint("cost_ucr >= 0", name=op.f("ck_calls_cost")),
        sa.CheckConstraint(
            "begin_bytes >= 0 AND (end_bytes IS NULL OR end_bytes >= begin_bytes)",
            name=op.f("ck_calls_output"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_calls_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_calls")),
        sa.UniqueConstraint("job_id", "n", name=op.f("uq_calls_job_id_n")),
    )
    op.create_index(
        "uq_calls_live",
        "calls",
        ["job_id"],
        unique=True,
        sqlite_where=_IS_LIVE,
        postgresql_where=_IS_LIVE,
    )


def downgrade() -> None:
    op.drop_index(
        "uq_calls_live", table_name="calls", sqlite_where=_IS_LIVE, postgresql_where=_IS_LIVE
    )
    op.drop_table("calls")
    op.drop_table("open_sessions")
