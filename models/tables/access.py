"""Who may come in: service tokens, and persons whose grants were withdrawn."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, ByteOrdered, partial


class TokenRecord(Base):
    """A service token as it is kept: it can't be made again from this. Rows are never removed."""

    __tablename__ = "service_tokens"

    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    """The part of the token that may be shown."""
    name: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    """HMAC-SHA-256 of the token (`datamanager.identity.service_token`)."""
    roles: Mapped[list[str]] = mapped_column(JSON, default=list)
    groups: Mapped[list[str]] = mapped_column(JSON, default=list)
    scopes: Mapped[list[str]] = mapped_column(JSON, default=list)
    """Those that it has besides its roles'."""
    created: Mapped[datetime]
    created_by: Mapped[str | None] = mapped_column(Text)
    """Who made it; null: somebody on the service's own host."""
    expires: Mapped[datetime | None]
    last_used: Mapped[datetime | None]
    """To the minute."""
    revoked: Mapped[datetime | None]
    revoked_by: Mapped[str | None] = mapped_column(Text)
    replaced_by: Mapped[str | None] = mapped_column(String(12))
    """The newest token that it was rotated to: what waits with this one's grant goes on with that one's."""
    overlap_until: Mapped[datetime | None]
    """Of a rotated one: it is accepted until then."""

    __table_args__ = (
        partial("uq_service_tokens_name", "name", where="revoked IS NULL AND replaced_by IS NULL", unique=True),
    )


class WithdrawnPerson(Base):
    """A person whom nothing is permitted any more, whatever a token of the issuer says: those can't be revoked."""

    __tablename__ = "withdrawn_persons"

    person: Mapped[str] = mapped_column(ByteOrdered, primary_key=True)
    since: Mapped[datetime]
    by: Mapped[str | None] = mapped_column(Text)
