"""What the tables are made of: names of constraints, types of columns."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Index, Integer, MetaData, Numeric, String, Text, Uuid, text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator, TypeEngine

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}

# Texts that are sorted or compared with < and >: by their UTF-8 bytes on both databases, whatever the server's locale.
ByteOrdered = Text().with_variant(Text(collation="C"), "postgresql")
MachineName = String(64).with_variant(String(64, collation="C"), "postgresql")
MachinePair = String(129).with_variant(String(129, collation="C"), "postgresql")
Status = String(16).with_variant(String(16, collation="C"), "postgresql")
Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers INTEGER keys only

EARLY_VACUUM = {"postgresql_with": {"autovacuum_vacuum_scale_factor": "0.01", "vacuum_index_cleanup": "on"}}
"""Of a table whose rows pass through small partial indexes: PostgreSQL is to clear these before a fifth of all rows has
passed (docs/adr/0022-rows-are-deleted.md)."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time on every database; SQLite has no zones, so UTC is stored there without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times, store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time in the catalogue must be aware")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return aware UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Sum(TypeDecorator[int]):
    """A whole number that may be beyond 64 bits: of sizes that clients name. SQLite rounds it there."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return NUMERIC for PostgreSQL."""
        return dialect.type_descriptor(Numeric(38, 0) if dialect.name == "postgresql" else BigInteger())

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:  # noqa: ARG002
        """Return a number without decimals."""
        return None if value is None else int(value)


class Base(DeclarativeBase):
    """The metadata that Alembic compares with the database."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own form
        datetime: UtcDateTime,
        UUID: Uuid,
        dict[str, Any]: JSON,
        list[dict[str, Any]]: JSON,
    }


def partial(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """Make an index of the rows for which `where` holds, on either database."""
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))
