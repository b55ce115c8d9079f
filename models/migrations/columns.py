"""What the migrations make columns and indexes of. It never changes: they have to make the same tables for ever."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

BYTE_ORDERED = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
MACHINE_NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
MACHINE_PAIR = sa.String(129).with_variant(sa.String(129, collation="C"), "postgresql")
STATUS = sa.String(16).with_variant(sa.String(16, collation="C"), "postgresql")
SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def create_partial_index(name: str, table: str, columns: list[Any], where: str, *, unique: bool = False) -> None:
    """Make an index of the rows for which `where` holds."""
    condition = sa.text(where)
    op.create_index(name, table, columns, unique=unique, sqlite_where=condition, postgresql_where=condition)
