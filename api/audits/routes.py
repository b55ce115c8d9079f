"""Audits: ask for one, list them, read what they found. A mover performs them; nothing here talks to a machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.audits.views import AuditView, FindingView, audit_view, finding_view
from api.context import In
from api.http import openapi
from api.http.bodies import read_request
from api.http.idempotency import Slot, once
from api.http.query import read_filters
from api.http.responses import json_response
from datamanager import errors
from datamanager.domain.audit.rules import AuditRequest, FindingKind
from datamanager.errors import AuditNotFound
from datamanager.messaging.wake import ring
from models.audit import findings
from models.audit import runs as audit_runs

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000

T = TypeVar("T")
router = APIRouter(prefix="/DM", tags=["audits"])


_LIST = {
    "machine": "Audits of this machine.",
    "limit": f"Audits in a page, 1 to {LIMIT_MAX}; default {LIMIT_DEFAULT}.",
    "cursor": "Where the page before ended; taken from its `Link` header.",
}
_FINDINGS = {
    "kind": f"One of {', '.join(FindingKind)}.",
    "limit": f"Findings in a page, 1 to {LIMIT_MAX}; default {LIMIT_DEFAULT}.",
    "cursor": "Where the page before ended; taken from its `Link` header.",
}


def _parameters(known: Mapping[str, str]) -> dict[str, Any]:
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "description": text, "schema": {"type": "string"}}
            for name, text in known.items()
        ]
    }


@router.post(
    "/audits",
    summary="Audit a machine",
    status_code=202,
    response_class=Response,
    responses=openapi.json_answer(
        "AuditView",
        "The audit; `Location` says where its report will be.",
        *openapi.BODY,
        errors.UnknownMachine,
        status=202,
    ),
    openapi_extra=openapi.body(AuditRequest, prefers=False),
)
async def start_audit(request: Request, context: In) -> Response:
    """Compare what lies on a machine with the catalogue: a mover takes it within seconds. Nothing is deleted; objects
    whose file is lost become UNKNOWN.
    """
    fields = await read_request(request, AuditRequest)

    def enter(session: Session, slot: Slot) -> AuditView:
        if slot.subject is not None:
            return audit_view(audit_runs.get_audit(session, slot.subject))
        row = audit_runs.submit(session, context.machines[fields.machine].name, fields)
        slot.attach(session, row.id)
        return audit_view(row)

    async def work(slot: Slot) -> Response:
        view = await context.writing(lambda session: enter(session, slot))
        await run_sync(ring, context.run_directory, "mover", "queued")
        return json_response(view, 202, {"Location": f"/DM/audits/{view['audit']}"})

    return await once(context, request, fields, work)


@router.get(
    "/audits",
    summary="List audits",
    response_class=Response,
    responses=openapi.json_answer("AuditView", "One page of audits.", errors.InvalidRequest, many=True),
    openapi_extra=_parameters(_LIST),
)
async def list_audits(request: Request, context: In) -> Response:
    """List audits, the newest first, with a `Link` header with `rel="next"` while there is more."""
    given = request.query_params.multi_items()
    wanted = read_filters(given, _LIST, {"limit": _limit})

    def look(session: Session) -> tuple[list[AuditView], str | None]:
        rows, cursor = audit_runs.select_audits(session, **{"limit": LIMIT_DEFAULT, **wanted})
        return [audit_view(row) for row in rows], cursor

    views, cursor = await context.reading(look)
    return _page("/DM/audits", given, views, cursor)


@router.get(
    "/audits/{audit}",
    summary="Show an audit",
    response_class=Response,
    responses=openapi.json_answer("AuditView", "The audit.", errors.AuditNotFound),
)
async def show_audit(audit: str, context: In) -> Response:
    """Show how an audit fares, and what it found in numbers."""
    audit_id = _audit_id(audit)
    return json_response(await context.reading(lambda session: audit_view(audit_runs.get_audit(session, audit_id))))


@router.get(
    "/audits/{audit}/findings",
    summary="List what an audit found",
    response_class=Response,
    responses=openapi.json_answer(
        "FindingView", "One page of findings.", errors.AuditNotFound, errors.InvalidRequest, many=True
    ),
    openapi_extra=_parameters(_FINDINGS),
)
async def list_findings(audit: str, request: Request, context: In) -> Response:
    """List what two looks have found, with a `Link` header with `rel="next"` while there is more."""
    audit_id, given = _audit_id(audit), request.query_params.multi_items()
    wanted = {
        "limit": LIMIT_DEFAULT,
        **read_filters(given, _FINDINGS, {"limit": _limit, "kind": _kind, "cursor": _number}),
    }
    limit = int(wanted.pop("limit"))
    after = wanted.pop("cursor", -1)

    def look(session: Session) -> list[FindingView]:
        audit_runs.get_audit(session, audit_id)
        rows = findings.page(session, audit_id, after=after, limit=limit + 1, **wanted)
        return [finding_view(row) for row in rows]

    views = await context.reading(look)
    cursor = None
    if len(views) > limit:
        views.pop()
        cursor = str(views[-1]["number"])
    return _page(f"/DM/audits/{audit_id}/findings", given, views, cursor)


def _audit_id(given: str) -> UUID:
    try:
        return UUID(given)
    except ValueError:
        raise AuditNotFound(f"no audit has the identifier {given!r}") from None


def _limit(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) <= 9 and 1 <= int(value) <= LIMIT_MAX):
        raise ValueError(f"must be a number from 1 to {LIMIT_MAX}")
    return int(value)


def _number(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) <= 9):
        raise ValueError("not one that this listing returned")
    return int(value)


def _kind(value: str) -> FindingKind:
    try:
        return FindingKind(value.upper())
    except ValueError:
        raise ValueError(f"must be one of {', '.join(FindingKind)}") from None


def _page(path: str, given: Iterable[tuple[str, str]], views: list[T], cursor: str | None) -> Response:
    headers = {}
    if cursor is not None:
        query = urlencode([*((name, value) for name, value in given if name != "cursor"), ("cursor", cursor)])
        headers["Link"] = f'<{path}?{query}>; rel="next"'
    return json_response(views, headers=headers)
