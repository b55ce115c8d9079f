"""The catalogue's tables.

Rows are read-only snapshots once their session has ended; they are changed only by the functions of this package,
inside a writing transaction (`Database.write`). A change here needs a migration (`models/migrations`); a test compares
the two.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    Uuid,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from datamanager.domain.schedule import Priority
from datamanager.domain.states import BundleStatus, ObjectStatus, Phase, TransferStatus, Verified

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}

# Texts that are sorted or compared with < and >: by their UTF-8 bytes on both databases, whatever the server's locale.
ByteOrdered = Text().with_variant(Text(collation="C"), "postgresql")
MachineName = String(64).with_variant(String(64, collation="C"), "postgresql")
Status = String(16).with_variant(String(16, collation="C"), "postgresql")
Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers INTEGER keys only


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time on every database; SQLite has no zones, so UTC is stored there without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times, store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time in the catalogue must be aware")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return aware UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The metadata that Alembic compares with the database."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own form
        datetime: UtcDateTime,
        UUID: Uuid,
        dict[str, Any]: JSON,
        list[dict[str, Any]]: JSON,
    }


def _partial(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


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
    derived_from: Mapped[UUID | None] = mapped_column(ForeignKey("objects.id"))
    archived_in: Mapped[str | None] = mapped_column(Text)
    """The bundle (machine:path) that has the bytes of an ARCHIVED object."""

    __table_args__ = (
        Index("ix_objects_date_registered", "date_registered", "id"),
        Index("ix_objects_machine", "machine", "status"),
        Index("ix_objects_filename", "filename"),
        # hashed: a B-tree of PostgreSQL refuses values beyond 2.7 kB, and these may be longer
        Index("ix_objects_place", "place", postgresql_using="hash"),
        Index("ix_objects_group", "group", postgresql_using="hash"),
    )


class Transfer(Base):
    """One request to move, make or remove a file; the truth about it, Prefect only runs and shows it."""

    __tablename__ = "transfers"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    object_id: Mapped[UUID | None]
    """The object worked on; null for getexternal."""
    result_object_id: Mapped[UUID | None]
    """The identifier that a new object will have: chosen at the request, so that a repeated commit can't make two."""
    request: Mapped[dict[str, Any]]
    fail_fast: Mapped[bool] = mapped_column(default=False)
    """A client waits: an unreachable machine ends the transfer at once instead of being retried."""
    source_machine: Mapped[str | None] = mapped_column(MachineName)
    source_place: Mapped[str | None] = mapped_column(Text)
    destination_machine: Mapped[str | None] = mapped_column(MachineName)
    destination_place: Mapped[str | None] = mapped_column(Text)
    group: Mapped[str] = mapped_column("group", Text, default="")
    bandwidth: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes per second that it may move, changeable while it runs; null: no limit of its own."""
    priority: Mapped[str] = mapped_column(
        String(8), default=Priority.NORMAL.value, server_default=Priority.NORMAL.value
    )
    deadline: Mapped[datetime | None]
    """What has not ended by then ends in ERROR `deadline_exceeded`."""
    not_before: Mapped[datetime | None]
    """It is not taken before."""
    paused: Mapped[bool] = mapped_column(default=False, server_default=false())
    """It waits in the queue until it is resumed."""
    stop_requested: Mapped[str | None] = mapped_column(String(8))
    """What the mover that holds it is to do: `cancel` or `pause`."""
    no_return: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Its file may have its name already, or be gone: before this ends otherwise, an attempt has to look."""
    litter: Mapped[bool] = mapped_column(default=False, server_default=false())
    """It has ended, and its partial file may still lie beside the destination: a mover is to remove it."""

    status: Mapped[str] = mapped_column(Status, default=TransferStatus.QUEUED.value)
    phase: Mapped[str] = mapped_column(String(16), default=Phase.QUEUED.value)
    bytes_done: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_total: Mapped[int | None] = mapped_column(BigInteger)
    bytes_per_second: Mapped[int | None] = mapped_column(BigInteger)
    """Of the last seconds; null while no bytes move."""
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    faults: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    """Every attempt's fault: time, code, detail. Give it a new list to change it."""
    notes: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """What a later attempt must know: intents recorded before acts that can't be repeated."""
    result: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_detail: Mapped[str | None] = mapped_column(Text)
    flow_run_id: Mapped[UUID | None]

    owner: Mapped[str | None] = mapped_column(String(200))
    epoch: Mapped[int] = mapped_column(Integer, default=0)
    lease_until: Mapped[datetime | None]
    """The database's clock; past this, any mover may return the transfer to the queue."""
    retry_at: Mapped[datetime | None]
    sequence: Mapped[int] = mapped_column(Integer, default=0)
    """Of the last event; consumers order and deduplicate by it."""
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    ended: Mapped[datetime | None]

    __table_args__ = (
        _partial("ix_transfers_open", "status", "created", "id", where="ended IS NULL"),
        _partial("ix_transfers_queue", "priority", "created", "id", where="ended IS NULL AND owner IS NULL"),
        _partial("ix_transfers_deadline", "deadline", where="deadline IS NOT NULL AND ended IS NULL"),
        _partial("ix_transfers_stop", "stop_requested", where="stop_requested IS NOT NULL"),
        _partial("ix_transfers_litter", "ended", where="litter"),
        _partial("ix_transfers_held", "source_machine", "destination_machine", where="owner IS NOT NULL"),
        Index("ix_transfers_object_id", "object_id"),
        Index("ix_transfers_created", "created", "id"),
        Index("ix_transfers_ended", "ended"),
        Index("uq_transfers_flow_run_id", "flow_run_id", unique=True),
    )


