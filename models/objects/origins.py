"""Where objects came from, as the source described itself then; a transfer that finds nothing new ends here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from datamanager.domain.states import ObjectStatus
from models.database import storable
from models.tables import DataObject, Origin


def keep_origin(session: Session, object_id: UUID, note: Mapping[str, Any]) -> None:
    """Keep what a source said of a new object's bytes."""
    texts = {name: None if note[name] is None else storable(note[name]) for name in note}
    session.add(Origin(object_id=object_id, **texts))


def comparable(session: Session, object_id: UUID, where: tuple[str, str | None]) -> tuple[Origin, DataObject] | None:
    """Return an object that is ACTIVE and came from there, with its origin; None for any other."""
    obj, origin = session.get(DataObject, object_id), session.get(Origin, object_id)
    if obj is None or origin is None or obj.status != ObjectStatus.ACTIVE.value:
        return None
    url, mark = where
    return (origin, obj) if (origin.url, origin.url_mark) == (storable(url), mark) else None
