"""Transfers and their items."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Computed, Index, Integer, String, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from datamanager.domain.fields import Priority
from datamanager.domain.states import Phase, TransferKind, TransferStatus
from models.tables.base import EARLY_VACUUM, Base, ByteOrdered, MachineName, MachinePair, Status, partial

ITEMISED = [kind.value for kind in TransferKind if kind.itemised]
"""The kinds of transfers that have items."""


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
    share_pair: Mapped[str] = mapped_column(
        MachinePair,
        Computed("coalesce(source_machine, '') || '>' || coalesce(destination_machine, '')", persisted=True),
        nullable=True,
    )
    """The machines at both ends, `source>destination`, as fair shares are counted (`models.transfers.fair_share`)."""
    share_group: Mapped[str] = mapped_column(
        ByteOrdered, Computed('substr("group", 1, 200)', persisted=True), nullable=True
    )
    """The group, as far as an index takes it."""
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
    """What the mover that holds it is to do: `cancel`, `pause`, or `forbid`: it is not permitted any more."""
    past_commit_point: Mapped[bool] = mapped_column("no_return", default=False, server_default=false())
    """Its file may have its name already, or be gone: before this ends otherwise, an attempt has to look."""
    leaves_partial: Mapped[bool] = mapped_column("litter", default=False, server_default=false())
    """A partial file may lie beside the destination when it has ended, or its source aside: a mover is to remove the
    one and to give the other its name back."""

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
    reason: Mapped[str | None] = mapped_column(Text)
    """Why there is this transfer, when no client requested it: `retention: ` and the rule."""
    result: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_detail: Mapped[str | None] = mapped_column(Text)
    flow_run_id: Mapped[UUID | None]
    shared_run: Mapped[UUID | None]
    """Names the run in which it goes, or went to its end, together with others (`models.transfers.sharing`): they have
    one flow run, and count as one transfer; null: it has a run of its own."""

    owner: Mapped[str | None] = mapped_column(String(200))
    epoch: Mapped[int] = mapped_column(Integer, default=0)
    lease_until: Mapped[datetime | None]
    """The database's clock; past this, any mover may return the transfer to the queue."""
    retry_at: Mapped[datetime | None]
    sequence: Mapped[int] = mapped_column(Integer, default=0)
    """Of the last event; consumers order and deduplicate by it."""
    created_by: Mapped[str | None] = mapped_column(ByteOrdered)
    """The person who requested it; null: authentication was off, or the service did."""
    grant: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What this person was permitted (`datamanager.identity.grant`): it is asked again when the transfer is taken, and
    while it runs. Null: it is not asked."""
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    ended: Mapped[datetime | None]

    __table_args__ = (
        partial("ix_transfers_open", "status", "created", "id", where="ended IS NULL"),
        partial(
            "ix_transfers_queue",
            *("priority", "share_pair", "share_group", "created", "id"),
            where="ended IS NULL AND owner IS NULL",
        ),
        partial("ix_transfers_deadline", "status", "deadline", where="deadline IS NOT NULL AND ended IS NULL"),
        partial("ix_transfers_stop", "stop_requested", where="stop_requested IS NOT NULL"),
        partial("ix_transfers_litter", "ended", where="litter"),
        partial(
            "ix_transfers_held",
            *("source_machine", "destination_machine", "priority", "shared_run"),
            where="owner IS NOT NULL",
        ),
        partial("ix_transfers_lease", "lease_until", where="owner IS NOT NULL"),
        partial("ix_transfers_run", "id", where="flow_run_id IS NOT NULL AND ended IS NULL AND owner IS NULL"),
        Index("ix_transfers_object_id", "object_id"),
        partial("ix_transfers_result", "result_object_id", where="result_object_id IS NOT NULL"),
        Index("ix_transfers_created", "created", "id"),
        partial("ix_transfers_created_by", "created_by", "created", "id", where="created_by IS NOT NULL"),
        # without the rest: SQLite would read all that has not ended by it, instead of by the index of what is wanted
        partial("ix_transfers_ended", "ended", where="ended IS NOT NULL"),
        partial("uq_transfers_flow_run_id", "flow_run_id", where="shared_run IS NULL", unique=True),
        partial("ix_transfers_shared", "flow_run_id", where="shared_run IS NOT NULL"),
        EARLY_VACUUM,
    )


class TransferTurn(Base):
    """Whose turn it is among the transfers of one priority: a row for each pair of machines that was served."""

    __tablename__ = "transfer_turns"

    priority: Mapped[str] = mapped_column(String(8), primary_key=True)
    pair: Mapped[str] = mapped_column(MachinePair, primary_key=True)
    """As `Transfer.share_pair`."""
    served: Mapped[int] = mapped_column(BigInteger)
    """The number of the turn that the pair had last; turns of a priority are numbered from 1."""
    last_group: Mapped[str] = mapped_column(ByteOrdered)
    """The group that was served last, as `Transfer.share_group`."""
    round_began: Mapped[datetime]
    """When the groups of the pair began to take turns; those of later transfers wait for the next round."""


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
    """What a later attempt must know: `intent`, `canonical`, `committed`, of a move `known`; of archives also `bundle`,
    and `restart` of a recall. Give it a new dict to change it."""
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_detail: Mapped[str | None] = mapped_column(Text)

    # with all that is counted of a batch (`models.transfers.items.count_items`)
    __table_args__ = (Index("ix_transfer_items_status", "transfer_id", "status", "number", "skipped"),)
