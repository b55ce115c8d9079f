"""Fair share: the queue by pairs of machines and groups, and whose turn it is; what SQLite reads whole no more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from models.migrations.columns import BYTE_ORDERED, MACHINE_PAIR, create_partial_index

revision = "0010_fair_share"
down_revision = "0009_external"

QUEUED = "ended IS NULL AND owner IS NULL"
SHARES = {
    "share_pair": (MACHINE_PAIR, "coalesce(source_machine, '') || '>' || coalesce(destination_machine, '')"),
    "share_group": (BYTE_ORDERED, 'substr("group", 1, 200)'),
}
BEFORE: dict[str, tuple[list[str], str | None]] = {
    "ix_transfers_queue": (["priority", "created", "id"], QUEUED),
    "ix_transfers_held": (["source_machine", "destination_machine"], "owner IS NOT NULL"),
    "ix_transfers_deadline": (["deadline"], "deadline IS NOT NULL AND ended IS NULL"),
    "ix_transfers_ended": (["ended"], None),
}
AFTER: dict[str, tuple[list[str], str | None]] = {
    "ix_transfers_queue": (["priority", *SHARES, "created", "id"], QUEUED),
    "ix_transfers_held": (["source_machine", "destination_machine", "priority"], "owner IS NOT NULL"),
    "ix_transfers_deadline": (["status", "deadline"], "deadline IS NOT NULL AND ended IS NULL"),
    "ix_transfers_ended": (["ended"], "ended IS NOT NULL"),
    "ix_transfers_lease": (["lease_until"], "owner IS NOT NULL"),
    "ix_transfers_run": (["id"], "flow_run_id IS NOT NULL AND ended IS NULL AND owner IS NULL"),
}


def upgrade() -> None:
    """Add them. SQLite adds such columns to a table only when they are not stored; its indexes store them."""
    stored = op.get_bind().dialect.name == "postgresql"
    for name, (kind, expression) in SHARES.items():
        op.add_column("transfers", sa.Column(name, kind, sa.Computed(expression, persisted=stored)))
    _replace_indexes(BEFORE, AFTER)
    op.create_table(
        "transfer_turns",
        sa.Column("priority", sa.String(8), nullable=False),
        sa.Column("pair", MACHINE_PAIR, nullable=False),
        sa.Column("served", sa.BigInteger(), nullable=False),
        sa.Column("last_group", BYTE_ORDERED, nullable=False),
        sa.Column("round_began", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("priority", "pair", name="pk_transfer_turns"),
    )


def downgrade() -> None:
    """Drop them: of one priority the oldest goes first again."""
    op.drop_table("transfer_turns")
    _replace_indexes(AFTER, BEFORE)
    for name in reversed(SHARES):
        op.drop_column("transfers", name)


def _replace_indexes(
    old: dict[str, tuple[list[str], str | None]], new: dict[str, tuple[list[str], str | None]]
) -> None:
    for name in old:
        op.drop_index(name, "transfers")
    for name, (columns, where) in new.items():
        if where is None:
            op.create_index(name, "transfers", columns)
        else:
            create_partial_index(name, "transfers", columns, where)
