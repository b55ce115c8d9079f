"""What clients see of objects."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NotRequired
from uuid import UUID

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from api.http.responses import OMIT, view_of
from models.tables import DataObject


class HoldView(TypedDict):
    """Who holds an object, and why: it can't be deleted until the hold is released."""

    since: datetime
    by: str | None
    reason: str | None


class ObjectView(TypedDict):
    """A data object. `path` is the directory as the client gave it, `checksum` is `sha256:…` or null. `last_used` is
    when it was last copied from, moved or activated; `expires_at` until when it is wanted. `not_kept` is there if the
    machine did not keep something when the file was put there: of `mode`, `mtime`, `fsync` (on stable storage).
    `created_by` is the person who made it, null where authentication was off, or the service did; `acted_as` the login
    that its file was written with: a person's, or `shared`, the service's own; null for a registered file.
    """

    id: str
    machine: str
    filename: str
    path: str
    description: str
    size: int | None
    metadata: dict[str, Any]
    date_registered: datetime
    date_modified: datetime
    status: str
    originator: str
    group: str
    checksum: str | None
    verified: str
    derived_from: str | None
    archived_in: str | None
    last_used: datetime | None
    expires_at: datetime | None
    hold: HoldView | None
    created_by: str | None
    acted_as: str | None
    not_kept: NotRequired[list[str]]


class TreeFileView(TypedDict):
    """A file of a tree that was registered. `path` is the directory, `size` in bytes."""

    uuid: UUID
    path: str
    filename: str
    size: int | None


class TreeView(TypedDict):
    """What became of a tree: `registered` new objects, `already` files that an object or a transfer under way has,
    `skipped` links, special files and partial files, `unnameable` names that no object can have (not UTF-8, too long).
    Only when it failed in the middle: `left`, files that are not registered, and `error`, why.
    """

    registered: int
    already: int
    skipped: int
    unnameable: int
    objects: list[TreeFileView]
    left: NotRequired[int]
    error: NotRequired[dict[str, Any]]


def object_view(row: DataObject) -> ObjectView:
    """Show an object."""
    hold: HoldView | None = None
    if row.held_since is not None:
        hold = {"since": row.held_since, "by": row.held_by, "reason": row.hold_reason}
    return view_of(ObjectView, row, metadata=row.meta, hold=hold, not_kept=row.not_kept or OMIT)
