"""Audits of machines, and what they found."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Index, Integer, String, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from datamanager.domain.audit_rules import AuditStatus
from models.tables.base import Base, ByteOrdered, MachineName, Status, partial


class Audit(Base):
    """One comparison of a machine with the catalogue: queued, under way or done."""

    __tablename__ = "audits"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    machine: Mapped[str] = mapped_column(MachineName)
    status: Mapped[str] = mapped_column(Status, default=AuditStatus.QUEUED.value)
    options: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """The terms of the request (`domain.audit_rules.AuditTerms`)."""
    counts: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """What was looked at, and how much of each kind was found. Give it a new dict to change it."""
    scrubbed_objects: Mapped[int] = mapped_column(BigInteger, default=0)
    scrubbed_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    suspicious: Mapped[bool] = mapped_column(default=False, server_default=false())
    """So much would have been lost that nothing was changed."""
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_detail: Mapped[str | None] = mapped_column(Text)
    flow_run_id: Mapped[UUID | None]
    """The run that works on it, or (QUEUED) that will; null: any mover makes one."""
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    """How often it was taken; who writes names it."""
    created_by: Mapped[str | None] = mapped_column(ByteOrdered)
    """The person who requested it; null: authentication was off, or it is the service's own."""
    created: Mapped[datetime]
    taken: Mapped[datetime | None]
    begun: Mapped[datetime | None]
    ended: Mapped[datetime | None]

    __table_args__ = (
        partial("ix_audits_open", "status", "created", "id", where="ended IS NULL"),
        Index("ix_audits_created", "created", "id"),
        Index("ix_audits_ended", "ended"),
    )


class AuditFinding(Base):
    """A difference between catalogue and storage; a candidate until a second look has confirmed it."""

    __tablename__ = "audit_findings"

    audit_id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(Status)
    place: Mapped[str] = mapped_column(ByteOrdered)
    """Below base_dir; what is not valid UTF-8 is escaped, and `found` has its bytes."""
    object_id: Mapped[UUID | None]
    """The object, or the bundle; null for what is DARK."""
    expected: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    found: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    confirmed: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Two looks have found it."""
    applied: Mapped[bool] = mapped_column(default=False, server_default=false())
    """The object was changed for it."""

    __table_args__ = (Index("ix_audit_findings_kind", "audit_id", "kind", "number"),)
