"""What clients see of audits and their findings."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from api.http.problems import ErrorView, error_view
from api.http.responses import view_of
from models.tables import Audit


class AuditView(TypedDict):
    """An audit. `status` is QUEUED, RUNNING, COMPLETE or ERROR; `counts` says what was looked at and found;
    `suspicious`: so much was lost that nothing was changed.
    """

    audit: str
    machine: str
    status: str
    options: dict[str, Any]
    counts: dict[str, int]
    scrubbed_objects: int
    scrubbed_bytes: int
    suspicious: bool
    error: ErrorView | None
    created: datetime
    begun: datetime | None
    ended: datetime | None
    flow_run_id: str | None


class FindingView(TypedDict):
    """A difference that two looks have found. `kind` is LOST, CHANGED, DARK or FOUND, `place` below base_dir; `object`
    is the object or bundle, null for DARK. `applied`: the object was changed for it.
    """

    number: int
    kind: str
    place: str
    object: str | None
    expected: dict[str, Any]
    found: dict[str, Any]
    applied: bool


def audit_view(row: Audit) -> AuditView:
    """Show an audit."""
    return view_of(AuditView, row, audit=row.id, error=error_view(row.error_code, row.error_detail))
