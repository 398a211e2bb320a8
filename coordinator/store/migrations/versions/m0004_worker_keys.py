"""The key that each worker signs with.

Revision: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "workers",
        sa.Column("public_key", sa.String(length=64), server_default=sa.text("''"), nullable=False),
    )


def downgrade() -> None:
    op.drop_column("workers", "public_key")
