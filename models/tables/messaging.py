"""What stands between clients and the catalogue: idempotency keys and messages to the broker."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, Serial, partial


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
    """A message that must reach the broker; written with the change it tells of, sent by the relay."""

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
    )
