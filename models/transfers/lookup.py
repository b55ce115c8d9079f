"""Transfers, looked up one by one, by their runs and in pages; their requests, typed again, and the sealed secrets.

What movers do with transfers is in `queue`, how they end in `outcomes`. Secrets are written in the transaction that
makes a transfer and deleted in the one that ends it; only `datamanager.sealing` opens them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, or_, select
from sqlalchemy.orm import Session, defer

from datamanager.domain.archive_requests import (
    AcceptedActivate,
    AcceptedArchive,
    ActivateManyRequest,
    ActivateRequest,
    ArchiveManyRequest,
    ArchiveRequest,
)
from datamanager.domain.fields import Priority
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
from datamanager.domain.states import Phase, TransferKind, TransferStatus
from datamanager.errors import InternalError, TaskEnded, TaskNotFound
from datamanager.machines import Machines
from models.access.visibility import ALL, Visible, find_seen
from models.core.bounded_pages import Narrow, Search, bounded_page
from models.core.cursors import NEWEST, ROWS, Order, Rendering, page_of
from models.database import affected, now, take_turns
from models.tables import SealedSecrets, Transfer

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


def get_transfer(session: Session, transfer_id: UUID, visible: Visible, *, lock: bool = False) -> Transfer:
    """Return a transfer. Raises: TaskNotFound, also when it is not seen; NotAllowed when it may not be acted on."""
    if visible is ALL:
        found = session.get(Transfer, transfer_id, with_for_update=lock or None, populate_existing=lock)
    else:
        found = find_seen(session, Transfer, Transfer.id == transfer_id, visible, Visible.transfers, lock=lock)
    if found is None:
        raise TaskNotFound(f"no task has the identifier {transfer_id}")
    return found


def lock_open_transfer(session: Session, transfer_id: UUID, visible: Visible) -> Transfer:
    """Return a transfer that has not ended, locked. Raises: TaskEnded, and what `get_transfer` raises."""
    row = get_transfer(session, transfer_id, visible, lock=True)
    if row.ended is not None:
        raise TaskEnded(f"task {transfer_id} has ended in {row.status}")
    return row


def ended_among(session: Session, ids: list[UUID]) -> list[Transfer]:
    """Return those of the transfers that have ended."""
    return list(session.scalars(select(Transfer).where(Transfer.id.in_(ids), Transfer.ended.is_not(None))))


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
    held: Counter[str] = Counter()
    for _, _, priority, count in held_runs(session):
        held[priority] += count
    return dict(held)


def held_runs(session: Session) -> list[tuple[str | None, str | None, str, int]]:
    """Count what movers hold by source, destination and priority; transfers that share a run count as one."""
    by = Transfer.source_machine, Transfer.destination_machine, Transfer.priority  # as their index has it
    alone = func.count() - func.count(Transfer.shared_run)
    query = select(*by, alone + func.count(Transfer.shared_run.distinct())).group_by(*by)
    # who has ended has no owner; the index alone tells it all
    rows = session.execute(query.where(Transfer.owner.is_not(None)))
    return [(source, destination, priority, count) for source, destination, priority, count in rows]


def count_held(session: Session, host: str, pid: int) -> int:
    """Count what the mover of this process holds: leases name host, number, process and a random part."""
    mine = Transfer.owner.startswith(f"{host}-", autoescape=True), Transfer.owner.contains(f":{pid}-", autoescape=True)
    return session.scalar(select(func.count()).select_from(Transfer).where(*mine, Transfer.ended.is_(None))) or 0


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
    """Return the transfers that have these flow runs for themselves, by flow run."""
    mine = Transfer.flow_run_id.in_(flow_runs), Transfer.shared_run.is_(None)
    rows = session.scalars(select(Transfer).where(*mine))
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


@dataclass(frozen=True, slots=True)
class TransferSelection:
    """Which transfers are wanted; None: any. `machine` is at either end, `since` is included, `until` is not."""

    status: TransferStatus | None = None
    kind: TransferKind | None = None
    phase: Phase | None = None
    priority: Priority | None = None
    machine: str | None = None
    group: str | None = None
    object: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: int = 100
    cursor: str | None = None
    oldest_first: bool = False


def select_transfers(
    session: Session, wanted: TransferSelection, visible: Visible, rendering: Rendering = ROWS
) -> tuple[list[Any], str | None]:
    """Return one page of transfers, shown as `rendering` says, and the cursor of the next one (None at the end); their
    requests are read when they are asked for. A page may be short, or empty, although there is a next one, where
    `visible` is not ALL, or an object is wanted (`models.core.bounded_pages`). Raises: InvalidRequest for a bad cursor.
    """
    sort = NEWEST.removeprefix("-") if wanted.oldest_first else NEWEST
    late = defer(Transfer.request)
    narrows = list[Narrow]()
    if wanted.object is not None:  # few transfers have it: they are found by it, whatever else is wanted of them
        of_object = or_(Transfer.object_id == wanted.object, Transfer.result_object_id == wanted.object)
        narrows.append(Narrow(of_object, select(Transfer.id).where(of_object)))
    if visible.own:
        mine = Transfer.created_by == visible.person
        narrows.append(Narrow(mine, select(Transfer.id).where(mine)))
    if narrows or not visible.everything:
        order = Order(sort, (Transfer.created, Transfer.id))
        fits = [*_conditions(wanted), *visible.transfers()]
        search = Search(Transfer, order, (), fits, narrows, [late])
        return bounded_page(session, search, wanted.limit, wanted.cursor, rendering)
    query = select(Transfer).options(late).where(*_conditions(wanted))
    return page_of(session, query, Transfer.created, sort, wanted.limit, wanted.cursor, rendering)


def _conditions(wanted: TransferSelection) -> list[ColumnElement[bool]]:
    equal = {
        Transfer.status: wanted.status,
        Transfer.kind: wanted.kind,
        Transfer.phase: wanted.phase,
        Transfer.priority: wanted.priority,
        Transfer.group: wanted.group,
    }
    conditions: list[ColumnElement[bool]] = [
        column == str(value) for column, value in equal.items() if value is not None
    ]
    if wanted.object is not None:
        conditions.append(or_(Transfer.object_id == wanted.object, Transfer.result_object_id == wanted.object))
    if wanted.machine is not None:
        conditions.append(
            or_(Transfer.source_machine == wanted.machine, Transfer.destination_machine == wanted.machine)
        )
    if wanted.since is not None:
        conditions.append(Transfer.created >= wanted.since)
    if wanted.until is not None:
        conditions.append(Transfer.created < wanted.until)
    return conditions


def keep_secrets(session: Session, transfer: UUID, blob: str) -> None:
    """Keep the sealed secrets of a transfer that this transaction makes."""
    session.add(SealedSecrets(transfer_id=transfer, blob=blob, created=now(session)))


def sealed_of(session: Session, transfer: UUID) -> str | None:
    """Return the sealed secrets of a transfer; None when it has none, or has ended."""
    return session.scalar(select(SealedSecrets.blob).where(SealedSecrets.transfer_id == transfer))


def forget_secrets(session: Session, transfer: UUID) -> None:
    """Delete the secrets of a transfer that this transaction ends."""
    session.execute(delete(SealedSecrets).where(SealedSecrets.transfer_id == transfer))


def prune_secrets(session: Session, limit: int = 1000) -> int:
    """Delete up to `limit` secrets whose transfer has ended, or is gone; return how many. There should be none."""
    live = select(Transfer.id).where(Transfer.id == SealedSecrets.transfer_id, Transfer.ended.is_(None))
    left = select(SealedSecrets.transfer_id).where(~live.exists()).limit(limit)
    return affected(session, delete(SealedSecrets).where(SealedSecrets.transfer_id.in_(left)))
