"""What clients see of audits and their findings."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from api.views import ErrorView
from datamanager.errors import by_code
from models.tables import Audit, AuditFinding


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
    error: ErrorView | None = None
    if row.error_code is not None:
        known = by_code(row.error_code, row.error_detail or "")
        error = {"code": row.error_code, "detail": row.error_detail or "", "retryable": known.retryable}
    return {
        "audit": str(row.id),
        "machine": row.machine,
        "status": row.status,
        "options": row.options,
        "counts": row.counts,
        "scrubbed_objects": row.scrubbed_objects,
        "scrubbed_bytes": row.scrubbed_bytes,
        "suspicious": row.suspicious,
        "error": error,
        "created": row.created,
        "begun": row.begun,
        "ended": row.ended,
        "flow_run_id": str(row.flow_run_id) if row.flow_run_id else None,
    }


def finding_view(row: AuditFinding) -> FindingView:
    """Show a finding."""
    return {
        "number": row.number,
        "kind": row.kind,
        "place": row.place,
        "object": str(row.object_id) if row.object_id else None,
        "expected": row.expected,
        "found": row.found,
        "applied": row.applied,
    }
