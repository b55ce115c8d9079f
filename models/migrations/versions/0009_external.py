"""Secrets of requests, origins of fetched objects, and what is fetched again and again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009_external"
down_revision = "0008_retention"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "sealed_secrets",
        sa.Column("transfer_id", sa.Uuid(), nullable=False),
        sa.Column("blob", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("transfer_id", name="pk_sealed_secrets"),
    )
    op.create_table(
        "origins",
        sa.Column("object_id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("url_mark", sa.String(64)),
        sa.Column("etag", sa.Text()),
        sa.Column("last_modified", sa.Text()),
        sa.Column("version", sa.Text()),
        sa.ForeignKeyConstraint(["object_id"], ["objects.id"], name="fk_origins_object_id"),
        sa.PrimaryKeyConstraint("object_id", name="pk_origins"),
    )
    op.create_table(
        "schedules",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("wanted_at", sa.DateTime(timezone=True)),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_schedules"),
    )
    op.create_table(
        "schedule_runs",
        sa.Column("schedule_id", sa.Uuid(), nullable=False),
        sa.Column("moment", sa.DateTime(timezone=True), nullable=False),
        sa.Column("transfer_id", sa.Uuid()),
        sa.Column("object_id", sa.Uuid()),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("code", sa.String(64)),
        sa.Column("delete_id", sa.Uuid()),
        sa.PrimaryKeyConstraint("schedule_id", "moment", name="pk_schedule_runs"),
    )
    op.create_index("ix_schedule_runs_transfer_id", "schedule_runs", ["transfer_id"])
    op.create_index("ix_schedule_runs_moment", "schedule_runs", ["moment"])


def downgrade() -> None:
    """Drop the tables. Transfers whose secrets go with them end in an error that says so."""
    for table in ("schedule_runs", "schedules", "origins", "sealed_secrets"):
        op.drop_table(table)
