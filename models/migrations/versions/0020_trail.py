"""The audit trail; what open tasks may add to what groups and persons have; totals of objects by person too."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from models.migrations.columns import BYTE_ORDERED, SERIAL, create_partial_index
from models.tables.object_triggers import SQLITE, STATEMENTS, STATEMENTS_0015

revision = "0020_trail"
down_revision = "0019_access"

TOTALS = ("object_totals", "object_changes")


def upgrade() -> None:
    """Make them. Objects are counted anew if persons have made some."""
    op.create_table(
        "trail",
        sa.Column("id", SERIAL, autoincrement=True, nullable=False),
        sa.Column("number", sa.BigInteger()),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("person", BYTE_ORDERED),
        sa.Column("means", sa.String(16), nullable=False),
        sa.Column("credential", sa.Text()),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text()),
        sa.Column("action", sa.String(100), nullable=False),
        sa.Column("object_id", sa.Uuid()),
        sa.Column("transfer_id", sa.Uuid()),
        sa.Column("subject", sa.Text()),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("code", sa.String(64)),
        sa.Column("acted_as", sa.Text()),
        sa.Column("certificate", sa.String(32)),
        sa.Column("counts", sa.JSON()),
        sa.Column("hash", sa.String(64)),
        sa.PrimaryKeyConstraint("id", name="pk_trail"),
    )
    op.create_index("uq_trail_number", "trail", ["number"], unique=True)
    create_partial_index("ix_trail_unlinked", "trail", ["id"], "number IS NULL")
    op.create_index("ix_trail_time", "trail", ["time", "id"])
    create_partial_index("ix_trail_person", "trail", ["person", "time", "id"], "person IS NOT NULL")
    for name in ("object", "transfer"):
        create_partial_index(f"ix_trail_{name}", "trail", [f"{name}_id"], f"{name}_id IS NOT NULL")
    op.create_table(
        "trail_marks",
        sa.Column("name", sa.String(8), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_trail_marks"),
    )
    op.create_table(
        "reservations",
        sa.Column("transfer_id", sa.Uuid(), nullable=False),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("objects", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("transfer_id", "holder", name="pk_reservations"),
    )
    op.create_index("ix_reservations_holder", "reservations", ["holder", "objects", "bytes"])
    _drop_triggers()
    for table in TOTALS:
        op.add_column(table, sa.Column("person", BYTE_ORDERED, server_default="", nullable=False))
    op.create_index("ix_object_totals_person", "object_totals", ["person"], postgresql_using="hash")
    if op.get_bind().dialect.name == "sqlite":
        op.create_index("ix_object_totals_key", "object_totals", ["group", "machine", "status", "person"])
    for statement in STATEMENTS[op.get_bind().dialect.name]:  # from the first on nobody else writes to objects
        op.execute(statement)
    if op.get_bind().execute(sa.text("SELECT 1 FROM objects WHERE created_by IS NOT NULL LIMIT 1")).first():
        _count_anew("machine, \"group\", status, coalesce(created_by, '')", 'machine, "group", status, person')


def downgrade() -> None:
    """Drop them, and count objects anew."""
    _drop_triggers()
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index("ix_object_totals_key", "object_totals")
    op.drop_index("ix_object_totals_person", "object_totals")
    for table in TOTALS:
        op.drop_column(table, "person")
    for statement in STATEMENTS_0015[op.get_bind().dialect.name]:
        op.execute(statement)
    _count_anew('machine, "group", status', 'machine, "group", status')
    for table in ("reservations", "trail_marks", "trail"):
        op.drop_table(table)


def _count_anew(values: str, names: str) -> None:
    for table in TOTALS:
        op.execute(f"DELETE FROM {table}")  # noqa: S608  # named above
    # in parts: SQLite refuses a sum beyond 64 bits
    op.execute(
        f"INSERT INTO object_totals ({names}, objects, bytes, hashed) SELECT {values}, count(*), "  # noqa: S608
        "coalesce(sum(size / 4294967296) * 4294967296 + sum(size % 4294967296), 0), count(checksum) "
        f"FROM objects GROUP BY {values}"
    )


def _drop_triggers() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    for name in SQLITE:
        op.execute(f"DROP TRIGGER {name} ON objects" if on_postgresql else f"DROP TRIGGER {name}")
    if on_postgresql:
        op.execute("DROP FUNCTION dm_note_objects()")
