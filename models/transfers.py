"""Transfers: accept a request, look it up. Movers' work on it is in `models.movers`, its ends are in `models.outcomes`.

Accepting is one transaction: claims, transfer row, outbox rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from datamanager.domain.location import Place, split_dest
from datamanager.domain.requests import (
    CopyRequest,
    DeleteRequest,
    GetExternalRequest,
    MoveRequest,
    TransferRequest,
)
from datamanager.domain.states import ObjectStatus, TransferKind
from datamanager.errors import InvalidRequest, TaskNotFound
from datamanager.machines import Machines
from models.claims import claim_place, claim_reading, claim_writing
from models.database import now, wake
from models.objects import lock_object, require_usable
from models.outbox import post_request, post_transfer_event
from models.tables import DataObject, Transfer

REQUEST_OF_KIND: dict[TransferKind, type[TransferRequest]] = {
    TransferKind.COPY: CopyRequest,
    TransferKind.MOVE: MoveRequest,
    TransferKind.GETEXTERNAL: GetExternalRequest,
    TransferKind.DELETE: DeleteRequest,
}


@dataclass(frozen=True, slots=True)
class Order:
    """A request that was validated: what, on which object, by whom it is waited for.

    `flow_run_id`: the Prefect run that asks (begun in its UI or by a schedule), which is then the transfer's key there.
    """

    kind: TransferKind
    request: TransferRequest
    object_id: UUID | None = None
    fail_fast: bool = False
    flow_run_id: UUID | None = None


def submit(session: Session, machines: Machines, order: Order) -> Transfer:
    """Accept an order: check it against the catalogue, claim what it needs, store it QUEUED and post it to the movers.

    Raises: ObjectNotFound, ObjectDeleted, ObjectArchived, ObjectUnknown, ObjectBusy, DestinationExists, UnknownMachine,
    PathNotAllowed, InvalidRequest. Nothing is changed then, provided that the error ends the transaction.
    """
    transfer = Transfer(
        id=uuid4(),
        kind=order.kind.value,
        request=order.request.model_dump(mode="json"),
        fail_fast=order.fail_fast,
        flow_run_id=order.flow_run_id,
        created=now(session),
        attempts=0,
        epoch=0,
        sequence=0,
        bytes_done=0,
        faults=[],
        notes={},
    )
    obj = _usable_source(session, machines, order)
    if obj is not None:
        transfer.object_id = obj.id
        transfer.source_machine, transfer.source_place = obj.machine, obj.place
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
        case GetExternalRequest(size=size, group=group):
            transfer.result_object_id = uuid4()
            transfer.group = group
            transfer.bytes_total = size
    if destination is not None:
        claim_place(session, destination, transfer=transfer.id)
    elif obj is not None and obj.status == ObjectStatus.UNKNOWN:
        # it holds no place: what lies there by now may be somebody else's, and must not be deleted
        claim_place(session, Place(obj.machine, obj.place), transfer=transfer.id)
    session.add(transfer)
    session.flush()
    post_request(session, transfer)
    post_transfer_event(session, transfer, "queued", {})
    wake(session, "queued")
    return transfer


def get_transfer(session: Session, transfer_id: UUID) -> Transfer:
    """Return a transfer. Raises: TaskNotFound."""
    found = session.get(Transfer, transfer_id)
    if found is None:
        raise TaskNotFound(f"no task has the identifier {transfer_id}")
    return found


def ended_among(session: Session, ids: list[UUID]) -> list[Transfer]:
    """Return those of the transfers that have ended."""
    return list(session.scalars(select(Transfer).where(Transfer.id.in_(ids), Transfer.ended.is_not(None))))


def request_of(transfer: Transfer) -> TransferRequest:
    """Return the transfer's request, typed again."""
    return REQUEST_OF_KIND[TransferKind(transfer.kind)].model_validate(transfer.request)


def destination_of(machines: Machines, request: TransferRequest) -> Place | None:
    """Return where the request wants its file, None for a delete. Raises: UnknownMachine, PathNotAllowed."""
    match request:
        case CopyRequest(machine=machine, dest=dest):
            return Place.of(machines[machine], *split_dest(dest))
        case GetExternalRequest(machine=machine, path=path, filename=filename):
            return Place.of(machines[machine], path, filename)
        case _:
            return None


def _usable_source(session: Session, machines: Machines, order: Order) -> DataObject | None:
    if order.object_id is None:
        return None
    obj = lock_object(session, order.object_id)
    require_usable(obj, unknown_too=order.kind is TransferKind.DELETE)
    machines[obj.machine]  # raises UnknownMachine: its objects stay listed, but can't be worked on
    return obj


def _id(obj: DataObject | None) -> UUID:
    if obj is None:
        raise InvalidRequest("uuid: an object is needed", {"uuid": "the identifier of an object"})
    return obj.id


def find_by_flow_run(session: Session, flow_run_id: UUID) -> Transfer | None:
    """Return the transfer that a Prefect flow run performs, if it has one."""
    return session.scalar(select(Transfer).where(Transfer.flow_run_id == flow_run_id))
