"""How a person logs in in the browser and out again; and what a proxy asks before it shows Prefect's UI to somebody.

These are pages and no part of the API's contract, so OpenAPI does not show them.
"""

from __future__ import annotations

import re
from dataclasses import asdict

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from api.access.authentication import authentication_of
from api.http.request_parts import read_fields
from api.http.responses import json_response
from api.sessions.browser_session import PENDING_FOR, BrowserSessions
from api.sessions.code_flow import CodeFlow, IssuerAnswer, PendingLogin
from api.sessions.pages import STATIC, bounce_page, login_page
from datamanager.errors import NotAllowed, NotAuthenticated
from datamanager.identity.scopes import ACTIONS
from datamanager.identity.service_token import is_service_token

TARGET = "/docs"
CALLBACK = "/login/callback"
PENDING_COOKIE = "dm_login"
_LOCAL = re.compile(r"/(?![/\\])[A-Za-z0-9._~/?#=&%+:@,-]{0,1000}")


def session_routes(sessions: BrowserSessions, flow: CodeFlow | None) -> list[BaseRoute]:
    """Return the routes of logins, with these sessions; `flow` is the login at the issuer, if there is one."""
    issuer = None if flow is None else flow.issuer

    async def show_login(request: Request) -> Response:
        return login_page(_target(request.query_params.get("next")), issuer)

    async def log_in(request: Request) -> Response:
        """Log in with a service token; it is looked up now, and at each request from then on."""
        fields = await read_fields(request)
        token, target = str(fields.get("token", "")).strip(), _target(fields.get("next"))
        response = RedirectResponse(target, 303)
        try:
            if not is_service_token(token):
                raise NotAuthenticated("this is no service token; they begin with dm_")
            await authentication_of(request).grant_of(token)
            await sessions.start(request, response, token=token)
        except (NotAuthenticated, NotAllowed) as exc:
            return login_page(target, issuer, problem=exc.detail, status=401)
        return response

    async def go_to_issuer(request: Request) -> Response:
        if flow is None:
            return RedirectResponse("/login", 303)
        target = _target(request.query_params.get("next"))
        try:
            url, pending = await run_sync(flow.begin, _callback(request), target)
        except NotAuthenticated as exc:
            return login_page(target, issuer, problem=exc.detail, status=401)
        response = RedirectResponse(url, 303)
        # the issuer's redirect is a way that began on another site: a Strict cookie would not be sent with it
        _set_pending(request, response, sessions.pending.seal(asdict(pending)), PENDING_FOR)
        return response

    async def return_from_issuer(request: Request) -> Response:
        kept = sessions.pending.unseal(request.cookies.get(PENDING_COOKIE, ""))
        pending = None if kept is None else PendingLogin(**kept)
        target = TARGET if pending is None else pending.target
        response: Response = bounce_page(target)
        try:
            if pending is None or flow is None:
                raise NotAuthenticated("this browser has begun no login, or too long ago")
            if request.query_params.get("iss", flow.issuer) != flow.issuer:  # RFC 9207
                raise NotAuthenticated("another issuer has answered")
            answer: IssuerAnswer = await run_sync(flow.finish, _callback(request), str(request.url), pending)
            grant = await authentication_of(request).grant_of(answer.access_token)
            if grant.credential != answer.subject:
                raise NotAuthenticated("the issuer's tokens are of two persons")
            await sessions.start(request, response, grant=grant.to_json())
        except (NotAuthenticated, NotAllowed) as exc:
            response = login_page(target, issuer, problem=exc.detail, status=401)
        _set_pending(request, response, "", 0)
        return response

    async def show_session(request: Request) -> Response:
        """Say who is logged in, and the token that requests to change something repeat. Other sites can't read it."""
        grant = await authentication_of(request).grant(request)
        session = sessions.find(request)
        csrf_token = None if session is None else sessions.csrf_token(session)
        person = grant.person if session is not None else None
        return json_response({"person": person, "csrf_token": csrf_token, "until": session and session.until})

    async def check(request: Request) -> Response:
        """Answer 204 if who asks may do `action` everywhere; a proxy asks so (nginx: auth_request)."""
        action = request.query_params.get("action", "")
        grant = await authentication_of(request).grant(request)
        if action not in ACTIONS:
            raise NotAllowed("there is no such action")
        grant.require(action)
        return Response(status_code=204)

    async def log_out(request: Request) -> Response:
        response = Response(status_code=204)
        await sessions.end(request, response)
        return response

    return [
        Route("/login", show_login, methods=["GET"]),
        Route("/login", log_in, methods=["POST"]),
        Route("/login/start", go_to_issuer, methods=["GET"]),
        Route(CALLBACK, return_from_issuer, methods=["GET"]),
        Route("/login/session", show_session, methods=["GET"]),
        Route("/login/check", check, methods=["GET"]),
        Route("/logout", log_out, methods=["POST"]),
        Mount("/pages", StaticFiles(directory=STATIC), name="pages"),
    ]


def _target(given: object) -> str:
    """Return the page to go on to: one of ours, or the documentation."""
    return given if isinstance(given, str) and _LOCAL.fullmatch(given) else TARGET


def _callback(request: Request) -> str:
    """Return the address of ours that the issuer sends the browser to; Host is checked by then."""
    return str(request.url.replace(path=CALLBACK, query="", fragment=""))


def _set_pending(request: Request, response: Response, value: str, seconds: int) -> None:
    secure = request.url.scheme == "https"
    response.set_cookie(
        PENDING_COOKIE, value, max_age=seconds, path=CALLBACK, secure=secure, httponly=True, samesite="lax"
    )
