"""Requests in the audit trail: the operation, what it was done to, and refusals."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session
from starlette.requests import Request

from api.context import Context
from api.http.problems import status_of
from datamanager.errors import DataManagerError
from models.access.refusals import RefusedRequest
from models.access.requester import requester
from models.access.trail import TrailOutcome, note

REFUSED = (401, 403, 404, 429)
"""Statuses of refusals. A foreign object and none at all are both 404, and nobody can tell here which it was."""
_ACTION_MAX = 100


def action_of(request: Request) -> str:
    """Return the operation that a request asks for: its method and the path as the OpenAPI document has it."""
    route = request.scope.get("route")
    return f"{request.method} {getattr(route, 'path', '')}"[:_ACTION_MAX].rstrip()


def note_operation(
    session: Session,
    request: Request,
    outcome: TrailOutcome = TrailOutcome.DONE,
    *,
    made: UUID | None = None,
    **told: Any,
) -> None:
    """Write a request's change into the trail, in its transaction; `made` is the identifier of what it made, `told`
    what `models.access.trail.note` is told besides.
    """
    given = dict(request.path_params)
    object_id, task = given.pop("uuid", None), given.pop("task", None)
    others = [str(value) for value in (*given.values(), made) if value is not None]
    subject = told.pop("subject", None) or "/".join(others) or None
    object_id = told.pop("object_id", None) or (None if object_id is None else UUID(object_id))
    note(
        session,
        action_of(request),
        outcome,
        object_id=object_id,
        transfer_id=None if task is None else UUID(task),
        subject=subject,
        **told,
    )


def note_refusal(context: Context, request: Request, error: DataManagerError) -> None:
    """Note that a request was refused, if that is what the error says. Only in memory (`models.access.refusals`)."""
    if status_of(error) in REFUSED:
        context.refusals.note(RefusedRequest(requester(), error.code, action_of(request), request.url.path))
