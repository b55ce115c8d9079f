"""What people say of single objects: held, wanted until then, taken back from a rule."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from datamanager.domain.archive_requests import ActivateRequest
from datamanager.domain.retention_rules import Action
from datamanager.domain.states import ObjectStatus, TransferKind
from datamanager.errors import NotMarked, ObjectBusy, ObjectDeleted
from datamanager.identity.grant import Grant
from datamanager.machines import Machines
from models.access.visibility import Visible
from models.core.outbox import post_object_event
from models.database import now
from models.objects.catalogue import lock_object
from models.retention.marks import open_mark, void
from models.submission import TransferRequest, prepare, submit
from models.tables import Claim, DataObject, RetentionMark, Transfer


def hold(session: Session, object_id: UUID, visible: Visible, reason: str, by: str) -> DataObject:
    """Hold an object: it can't be deleted, and no rule touches it. One that is held already gets the new reason.

    A mark on it is void: when it is released, its rule begins anew, with its whole grace.

    Raises: ObjectNotFound, ObjectDeleted; ObjectBusy when its delete is under way.
    """
    obj = _lock_unless_deleting(session, object_id, visible)
    obj.held_since = obj.held_since or now(session)
    obj.hold_reason, obj.held_by = reason, by or None
    void(session, [(object_id, "held")])
    post_object_event(session, object_id, "held", {"reason": reason, "by": by or None, "group": obj.group})
    return obj


def release(session: Session, object_id: UUID, visible: Visible) -> DataObject:
    """Release an object; fine when it is not held. Raises: ObjectNotFound."""
    obj = lock_object(session, object_id, visible)
    if obj.held_since is not None:
        obj.held_since = obj.hold_reason = obj.held_by = None
        post_object_event(session, object_id, "released", {"group": obj.group})
    return obj


def set_expiry(session: Session, object_id: UUID, visible: Visible, expires: datetime | None) -> DataObject:
    """Note until when an object is wanted (None: for ever).

    Raises: ObjectNotFound, ObjectDeleted; ObjectBusy when its delete is under way, which would not heed it.
    """
    obj = _lock_unless_deleting(session, object_id, visible)
    obj.expires_at = expires
    return obj


def restore(
    session: Session, machines: Machines, object_id: UUID, visible: Visible, spare_for: timedelta, by: Grant | None
) -> tuple[DataObject, UUID | None]:
    """Take an object back from the rule that marked it, for a while; one that it archived is activated again.

    Returns the object, and the task that activates it. What was deleted can't come back.

    Raises: ObjectNotFound, ObjectDeleted; NotMarked when no rule did anything to it; ObjectBusy when the rule's
    transfer is under way; of the activation what `submit` raises.
    """
    obj = lock_object(session, object_id, visible)
    _require_there(obj)
    time = now(session)
    mark = open_mark(session, object_id)
    if mark is not None:
        if mark.transfer_id is not None:
            transfer = session.get(Transfer, mark.transfer_id)
            if transfer is not None and transfer.ended is None:
                raise ObjectBusy(f"object {object_id} is used by task {mark.transfer_id}; cancel that first")
        if obj.status != ObjectStatus.ARCHIVED or mark.action != Action.ARCHIVE:
            mark.closed, mark.outcome, mark.spared_until = time, "restored", time + spare_for
            mark.transfer_id = None
            return obj, None
    if obj.status != ObjectStatus.ARCHIVED:
        raise NotMarked(f"no rule of retention has marked object {object_id}")
    done = _archived_by(session, object_id)
    if done is None:
        raise NotMarked(f"object {object_id} was not archived by a rule of retention; activate it")
    request = TransferRequest(
        TransferKind.ACTIVATE, ActivateRequest(), object_id, reason="retention: restored", grant=by
    )
    transfer = submit(session, machines, prepare(request))
    done.spared_until = time + spare_for
    if done.closed is None:
        done.closed, done.outcome = time, "done"
    return obj, transfer.id


def _archived_by(session: Session, object_id: UUID) -> RetentionMark | None:
    """Return the mark by which an object was archived last."""
    query = select(RetentionMark).where(
        RetentionMark.object_id == object_id,
        RetentionMark.action == Action.ARCHIVE.value,
        RetentionMark.acted_run_id.is_not(None),
    )
    return session.scalar(query.order_by(RetentionMark.id.desc()).limit(1))


def _lock_unless_deleting(session: Session, object_id: UUID, visible: Visible) -> DataObject:
    obj = lock_object(session, object_id, visible)
    _require_there(obj)
    claimed = exists().where(Claim.transfer_id == Transfer.id, Claim.object_id == object_id, Claim.mode == "write")
    query = select(Transfer.id).where(claimed, Transfer.kind == TransferKind.DELETE.value, Transfer.ended.is_(None))
    going = session.scalar(query.limit(1))
    if going is not None:
        raise ObjectBusy(f"object {object_id} is being deleted by task {going}; cancel that first")
    return obj


def _require_there(obj: DataObject) -> None:
    if obj.status == ObjectStatus.DELETED:
        raise ObjectDeleted(f"object {obj.id} was deleted")
