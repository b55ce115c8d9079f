"""Totals of objects by machine, group and status, kept by triggers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from models.migrations.columns import BYTE_ORDERED, MACHINE_NAME, SERIAL, STATUS
from models.tables.object_triggers import SQLITE
from models.tables.object_triggers import STATEMENTS_0015 as STATEMENTS

revision = "0015_rollups"
down_revision = "0014_list_indexes"


def upgrade() -> None:
    """Make them, and count what there is: some seconds for 10^7 objects."""
    for table in ("object_totals", "object_changes"):
        op.create_table(
            table,
            sa.Column("id", SERIAL, autoincrement=True, nullable=False),
            sa.Column("machine", MACHINE_NAME, nullable=False),
            sa.Column("group", BYTE_ORDERED, nullable=False),
            sa.Column("status", STATUS, nullable=False),
            sa.Column("objects", sa.BigInteger(), nullable=False),
            sa.Column("bytes", sa.BigInteger().with_variant(sa.Numeric(38, 0), "postgresql"), nullable=False),
            sa.Column("hashed", sa.BigInteger(), nullable=False),
            sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
        )
    op.create_index("ix_object_totals_group", "object_totals", ["group"], postgresql_using="hash")
    for statement in STATEMENTS[op.get_bind().dialect.name]:  # from the first on nobody else writes to objects
        op.execute(statement)
    # in parts: SQLite refuses a sum beyond 64 bits
    op.execute(
        'INSERT INTO object_totals (machine, "group", status, objects, bytes, hashed) '
        'SELECT machine, "group", status, count(*), '
        "coalesce(sum(size / 4294967296) * 4294967296 + sum(size % 4294967296), 0), count(checksum) "
        'FROM objects GROUP BY machine, "group", status'
    )


def downgrade() -> None:
    """Drop them."""
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    for name in SQLITE:
        op.execute(f"DROP TRIGGER {name} ON objects" if on_postgresql else f"DROP TRIGGER {name}")
    if on_postgresql:
        op.execute("DROP FUNCTION dm_note_objects()")
    for table in ("object_changes", "object_totals"):
        op.drop_table(table)
