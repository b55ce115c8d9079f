"""Retention: which objects are marked and why, and what its runs did."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Index, Integer, String, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, ByteOrdered, Serial, Status, partial


class RetentionMark(Base):
    """A rule's finding on an object: due after its grace, then acted on by a transfer. An object has one open mark at
    most; those that are closed stay as a record.
    """

    __tablename__ = "retention_marks"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    object_id: Mapped[UUID]
    rule: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(String(16))
    marked: Mapped[datetime]
    due: Mapped[datetime]
    run_id: Mapped[UUID]
    """The run that marked it."""
    acted_run_id: Mapped[UUID | None]
    """The run that submitted the transfer."""
    transfer_id: Mapped[UUID | None]
    """What archives or deletes it; null again when that ended in ERROR, so that a later run tries again."""
    survivor_id: Mapped[UUID | None]
    """The copy that remains, proved before this one was deleted."""
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    in_archive: Mapped[bool] = mapped_column(default=False, server_default=false())
    """It was ARCHIVED when it was acted on: to delete it frees a part of a bundle, not a file."""
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    closed: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(String(16))
    """`done`, `void` (the rule no longer selects it, or it is held), `restored`."""
    detail: Mapped[str | None] = mapped_column(Text)
    spared_until: Mapped[datetime | None]
    """Of a restored one: the rule leaves the object alone until then."""

    __table_args__ = (
        partial("uq_retention_marks_open", "object_id", where="closed IS NULL", unique=True),
        partial("ix_retention_marks_under_way", "id", where="closed IS NULL AND transfer_id IS NOT NULL"),
        partial("ix_retention_marks_spared", "object_id", where="spared_until IS NOT NULL"),
        Index("ix_retention_marks_object_id", "object_id"),
        Index("ix_retention_marks_acted_run_id", "acted_run_id"),
        Index("ix_retention_marks_transfer_id", "transfer_id"),
    )


class RetentionRun(Base):
    """One run of retention, as it was requested and what came of it."""

    __tablename__ = "retention_runs"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(Status)
    """QUEUED (requested, a mover makes its flow run), RUNNING, COMPLETE or ERROR."""
    dry_run: Mapped[bool] = mapped_column(default=False, server_default=false())
    rule: Mapped[str] = mapped_column(Text, default="")
    """The one rule that was carried out; empty: all."""
    max_objects: Mapped[int | None] = mapped_column(BigInteger)
    max_bytes: Mapped[int | None] = mapped_column(BigInteger)
    holder: Mapped[str | None] = mapped_column(String(200))
    flow_run_id: Mapped[UUID | None]
    created_by: Mapped[str | None] = mapped_column(ByteOrdered)
    """The person who requested it; null: authentication was off, or it is the service's own."""
    grant: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What this person was permitted: it acts on nothing else."""
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    ended: Mapped[datetime | None]
    bytes_freed: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of files that really went, from the transfers that ended."""
    pending: Mapped[int] = mapped_column(Integer, default=0)
    """Objects whose transfers had not ended when the run reported."""
    counts: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    lines: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    """What became of single objects, the first ones only."""
    truncated: Mapped[bool] = mapped_column(default=False, server_default=false())
    """There were more objects than lines."""
    error: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        Index("ix_retention_runs_created", "created", "id"),
        partial("ix_retention_runs_open", "created", where="ended IS NULL"),
    )
