"""Batches: a transfer of many objects has its items in a table of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from models.migrations.columns import MACHINE_NAME, STATUS

revision = "0002_batches"
down_revision = "0001_catalogue"


def upgrade() -> None:
    """Make the table of items; what is there stays as it is."""
    op.create_table(
        "transfer_items",
        sa.Column("transfer_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("object_id", sa.Uuid(), nullable=False),
        sa.Column("result_object_id", sa.Uuid()),
        sa.Column("source_machine", MACHINE_NAME),
        sa.Column("source_place", sa.Text()),
        sa.Column("destination_machine", sa.Text(), nullable=False),
        sa.Column("destination_place", sa.Text()),
        sa.Column("dest", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger()),
        sa.Column("status", STATUS, nullable=False),
        sa.Column("skipped", sa.Boolean(), nullable=False),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_detail", sa.Text()),
        sa.PrimaryKeyConstraint("transfer_id", "number", name="pk_transfer_items"),
    )
    op.create_index("ix_transfer_items_status", "transfer_items", ["transfer_id", "status", "number"])


def downgrade() -> None:
    """Drop the table of items, and batches with it: nothing older could perform or show them."""
    op.execute(
        "DELETE FROM claims WHERE transfer_id IN (SELECT id FROM transfers WHERE kind IN ('copy_many', 'move_many'))"
    )
    op.execute("DELETE FROM transfers WHERE kind IN ('copy_many', 'move_many')")
    op.drop_table("transfer_items")
