"""What comes from outside: secrets of requests, where objects came from, and what is fetched again and again."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, ForeignKey, Index, String, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, ByteOrdered


class SealedSecrets(Base):
    """The secrets of one transfer's request, sealed (`datamanager.sealing`). The row goes when the transfer ends."""

    __tablename__ = "sealed_secrets"

    transfer_id: Mapped[UUID] = mapped_column(primary_key=True)
    blob: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime]


class Origin(Base):
    """What the source said of an object that was fetched from it: whether it has a newer one is decided by these."""

    __tablename__ = "origins"

    object_id: Mapped[UUID] = mapped_column(ForeignKey("objects.id"), primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    """Without credentials and query."""
    url_mark: Mapped[str | None] = mapped_column(String(64))
    """Tells the whole URL from others, by the key of the secrets; null where there is no such key."""
    etag: Mapped[str | None] = mapped_column(Text)
    last_modified: Mapped[str | None] = mapped_column(Text)
    version: Mapped[str | None] = mapped_column(Text)
    """An object store's own mark of a version."""


class Schedule(Base):
    """What is fetched again and again. Prefect runs it; this is the truth about it."""

    __tablename__ = "schedules"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    request: Mapped[dict[str, Any]]
    """As it was requested: templates, options (without secrets), when, how many versions are kept."""
    paused: Mapped[bool] = mapped_column(default=False, server_default=false())
    wanted_at: Mapped[datetime | None]
    """A run was requested besides the ordinary ones; null again once Prefect has it."""
    created_by: Mapped[str | None] = mapped_column(ByteOrdered)
    """The person who made it; null: authentication was off."""
    grant: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What this person was permitted: its transfers are submitted with it."""
    created: Mapped[datetime]


class ScheduleRun(Base):
    """One moment of a schedule: its transfer, and the version that came of it."""

    __tablename__ = "schedule_runs"

    schedule_id: Mapped[UUID] = mapped_column(primary_key=True)
    moment: Mapped[datetime] = mapped_column(primary_key=True)
    """The scheduled time, which the templates were filled in with."""
    transfer_id: Mapped[UUID | None]
    object_id: Mapped[UUID | None]
    """The version: a new object, or the one before when nothing had changed."""
    outcome: Mapped[str] = mapped_column(String(16))
    """`pending`, `fetched`, `unchanged` or `failed`; `dropped`: fetched, and deleted since as too old a version."""
    code: Mapped[str | None] = mapped_column(String(64))
    """The error that it failed with."""
    delete_id: Mapped[UUID | None]
    """The transfer that deletes the version."""

    __table_args__ = (
        Index("ix_schedule_runs_transfer_id", "transfer_id"),
        Index("ix_schedule_runs_moment", "moment"),
    )
