"""Transfers whose persons are not permitted them any more: found by all movers' looks, for many at once.

One that is not begun ends before a byte. One that a mover works on is flagged, and its mover stops it, as it does what
is cancelled: what is past its commit point comes to its own end. A grant that can't be read permits nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.domain.states import TransferKind, TransferStatus
from datamanager.errors import NotAllowed, ObjectNotFound
from datamanager.identity.grant import Grant
from datamanager.identity.roles import Roles
from models.access.permission import (
    NEEDS,
    may_be_destination,
    may_be_source,
    require_destination,
    require_source,
)
from models.access.standing import standing
from models.access.visibility import Columns
from models.objects.bulk_claims import chunks, rows_in
from models.tables import DataObject, Transfer, TransferItem
from models.transfers.queue import FORBID, PAUSE

ASKED = (
    *(Transfer.id, Transfer.kind, Transfer.grant, Transfer.group, Transfer.object_id),
    *(Transfer.destination_machine, Transfer.destination_place),
)
"""What is to be known of a transfer."""
_SOURCE = (DataObject.id, DataObject.group, DataObject.machine, DataObject.place, DataObject.created_by)


def refused(session: Session, rows: Sequence[Any], roles: Roles, users: Collection[str] = ()) -> set[UUID]:
    """Return those of the transfers (the columns ASKED of each) that are not permitted any more. The number of
    statements does not depend on how many there are, but for batches whose persons are permitted less than they were.
    `roles`, `users`: as `standing`.
    """
    asked = [row for row in rows if row.grant is not None]
    if not asked:
        return set()
    grants = {row.id: _read(row.grant) for row in asked}
    now_permitted = standing(session, {grant for grant in grants.values() if grant is not None}, roles, users)
    found, reduced = set[UUID](), list[tuple[Any, Grant]]()
    for row in asked:
        before = grants[row.id]
        grant = None if before is None else now_permitted[before]
        if before is None or grant is None:
            found.add(row.id)
        elif not grant.covers(before, _needed(row)):
            reduced.append((row, grant))
    sources = _sources(session, [row.object_id for row, _ in reduced if row.object_id is not None])
    return found | {row.id for row, grant in reduced if not _may(session, row, grant, sources)}


def forbid(session: Session, held: Collection[UUID], roles: Roles, users: Collection[str] = ()) -> list[UUID]:
    """Flag those of these transfers, which movers hold, that are not permitted any more, and return them: their movers
    stop them at their next look. Wants a writing session. Idempotent.
    """
    mine = Transfer.grant.is_not(None), Transfer.ended.is_(None), Transfer.owner.is_not(None)
    free = or_(Transfer.stop_requested.is_(None), Transfer.stop_requested == PAUSE)
    rows = rows_in(session, select(*ASKED).where(*mine, free), Transfer.id, held)
    found = sorted(refused(session, list(rows), roles, users))
    for some in chunks(found):
        flagged = update(Transfer).where(Transfer.id.in_(some), *mine, free).values(stop_requested=FORBID)
        session.execute(flagged.execution_options(synchronize_session=False))
    return found


def _needed(row: Any) -> tuple[str, ...]:
    needs = NEEDS[TransferKind(row.kind)]
    return tuple({*needs.source, *needs.destination})


def _read(value: dict[str, Any]) -> Grant | None:
    try:
        return _parsed(json.dumps(value, sort_keys=True))
    except NotAllowed:
        return None


@lru_cache(1000)
def _parsed(text: str) -> Grant:
    return Grant.from_json(json.loads(text))


def _sources(session: Session, objects: Iterable[UUID]) -> dict[UUID, Any]:
    return {row.id: row for row in rows_in(session, select(*_SOURCE), DataObject.id, set(objects))}


def _may(session: Session, row: Any, grant: Grant, sources: dict[UUID, Any]) -> bool:
    """Say whether a transfer is permitted still, by what its person is permitted now."""
    kind = TransferKind(row.kind)
    if kind.itemised and kind is not TransferKind.GETEXTERNAL_MANY:
        return session.execute(_forbidden_items(row.id, kind, grant).limit(1)).first() is None
    obj = sources.get(row.object_id)
    try:
        if obj is not None:
            require_source(grant, kind, obj)
        if row.destination_machine is not None and row.destination_place is not None:
            place = Place(row.destination_machine, row.destination_place)
            require_destination(grant, kind, place, row.group, None if obj is None else obj.created_by)
    except (NotAllowed, ObjectNotFound):
        return False
    return True


def _forbidden_items(transfer: UUID, kind: TransferKind, grant: Grant) -> Any:
    there = Columns(
        DataObject.group, TransferItem.destination_machine, TransferItem.destination_place, DataObject.created_by
    )
    may = and_(may_be_source(grant, kind), may_be_destination(grant, kind, there))
    query = select(TransferItem.number).join(DataObject, DataObject.id == TransferItem.object_id)
    open_ones = TransferItem.transfer_id == transfer, TransferItem.status == TransferStatus.QUEUED.value
    return query.where(*open_ones, may.is_not(True))
