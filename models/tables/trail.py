"""The audit trail: who did what; its rows are only added, and linked to a chain (`models.access.trail_links`). And what
open tasks have reserved of quotas.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, ByteOrdered, Serial, partial


class TrailEntry(Base):
    """A decision, a change, or how a task ended. Its content never changes; `number` and `hash` are set once."""

    __tablename__ = "trail"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    number: Mapped[int | None] = mapped_column(BigInteger)
    """Its place in the chain, from 1, without gaps; null: it was not linked yet."""
    time: Mapped[datetime]
    person: Mapped[str | None] = mapped_column(ByteOrdered)
    """Who asked; null: authentication was off, who asked is not known, or the service did it by itself."""
    means: Mapped[str] = mapped_column(String(16))
    """How they proved who they are (`datamanager.identity.grant.Means`); `service`: it did it by itself, `host`: by a
    command on its host."""
    credential: Mapped[str | None] = mapped_column(Text)
    """Which one: a service token's id, or the issuer's subject."""
    origin: Mapped[str] = mapped_column(Text)
    """From where: a client's address, or the queue of a message."""
    request_id: Mapped[str | None] = mapped_column(Text)
    action: Mapped[str] = mapped_column(String(100))
    """The kind of the transfer, or the method and path of the operation as the OpenAPI document has them."""
    object_id: Mapped[UUID | None]
    transfer_id: Mapped[UUID | None]
    subject: Mapped[str | None] = mapped_column(Text)
    """What else it was done to: a machine, schedule, token, directory; of a refusal the address that was asked for."""
    outcome: Mapped[str] = mapped_column(String(16))
    """One of `models.access.trail.TrailOutcome`."""
    code: Mapped[str | None] = mapped_column(String(64))
    """Of the error, when it was refused or failed."""
    acted_as: Mapped[str | None] = mapped_column(Text)
    """The login that a machine was used with."""
    certificate: Mapped[str | None] = mapped_column(String(32))
    """The serial number of the SSH certificate of that login, decimal."""
    counts: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Numbers: of items, of bytes, of refusals that are told together."""
    hash: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 over the hash of the row before it and this one (`models.access.trail_chain`)."""

    __table_args__ = (
        Index("uq_trail_number", "number", unique=True),
        partial("ix_trail_unlinked", "id", where="number IS NULL"),
        Index("ix_trail_time", "time", "id"),
        partial("ix_trail_person", "person", "time", "id", where="person IS NOT NULL"),
        partial("ix_trail_object", "object_id", where="object_id IS NOT NULL"),
        partial("ix_trail_transfer", "transfer_id", where="transfer_id IS NOT NULL"),
    )


class Reservation(Base):
    """What an open transfer may add to what a group or person with a quota has (`models.transfers.reservations`)."""

    __tablename__ = "reservations"

    transfer_id: Mapped[UUID] = mapped_column(primary_key=True)
    holder: Mapped[str] = mapped_column(String(64), primary_key=True)
    objects: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (Index("ix_reservations_holder", "holder", "objects", "bytes"),)


class TrailMark(Base):
    """An end of the chain: `first` is the last row that was pruned, `last` the newest that was linked; number 0, and
    zeros, before there is one.
    """

    __tablename__ = "trail_marks"

    name: Mapped[str] = mapped_column(String(8), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str] = mapped_column(String(64))
