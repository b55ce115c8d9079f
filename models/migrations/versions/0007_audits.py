"""Audits: what was found on machines, and when objects and bundles were last hashed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from models.migrations.columns import BYTE_ORDERED, MACHINE_NAME, STATUS, create_partial_index

revision = "0007_audits"
down_revision = "0006_bundles"


def upgrade() -> None:
    """Make the tables, and note since when objects and bundles were not hashed: never."""
    op.create_table(
        "audits",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("machine", MACHINE_NAME, nullable=False),
        sa.Column("status", STATUS, nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("scrubbed_objects", sa.BigInteger(), nullable=False),
        sa.Column("scrubbed_bytes", sa.BigInteger(), nullable=False),
        sa.Column("suspicious", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_detail", sa.Text()),
        sa.Column("flow_run_id", sa.Uuid()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("taken", sa.DateTime(timezone=True)),
        sa.Column("begun", sa.DateTime(timezone=True)),
        sa.Column("ended", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_audits"),
    )
    create_partial_index("ix_audits_open", "audits", ["status", "created", "id"], "ended IS NULL")
    op.create_index("ix_audits_created", "audits", ["created", "id"])
    op.create_index("ix_audits_ended", "audits", ["ended"])
    op.create_table(
        "audit_findings",
        sa.Column("audit_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", STATUS, nullable=False),
        sa.Column("place", BYTE_ORDERED, nullable=False),
        sa.Column("object_id", sa.Uuid()),
        sa.Column("expected", sa.JSON(), nullable=False),
        sa.Column("found", sa.JSON(), nullable=False),
        sa.Column("confirmed", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("applied", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("audit_id", "number", name="pk_audit_findings"),
    )
    op.create_index("ix_audit_findings_kind", "audit_findings", ["audit_id", "kind", "number"])
    op.add_column("objects", sa.Column("checked", sa.DateTime(timezone=True)))
    op.add_column("bundles", sa.Column("checked", sa.DateTime(timezone=True)))
    scrubbed = "status = 'ACTIVE' AND checksum IS NOT NULL"
    create_partial_index("ix_objects_scrub", "objects", ["machine", "checked", "id"], scrubbed)
    audited = "status IN ('ACTIVE', 'UNKNOWN')"
    create_partial_index("ix_objects_audit", "objects", ["machine", sa.text("substr(place, 1, 500)")], audited)


def downgrade() -> None:
    """Drop the reports, and what was noted."""
    op.drop_index("ix_objects_audit", "objects")
    op.drop_index("ix_objects_scrub", "objects")
    op.drop_column("bundles", "checked")
    op.drop_column("objects", "checked")
    op.drop_table("audit_findings")
    op.drop_table("audits")
