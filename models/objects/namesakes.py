"""Objects whose file may be one that is at hand, under another name: what the engine then compares
(`datamanager.engine.single.same_file`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from uuid import UUID

from sqlalchemy import ColumnElement, bindparam, or_, select
from sqlalchemy.orm import Session

from datamanager.domain.bundle_model import manifest_place
from datamanager.domain.location import Place, folded
from datamanager.domain.states import BundleStatus, ObjectStatus
from models.database import table_of
from models.objects.bulk_claims import rows_in
from models.tables import Bundle, DataObject

CHUNK = 500
"""Rows read at once."""


def namesakes(
    session: Session, places: Collection[Place], *, folding: Collection[str] = (), rivals_of: DataObject | None = None
) -> list[Place]:
    """Return where the catalogue has files of the names of these places, in no order: of ACTIVE objects on any machine,
    and bundles. On the machines `folding` names that differ in case or Unicode form only are the same: all objects of
    such a machine are read.

    `rivals_of` a provisional object: of other provisional ones only those that were registered before.
    """
    active: list[ColumnElement[bool]] = [DataObject.status == ObjectStatus.ACTIVE.value]
    if rivals_of is not None:
        active += [or_(~DataObject.provisional, DataObject.date_registered < rivals_of.date_registered)]
    query = select(DataObject.machine, DataObject.place).where(*active)
    names = sorted({place.name for place in places})
    found = {Place(*row) for row in rows_in(session, query, DataObject.filename, names)}
    wanted = {folded(name) for name in names}
    for machine in folding:
        rows = session.execute(query.where(DataObject.machine == machine).execution_options(yield_per=CHUNK))
        found |= {place for row in rows if folded((place := Place(*row)).name) in wanted}
    found |= set(_bundles(session, names))
    return list(found)


def has_namesake(session: Session, place: Place) -> bool:
    """Say whether there are any `namesakes` of a place on machines that do not fold names."""
    if session.execute(_NAMED, {"name": place.name}).first() is not None:
        return True
    return any(_bundles(session, [place.name]))


_OBJECTS = table_of(DataObject)
_NAMED = (  # made once: it is asked for each file that is registered
    select(_OBJECTS.c.id)
    .where(_OBJECTS.c.filename == bindparam("name"), _OBJECTS.c.status == ObjectStatus.ACTIVE.value)
    .limit(1)
)


def _bundles(session: Session, names: Sequence[str]) -> Iterable[Place]:
    """Return the places of bundles, or of their manifests, that have one of these names."""
    known = set[UUID]()
    for name in names:
        try:
            known.add(UUID(name.partition(".")[0]))
        except ValueError:
            continue
    if not known:
        return
    there = select(Bundle.id, Bundle.machine, Bundle.place).where(Bundle.status != BundleStatus.REMOVED.value)
    for bundle, machine, path in rows_in(session, there, Bundle.id, known):
        place = Place(machine, path)
        yield from (one for one in (place, manifest_place(bundle, place)) if one.name in names)
