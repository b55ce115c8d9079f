"""Transfers, looked up, also as Prefect's limits and states are compared with them; and their requests, typed again.
What movers do with transfers is in `queue`, how they end in `outcomes`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from datamanager.domain.archive_requests import (
    AcceptedActivate,
    AcceptedArchive,
    ActivateManyRequest,
    ActivateRequest,
    ArchiveManyRequest,
    ArchiveRequest,
)
from datamanager.domain.location import Place, extracting_place
from datamanager.domain.requests import (
    AcceptedBatch,
    CopyManyRequest,
    CopyRequest,
    DeleteRequest,
    GetExternalRequest,
    MoveManyRequest,
    MoveRequest,
    TransferTerms,
)
from datamanager.domain.states import TransferKind
from datamanager.errors import InternalError, TaskEnded, TaskNotFound
from datamanager.machines import Machines
from models.database import take_turns
from models.tables import Transfer

R = TypeVar("R", bound=TransferTerms)

REQUEST_OF_KIND: dict[TransferKind, type[TransferTerms]] = {
    TransferKind.COPY: CopyRequest,
    TransferKind.MOVE: MoveRequest,
    TransferKind.GETEXTERNAL: GetExternalRequest,
    TransferKind.DELETE: DeleteRequest,
    TransferKind.COPY_MANY: CopyManyRequest,
    TransferKind.MOVE_MANY: MoveManyRequest,
    TransferKind.ARCHIVE: ArchiveRequest,
    TransferKind.ACTIVATE: ActivateRequest,
    TransferKind.ARCHIVE_MANY: ArchiveManyRequest,
    TransferKind.ACTIVATE_MANY: ActivateManyRequest,
    TransferKind.GETEXTERNAL_MANY: GetExternalRequest,
}
"""The model of a request of each kind, as it comes in."""
KEPT_OF_KIND: dict[TransferKind, type[TransferTerms]] = REQUEST_OF_KIND | {
    TransferKind.COPY_MANY: AcceptedBatch,
    TransferKind.MOVE_MANY: AcceptedBatch,
    TransferKind.ARCHIVE_MANY: AcceptedArchive,
    TransferKind.ACTIVATE_MANY: AcceptedActivate,
}
"""The same as it is kept on the row."""

_LOCK = 0x646D736C  # of `take_turns`; no other number of ours


def get_transfer(session: Session, transfer_id: UUID, *, lock: bool = False) -> Transfer:
    """Return a transfer. Raises: TaskNotFound."""
    found = session.get(Transfer, transfer_id, with_for_update=lock or None, populate_existing=lock)
    if found is None:
        raise TaskNotFound(f"no task has the identifier {transfer_id}")
    return found


def lock_open_transfer(session: Session, transfer_id: UUID) -> Transfer:
    """Return a transfer that has not ended, locked. Raises: TaskNotFound, TaskEnded."""
    row = get_transfer(session, transfer_id, lock=True)
    if row.ended is not None:
        raise TaskEnded(f"task {transfer_id} has ended in {row.status}")
    return row


def ended_among(session: Session, ids: list[UUID]) -> list[Transfer]:
    """Return those of the transfers that have ended."""
    return list(session.scalars(select(Transfer).where(Transfer.id.in_(ids), Transfer.ended.is_not(None))))


def find_by_flow_run(session: Session, flow_run_id: UUID) -> Transfer | None:
    """Return the transfer that a Prefect flow run performs, if it has one."""
    return session.scalar(select(Transfer).where(Transfer.flow_run_id == flow_run_id))


def destination_of(machines: Machines, request: TransferTerms) -> Place | None:
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


def held_by_priority(session: Session) -> dict[str, int]:
    """Count what all movers hold, by priority, and keep others from counting until this transaction has ended.

    So two movers never both take the last slot.
    """
    take_turns(session, _LOCK)
    query = select(Transfer.priority, func.count().label("held")).group_by(Transfer.priority)
    rows = session.execute(query.where(Transfer.owner.is_not(None), Transfer.ended.is_(None)))
    return {row.priority: row.held for row in rows}


def unheld_with_a_run(session: Session, limit: int, *, beyond: UUID | None = None) -> list[Transfer]:
    """Return up to `limit` transfers that wait although their run exists, by identifier, those `beyond` one.

    They have been worked on before: what was never taken has no run yet.
    """
    query = (
        select(Transfer)
        .where(Transfer.ended.is_(None), Transfer.owner.is_(None), Transfer.flow_run_id.is_not(None))
        .order_by(Transfer.id)
        .limit(limit)
    )
    if beyond is not None:
        query = query.where(Transfer.id > beyond)
    return list(session.scalars(query))


def by_flow_run(session: Session, flow_runs: Collection[UUID]) -> dict[UUID, Transfer]:
    """Return the transfers of these flow runs, by flow run."""
    rows = session.scalars(select(Transfer).where(Transfer.flow_run_id.in_(flow_runs)))
    return {row.flow_run_id: row for row in rows if row.flow_run_id is not None}


def request_as(transfer: Transfer, model: type[R], what: str) -> R:
    """Return the request of a transfer that must be a `what`. Raises: InternalError for another one."""
    request = request_of(transfer)
    if not isinstance(request, model):
        raise InternalError(f"transfer {transfer.id} is not a {what}")
    return request


def request_of(transfer: Transfer) -> TransferTerms:
    """Return the transfer's request, typed again; of a batch what is kept of it."""
    return KEPT_OF_KIND[TransferKind(transfer.kind)].model_validate(transfer.request)
