"""Control: priorities, deadlines, pauses and cancels of transfers; how fast they are, and what they leave behind."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from models.migrations.columns import create_partial_index

revision = "0004_control"
down_revision = "0003_limits"

INDEXES = {
    "ix_transfers_queue": (["priority", "created", "id"], "ended IS NULL AND owner IS NULL"),
    "ix_transfers_deadline": (["deadline"], "deadline IS NOT NULL AND ended IS NULL"),
    "ix_transfers_stop": (["stop_requested"], "stop_requested IS NOT NULL"),
    "ix_transfers_litter": (["ended"], "litter"),
}


def upgrade() -> None:
    """Add them. Transfers that were begun before may have published: an attempt has to look before they end."""
    for column in _columns():
        op.add_column("transfers", column)
    for name, (columns, where) in INDEXES.items():
        create_partial_index(name, "transfers", columns, where)
    begun = sa.table("transfers", sa.column("no_return", sa.Boolean), sa.column("epoch"), sa.column("ended"))
    op.execute(sa.update(begun).where(begun.c.epoch > 0, begun.c.ended.is_(None)).values(no_return=True))


def downgrade() -> None:
    """Drop them: whatever is paused is taken again, and deadlines are forgotten."""
    for name in INDEXES:
        op.drop_index(name, "transfers")
    for column in reversed(_columns()):
        op.drop_column("transfers", column.name)


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("priority", sa.String(8), nullable=False, server_default="normal"),
        sa.Column("deadline", sa.DateTime(timezone=True)),
        sa.Column("not_before", sa.DateTime(timezone=True)),
        sa.Column("paused", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("stop_requested", sa.String(8)),
        sa.Column("no_return", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("litter", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("bytes_per_second", sa.BigInteger()),
    ]