class TransferItem(Base):
    """One item of a batch, or of a transfer to or from an archive (`TransferKind.itemised`): one object, and where it
    is to go.
    """

    __tablename__ = "transfer_items"

    transfer_id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    """Its place in the request, from 0."""
    object_id: Mapped[UUID]
    """The object worked on, as the client named it: there may be none."""
    result_object_id: Mapped[UUID | None]
    """The object that will lie (or, skipped, lies already) at the destination: a new one's identifier for a copy, the
    object itself for a move. Null for an item that was refused."""
    source_machine: Mapped[str | None] = mapped_column(MachineName)
    source_place: Mapped[str | None] = mapped_column(Text)
    destination_machine: Mapped[str] = mapped_column(Text)
    """As the client named it: it may not be configured."""
    destination_place: Mapped[str | None] = mapped_column(Text)
    dest: Mapped[str] = mapped_column(Text)
    """The destination as the client gave it."""
    size: Mapped[int | None] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(Status, default=TransferStatus.QUEUED.value)
    """QUEUED, COMPLETE or ERROR."""
    skipped: Mapped[bool] = mapped_column(default=False)
    """COMPLETE without work: what is wanted was there already."""
    notes: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """What a later attempt must know: `intent`, `canonical`, `committed`; of archives also `bundle`, and `restart` of a
    recall. Give it a new dict to change it."""
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_detail: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (Index("ix_transfer_items_status", "transfer_id", "status", "number"),)


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
    notes: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """What a later attempt must know: `intent`, `restart`. Give it a new dict to change it."""

    __table_args__ = (
        Index("ix_bundles_transfer_id", "transfer_id"),
        _partial("ix_bundles_to_remove", "id", where="status IN ('UNNEEDED', 'ABANDONED')"),
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

    __table_args__ = (_partial("uq_bundle_members_object", "object_id", where="released IS NULL", unique=True),)


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
        _partial("uq_claims_place_key", "place_key", where="mode = 'place'", unique=True),
        _partial("uq_claims_write", "object_id", where="mode = 'write'", unique=True),
        Index("ix_claims_object_id", "object_id"),
        Index("ix_claims_transfer_id", "transfer_id"),
    )


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
        _partial("ix_outbox_unsent", "id", where="sent IS NULL"),
        Index("ix_outbox_created", "created"),
    )


class Lease(Base):
    """A named duty that one process has at a time (the outbox relay), and the movers that are alive."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    holder: Mapped[str] = mapped_column(String(200))
    until: Mapped[datetime]
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


class MachineLimit(Base):
    """Limits of a machine that were changed while running; they stand above machines.toml until they are set back.

    Null: what machines.toml says; 0: no limit.
    """

    __tablename__ = "machine_limits"

    name: Mapped[str] = mapped_column(MachineName, primary_key=True)
    bandwidth: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes per second, all transfers of the machine together."""
    max_transfers: Mapped[int | None] = mapped_column(Integer)
    changed: Mapped[datetime]


class MachineHealth(Base):
    """What movers found of a machine, and whether an operator holds its transfers back (see `models.health`)."""

    __tablename__ = "machine_health"

    name: Mapped[str] = mapped_column(MachineName, primary_key=True)
    drained: Mapped[datetime | None]
    """Since when its transfers are held back; null: they are not."""
    failures: Mapped[int] = mapped_column(Integer, default=0)
    """To connect, in a row."""
    opened: Mapped[datetime | None]
    """Since when its circuit is open; null: it is closed."""
    probe_at: Mapped[datetime | None]
    """When a mover may probe it next; null: there is no need."""
    epoch: Mapped[int] = mapped_column(Integer, default=0)
    """Of the last probe that was taken; who notes its finding names it."""


class MachineSeen(Base):
    """The base_dir that a machine had when the catalogue was last used; a change with objects there stops the start."""

    __tablename__ = "machines_seen"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    base_dir: Mapped[str] = mapped_column(Text)
