"""Machines' health: failures to connect, open circuits, and machines that an operator drained."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from models.migrations.columns import MACHINE_NAME

revision = "0005_health"
down_revision = "0004_control"


def upgrade() -> None:
    """Make the table; a machine that is not in it is well."""
    op.create_table(
        "machine_health",
        sa.Column("name", MACHINE_NAME, nullable=False),
        sa.Column("drained", sa.DateTime(timezone=True)),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("opened", sa.DateTime(timezone=True)),
        sa.Column("probe_at", sa.DateTime(timezone=True)),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_machine_health"),
    )


def downgrade() -> None:
    """Drop it: every machine is thought well, and none is drained."""
    op.drop_table("machine_health")
