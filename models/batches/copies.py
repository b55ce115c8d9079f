"""Copies of a batch that become objects, by statements that the database runs for all of them: what a copy has from its
source and its item never leaves the database; the mover gives only what it found of the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    CTE,
    ColumnElement,
    Select,
    String,
    case,
    column,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.orm import Session

from datamanager.domain.states import ObjectStatus, TransferStatus
from datamanager.errors import InternalError
from models.bulk_rows import among
from models.core.outbox import post_selected_object_events
from models.database import now, on_postgresql, table_of
from models.many_rows import given_rows
from models.objects.bulk_claims import held_by
from models.objects.catalogue import Facts
from models.tables import Claim, DataObject, Transfer, TransferItem

_items, _objects, _claims = table_of(TransferItem), table_of(DataObject), table_of(Claim)
_CARRIED = [_objects.c[name] for name in ("description", "metadata", "originator", "group")]
"""What a copy has from its source."""
_FOUND = [_objects.c[name] for name in ("size", "checksum", "verified", "not_kept", "acted_as")]
"""What a mover found of a file."""
_TOLD = ("machine", "place", "size", "checksum", "group", "created_by")
"""What events say of a copy."""


def enter_copies(session: Session, row: Transfer, results: Sequence[tuple[int, Facts]], *, objects_once: bool) -> None:
    """Make objects of QUEUED items (item number, what was found of the file), post `dm.object.copied`, end the items
    and free what they held. `objects_once`: no two items of the transfer are of one object.

    The caller has locked the transfer. All or nothing: raises InternalError where the transfer does not hold a place
    that it must have, SQLAlchemy's IntegrityError where an item lacks what an object must have.
    """
    numbers = [number for number, _ in results]
    queued = _items.c.transfer_id == row.id, _items.c.status == TransferStatus.QUEUED.value
    mine = *queued, among(session, _items.c.number, numbers)
    sources = select(_items.c.object_id).where(*mine)
    copies = select(_items.c.result_object_id).where(*mine)
    time = now(session)
    _lock(session, sources)
    given = _given(session, row, results)
    same = *queued, _items.c.transfer_id == given.c.transfer_id, _items.c.number == given.c.number
    _insert(session, given, same, time, row.created_by)
    told = select(_objects.c.id, given.c.event, *(_objects.c[name] for name in _TOLD)).order_by(_items.c.number)
    told = told.where(*same, _objects.c.id == _items.c.result_object_id)
    post_selected_object_events(session, "copied", told, time)
    places = _claims.c.mode == "place", held_by(row.id)
    lacking = ~exists().where(_claims.c.object_id == _items.c.result_object_id, *places)
    if session.execute(select(_items.c.number).where(*mine, lacking).limit(1)).first():
        raise InternalError(f"transfer {row.id} does not hold the expected places; nothing was changed")
    session.execute(update(_claims).where(_claims.c.object_id.in_(copies), *places).values(transfer_id=None))
    session.execute(update(_objects).where(_objects.c.id.in_(sources)).values(last_used=time))
    free = [_claims.c.object_id.in_(sources), held_by(row.id)]
    if not objects_once:
        needed = select(_items.c.object_id).where(*queued, ~among(session, _items.c.number, numbers))
        free.append(_claims.c.object_id.not_in(needed))
    session.execute(delete(_claims).where(*free))
    session.execute(update(_items).where(*same).values(status=TransferStatus.COMPLETE.value, size=given.c.size))


def _given(session: Session, row: Transfer, results: Sequence[tuple[int, Facts]]) -> CTE:
    """Return what is known of the files as a table, with the identifiers of their events."""
    columns = [_items.c.transfer_id, _items.c.number, *_FOUND, column("event", String)]
    rows = [
        (
            *(row.id, number, one.size, one.checksum, one.verified.value, list(one.not_kept) or None, one.acted_as),
            str(uuid4()),
        )
        for number, one in results
    ]
    return given_rows(session, columns, rows)


def _lock(session: Session, sources: Select[Any]) -> None:
    """Lock the sources by their identifiers, so that two transactions never wait for each other in a circle. On SQLite
    the writing transaction itself excludes others."""
    if on_postgresql(session):
        locked = select(_objects.c.id).where(_objects.c.id.in_(sources)).order_by(_objects.c.id).with_for_update()
        session.execute(select(func.count()).select_from(locked.subquery()))


def _insert(
    session: Session, given: CTE, same: Sequence[ColumnElement[bool]], time: datetime, created_by: str | None
) -> None:
    source = _objects.alias("source")
    values: dict[str, ColumnElement[Any]] = {
        "id": _items.c.result_object_id,
        "machine": _items.c.destination_machine,
        "place": _items.c.destination_place,
        "path": _directory(_items.c.dest),
        "filename": func.substr(_items.c.destination_place, func.length(_up_to_name(_items.c.destination_place)) + 1),
        "derived_from": _items.c.object_id,
        "status": literal(ObjectStatus.ACTIVE.value),
        "date_registered": literal(time, _objects.c.date_registered.type),
        "date_modified": literal(time, _objects.c.date_modified.type),
        "created_by": literal(created_by, _objects.c.created_by.type),
    }
    values |= {one.name: source.c[one.name] for one in _CARRIED} | {one.name: given.c[one.name] for one in _FOUND}
    # without its source an item has no description, which every object must have: it fails, and is not left out
    rows = select(*values.values()).select_from(
        given.join(_items, same[-1]).outerjoin(source, source.c.id == _items.c.object_id)
    )
    session.execute(insert(_objects).from_select(list(values), rows.where(*same)))


def _up_to_name(path: ColumnElement[str]) -> ColumnElement[str]:
    """Return a path without its last name, with the slash before it."""
    return func.rtrim(path, func.replace(path, "/", ""))


def _directory(dest: ColumnElement[str]) -> ColumnElement[str]:
    """Return the directory of a destination, as `datamanager.domain.location.split_dest` does."""
    before = _up_to_name(dest)
    return case((before.in_(("", "/")), before), else_=func.substr(before, 1, func.length(before) - 1))
