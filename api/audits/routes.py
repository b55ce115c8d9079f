"""Audits: submit one, list them, read what they found. A mover performs them; nothing here talks to a machine."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.audits.views import AuditView, FindingView, audit_view
from api.context import In
from api.http import openapi
from api.http.idempotency import Slot, mutate
from api.http.query import (
    Cursor,
    Position,
    Query,
    choice,
    number,
    one_of,
    page_response,
    page_size,
    read_query,
    rendered,
)
from api.http.request_parts import audit_id_of, read_request
from api.http.responses import json_response, view_of
from datamanager import errors
from datamanager.domain.audit_rules import AuditRequest, FindingKind
from models.access.visibility import ALL
from models.audit import findings
from models.audit import runs as audit_runs

LIMIT_MAX = 1000

router = APIRouter(prefix="/DM/audits", tags=["audits"], default_response_class=Response)


class AuditQuery(Query):
    """Which audits."""

    machine: str | None = Field(None, description="Audits of this machine.")
    limit: Annotated[int, number(1, LIMIT_MAX)] = page_size("Audits", 100, LIMIT_MAX)
    cursor: Cursor = None


class FindingQuery(Query):
    """Which findings of an audit."""

    kind: Annotated[FindingKind | None, one_of(FindingKind)] = choice(FindingKind)
    limit: Annotated[int, number(1, LIMIT_MAX)] = page_size("Findings", 100, LIMIT_MAX)
    cursor: Position = -1


@router.post(
    "",
    summary="Audit a machine",
    status_code=202,
    responses=openapi.json_answer(
        AuditView,
        "The audit; `Location` says where its report will be.",
        *openapi.BODY,
        errors.UnknownMachine,
        status=202,
    ),
    openapi_extra=openapi.body(AuditRequest),
)
async def start_audit(request: Request, context: In) -> Response:
    """Compare the files of a machine with the catalogue: a mover starts within seconds. Nothing is deleted; objects
    whose file is lost become UNKNOWN.
    """
    fields = await read_request(request, AuditRequest)

    def enter(session: Session, slot: Slot) -> Response:
        if slot.subject is not None:  # entered by a request that did not end
            row = audit_runs.get_audit(session, slot.subject, ALL)
        else:
            row = audit_runs.submit(session, context.machines[fields.machine].name, fields, None)
            slot.attach(session, row.id)
        return json_response(audit_view(row), 202, {"Location": f"/DM/audits/{row.id}"})

    return await mutate(context, request, enter, fields, notify="queued")


@router.get(
    "",
    summary="List audits",
    responses=openapi.json_answer(AuditView, "One page of audits.", errors.InvalidRequest, many=True),
    openapi_extra=openapi.query(AuditQuery),
)
async def list_audits(request: Request, context: In) -> Response:
    """List audits, the newest first, with a `Link` header with `rel="next"` while there is more."""
    given = request.query_params.multi_items()
    query = read_query(given, AuditQuery)
    shown = rendered(audit_view)
    texts, cursor = await context.reading(
        lambda session: audit_runs.select_audits(session, ALL, **query.model_dump(), rendering=shown)
    )
    return page_response("/DM/audits", given, texts, cursor)


@router.get(
    "/{audit}",
    summary="Show an audit",
    responses=openapi.json_answer(AuditView, "The audit.", errors.AuditNotFound),
)
async def show_audit(audit: str, context: In) -> Response:
    """Show the status of an audit, and how many differences it found."""
    audit_id = audit_id_of(audit)
    return json_response(
        await context.reading(lambda session: audit_view(audit_runs.get_audit(session, audit_id, ALL)))
    )


@router.get(
    "/{audit}/findings",
    summary="List what an audit found",
    responses=openapi.json_answer(
        FindingView, "One page of findings.", errors.AuditNotFound, errors.InvalidRequest, many=True
    ),
    openapi_extra=openapi.query(FindingQuery),
)
async def list_findings(audit: str, request: Request, context: In) -> Response:
    """List the findings of an audit, with a `Link` header with `rel="next"` while there is more."""
    audit_id, given = audit_id_of(audit), request.query_params.multi_items()
    query = read_query(given, FindingQuery)

    shown = rendered(lambda row: view_of(FindingView, row, object=row.object_id))

    def look(session: Session) -> tuple[list[bytes], int | None]:
        audit_runs.get_audit(session, audit_id, ALL)
        return findings.shown_page(
            session, audit_id, kind=query.kind, after=query.cursor, limit=query.limit, rendering=shown
        )

    return page_response(f"/DM/audits/{audit_id}/findings", given, *await context.reading(look))
