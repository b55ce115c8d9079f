"""Retention: when objects were last used, until when they are wanted, who holds them; marks and runs of the rules."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from datamanager.errors import SettingsError
from models.migrations.columns import SERIAL, STATUS, create_partial_index

revision = "0008_retention"
down_revision = "0007_audits"

PARTIAL = {
    "uq_retention_marks_open": ("retention_marks", ["object_id"], "closed IS NULL"),
    "ix_retention_marks_spared": ("retention_marks", ["object_id"], "spared_until IS NOT NULL"),
    "ix_retention_runs_open": ("retention_runs", ["created"], "ended IS NULL"),
    "ix_objects_checksum": ("objects", ["checksum"], "checksum IS NOT NULL"),
}


def upgrade() -> None:
    """Add them; nothing is held, and nothing was used yet."""
    for column in _columns():
        op.add_column("objects", column)
    op.add_column("transfers", sa.Column("reason", sa.Text()))
    op.create_table(
        "retention_marks",
        sa.Column("id", SERIAL, nullable=False, autoincrement=True),
        sa.Column("object_id", sa.Uuid(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("marked", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due", sa.DateTime(timezone=True), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("acted_run_id", sa.Uuid()),
        sa.Column("transfer_id", sa.Uuid()),
        sa.Column("survivor_id", sa.Uuid()),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("in_archive", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("closed", sa.DateTime(timezone=True)),
        sa.Column("outcome", sa.String(16)),
        sa.Column("detail", sa.Text()),
        sa.Column("spared_until", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_retention_marks"),
    )
    for name in ("object_id", "acted_run_id", "transfer_id"):
        op.create_index(f"ix_retention_marks_{name}", "retention_marks", [name])
    op.create_table(
        "retention_runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("status", STATUS, nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("max_objects", sa.BigInteger()),
        sa.Column("max_bytes", sa.BigInteger()),
        sa.Column("holder", sa.String(200)),
        sa.Column("flow_run_id", sa.Uuid()),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True)),
        sa.Column("ended", sa.DateTime(timezone=True)),
        sa.Column("bytes_freed", sa.BigInteger(), nullable=False),
        sa.Column("pending", sa.Integer(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("lines", sa.JSON(), nullable=False),
        sa.Column("truncated", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_retention_runs"),
    )
    op.create_index("ix_retention_runs_created", "retention_runs", ["created", "id"])
    for name, (table, columns, where) in PARTIAL.items():
        create_partial_index(name, table, columns, where, unique=name.startswith("uq_"))


def downgrade() -> None:
    """Drop them. What retention has begun goes on as ordinary transfers.

    Raises: SettingsError while objects are held: only these columns protect them from being deleted.
    """
    held = op.get_bind().execute(sa.text("SELECT count(*) FROM objects WHERE held_since IS NOT NULL")).scalar()
    if held:
        raise SettingsError(f"{held} objects are held; release them first")
    op.drop_index("ix_objects_checksum", "objects")
    op.drop_table("retention_runs")
    op.drop_table("retention_marks")
    op.drop_column("transfers", "reason")
    for column in reversed(_columns()):
        op.drop_column("objects", column.name)


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("last_used", sa.DateTime(timezone=True)),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("held_since", sa.DateTime(timezone=True)),
        sa.Column("held_by", sa.Text()),
        sa.Column("hold_reason", sa.Text()),
    ]
