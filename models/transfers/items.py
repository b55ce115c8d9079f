"""The items of batches: look them up, count them, end those of a batch that was given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from datamanager.domain.states import TransferKind, TransferStatus
from datamanager.errors import DataManagerError, SourceNotRemoved
from models.core.cursors import Rendering, numbered_page
from models.database import storable, table_of
from models.objects.bulk_claims import execute_in
from models.tables import Transfer, TransferItem
from models.transfers.queue import DETAIL_MAX

KNOWN = "known"
"""The note of a move, and of an item that is one: what its object's file must be (size, sha256)."""

TO_DO = (
    *("number", "object_id", "source_machine", "source_place", "destination_machine", "destination_place", "dest"),
    *("size", "notes"),
)
"""What a mover has to know of an item."""


def known_note(size: int | None, checksum: str | None) -> dict[str, dict[str, int | str | None]]:
    """Return the note of what an object knows of its file."""
    return {KNOWN: {"size": size, "sha256": checksum.removeprefix("sha256:") if checksum else None}}


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """How many items a batch has: `total` is complete + error + queued; `skipped` are those of `complete` that were
    there already.
    """

    total: int = 0
    complete: int = 0
    skipped: int = 0
    error: int = 0
    queued: int = 0


def count_items(session: Session, transfer: UUID) -> BatchCounts:
    """Count the items of a batch."""
    items = table_of(TransferItem).c
    # in the order of the index, which has all that this looks at: nothing is sorted, and no row is read
    query = select(items.status, func.count(), func.count().filter(items.skipped)).group_by(items.status)
    found: dict[str, tuple[int, int]] = {
        status: (count, skipped)
        for status, count, skipped in session.execute(query.where(items.transfer_id == transfer))
    }

    def of(wanted: TransferStatus) -> int:
        return found.get(wanted.value, (0, 0))[0]

    return BatchCounts(
        total=sum(count for count, _ in found.values()),
        complete=of(TransferStatus.COMPLETE),
        skipped=sum(skipped for _, skipped in found.values()),
        error=of(TransferStatus.ERROR),
        queued=of(TransferStatus.QUEUED),
    )


def machines_of(session: Session, transfer: UUID) -> set[str]:
    """Return the machines that a batch's items touch, as clients named them."""
    ends = (TransferItem.source_machine, TransferItem.destination_machine)
    rows = session.execute(select(*ends).where(TransferItem.transfer_id == transfer).distinct())
    return {name for row in rows for name in row if name is not None}


def select_items(
    session: Session, transfer: UUID, *, status: TransferStatus | None = None, after: int = -1, limit: int
) -> list[TransferItem]:
    """Return up to `limit` items with a number above `after`, by number."""
    return list(session.scalars(_items(transfer, status, after).limit(limit)))


def _items(transfer: UUID, status: TransferStatus | None, after: int) -> Select[TransferItem]:
    query = select(TransferItem).where(TransferItem.transfer_id == transfer, TransferItem.number > after)
    if status is not None:
        query = query.where(TransferItem.status == status.value)
    return query.order_by(TransferItem.number)


def rows_of_items(
    session: Session, transfer: UUID, *, status: TransferStatus, after: int = -1, limit: int
) -> Sequence[Any]:
    """Return up to `limit` items with a number above `after`, by number: rows of plain columns (TO_DO), which cost less
    than objects of the session do.
    """
    items = table_of(TransferItem).c
    query = select(*(items[name] for name in TO_DO)).where(
        items.transfer_id == transfer, items.number > after, items.status == status.value
    )
    return session.execute(query.order_by(items.number).limit(limit)).all()


def page_of_items(
    session: Session,
    transfer: Transfer,
    *,
    status: TransferStatus | None = None,
    after: int = -1,
    limit: int,
    rendering: Rendering,
) -> tuple[list[Any], int | None]:
    """Return one page of the items with a number above `after`, shown as `rendering` says, and the number that the next
    page begins after (None at the end). The row, not its identifier: only who sees the transfer has it.
    """
    return numbered_page(session, _items(transfer.id, status, after), limit, rendering)


def in_doubt(session: Session, transfer: UUID) -> bool:
    """Say whether files of QUEUED items may have their names already: an intent was recorded, and no end."""
    intent = TransferItem.notes["intent"].as_string()
    query = select(TransferItem.number).where(
        TransferItem.transfer_id == transfer,
        TransferItem.status == TransferStatus.QUEUED.value,
        intent.is_not(None),
    )
    return session.scalar(query.limit(1)) is not None


def give_up_items(session: Session, row: Transfer, error: DataManagerError) -> None:
    """End the QUEUED items of a batch that itself ends in ERROR; its claims are freed with it."""
    queued = (TransferItem.transfer_id == row.id, TransferItem.status == TransferStatus.QUEUED.value)
    detail = storable(error.detail)[:DETAIL_MAX]
    ended = update(TransferItem).values(status=TransferStatus.ERROR.value)
    notes = session.execute(select(TransferItem.number, TransferItem.notes).where(*queued)).all()
    committed = [number for number, known in notes if known.get("committed")]
    where = "archived" if row.kind.startswith(TransferKind.ARCHIVE) else "at its new place"
    left = f"the object is {where}, but its source may still be there: {detail}"
    statement = ended.values(error_code=SourceNotRemoved.code, error_detail=left).where(*queued)
    execute_in(session, statement, TransferItem.number, committed)
    session.execute(ended.values(error_code=error.code, error_detail=detail).where(*queued))
