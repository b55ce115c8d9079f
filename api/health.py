"""Health: is the process alive, and can the service do its work?"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import requests
from anyio.to_thread import run_sync
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.context import Context, In
from api.http import openapi
from api.http.problems import document_response, problem_of
from api.http.responses import json_response
from datamanager.errors import CatalogueUnavailable, OrchestratorUnavailable, ServiceError
from models.core.leases import hold_lease, movers_online

PREFECT_TIMEOUT = 2.0  # seconds
_NO_TIME = timedelta(0)

router = APIRouter(prefix="/DM/health", tags=["health"], default_response_class=Response)


@router.get("/live", summary="Is the process alive?", responses=openapi.health("live"))
async def live() -> Response:
    """Answer 200 while the process serves."""
    return json_response({"status": "live"})


@router.get(
    "/ready",
    summary="Can the service work?",
    responses=openapi.health("ready", OrchestratorUnavailable),
)
async def ready(request: Request, context: In) -> Response:
    """Answer 200 when the database and Prefect answer and a mover is online; machines and the broker do not matter."""
    catalogue, orchestrator = await asyncio.gather(_catalogue(context), _orchestrator(context))
    checks: dict[str, Any] = {"database": "ok", "prefect": "ok", "movers": catalogue}
    error: ServiceError | None = orchestrator
    if isinstance(catalogue, ServiceError):
        checks["database"], checks["movers"], error = catalogue.detail, [], catalogue
    if orchestrator is not None:
        checks["prefect"] = orchestrator.detail
    if error is None and not checks["movers"]:
        error = OrchestratorUnavailable("no mover that can reach Prefect is online")
    if error is None:
        return json_response({"status": "ready", "checks": checks})
    return document_response({**problem_of(error, request.state.request_id), "checks": checks})


async def _catalogue(context: Context) -> list[str] | CatalogueUnavailable:
    try:
        # one that does not reach Prefect (yet) can't work, and requests that wait would be refused
        movers = [name for name, prefect in (await context.reading(movers_online)).items() if prefect]
        if not movers or context.database.full:
            # reading works on a full disk; what movers say of themselves can't be written there
            await run_sync(context.database.require_space)
        if context.database.full:
            await context.writing(lambda session: hold_lease(session, f"health:{context.name}", context.name, _NO_TIME))
        return movers
    except CatalogueUnavailable as exc:
        return exc


async def _orchestrator(context: Context) -> OrchestratorUnavailable | None:
    def ask() -> OrchestratorUnavailable | None:
        with requests.Session() as session:
            session.trust_env = False  # no proxy stands between us and Prefect
            try:
                session.get(f"{context.settings.prefect_url}/health", timeout=PREFECT_TIMEOUT).raise_for_status()
            except requests.RequestException:
                return OrchestratorUnavailable("the Prefect server does not answer")
        return None

    try:
        return await context.limits.prefect.run(ask)
    except OrchestratorUnavailable as exc:
        return exc
