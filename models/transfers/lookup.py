"""Transfers, looked up. What movers do with them is in `queue`, how they end in `outcomes`."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from datamanager.domain.location import Place, extracting_place
from datamanager.domain.requests import CopyRequest, GetExternalRequest, TransferTerms
from datamanager.errors import TaskNotFound
from datamanager.machines import Machines
from models.tables import Transfer


def get_transfer(session: Session, transfer_id: UUID) -> Transfer:
    """Return a transfer. Raises: TaskNotFound."""
    found = session.get(Transfer, transfer_id)
    if found is None:
        raise TaskNotFound(f"no task has the identifier {transfer_id}")
    return found


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
