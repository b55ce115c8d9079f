"""The catalogue: objects, transfers, claims, idempotency keys, outbox, leases, machines seen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from models.migrations.columns import BYTE_ORDERED, MACHINE_NAME, SERIAL, STATUS, create_partial_index

revision = "0001_catalogue"
down_revision = None


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "claims",
        sa.Column("id", SERIAL, autoincrement=True, nullable=False),
        sa.Column("mode", sa.String(8), nullable=False),
        sa.Column("machine", MACHINE_NAME),
        sa.Column("place", sa.Text()),
        sa.Column("place_key", sa.String(64)),
        sa.Column("object_id", sa.Uuid()),
        sa.Column("transfer_id", sa.Uuid()),
        sa.PrimaryKeyConstraint("id", name="pk_claims"),
    )
    op.create_index("ix_claims_object_id", "claims", ["object_id"])
    op.create_index("ix_claims_transfer_id", "claims", ["transfer_id"])
    create_partial_index("uq_claims_place_key", "claims", ["place_key"], "mode = 'place'", unique=True)
    create_partial_index("uq_claims_write", "claims", ["object_id"], "mode = 'write'", unique=True)
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("holder", sa.String(200), nullable=False),
        sa.Column("held_until", sa.DateTime(timezone=True)),
        sa.Column("subject", sa.Uuid()),
        sa.Column("status", sa.Integer()),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("body", sa.Text()),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created", "idempotency_keys", ["created"])
    op.create_table(
        "leases",
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("holder", sa.String(200), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.create_table(
        "machines_seen",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("base_dir", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_machines_seen"),
    )
    op.create_table(
        "objects",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("machine", MACHINE_NAME, nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("filename", BYTE_ORDERED, nullable=False),
        sa.Column("place", BYTE_ORDERED, nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger()),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("date_registered", sa.DateTime(timezone=True), nullable=False),
        sa.Column("date_modified", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", STATUS, nullable=False),
        sa.Column("originator", sa.Text(), nullable=False),
        sa.Column("group", BYTE_ORDERED, nullable=False),
        sa.Column("checksum", sa.String(80)),
        sa.Column("verified", sa.String(16), nullable=False),
        sa.Column("derived_from", sa.Uuid()),
        sa.Column("archived_in", sa.Text()),
        sa.ForeignKeyConstraint(["derived_from"], ["objects.id"], name="fk_objects_derived_from"),
        sa.PrimaryKeyConstraint("id", name="pk_objects"),
    )
    op.create_index("ix_objects_date_registered", "objects", ["date_registered", "id"])
    op.create_index("ix_objects_filename", "objects", ["filename"])
    op.create_index("ix_objects_group", "objects", ["group"], postgresql_using="hash")
    op.create_index("ix_objects_machine", "objects", ["machine", "status"])
    op.create_index("ix_objects_place", "objects", ["place"], postgresql_using="hash")
    op.create_table(
        "outbox",
        sa.Column("id", SERIAL, autoincrement=True, nullable=False),
        sa.Column("exchange", sa.String(64), nullable=False),
        sa.Column("routing_key", sa.String(128), nullable=False),
        sa.Column("subject", sa.Uuid()),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
    )
    op.create_index("ix_outbox_created", "outbox", ["created"])
    create_partial_index("ix_outbox_unsent", "outbox", ["id"], "sent IS NULL")
    op.create_table(
        "transfers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("object_id", sa.Uuid()),
        sa.Column("result_object_id", sa.Uuid()),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("fail_fast", sa.Boolean(), nullable=False),
        sa.Column("source_machine", MACHINE_NAME),
        sa.Column("source_place", sa.Text()),
        sa.Column("destination_machine", MACHINE_NAME),
        sa.Column("destination_place", sa.Text()),
        sa.Column("group", sa.Text(), nullable=False),
        sa.Column("status", STATUS, nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("bytes_total", sa.BigInteger()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("faults", sa.JSON(), nullable=False),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.Column("result", sa.Text()),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_detail", sa.Text()),
        sa.Column("flow_run_id", sa.Uuid()),
        sa.Column("owner", sa.String(200)),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True)),
        sa.Column("retry_at", sa.DateTime(timezone=True)),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True)),
        sa.Column("ended", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_transfers"),
    )
    op.create_index("ix_transfers_created", "transfers", ["created", "id"])
    op.create_index("ix_transfers_ended", "transfers", ["ended"])
    op.create_index("ix_transfers_object_id", "transfers", ["object_id"])
    create_partial_index("ix_transfers_open", "transfers", ["status", "created", "id"], "ended IS NULL")
    op.create_index("uq_transfers_flow_run_id", "transfers", ["flow_run_id"], unique=True)


def downgrade() -> None:
    """Drop every table, and all that is in them."""
    for table in ("transfers", "outbox", "objects", "machines_seen", "leases", "idempotency_keys", "claims"):
        op.drop_table(table)
