"""Transfers that go together in one flow run."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from models.migrations.columns import create_partial_index

revision = "0013_shared_runs"
down_revision = "0012_not_kept"

HELD = ["source_machine", "destination_machine", "priority"]


def upgrade() -> None:
    """Add the column; a flow run has one transfer only where it is not shared."""
    op.add_column("transfers", sa.Column("shared_run", sa.Uuid(), nullable=True))
    op.drop_index("uq_transfers_flow_run_id", "transfers")
    create_partial_index("uq_transfers_flow_run_id", "transfers", ["flow_run_id"], "shared_run IS NULL", unique=True)
    create_partial_index("ix_transfers_shared", "transfers", ["flow_run_id"], "shared_run IS NOT NULL")
    op.drop_index("ix_transfers_held", "transfers")
    create_partial_index("ix_transfers_held", "transfers", [*HELD, "shared_run"], "owner IS NOT NULL")


def downgrade() -> None:
    """Drop it; those that went together do not name their flow run any more."""
    op.execute("UPDATE transfers SET flow_run_id = NULL WHERE shared_run IS NOT NULL")
    op.drop_index("ix_transfers_held", "transfers")
    create_partial_index("ix_transfers_held", "transfers", HELD, "owner IS NOT NULL")
    op.drop_index("ix_transfers_shared", "transfers")
    op.drop_index("uq_transfers_flow_run_id", "transfers")
    op.create_index("uq_transfers_flow_run_id", "transfers", ["flow_run_id"], unique=True)
    op.drop_column("transfers", "shared_run")
