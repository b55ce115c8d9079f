"""A page of transfers, newest first: what `GET /DM/async/status` lists."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from datamanager.domain.fields import Priority
from datamanager.domain.states import Phase, TransferKind, TransferStatus
from models.core.cursors import NEWEST, page_of
from models.tables import Transfer


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


def select_transfers(session: Session, wanted: TransferSelection) -> tuple[list[Transfer], str | None]:
    """Return one page and the cursor of the next one (None at the end). Raises: InvalidRequest for a bad cursor."""
    sort = NEWEST.removeprefix("-") if wanted.oldest_first else NEWEST
    query = select(Transfer).where(*_conditions(wanted))
    return page_of(session, query, Transfer.created, sort, wanted.limit, wanted.cursor)


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
