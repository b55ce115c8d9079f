"""Housekeeping: forget what is no longer needed, a bounded batch at a time, so that nobody waits for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from sqlalchemy import delete, select, tuple_
from sqlalchemy.orm import Session

from models.audit import runs as audit_runs
from models.core import idempotency, outbox
from models.database import affected, now
from models.external import schedules
from models.tables import Lease, Transfer, TransferItem
from models.tables.transfers import ITEMISED
from models.transfers.lookup import prune_secrets

BATCH = 1000
ITEMS_BATCH = 2000
DEAD_LEASE = timedelta(hours=1)
"""A lease that ran out this long ago belongs to a process that is gone."""


class Durations(Protocol):
    """How long things are kept; `datamanager.settings.Settings` is one."""

    @property
    def keep_transfers(self) -> timedelta:
        """Of ended transfers."""

    @property
    def keep_outbox(self) -> timedelta:
        """Of messages that were sent (without a broker: of all)."""

    @property
    def idempotency_keep(self) -> timedelta:
        """Of idempotency keys and their answers."""


@dataclass(frozen=True, slots=True)
class Tidied:
    """How many rows went."""

    items: int
    """Of batches; a batch goes when its last item has gone."""
    transfers: int
    messages: int
    keys: int
    leases: int
    moments: int
    """Of schedules, that left no version."""
    secrets: int
    """Of transfers that have ended: they go with the end, so there should be none."""
    findings: int
    """Of audits; an audit goes when its last finding has gone."""
    audits: int

    @property
    def more(self) -> bool:
        """Whether a batch was full, so that another call will find more."""
        few = max(self.transfers, self.messages, self.keys, self.secrets, self.audits)
        return few >= BATCH or max(self.items, self.findings) >= ITEMS_BATCH


def tidy(session: Session, durations: Durations, *, broker: bool) -> Tidied:
    """Forget at most BATCH old rows of each kind (ITEMS_BATCH of items and findings); call it again while there is
    `more`, in a transaction of its own, after LET_OTHERS.

    Objects are never forgotten. Any process may do it, several at once too.
    """
    findings, gone = audit_runs.prune(session, durations.keep_transfers, audits=BATCH, findings=ITEMS_BATCH)
    return Tidied(
        items=_prune_items(session, durations.keep_transfers),
        transfers=_prune_transfers(session, durations.keep_transfers),
        messages=outbox.prune(session, durations.keep_outbox, broker=broker, limit=BATCH),
        keys=idempotency.prune(session, durations.idempotency_keep, limit=BATCH),
        leases=affected(session, delete(Lease).where(Lease.until < now(session) - DEAD_LEASE)),
        secrets=prune_secrets(session, BATCH),
        findings=findings,
        audits=gone,
        moments=schedules.prune_runs(session, now(session) - durations.keep_transfers, BATCH),
    )


def _prune_items(session: Session, keep: timedelta) -> int:
    batches = select(Transfer.id).where(Transfer.ended < now(session) - keep, Transfer.kind.in_(ITEMISED))
    key = TransferItem.transfer_id, TransferItem.number
    some = select(*key).where(TransferItem.transfer_id.in_(batches)).limit(ITEMS_BATCH)
    return affected(session, delete(TransferItem).where(tuple_(*key).in_(some)))


def _prune_transfers(session: Session, keep: timedelta) -> int:
    """Forget transfers that have no items, or none any more."""
    items = select(TransferItem.number).where(TransferItem.transfer_id == Transfer.id)
    old = select(Transfer.id).where(Transfer.ended < now(session) - keep, ~items.exists()).limit(BATCH)
    return affected(session, delete(Transfer).where(Transfer.id.in_(old)))
