"""Archives: bundles, and which object's bytes lie where in them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from datamanager.errors import SettingsError
from models.migrations.columns import MACHINE_NAME, STATUS, create_partial_index

revision = "0006_bundles"
down_revision = "0005_health"

CLEAR = (
    "DELETE FROM claims WHERE object_id IN (SELECT id FROM bundles) OR transfer_id IN "
    "(SELECT id FROM transfers WHERE kind IN ('archive', 'activate', 'archive_many', 'activate_many'))",
    "DELETE FROM transfer_items WHERE transfer_id IN "
    "(SELECT id FROM transfers WHERE kind IN ('archive', 'activate', 'archive_many', 'activate_many'))",
    "DELETE FROM transfers WHERE kind IN ('archive', 'activate', 'archive_many', 'activate_many')",
)


def upgrade() -> None:
    """Make the tables; no object is archived yet."""
    op.create_table(
        "bundles",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("status", STATUS, nullable=False),
        sa.Column("machine", MACHINE_NAME, nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("pack", sa.String(16), nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("transfer_id", sa.Uuid(), nullable=False),
        sa.Column("size", sa.BigInteger()),
        sa.Column("sha256", sa.String(64)),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sealed", sa.DateTime(timezone=True)),
        sa.Column("removed", sa.DateTime(timezone=True)),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_bundles"),
    )
    op.create_index("ix_bundles_transfer_id", "bundles", ["transfer_id"])
    create_partial_index("ix_bundles_to_remove", "bundles", ["id"], "status IN ('UNNEEDED', 'ABANDONED')")
    op.create_table(
        "bundle_members",
        sa.Column("bundle_id", sa.Uuid(), nullable=False),
        sa.Column("object_id", sa.Uuid(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("mode", sa.Integer(), nullable=False),
        sa.Column("mtime", sa.BigInteger(), nullable=False),
        sa.Column("source_machine", MACHINE_NAME, nullable=False),
        sa.Column("source_place", sa.Text(), nullable=False),
        sa.Column("released", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(["bundle_id"], ["bundles.id"], name="fk_bundle_members_bundle_id"),
        sa.PrimaryKeyConstraint("bundle_id", "object_id", name="pk_bundle_members"),
    )
    create_partial_index("uq_bundle_members_object", "bundle_members", ["object_id"], "released IS NULL", unique=True)


def downgrade() -> None:
    """Drop the tables, and what goes to and from archives with them: nothing older could perform or show it.

    Raises: SettingsError while objects are archived: only these tables say where their bytes are.
    """
    archived = op.get_bind().execute(sa.text("SELECT count(*) FROM bundle_members WHERE released IS NULL")).scalar()
    if archived:
        raise SettingsError(f"{archived} objects are archived; activate or delete them first")
    for statement in CLEAR:
        op.execute(statement)
    op.drop_table("bundle_members")
    op.drop_table("bundles")
