"""Limits: of machines, changed while running, and of single transfers; what movers hold is counted by machine."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from models.migrations.columns import MACHINE_NAME, create_partial_index

revision = "0003_limits"
down_revision = "0002_batches"


def upgrade() -> None:
    """Make the table of machines' limits, and a transfer's own."""
    op.create_table(
        "machine_limits",
        sa.Column("name", MACHINE_NAME, nullable=False),
        sa.Column("bandwidth", sa.BigInteger()),
        sa.Column("max_transfers", sa.Integer()),
        sa.Column("changed", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_machine_limits"),
    )
    op.add_column("transfers", sa.Column("bandwidth", sa.BigInteger()))
    held_at = ["source_machine", "destination_machine"]
    create_partial_index("ix_transfers_held", "transfers", held_at, "owner IS NOT NULL")


def downgrade() -> None:
    """Drop them, and the limits that were changed."""
    op.drop_index("ix_transfers_held", "transfers")
    op.drop_column("transfers", "bandwidth")
    op.drop_table("machine_limits")
