"""Transfers: accept a request, look it up. Movers' work on it is in `models.transfers.queue`, its ends are in `models.transfers.outcomes`.

Accepting is one transaction: claims, transfer row, outbox rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from datamanager.domain.archive_requests import (
    ActivateTerms,
    ArchiveTerms,
)
from datamanager.domain.location import Place, extracting_place
from datamanager.domain.requests import (
    BatchRequest,
    CopyRequest,
    DeleteRequest,
    GetExternalRequest,
    MoveRequest,
    Scheduled,
    TransferRequest,
)
from datamanager.domain.states import ObjectStatus, TransferKind
from datamanager.errors import InternalError, InvalidRequest, ObjectHeld, TaskNotFound
from datamanager.machines import Machines
from datamanager.sealing import Sealer
from datamanager.sources.terms.request_secrets import parted, sealed
from datamanager.sources.terms.source_validators import OPTION as IF_NEWER_THAN
from models.archive.submission import enter_activate, enter_archive
from models.batches.submission import enter_items
from models.core.outbox import post_request, post_transfer_event
from models.database import now, wake
from models.objects.catalogue import get_object, lock_object, require_usable
from models.objects.claims import claim_place, claim_reading, claim_writing
from models.tables import DataObject, Transfer
from models.transfers.secrets import keep


@dataclass(frozen=True, slots=True)
class Order:
    """A request that was validated: what, on which object, by whom it is waited for.

    `flow_run_id`: the Prefect run that asks (begun in its UI or by a schedule), which is then the transfer's key there.
    `reason`: why, when no client asks.
    `sealed`: the request's secrets, which it does not hold itself any more (see `sealed_order`).
    """

    kind: TransferKind
    request: TransferRequest
    object_id: UUID | None = None
    fail_fast: bool = False
    flow_run_id: UUID | None = None
    reason: str | None = None
    sealed: str | None = None


def sealed_order(order: Order, sealer: Sealer) -> Order:
    """Return the order with the secrets of its request sealed; one that has none, or sealed ones, as it is. Touches the
    key's file. Raises: SecretsUnreadable.
    """
    if not isinstance(order.request, GetExternalRequest) or order.sealed is not None:
        return order
    request, blob = sealed(order.request, sealer)
    return replace(order, request=request, sealed=blob)


def submit(session: Session, machines: Machines, order: Order) -> Transfer:
    """Accept an order: check it against the catalogue, claim what it needs, store it QUEUED and post it to the movers.

    Raises: ObjectNotFound, ObjectDeleted, ObjectArchived, ObjectActive, ObjectUnknown, ObjectBusy, DestinationExists,
    ObjectHeld (a delete), UnknownMachine, PathNotAllowed, InvalidRequest. Nothing is changed then, provided that the
    error ends the transaction. What is wrong with an item of a batch is the item's, and the batch is accepted.
    """
    transfer = Transfer(
        id=uuid4(),
        kind=_kind(order).value,
        request={},
        fail_fast=order.fail_fast,
        bandwidth=getattr(order.request, "bandwidth", None),
        priority=order.request.priority.value,
        flow_run_id=order.flow_run_id,
        reason=order.reason,
        created=now(session),
        attempts=0,
        epoch=0,
        sequence=0,
        bytes_done=0,
        faults=[],
        notes={},
    )
    _schedule(transfer, order.request)
    match order.request:
        case BatchRequest() as batch:
            enter_items(session, machines, transfer, batch, moving=order.kind is TransferKind.MOVE_MANY)
        case ArchiveTerms() as terms:
            enter_archive(session, machines, transfer, terms, order.object_id)
        case ActivateTerms() as terms:
            enter_activate(session, machines, transfer, terms, order.object_id)
        case _:
            _enter_one(session, machines, transfer, order)
    session.add(transfer)
    session.flush()
    if order.sealed is not None:
        keep(session, transfer.id, order.sealed)
    post_request(session, transfer)
    post_transfer_event(session, transfer, "queued", {})
    wake(session, "queued")
    return transfer


def _kind(order: Order) -> TransferKind:
    """Return what is to be done: a download whose files are wanted is asked for in the same words as any other."""
    if not isinstance(order.request, GetExternalRequest):
        return order.kind
    return TransferKind.GETEXTERNAL_MANY if order.request.extract else TransferKind.GETEXTERNAL


def _schedule(transfer: Transfer, request: Scheduled) -> None:
    """Note when the transfer may begin and must have ended. Raises: InvalidRequest when there is no time for it."""
    transfer.not_before = _moment(request.not_before, transfer.created)
    transfer.deadline = _moment(request.deadline, transfer.created)
    if transfer.deadline is None:
        return
    if transfer.deadline <= transfer.created:
        wanted = "must be in the future"
        raise InvalidRequest(f"deadline: {wanted}", {"deadline": wanted})
    if transfer.not_before is not None and transfer.not_before >= transfer.deadline:
        wanted = "must be before deadline"
        raise InvalidRequest(f"not_before: {wanted}", {"not_before": wanted})


def _moment(given: datetime | timedelta | None, asked: datetime) -> datetime | None:
    return asked + given if isinstance(given, timedelta) else given


def _enter_one(session: Session, machines: Machines, transfer: Transfer, order: Order) -> None:
    if isinstance(order.request, GetExternalRequest) and order.request != parted(order.request)[0]:
        raise InternalError("the request's secrets were not sealed")
    transfer.request = order.request.model_dump(mode="json")
    obj = _usable_source(session, machines, order)
    if obj is not None:
        transfer.object_id = obj.id
        transfer.source_place = obj.place
        if obj.status != ObjectStatus.ARCHIVED:  # to delete an archived one touches no machine
            transfer.source_machine = obj.machine
        transfer.group = obj.group
        transfer.bytes_total = obj.size
    destination = destination_of(machines, order.request)
    if destination is not None:
        transfer.destination_machine, transfer.destination_place = destination.machine, destination.path
    match order.request:
        case MoveRequest() | DeleteRequest():
            claim_writing(session, _id(obj), transfer.id)
        case CopyRequest():
            claim_reading(session, _id(obj), transfer.id)
            transfer.result_object_id = uuid4()
        case GetExternalRequest(size=size, group=group, options=options):
            if options.get(IF_NEWER_THAN):
                get_object(session, UUID(str(options[IF_NEWER_THAN])))
            transfer.result_object_id = None if order.request.extract else uuid4()
            transfer.group = group
            transfer.bytes_total = size
        case _:
            raise InternalError(f"{order.kind} without its items")
    if destination is not None:
        claim_place(session, destination, transfer=transfer.id)
    elif obj is not None and obj.status == ObjectStatus.UNKNOWN:
        # it holds no place: what lies there by now may be somebody else's, and must not be deleted
        claim_place(session, Place(obj.machine, obj.place), transfer=transfer.id)


def get_transfer(session: Session, transfer_id: UUID) -> Transfer:
    """Return a transfer. Raises: TaskNotFound."""
    found = session.get(Transfer, transfer_id)
    if found is None:
        raise TaskNotFound(f"no task has the identifier {transfer_id}")
    return found


def ended_among(session: Session, ids: list[UUID]) -> list[Transfer]:
    """Return those of the transfers that have ended."""
    return list(session.scalars(select(Transfer).where(Transfer.id.in_(ids), Transfer.ended.is_not(None))))


def destination_of(machines: Machines, request: TransferRequest) -> Place | None:
    """Return where the request wants its file, None for a delete. Raises: UnknownMachine, PathNotAllowed."""
    match request:
        case CopyRequest(machine=machine, dest=dest):
            return Place.of(machines[machine], dest)
        case GetExternalRequest(extract=str(), machine=machine, path=path, filename=filename):
            return extracting_place(machines[machine], path, filename)
        case GetExternalRequest(machine=machine, path=path, filename=filename):
            return Place.of(machines[machine], path, filename)
        case _:
            return None


def _usable_source(session: Session, machines: Machines, order: Order) -> DataObject | None:
    if order.object_id is None:
        return None
    obj = lock_object(session, order.object_id)
    require_usable(obj, removing=order.kind is TransferKind.DELETE)
    if order.kind is TransferKind.DELETE and obj.held_since is not None:
        raise ObjectHeld(f"object {obj.id} is held since {obj.held_since:%Y-%m-%d}: {obj.hold_reason or 'no reason'}")
    if obj.status != ObjectStatus.ARCHIVED:
        machines[obj.machine]  # raises UnknownMachine: its objects stay listed, but can't be worked on
    return obj


def _id(obj: DataObject | None) -> UUID:
    if obj is None:
        raise InvalidRequest("uuid: an object is needed", {"uuid": "the identifier of an object"})
    return obj.id


def find_by_flow_run(session: Session, flow_run_id: UUID) -> Transfer | None:
    """Return the transfer that a Prefect flow run performs, if it has one."""
    return session.scalar(select(Transfer).where(Transfer.flow_run_id == flow_run_id))
