"""A directory whose objects are all ordinary is accepted by a few statements, each of which works on all of them.

Ordinary: each can be read or moved, and its place at the destination is free. Of any other directory nothing is changed
here, and its items are judged one by one (`models.batches.submission`). Both ways store and claim the same.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    ColumnElement,
    Integer,
    Row,
    Select,
    Uuid,
    and_,
    case,
    false,
    func,
    insert,
    literal,
    literal_column,
    null,
    select,
    true,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from datamanager.domain.fields import SIZE_MAX
from datamanager.domain.location import PART_SUFFIX, PATH_MAX, Place
from datamanager.domain.requests import DIRECTORY_MAX, BatchRequest, Directory
from datamanager.domain.states import TransferKind, TransferStatus
from datamanager.errors import RequestError
from datamanager.identity.grant import Grant
from datamanager.machines import Machine, Machines
from models.access.permission import may_be_destination, may_be_source, sources_of
from models.access.visibility import Columns, Visible
from models.batches.item_admission import prefix_of, require_some, select_below
from models.core.identifiers import numbered_id
from models.database import inserted, on_postgresql, table_of
from models.objects.bulk_claims import claim_objects_of_items, holders
from models.tables import Claim, DataObject, Transfer, TransferItem
from models.transfers.items import KNOWN

_objects, _items, _claims = table_of(DataObject), table_of(TransferItem), table_of(Claim)
_CHARACTER = 4
"""Bytes that a character has at most."""
_HALF = 2**32
"""Above which the upper half of a number is."""


def first_place_is_free(
    session: Session, machines: Machines, request: BatchRequest, directory: Directory, visible: Visible
) -> bool:
    """Say whether nothing holds the place that the first of the directory's objects that are seen is to get: of a batch
    that is repeated something does. False also where there is no such object. Only reads.

    Raises: UnknownMachine, PathNotAllowed.
    """
    target = machines[request.machine or ""]
    start = prefix_of(target, request.dest or "")
    query, cut = select_below(session, machines, directory, visible)
    first = session.execute(query.with_only_columns(_objects.c.place).order_by(_objects.c.place).limit(1)).first()
    if first is None:
        return False
    try:
        place = Place.of(target, start, first.place[cut:])
    except RequestError:
        return False
    return not holders(session, [place], _objects.c.id)


def enter_whole(
    session: Session,
    machines: Machines,
    transfer: Transfer,
    request: BatchRequest,
    directory: Directory,
    grant: Grant | None,
    *,
    moving: bool,
) -> int | None:
    """Claim for and store all objects that are seen below a directory as items, and write into `transfer` what they
    have in common. Return how many there are; None, and nothing is changed, if there is none, or one of them is not
    ordinary.

    Raises: UnknownMachine, PathNotAllowed, InvalidRequest when too much is below it.
    """
    target = machines[request.machine or ""]
    start, kind = prefix_of(target, request.dest or ""), TransferKind.MOVE_MANY if moving else TransferKind.COPY_MANY
    visible = sources_of(grant, kind)
    query, cut = select_below(session, machines, directory, visible)
    if not first_place_is_free(session, machines, request, directory, visible):
        return None
    path = _path(start, _objects.c.place, cut)
    facts = _facts(session, query, true() if grant is None else _is_permitted(grant, kind, target.name, path))
    require_some(machines, directory, facts.objects)
    if facts.permitted != facts.objects or not _fits(target, start, facts):
        return None
    given = f"{(request.dest or '').rstrip('/')}/" if request.dest else ""
    attempt = session.begin_nested()
    stored = _store(session, transfer.id, query, cut, target, (given, start), moving=moving)
    if stored != facts.objects or not _claim(session, transfer.id, stored, moving=moving):
        attempt.rollback()
        return None
    attempt.commit()
    transfer.source_machine, transfer.destination_machine = directory.machine, target.name
    transfer.group = facts.least if facts.least == facts.greatest else ""
    size = int(facts.upper) * _HALF + int(facts.lower)
    transfer.bytes_total = min(size, SIZE_MAX) if facts.sizes == facts.objects else None
    return stored


def _is_permitted(grant: Grant, kind: TransferKind, machine: str, path: ColumnElement[str]) -> ColumnElement[bool]:
    """Return the condition that an object may be copied or moved from its place to this one."""
    there = Columns(_objects.c.group, literal(machine), path, _objects.c.created_by)
    return and_(may_be_source(grant, kind), may_be_destination(grant, kind, there))


def _path(start: str, place: ColumnElement[str], cut: int) -> ColumnElement[str]:
    """Return where an object will be whose place has so many characters up to the directory."""
    return literal(f"{start}/" if start else "").concat(func.substr(place, cut + 1))


def _facts(session: Session, query: Select[*tuple[Any, ...]], permitted: ColumnElement[bool]) -> Row[*tuple[Any, ...]]:
    """Return what is to be known of all objects together, without looking at more than one too many."""
    may = case((permitted, 1), else_=0).label("may")
    wanted = _objects.c.size, _objects.c.group, _objects.c.place, may
    some = query.with_only_columns(*wanted).limit(DIRECTORY_MAX + 1).subquery().c
    return session.execute(
        select(
            func.count().label("objects"),
            func.count(some.size).label("sizes"),
            func.coalesce(func.sum(some.may), 0).label("permitted"),
            # in two halves: of SQLite's own sum more than 64 bits is an error
            func.coalesce(func.sum(some.size // _HALF), 0).label("upper"),
            func.coalesce(func.sum(some.size % _HALF), 0).label("lower"),
            func.min(some.group).label("least"),
            func.max(some.group).label("greatest"),
            func.max(func.length(some.place)).label("longest"),
            func.max(case((some.place.contains(PART_SUFFIX, autoescape=True), 1), else_=0)).label("reserved"),
        )
    ).one()


def _fits(target: Machine, start: str, facts: Row[*tuple[Any, ...]]) -> bool:
    """Say whether every object may be below `start`; names that are good at one place are good at another."""
    if facts.reserved or len(start.encode()) + 1 + facts.longest * _CHARACTER > PATH_MAX:
        return False
    here, archive = f"{start}/" if start else "", f"{target.archive_dir}/"
    return not (target.archive and (here.startswith(archive) or archive.startswith(here)))


def _store(
    session: Session,
    transfer: UUID,
    query: Select[*tuple[Any, ...]],
    cut: int,
    target: Machine,
    starts: tuple[str, str],
    *,
    moving: bool,
) -> int:
    """Store the items, numbered by place; return how many they are. `starts`: what destinations begin with, as the
    client gave it and normalised."""
    postgres = on_postgresql(session)
    if postgres:  # SQLite's writing transaction excludes others
        query = query.order_by(_objects.c.id).with_for_update()
    given, start = starts
    below = query.subquery("below").c
    path = func.substr(below.place, cut + 1)
    number = func.row_number().over(order_by=below.place) - literal_column("1", Integer)
    values: dict[str, Any] = {
        "transfer_id": literal(transfer, Uuid()),
        "number": number,
        "object_id": below.id,
        "result_object_id": below.id if moving else numbered_id(session, number),
        "source_machine": below.machine,
        "source_place": below.place,
        "destination_machine": literal(target.name),
        "destination_place": _path(start, below.place, cut),
        "dest": literal(given).concat(path),
        "size": below.size,
        "status": literal(TransferStatus.QUEUED.value),
        "skipped": false(),
        "notes": _known(below, postgres=postgres) if moving else literal({}, JSON()),
    }
    rows = select(*(value.label(name) for name, value in values.items()))
    return inserted(session, insert(_items).from_select(list(values), rows, include_defaults=False))


def _known(below: Any, *, postgres: bool) -> ColumnElement[Any]:
    """Return the note of what an object knows of its file, as `known_note` makes it."""
    made = func.json_build_object if postgres else func.json_object
    digest = case((below.checksum.startswith("sha256:"), func.substr(below.checksum, 8)), else_=below.checksum)
    sha256 = case((below.checksum != "", digest), else_=null())
    return made(KNOWN, made("size", below.size, "sha256", sha256), type_=JSON())


def _claim(session: Session, transfer: UUID, count: int, *, moving: bool) -> bool:
    """Claim the items' objects, and the places of what will lie there; say whether all could be had."""
    mine = _items.c.transfer_id == transfer
    postgres, where = on_postgresql(session), _items.c.destination_place
    # written out: SQLite uses partial indexes only for what it reads in the statement
    mode = _claims.c.mode != literal_column("'place'") if moving else _claims.c.mode == literal_column("'write'")
    # for each item: PostgreSQL, which knows nothing of rows just made, would compare each with every claim
    theirs = select(_claims.c.id).where(_claims.c.object_id == _items.c.object_id, mode).limit(1).scalar_subquery()
    if session.execute(select(_items.c.number).where(mine, theirs.is_not(None)).limit(1)).first() is not None:
        return False
    text = _items.c.destination_machine.concat(":").concat(where)
    key = func.encode(func.sha256(func.convert_to(text, "UTF8")), "hex") if postgres else func.dm_sha256(text)
    place: dict[str, Any] = {
        "mode": literal("place"),
        "machine": _items.c.destination_machine,
        "place": where,
        "place_key": key,
        "object_id": _items.c.result_object_id,
        "transfer_id": _items.c.transfer_id,
    }
    rows = select(*(value.label(f"its_{name}") for name, value in place.items())).where(mine)
    # by key: two transactions never wait for each other in a circle
    dialect = postgresql if postgres else sqlite
    places = dialect.insert(_claims).from_select(list(place), rows.order_by("its_place_key"), include_defaults=False)
    if inserted(session, places.on_conflict_do_nothing()) != count:
        return False
    claim_objects_of_items(session, transfer, "write" if moving else "read")
    return True
