"""Blobs, by owner and digest, and the jobs that refer to them.

Revision: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "blobs",
        sa.Column("owner_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("touched_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("size_bytes >= 0 AND stored_bytes >= 0", name=op.f("ck_blobs_size")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_blobs_owner_id_users")),
        sa.PrimaryKeyConstraint("owner_id", "digest", name=op.f("pk_blobs")),
    )
    op.create_table(
        "blob_refs",
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("call", sa.Integer(), server_default="0", nullable=False),
        sa.Column("role", sa.String(length=8), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.CheckConstraint("role IN ('inputs', 'result')", name=op.f("ck_blob_refs_role")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_blob_refs_job_id_jobs")),
        sa.ForeignKeyConstraint(
            ["owner_id", "digest"],
            ["blobs.owner_id", "blobs.digest"],
            name=op.f("fk_blob_refs_owner_id_digest_blobs"),
        ),
        sa.PrimaryKeyConstraint("job_id", "call", "role", "place", name=op.f("pk_blob_refs")),
    )
    op.create_index("ix_blob_refs_owner_id_digest", "blob_refs", ["owner_id", "digest"])


def downgrade() -> None:
    op.drop_index("ix_blob_refs_owner_id_digest", table_name="blob_refs")
    op.drop_table("blob_refs")
    op.drop_table("blobs")
