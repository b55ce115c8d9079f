"""Data objects."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from datamanager.domain.states import ObjectStatus, Verified
from models.tables.base import Base, ByteOrdered, MachineName, Status


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

    __table_args__ = (
        Index("ix_objects_date_registered", "date_registered", "id"),
        Index("ix_objects_machine", "machine", "status"),
        Index("ix_objects_filename", "filename"),
        # hashed: a B-tree of PostgreSQL refuses values beyond 2.7 kB, and these may be longer
        Index("ix_objects_place", "place", postgresql_using="hash"),
        Index("ix_objects_group", "group", postgresql_using="hash"),
    )
