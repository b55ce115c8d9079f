"""What decides races: claims on places and objects, and duties that one process has at a time."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, MachineName, Serial, partial


class Claim(Base):
    """Who holds what; every race on a place or an object is decided by this table's unique indexes."""

    __tablename__ = "claims"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    mode: Mapped[str] = mapped_column(String(8))
    """`place`: one holder a place. `write`: one an object. `read`: many an object, none beside a write."""
    machine: Mapped[str | None] = mapped_column(MachineName)
    place: Mapped[str | None] = mapped_column(Text)
    place_key: Mapped[str | None] = mapped_column(String(64))
    """sha256 of machine and place: a path may be longer than what an index of PostgreSQL takes."""
    object_id: Mapped[UUID | None]
    transfer_id: Mapped[UUID | None]
    """The transfer whose end frees the claim; null: the ACTIVE object holds it, or the bundle whose identifier
    `object_id` is then. A batch's place claims name both: the object for which the transfer holds the place."""

    __table_args__ = (
        partial("uq_claims_place_key", "place_key", where="mode = 'place'", unique=True),
        partial("uq_claims_write", "object_id", where="mode = 'write'", unique=True),
        Index("ix_claims_object_id", "object_id"),
        Index("ix_claims_transfer_id", "transfer_id"),
    )


class Lease(Base):
    """A named duty that one process has at a time (the outbox relay), and the movers that are alive."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    holder: Mapped[str] = mapped_column(String(200))
    until: Mapped[datetime]
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
