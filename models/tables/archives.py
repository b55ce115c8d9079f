"""Bundles on archive machines, and whose bytes lie where in them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from datamanager.domain.states import BundleStatus
from models.tables.base import Base, MachineName, Status, partial


class Bundle(Base):
    """A file of an archive machine that has the bytes of archived objects. Rows are never removed."""

    __tablename__ = "bundles"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(Status, default=BundleStatus.OPEN.value)
    machine: Mapped[str] = mapped_column(MachineName)
    place: Mapped[str] = mapped_column(Text)
    """Below the machine's base_dir; the manifest is beside it."""
    pack: Mapped[str] = mapped_column(String(16))
    level: Mapped[str] = mapped_column(String(16))
    """What was proved of it before it was sealed."""
    transfer_id: Mapped[UUID]
    """The transfer that makes or made it."""
    size: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    created: Mapped[datetime]
    sealed: Mapped[datetime | None]
    removed: Mapped[datetime | None]
    checked: Mapped[datetime | None]
    """When an audit last hashed it."""
    notes: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """What a later attempt must know: `intent`, `restart`. Give it a new dict to change it."""

    __table_args__ = (
        Index("ix_bundles_transfer_id", "transfer_id"),
        partial("ix_bundles_to_remove", "id", where="status IN ('UNNEEDED', 'ABANDONED')"),
    )


class BundleMember(Base):
    """An object's bytes in a sealed bundle: `size` from `offset` of the uncompressed bundle."""

    __tablename__ = "bundle_members"

    bundle_id: Mapped[UUID] = mapped_column(ForeignKey("bundles.id"), primary_key=True)
    object_id: Mapped[UUID] = mapped_column(primary_key=True)
    offset: Mapped[int] = mapped_column("offset", BigInteger)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    mode: Mapped[int] = mapped_column(Integer)
    mtime: Mapped[int] = mapped_column(BigInteger)
    source_machine: Mapped[str] = mapped_column(MachineName)
    source_place: Mapped[str] = mapped_column(Text)
    """Where its file was; its name in the bundle is made of this."""
    released: Mapped[datetime | None]
    """Since when the object does not need it: it was activated or deleted."""

    __table_args__ = (partial("uq_bundle_members_object", "object_id", where="released IS NULL", unique=True),)
