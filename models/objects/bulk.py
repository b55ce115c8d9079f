"""Many objects at once: enter them, tell of them. One statement for all, where `models.objects.catalogue` has one for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from uuid import UUID, uuid4

from sqlalchemy import Table, insert
from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.domain.states import ObjectStatus
from models.core.outbox import EVENTS_EXCHANGE, cloud_event
from models.database import now
from models.objects.bulk_claims import claim_places
from models.objects.catalogue import Facts
from models.tables import DataObject, OutboxMessage

_objects = cast(Table, DataObject.__table__)
_outbox = cast(Table, OutboxMessage.__table__)


@dataclass(frozen=True, slots=True)
class NewRow:
    """An object that is to be entered; `path` is its directory as the client gave it."""

    id: UUID
    place: Place
    facts: Facts
    path: str
    description: str
    originator: str
    group: str
    metadata: dict[str, Any]
    derived_from: UUID | None = None


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of a tree: its place, its directory as the client would give it, what is known of its bytes, and its
    canonical place (another one than `place` where links lead to it).
    """

    place: Place
    path: str
    facts: Facts
    canonical: Place


def register_files(
    session: Session, files: Sequence[FoundFile], *, description: str, originator: str, group: str, metadata: Any
) -> list[NewRow]:
    """Enter the files whose places are free, and return them, in the order of `files`.

    Left out are those that a registered object or a transfer under way has already.
    """
    rows = [
        NewRow(uuid4(), file.place, file.facts, file.path, description, originator, group, metadata) for file in files
    ]
    wanted = [(row.place, row.id) for row in rows]
    wanted += [(file.canonical, row.id) for file, row in zip(files, rows, strict=True) if file.canonical != file.place]
    won = claim_places(session, wanted, transfer=None)
    entered = [row for row in rows if row.id in won]
    add_objects(session, entered, "registered")
    return entered


def add_objects(session: Session, rows: Sequence[NewRow], event: str) -> None:
    """Insert ACTIVE objects whose places are already claimed, and tell of them (`dm.object.{event}`)."""
    if not rows:
        return
    time = now(session)
    values = [
        {
            "id": row.id,
            "machine": row.place.machine,
            "path": row.path,
            "filename": row.place.name,
            "place": row.place.path,
            "description": row.description,
            "size": row.facts.size,
            "metadata": row.metadata,
            "date_registered": time,
            "date_modified": time,
            "status": ObjectStatus.ACTIVE.value,
            "originator": row.originator,
            "group": row.group,
            "checksum": row.facts.checksum,
            "verified": row.facts.verified.value,
            "derived_from": row.derived_from,
        }
        for row in rows
    ]
    session.execute(insert(_objects), values)
    post_object_events(
        session,
        event,
        (
            (
                row.id,
                {
                    "machine": row.place.machine,
                    "place": row.place.path,
                    "size": row.facts.size,
                    "checksum": row.facts.checksum,
                    "group": row.group,
                },
            )
            for row in rows
        ),
        time,
    )


def post_object_events(
    session: Session, event: str, told: Iterable[tuple[UUID, dict[str, Any]]], time: datetime
) -> None:
    """Tell of objects' changes (`dm.object.{event}`), as `models.core.outbox.post_object_event` does of one."""
    kind = f"dm.object.{event}"
    rows = [
        {
            "exchange": EVENTS_EXCHANGE,
            "routing_key": kind,
            "subject": object_id,
            "body": cloud_event(kind, object_id, time, {"object": str(object_id), **data}),
            "created": time,
        }
        for object_id, data in told
    ]
    if rows:
        session.execute(insert(_outbox), rows)
