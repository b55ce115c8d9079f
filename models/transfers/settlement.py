"""Provisional places: of objects that were registered while nobody could look whose file that is. Before such a file is
removed or moved the place is settled.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.domain.states import ObjectStatus
from models.access.visibility import ALL
from models.objects.bulk_claims import rows_in
from models.objects.catalogue import lock_object
from models.objects.claims import claim_place, holds_place
from models.tables import DataObject
from models.transfers.queue import TransferLease, held


def unsettled(session: Session, objects: Iterable[UUID]) -> list[DataObject]:
    """Return those of the objects whose places are provisional; or not held at all, which is so of UNKNOWN ones."""
    query = select(DataObject).where(or_(DataObject.provisional, DataObject.status == ObjectStatus.UNKNOWN.value))
    return [row for (row,) in rows_in(session, query, DataObject.id, set(objects))]


def settle(session: Session, hold: TransferLease, object_id: UUID, canonical: Place) -> None:
    """Note that an object's file is its own, and hold its canonical place too: for the object, or for the transfer if
    the object is UNKNOWN. Idempotent. Raises: LeaseLost; DestinationExists when somebody else holds that place.
    """
    row = held(session, hold, lock=True)
    obj = lock_object(session, object_id, ALL)
    if not holds_place(session, canonical, object_id=obj.id, transfer=row.id):
        if obj.status == ObjectStatus.ACTIVE.value:
            claim_place(session, canonical, object_id=obj.id)
        else:
            claim_place(session, canonical, transfer=row.id)
    obj.provisional = False
