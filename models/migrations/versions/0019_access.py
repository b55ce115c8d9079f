"""Service tokens and withdrawn persons; who made what, and what they were permitted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from models.migrations.columns import BYTE_ORDERED, create_partial_index

revision = "0019_access"
down_revision = "0018_checksum_keys"

MADE = ("objects", "transfers", "schedules", "retention_runs", "audits")
GRANTED = ("transfers", "schedules", "retention_runs")


def upgrade() -> None:
    """Make the tables, columns and indexes. What there is was made without authentication: its columns are null."""
    op.create_table(
        "service_tokens",
        sa.Column("id", sa.String(12), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("roles", sa.JSON(), nullable=False),
        sa.Column("groups", sa.JSON(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.Text()),
        sa.Column("expires", sa.DateTime(timezone=True)),
        sa.Column("last_used", sa.DateTime(timezone=True)),
        sa.Column("revoked", sa.DateTime(timezone=True)),
        sa.Column("revoked_by", sa.Text()),
        sa.Column("replaced_by", sa.String(12)),
        sa.Column("overlap_until", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_service_tokens"),
    )
    live = "revoked IS NULL AND replaced_by IS NULL"
    create_partial_index("uq_service_tokens_name", "service_tokens", ["name"], live, unique=True)
    op.create_table(
        "withdrawn_persons",
        sa.Column("person", BYTE_ORDERED, nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("by", sa.Text()),
        sa.PrimaryKeyConstraint("person", name="pk_withdrawn_persons"),
    )
    for table in MADE:
        op.add_column(table, sa.Column("created_by", BYTE_ORDERED, nullable=True))
    for table in GRANTED:
        op.add_column(table, sa.Column("grant", sa.JSON(), nullable=True))
    op.add_column("objects", sa.Column("acted_as", sa.Text(), nullable=True))
    for table, date in (("objects", "date_registered"), ("transfers", "created")):
        create_partial_index(f"ix_{table}_created_by", table, ["created_by", date, "id"], "created_by IS NOT NULL")
    op.create_index("ix_transfers_group", "transfers", ["share_group", "created", "id"])


def downgrade() -> None:
    """Drop them. Without its grant a transfer that waits is not asked for it any more."""
    op.drop_index("ix_transfers_group", "transfers")
    for table in ("objects", "transfers"):
        op.drop_index(f"ix_{table}_created_by", table)
    op.drop_column("objects", "acted_as")
    for table in GRANTED:
        op.drop_column(table, "grant")
    for table in MADE:
        op.drop_column(table, "created_by")
    op.drop_table("withdrawn_persons")
    op.drop_table("service_tokens")
