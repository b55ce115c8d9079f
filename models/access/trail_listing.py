"""Pages of the audit trail, the newest rows first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.orm import Session

from models.access.trail import TrailOutcome
from models.core.bounded_pages import Narrow, Search, bounded_page
from models.core.cursors import Order, Rendering
from models.tables import TrailEntry

ORDER = Order("-time", (TrailEntry.time, TrailEntry.id))


@dataclass(frozen=True, slots=True)
class TrailSelection:
    """Which rows; None is any."""

    person: str | None = None
    object: UUID | None = None
    task: UUID | None = None
    action: str | None = None
    outcome: TrailOutcome | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: int = 100
    cursor: str | None = None


def select_trail(session: Session, wanted: TrailSelection, rendering: Rendering) -> tuple[list[Any], str | None]:
    """Return one page of rows, shown as `rendering` says, and the cursor of the next one (None at the end). A page may
    be short although there is a next one (`models.core.bounded_pages`). Raises: InvalidRequest for a bad cursor.
    """
    within = [] if wanted.since is None else [TrailEntry.time >= wanted.since]
    within += [] if wanted.until is None else [TrailEntry.time < wanted.until]
    narrows = [
        _narrow(and_(column == value, *within))
        for column, value in (
            (TrailEntry.object_id, wanted.object),
            (TrailEntry.transfer_id, wanted.task),
            (TrailEntry.person, wanted.person),
        )
        if value is not None
    ]
    equal = {
        TrailEntry.person: wanted.person,
        TrailEntry.object_id: wanted.object,
        TrailEntry.transfer_id: wanted.task,
        TrailEntry.action: wanted.action,
        TrailEntry.outcome: None if wanted.outcome is None else wanted.outcome.value,
    }
    fits = [column == value for column, value in equal.items() if value is not None]
    search = Search(TrailEntry, ORDER, within, fits, narrows)
    return bounded_page(session, search, wanted.limit, wanted.cursor, rendering)


def _narrow(condition: ColumnElement[bool]) -> Narrow:
    return Narrow(condition, select(TrailEntry.id).where(condition))
