"""Data objects."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from datamanager.domain.states import ObjectStatus, Verified
from models.tables.base import Base, ByteOrdered, MachineName, Status, partial

PLACE_INDEXED = 500
"""Characters of a place that are indexed in its order: with more, a B-tree of PostgreSQL may refuse the row."""


class DataObject(Base):
    """One data object. Rows are never removed."""

    __tablename__ = "objects"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    machine: Mapped[str] = mapped_column(MachineName)
    path: Mapped[str] = mapped_column(Text)
    """The directory as the client gave it."""
    filename: Mapped[str] = mapped_column(ByteOrdered)
    place: Mapped[str] = mapped_column(ByteOrdered)
    """The normalised path below the machine's base_dir; what comparisons use."""
    description: Mapped[str] = mapped_column(Text, default="")
    size: Mapped[int | None] = mapped_column(BigInteger)
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", JSON, default=dict)
    date_registered: Mapped[datetime]
    date_modified: Mapped[datetime]
    status: Mapped[str] = mapped_column(Status, default=ObjectStatus.ACTIVE.value)
    originator: Mapped[str] = mapped_column(Text, default="")
    group: Mapped[str] = mapped_column("group", ByteOrdered, default="")
    checksum: Mapped[str | None] = mapped_column(String(80))
    """`sha256:…` or null."""
    verified: Mapped[str] = mapped_column(String(16), default=Verified.NONE.value)
    derived_from: Mapped[UUID | None] = mapped_column(ForeignKey("objects.id"))
    archived_in: Mapped[str | None] = mapped_column(Text)
    """The bundle (machine:path) that has the bytes of an ARCHIVED object."""
    last_used: Mapped[datetime | None]
    """When a copy last read it, or it was moved or activated; null: not since it was registered."""
    expires_at: Mapped[datetime | None]
    """Until when it is wanted. Nothing happens then by itself: rules of retention may ask for it."""
    held_since: Mapped[datetime | None]
    """Held: neither retention nor a client may delete it; null: it is not."""
    held_by: Mapped[str | None] = mapped_column(Text)
    hold_reason: Mapped[str | None] = mapped_column(Text)
    checked: Mapped[datetime | None]
    """When an audit last hashed its file."""

    __table_args__ = (
        Index("ix_objects_date_registered", "date_registered", "id"),
        Index("ix_objects_machine", "machine", "status"),
        Index("ix_objects_filename", "filename"),
        partial("ix_objects_checksum", "checksum", where="checksum IS NOT NULL"),
        # hashed: a B-tree of PostgreSQL refuses values beyond 2.7 kB, and these may be longer
        Index("ix_objects_place", "place", postgresql_using="hash"),
        Index("ix_objects_group", "group", postgresql_using="hash"),
        partial("ix_objects_scrub", "machine", "checked", "id", where="status = 'ACTIVE' AND checksum IS NOT NULL"),
    )


_AUDITED = text("status IN ('ACTIVE', 'UNKNOWN')")
Index(
    "ix_objects_audit",
    DataObject.machine,
    func.substr(DataObject.place, text("1"), text(str(PLACE_INDEXED))),
    sqlite_where=_AUDITED,
    postgresql_where=_AUDITED,
)
