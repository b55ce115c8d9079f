"""Copies of a batch that become objects, by statements that the database runs for all of them: what a copy has from its
source and its item never leaves the database; the mover gives only what it found of the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Select,
    and_,
    case,
    delete,
    func,
    insert,
    literal,
    select,
    type_coerce,
    update,
)
from sqlalchemy.orm import Session
from sqlalchemy.types import NullType

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
    if not results:
        return
    numbers = [number for number, _ in results]
    queued = _items.c.transfer_id == row.id, _items.c.status == TransferStatus.QUEUED.value
    mine = *queued, _among(session, numbers)
    sources = select(_items.c.object_id).where(*mine)
    copies = select(_items.c.result_object_id).where(*mine)
    time = now(session)
    _lock(session, sources)
    _insert(session, _given(session, row, results), queued, time, row.created_by)
    told = select(_objects.c.id, *(_objects.c[name] for name in _TOLD)).order_by(_items.c.number)
    told = told.where(*mine, _objects.c.id == _items.c.result_object_id)
    made = post_selected_object_events(session, "copied", told, time)
    places = _claims.c.object_id.in_(copies), _claims.c.mode == "place", held_by(row.id)
    given_away = update(_claims).where(*places).values(transfer_id=None)
    # as they are stored: nobody looks at these identifiers
    if len(set(session.scalars(given_away.returning(type_coerce(_claims.c.object_id, NullType()))))) != made:
        raise InternalError(f"transfer {row.id} does not hold the expected places; nothing was changed")
    session.execute(update(_objects).where(_objects.c.id.in_(sources)).values(last_used=time))
    free = [_claims.c.object_id.in_(sources), held_by(row.id)]
    if not objects_once:
        needed = select(_items.c.object_id).where(*queued, ~_among(session, numbers))
        free.append(_claims.c.object_id.not_in(needed))
    session.execute(delete(_claims).where(*free))
    size = select(_objects.c.size).where(_objects.c.id == _items.c.result_object_id).scalar_subquery()
    session.execute(update(_items).where(*mine).values(status=TransferStatus.COMPLETE.value, size=size))


def _among(session: Session, numbers: Sequence[int]) -> ColumnElement[bool]:
    """Return the condition that an item has one of the numbers: mostly these are all from the first to the last."""
    first, last = min(numbers), max(numbers)
    if last - first + 1 == len(numbers):
        return _items.c.number.between(first, last)
    return among(session, _items.c.number, numbers)


def _given(session: Session, row: Transfer, results: Sequence[tuple[int, Facts]]) -> CTE:
    """Return what is known of the files as a table."""
    rows = [
        (number, one.size, one.checksum, one.verified.value, list(one.not_kept) or None, one.acted_as)
        for number, one in results
    ]
    return given_rows(session, [_items.c.number, *_FOUND], rows, {_items.c.transfer_id: row.id})


def _lock(session: Session, sources: Select[Any]) -> None:
    """Lock the sources by their identifiers, so that two transactions never wait for each other in a circle. On SQLite
    the writing transaction itself excludes others."""
    if on_postgresql(session):
        locked = select(_objects.c.id).where(_objects.c.id.in_(sources)).order_by(_objects.c.id).with_for_update()
        session.execute(select(func.count()).select_from(locked.subquery()))


def _insert(
    session: Session, given: CTE, queued: Sequence[ColumnElement[bool]], time: datetime, created_by: str | None
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
    same = _items.c.transfer_id == given.c.transfer_id, _items.c.number == given.c.number
    rows = select(*values.values()).select_from(
        given.join(_items, and_(*same)).outerjoin(source, source.c.id == _items.c.object_id)
    )
    session.execute(insert(_objects).from_select(list(values), rows.where(*queued)))


def _up_to_name(path: ColumnElement[str]) -> ColumnElement[str]:
    """Return a path without its last name, with the slash before it."""
    return func.rtrim(path, func.replace(path, "/", ""))


def _directory(dest: ColumnElement[str]) -> ColumnElement[str]:
    """Return the directory of a destination, as `datamanager.domain.location.split_dest` does."""
    before = _up_to_name(dest)
    return case((before.in_(("", "/")), before), else_=func.substr(before, 1, func.length(before) - 1))
