"""Claims: who holds a place or an object; and which parts of bundles are still needed.

A place is held by a live object or by a transfer under way. On an object readers share and writers exclude. All
functions work inside the caller's writing transaction, after `lock_object` where an object is concerned. Locks are
always taken in the order transfer row, object row, claim, so that two transactions never wait for each other. Those
for many at once are in `models.objects.bulk_claims`. Bundles are made in `models.archive.bundles`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import bindparam, delete, or_, select, update
from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.domain.states import BundleStatus
from datamanager.errors import DestinationExists, InternalError, ObjectBusy
from datamanager.identity.grant import Grant
from models.access.visibility import seen
from models.database import affected, insert_if_free, insert_rows, now, table_of
from models.tables import Bundle, BundleMember, Claim, DataObject, Transfer


def claim_place(
    session: Session,
    place: Place,
    *,
    transfer: UUID | None = None,
    object_id: UUID | None = None,
    by: Grant | None = None,
) -> None:
    """Hold a place for a transfer or for an object. Raises: DestinationExists; `by`: whose request it is."""
    values = {
        "mode": "place",
        "machine": place.machine,
        "place": place.path,
        "place_key": place_key(place),
        "transfer_id": transfer,
        "object_id": object_id,
    }
    if not insert_if_free(session, Claim, values):
        raise holder_of(session, place, by)


def holder_of(session: Session, place: Place, by: Grant | None) -> DestinationExists:
    """Return the error for a place that is held: it names the object or task that has it, if that is there still and
    `by` may read it.
    """
    query = select(Claim.transfer_id, Claim.object_id).where(Claim.mode == "place", Claim.place_key == place_key(place))
    row = session.execute(query).one_or_none()
    if row is not None and row.transfer_id is not None:
        tasks = select(Transfer.id).where(Transfer.id == row.transfer_id, *seen(by, "read:tasks").transfers())
        if session.scalar(tasks) is not None:
            return DestinationExists(f"{place} is held by task {row.transfer_id}", ("task", row.transfer_id))
    elif row is not None:
        objects = select(DataObject.id).where(DataObject.id == row.object_id, *seen(by, "read:objects").objects())
        if session.scalar(objects) is not None:
            return DestinationExists(f"{place} is held by object {row.object_id}", ("object", row.object_id))
    return DestinationExists(f"{place} is held by a registered object or a running transfer")


def claim_reading(session: Session, object_id: UUID, transfer: UUID) -> None:
    """Share an object with other readers. The caller has locked the object's row. Raises: ObjectBusy."""
    if _is_claimed(session, object_id, "write"):
        raise ObjectBusy(f"object {object_id} is being moved or deleted")
    insert_rows(session, Claim, [{"mode": "read", "object_id": object_id, "transfer_id": transfer}])


def claim_writing(session: Session, object_id: UUID, transfer: UUID) -> None:
    """Have an object alone. The caller has locked the object's row. Raises: ObjectBusy."""
    if _is_claimed(session, object_id, "read"):
        raise ObjectBusy(f"object {object_id} is being read by another transfer")
    if not insert_if_free(session, Claim, {"mode": "write", "object_id": object_id, "transfer_id": transfer}):
        raise ObjectBusy(f"object {object_id} is being moved or deleted")


def give_place_to_object(session: Session, place: Place, transfer: UUID, object_id: UUID) -> None:
    """Hand a transfer's place to the object that now lives there."""
    held = update(Claim).where(Claim.mode == "place", Claim.place_key == place_key(place))
    mine = held.where(Claim.transfer_id == transfer).values(transfer_id=None, object_id=object_id)
    if affected(session, mine) != 1:
        raise InternalError(f"{place} is not held by the expected owner; nothing was changed")


def give_places_to_transfer(session: Session, object_id: UUID, transfer: UUID) -> None:
    """Take its places from an object (two where links lead to it); a move keeps them until the source is removed."""
    held = update(Claim).where(Claim.mode == "place", Claim.object_id == object_id, Claim.transfer_id.is_(None))
    if not affected(session, held.values(transfer_id=transfer, object_id=None)):
        raise InternalError(f"object {object_id} holds no place; nothing was changed")


def holds_place(session: Session, place: Place, *, object_id: UUID, transfer: UUID) -> bool:
    """Say whether the object, or the transfer, holds a place already."""
    query = select(Claim.id).where(Claim.mode == "place", Claim.place_key == place_key(place))
    return session.scalar(query.where(or_(Claim.object_id == object_id, Claim.transfer_id == transfer))) is not None


def free_place_of_object(session: Session, object_id: UUID) -> None:
    """Free the place of an object that is no longer ACTIVE."""
    session.execute(
        delete(Claim).where(Claim.mode == "place", Claim.object_id == object_id, Claim.transfer_id.is_(None))
    )


def free_claims_of_transfer(session: Session, transfer: UUID) -> None:
    """Free all that an ended transfer held."""
    session.execute(delete(Claim).where(Claim.transfer_id == transfer))


def place_key(place: Place) -> str:
    """Return what a place is claimed under."""
    return hashlib.sha256(str(place).encode()).hexdigest()


_CLAIMS = table_of(Claim)
_CLAIMED = (  # made once: it is asked for each transfer
    select(_CLAIMS.c.id)
    .where(_CLAIMS.c.object_id == bindparam("object_id"), _CLAIMS.c.mode == bindparam("mode"))
    .limit(1)
)


def _is_claimed(session: Session, object_id: UUID, mode: str) -> bool:
    return session.execute(_CLAIMED, {"object_id": object_id, "mode": mode}).first() is not None


def release_parts(session: Session, objects: Sequence[UUID]) -> None:
    """Note that objects do not need their parts of bundles any more; a bundle that nobody needs then is UNNEEDED.

    The caller has the objects alone.
    """
    query = select(BundleMember.bundle_id).where(BundleMember.object_id.in_(objects), BundleMember.released.is_(None))
    touched = sorted(set(session.scalars(query)))
    for bundle in touched:  # always in one order, and before members are counted
        session.get_one(Bundle, bundle, with_for_update=True, populate_existing=True)
    mine = update(BundleMember).where(BundleMember.object_id.in_(objects), BundleMember.released.is_(None))
    session.execute(mine.values(released=now(session)))
    needed = select(BundleMember.bundle_id).where(BundleMember.bundle_id.in_(touched), BundleMember.released.is_(None))
    for bundle in set(touched) - set(session.scalars(needed.distinct())):
        session.get_one(Bundle, bundle).status = BundleStatus.UNNEEDED.value


def abandon_bundles(session: Session, transfer: UUID, *bundles: UUID) -> None:
    """Give up the bundles of a transfer (or just these) that were not sealed; what there is of them is removed later.

    The caller has the transfer's row locked.
    """
    mine = update(Bundle).where(Bundle.transfer_id == transfer, Bundle.status == BundleStatus.OPEN.value)
    if bundles:
        mine = mine.where(Bundle.id.in_(bundles))
    session.execute(mine.values(status=BundleStatus.ABANDONED.value))
