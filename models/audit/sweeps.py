"""What sweeps read of the catalogue: whose partial files are still needed, and where bundles are written."""

from __future__ import annotations

import posixpath
from collections.abc import Collection
from uuid import UUID, uuid5

from sqlalchemy import select
from sqlalchemy.orm import Session

from datamanager.domain.states import BundleStatus, TransferKind, TransferStatus
from models.tables import Bundle, Transfer, TransferItem

DIGITS = 8
"""Of a transfer's identifier, in the names of its partial files."""
CHUNK = 1000
FAILED_MAX = 10_000


def open_owners(session: Session, owners: Collection[str]) -> set[str]:
    """Return those of the owners (first hex digits of a transfer, or of an item of one) that have not ended.

    Two may share their first digits: then the file of an ended one stays until the other has ended too.
    """
    wanted, found = set(owners), set[str]()
    if not wanted:
        return found
    query = select(Transfer.id, Transfer.kind).where(Transfer.ended.is_(None))
    itemised = list[UUID]()
    for transfer, kind in session.execute(query.execution_options(yield_per=CHUNK)):
        if (digits := transfer.hex[:DIGITS]) in wanted:
            found.add(digits)
        if TransferKind(kind).itemised:
            itemised.append(transfer)
    for transfer in itemised:
        if wanted <= found:
            break
        items = select(TransferItem.number).where(TransferItem.transfer_id == transfer)
        for number in session.scalars(items.execution_options(yield_per=CHUNK)):
            # what `engine.chunk.item_id` makes
            if (digits := uuid5(transfer, str(number)).hex[:DIGITS]) in wanted:
                found.add(digits)
    return found


def failed_directories(session: Session, machine: str) -> set[str]:
    """Return the directories that transfers which ended in ERROR were to write to, the newest FAILED_MAX."""
    query = select(Transfer.destination_place).where(
        Transfer.destination_machine == machine,
        Transfer.destination_place.is_not(None),
        Transfer.ended.is_not(None),
        Transfer.status == TransferStatus.ERROR.value,
    )
    places = session.scalars(query.order_by(Transfer.ended.desc()).limit(FAILED_MAX))
    return {posixpath.dirname(place) for place in places if place is not None}


def bundle_directories(session: Session, machine: str) -> set[str]:
    """Return the directories that bundles of a machine lie in, or lay in: one a month."""
    query = select(Bundle.place).where(Bundle.machine == machine, Bundle.status != BundleStatus.REMOVED.value)
    found = set[str]()
    for place in session.scalars(query.execution_options(yield_per=CHUNK)):
        found.add(posixpath.dirname(place))
    return found
