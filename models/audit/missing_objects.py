"""Objects whose file a transfer did not find: looked at once more, later, and UNKNOWN when it is not there then either.

One look proves nothing: a file is being replaced, or a server forgets for a moment. A note is a lease that nobody has:
it runs out when the second look is due, and whoever makes that look holds it meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.domain.states import ObjectStatus
from models.access.visibility import ALL
from models.audit.findings import claimed, is_same
from models.core.leases import drop_lease, hold_lease
from models.core.outbox import post_object_event
from models.database import insert_free, now
from models.objects.bulk_claims import rows_in
from models.objects.catalogue import get_object, told_of
from models.objects.claims import free_place_of_object
from models.tables import DataObject, Lease

PREFIX = "missing:"
SECOND_LOOK = timedelta(seconds=60)
"""From the transfer's failure to the second look, and from one that could not be made to the next."""


@dataclass(frozen=True, slots=True)
class MissingObject:
    """An object that is to be looked at again, and what its row was when its file was not found."""

    id: UUID
    place: Place
    expected: dict[str, Any]
    alone: bool
    """It is the machine's only ACTIVE object, so its base_dir may be empty."""


def note_missing(session: Session, objects: Collection[UUID]) -> None:
    """Have the files of those of the objects that are ACTIVE looked for again. Idempotent."""
    until = now(session) + SECOND_LOOK
    columns = select(DataObject.id, DataObject.status, DataObject.date_modified)
    rows = [
        {
            "name": f"{PREFIX}{row.id}",
            "holder": "",
            "until": until,
            "details": {"status": row.status, "modified": row.date_modified.isoformat()},
        }
        for row in rows_in(session, columns, DataObject.id, objects)
        if row.status == ObjectStatus.ACTIVE
    ]
    if rows:
        insert_free(session, Lease, rows, "name")


def any_due(session: Session) -> bool:
    """Say whether there is a second look to make: a look that needs no writing transaction."""
    return session.scalar(select(Lease.name).where(*_due(session)).limit(1)) is not None


def take_due(session: Session, owner: str, machines: Collection[str], limit: int) -> list[MissingObject]:
    """Take up to `limit` second looks that are due, at objects of these machines; nobody else gets them meanwhile.

    What is no longer as it was needs none. Wants a writing session.
    """
    taken = []
    for lease in session.scalars(select(Lease).where(*_due(session)).order_by(Lease.name).limit(limit)):
        obj = session.get(DataObject, UUID(lease.name.removeprefix(PREFIX)))
        if obj is None or not is_same(obj, lease.details):
            session.delete(lease)
        elif hold_lease(session, lease.name, owner, SECOND_LOOK) and obj.machine in machines:
            taken.append(MissingObject(obj.id, Place(obj.machine, obj.place), lease.details, _is_alone(session, obj)))
    return taken


def settle(session: Session, owner: str, missing: MissingObject, *, there: bool) -> bool:
    """Note what the second look found; say whether the object became UNKNOWN: its place is free then.

    One that a transfer has claimed meanwhile is looked at again later. Wants a writing session.
    """
    obj = get_object(session, missing.id, ALL, lock=True)
    gone = not there and is_same(obj, missing.expected)
    if gone and claimed(session, [obj.id]):
        return False
    if gone:
        obj.status = ObjectStatus.UNKNOWN.value
        obj.date_modified = now(session)
        free_place_of_object(session, obj.id)
        post_object_event(session, obj.id, "lost", told_of(obj))
    drop_lease(session, f"{PREFIX}{missing.id}", owner)
    return gone


def _is_alone(session: Session, obj: DataObject) -> bool:
    others = (
        DataObject.machine == obj.machine,
        DataObject.status == ObjectStatus.ACTIVE.value,
        DataObject.id != obj.id,
    )
    return session.scalar(select(DataObject.id).where(*others).limit(1)) is None


def _due(session: Session) -> tuple[Any, ...]:
    return Lease.name.startswith(PREFIX), Lease.until <= now(session)
