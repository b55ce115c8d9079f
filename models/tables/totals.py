"""How many objects there are, and how large, by machine, group, status and person: kept by triggers, so that no
statement forgets it.

On SQLite, where one writer works at a time, a trigger changes the totals. On PostgreSQL that would make writers of one
machine and group wait for each other: there each statement notes what it changed in a row of its own, and housekeeping
adds these to the totals (`models.objects.totals`).
"""

from __future__ import annotations

from sqlalchemy import DDL, BigInteger, Index, event
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, ByteOrdered, MachineName, Serial, Status, Sum
from models.tables.object_triggers import STATEMENTS
from models.tables.objects import DataObject


class _Counted:
    """A key, and what is counted of its objects."""

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    machine: Mapped[str] = mapped_column(MachineName)
    group: Mapped[str] = mapped_column("group", ByteOrdered)
    status: Mapped[str] = mapped_column(Status)
    person: Mapped[str] = mapped_column(ByteOrdered, default="", server_default="")
    """Who made them; "": authentication was off."""
    objects: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(Sum)
    """An unknown size counts as 0."""
    hashed: Mapped[int] = mapped_column(BigInteger)
    """Objects with a checksum."""


class ObjectTotal(_Counted, Base):
    """The totals of a key, one row each; one with no objects any more may stay."""

    __tablename__ = "object_totals"

    # hashed on PostgreSQL: a group may be longer than what a B-tree takes; one of the whole key, by which SQLite's
    # triggers find a row, is in migration 0019 alone
    __table_args__ = (
        Index("ix_object_totals_group", "group", postgresql_using="hash"),
        Index("ix_object_totals_person", "person", postgresql_using="hash"),
    )


class ObjectChange(_Counted, Base):
    """PostgreSQL: by how much a statement changed the totals of a key; to be added to them."""

    __tablename__ = "object_changes"


# made before `objects`, whose triggers write to them, and emptied after it
for _table in (ObjectTotal, ObjectChange):
    DataObject.__table__.add_is_dependent_on(_table.__table__)  # type: ignore[attr-defined]
for _dialect, _statements in STATEMENTS.items():
    for _statement in _statements:
        _ddl = DDL(_statement).execute_if(dialect=_dialect)  # type: ignore[no-untyped-call]
        event.listen(DataObject.__table__, "after_create", _ddl)
