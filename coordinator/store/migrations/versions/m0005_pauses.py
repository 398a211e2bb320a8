"""Attempts that stand still while their lender pauses, and those that were given back politely.

Revision: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_LIVE = sa.text("state IN ('leased', 'running')")


def upgrade() -> None:
    op.add_column(
        "jobs", sa.Column("spared", sa.SmallInteger(), server_default="0", nullable=False)
    )
    op.add_column("attempts", sa.Column("frozen_since_us", sa.BigInteger(), nullable=True))
    op.add_column("attempts", sa.Column("frozen_until_us", sa.BigInteger(), nullable=True))
    op.add_column(
        "attempts", sa.Column("frozen_us", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.add_column(
        "calls", sa.Column("frozen_us", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.create_index(
        "ix_attempts_frozen_live",
        "attempts",
        ["frozen_until_us"],
        unique=False,
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    )


def downgrade() -> None:
    op.drop_index("ix_attempts_frozen_live", table_name="attempts")
    op.drop_column("calls", "frozen_us")
    op.drop_column("attempts", "frozen_us")
    op.drop_column("attempts", "frozen_until_us")
    op.drop_column("attempts", "frozen_since_us")
    op.drop_column("jobs", "spared")
