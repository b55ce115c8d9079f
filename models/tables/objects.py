"""Data objects; the bundles on archive machines, and whose bytes lie where in them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, String, Text, cast, false, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from datamanager.domain.states import BundleStatus, ObjectStatus, Verified
from models.tables.base import Base, ByteOrdered, MachineName, Status, partial

PLACE_INDEXED = 500
"""Characters of a place that are indexed in its order: with more, a B-tree of PostgreSQL may refuse the row."""
TEXT_INDEXED = 200
"""The same of other texts that may be long."""


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
    not_kept: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """What of `mode`, `mtime` and `fsync` the machine did not keep when the file was put there; null: nothing."""
    derived_from: Mapped[UUID | None] = mapped_column(ForeignKey("objects.id"))
    archived_in: Mapped[str | None] = mapped_column(Text)
    """The bundle (machine:path) that has the bytes of an ARCHIVED object."""
    last_used: Mapped[datetime | None]
    """When a copy last read it, or it was moved or activated; null: not since it was registered."""
    expires_at: Mapped[datetime | None]
    """Until when it is wanted. Nothing happens then by itself: rules of retention may ask for it."""
    provisional: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Its machine was away, or did not tell enough, when it was registered: before its file is removed or moved, it is
    looked up whether that is another object's file under another name."""
    held_since: Mapped[datetime | None]
    """Held: neither retention nor a client may delete it; null: it is not."""
    held_by: Mapped[str | None] = mapped_column(Text)
    hold_reason: Mapped[str | None] = mapped_column(Text)
    checked: Mapped[datetime | None]
    """When an audit last hashed its file."""
    created_by: Mapped[str | None] = mapped_column(ByteOrdered)
    """The person whose request made it; null: authentication was off."""
    acted_as: Mapped[str | None] = mapped_column(Text)
    """Whose login its file was written with: a person's, or `shared`: that of the service; null: not known."""

    __table_args__ = (
        # one for each order of lists, and for each filter with the order by default (`models.objects.listing`);
        # those that only one of the databases can have are in migration 0014 alone
        Index("ix_objects_date_registered", "date_registered", "id"),
        Index("ix_objects_date_modified", "date_modified", "id"),
        Index("ix_objects_filename", "filename", "id"),
        Index("ix_objects_machine", "machine", "status", "date_registered", "id"),
        Index("ix_objects_machine_registered", "machine", "date_registered", "id"),
        Index("ix_objects_status", "status", "date_registered", "id"),
        # hashed: a B-tree of PostgreSQL refuses values beyond 2.7 kB, and these may be longer
        Index("ix_objects_place", "place", postgresql_using="hash"),
        partial("ix_objects_created_by", "created_by", "date_registered", "id", where="created_by IS NOT NULL"),
        partial("ix_objects_scrub", "machine", "checked", "id", where="status = 'ACTIVE' AND checksum IS NOT NULL"),
    )


SIZE_KEY = func.coalesce(DataObject.size, text("-1"))
"""Sizes as lists have them in order: a keyset has no place for NULL."""
GROUP_KEY = func.substr(DataObject.group, text("1"), text(str(TEXT_INDEXED)))
ORIGINATOR_KEY = func.substr(DataObject.originator, text("1"), text(str(TEXT_INDEXED)))
PLACE_KEY = func.substr(DataObject.place, text("1"), text(str(PLACE_INDEXED)))
METADATA_KEY = cast(DataObject.meta, JSONB)
CHECKSUM_DIGITS = slice(7, 15)
"""What of a checksum is indexed: as many digits as tell the objects of a catalogue apart, without `sha256:`."""
CHECKSUM_KEY = func.substr(DataObject.checksum, text("8"), text("8"))
Index("ix_objects_size", SIZE_KEY, DataObject.id)
Index("ix_objects_originator", ORIGINATOR_KEY, DataObject.date_registered, DataObject.id)
Index("ix_objects_path", PLACE_KEY)
_HASHED = text("checksum IS NOT NULL")
Index("ix_objects_checksum", CHECKSUM_KEY, sqlite_where=_HASHED, postgresql_where=_HASHED)

_AUDITED = text("status IN ('ACTIVE', 'UNKNOWN')")
Index(
    "ix_objects_audit",
    DataObject.machine,
    PLACE_KEY,
    sqlite_where=_AUDITED,
    postgresql_where=_AUDITED,
)


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
