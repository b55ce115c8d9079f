"""The application: routes, middleware, error answers and what runs beside the requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

import structlog
from fastapi import Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from api import health
from api.access import quota_routes, trail_routes
from api.access import routes as access
from api.access.asking import asks, required_scopes
from api.access.authentication import Authentication, challenge
from api.audits import routes as audits
from api.context import Context
from api.http import openapi
from api.http.forwarded import ForwardedMiddleware
from api.http.middleware import HEADER, HeadMiddleware, HostOriginMiddleware, RequestLogMiddleware, allowed_methods
from api.http.operations import note_refusal
from api.http.problems import describe_code, http_problem_response, problem_response
from api.http.query import refuse_unread_query
from api.http.responses import json_response
from api.http.security_headers import SecurityHeadersMiddleware
from api.machines import routes as machines
from api.machines.probe import Prober
from api.objects import register
from api.objects import routes as objects
from api.retention import routes as retention
from api.schedules import routes as schedules
from api.sessions.browser_session import BrowserSessions
from api.sessions.code_flow import CodeFlow
from api.sessions.pages import docs_page
from api.sessions.routes import session_routes
from api.tasks import listing as task_listing
from api.tasks import routes as tasks
from api.transfers import routes as transfers
from api.transfers.wait import Waiter, listening
from datamanager.errors import DataManagerError, InternalError, NotAuthenticated
from datamanager.settings import Settings

ROUTED = (
    *(objects, register, transfers, tasks, task_listing),
    *(retention, schedules, audits, machines, access, health),
    *(trail_routes, quota_routes),
)

Task = Callable[[], Coroutine[Any, Any, None]]

RESTART_PAUSE = 1.0  # seconds

log = structlog.get_logger(__name__)

DESCRIPTION = """Keeps a catalogue of data objects on SSH machines; copies, moves, fetches, archives and deletes them.

Fields are sent as a form or as JSON; both mean the same. Without `Accept: application/json` a new identifier is
answered as bare text. Every error is `application/problem+json` (RFC 9457) with a stable `code`."""


def create_app(context: Context, alongside: Sequence[Task] = ()) -> FastAPI:
    """Make the application. Nothing is opened before it is served; `alongside` are tasks that run as long as it is.

    Raises: SettingsError when the roles or the rules for bearer tokens are wrong.
    """
    waiter = Waiter(context.database)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = [asyncio.create_task(_kept_running(task)) for task in (waiter.run, *alongside)]
        try:
            with listening(context, waiter):
                yield
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    app = FastAPI(
        title="Data Manager",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(ForwardedMiddleware, settings=context.settings),
            Middleware(SecurityHeadersMiddleware, settings=context.settings),
            Middleware(RequestLogMiddleware),
            Middleware(HostOriginMiddleware, settings=context.settings),
            *_cross_origin(context.settings),
            Middleware(HeadMiddleware),
        ],
        exception_handlers={DataManagerError: _our_error, HTTPException: _http_error},
    )
    app.state.context = context
    app.state.waiter = waiter
    authentication = app.state.authentication = Authentication(context)
    sessions = BrowserSessions(context, authentication.grant_of)
    authentication.session = sessions.grant
    app.state.prober = Prober(context.machines, context.storages)
    for module in ROUTED:  # who asks is said before anything else is looked at
        public = module is health
        app.include_router(module.router, dependencies=[] if public else [Depends(asks), Depends(refuse_unread_query)])
    _add_pages(app)
    app.router.routes.extend(session_routes(sessions, CodeFlow.of(context.settings)))
    openapi.install(app, required_scopes(app.routes))
    return app


def _cross_origin(settings: Settings) -> list[Middleware]:
    """Return what lets pages of other origins read answers: those that are named, with a token, and no cookie."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Prefer", HEADER],
            expose_headers=["Link", "Location", "Preference-Applied", "Retry-After", HEADER],
        )
    ]


async def _kept_running(task: Task) -> None:
    """Run a task until it is cancelled. One that breaks is a fault of ours: it is logged, and the task begins again."""
    while True:
        try:
            await task()
        except Exception:
            log.exception("background_task_failed")
        await asyncio.sleep(RESTART_PAUSE)


def _add_pages(app: FastAPI) -> None:
    """Add the documentation, with its assets from here: many sites have no way to the internet."""
    app.mount("/docs/assets", StaticFiles(directory=str(resources.files("fastapi_offline") / "static")), name="assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return docs_page()

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/docs")

    @app.get("/problems/{code}", include_in_schema=False)
    async def problem(code: str) -> Response:
        found = describe_code(code)
        if found is None:
            raise HTTPException(404)
        return json_response(found)


async def _our_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, DataManagerError):
        raise error
    if isinstance(error, InternalError):
        raise error  # logged with its trace, and answered, by RequestLogMiddleware
    note_refusal(request.app.state.context, request, error)
    headers = {"WWW-Authenticate": challenge(request)} if isinstance(error, NotAuthenticated) else None
    return problem_response(error, request.state.request_id, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    headers = error.headers
    if error.status_code == 405:
        headers = {**(headers or {}), "Allow": allowed_methods(request)}
    return http_problem_response(error.status_code, str(error.detail), request.state.request_id, headers)
