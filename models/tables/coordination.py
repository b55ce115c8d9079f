"""What processes share: claims on places and objects, leases, idempotency keys, messages to the broker."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import EARLY_VACUUM, Base, MachineName, Serial, partial


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
    """What one process does at a time, by name (the outbox relay), and the movers that are alive."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    holder: Mapped[str] = mapped_column(String(200))
    until: Mapped[datetime]
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


class IdempotencyKey(Base):
    """A key that a client gave, and the answer it got. Kept 24 h."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    holder: Mapped[str] = mapped_column(String(200))
    """The request that works under the key; another may take over when `held_until` has passed."""
    held_until: Mapped[datetime | None]
    """Null once the answer is stored."""
    subject: Mapped[UUID | None]
    """The object or transfer that the request made, written in the same transaction: a retry finds it."""
    status: Mapped[int | None]
    headers: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    body: Mapped[str | None] = mapped_column(Text)
    created: Mapped[datetime]

    __table_args__ = (Index("ix_idempotency_keys_created", "created"),)


class OutboxMessage(Base):
    """A message that must reach the broker; written with the change it reports, sent by the relay."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    exchange: Mapped[str] = mapped_column(String(64))
    routing_key: Mapped[str] = mapped_column(String(128))
    subject: Mapped[UUID | None]
    body: Mapped[dict[str, Any]]
    created: Mapped[datetime]
    sent: Mapped[datetime | None]

    __table_args__ = (
        partial("ix_outbox_unsent", "id", where="sent IS NULL"),
        Index("ix_outbox_created", "created"),
        EARLY_VACUUM,
    )
