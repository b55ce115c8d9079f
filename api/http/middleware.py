"""What every request passes: its identifier and log line, and the check of Host and Origin.

A web page that a user happens to read must not reach the service through the user's browser: not under a foreign name
that was rebound to our address (Host), not by a form or script of its own (Origin).
A fault of ours is logged and answered plainly here.
"""

from __future__ import annotations

import ipaddress
import re
import time
from urllib.parse import urlsplit
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.forwarded import is_readable
from api.http.problems import problem_response
from datamanager.errors import ConnectionNotSecure, InternalError, OriginNotAllowed, RequestError
from datamanager.identity.grant import Means
from datamanager.listening import is_loopback
from datamanager.settings import Settings
from models.access.requester import requested

_DEFAULT_PORTS = {"http": 80, "https": 443}
HEADER = "X-Request-ID"
PATH_SHOWN = 1000  # characters in the log
_SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")

log = structlog.get_logger("api.access")


class HostOriginMiddleware:
    """ASGI middleware that answers 403 to requests whose Host or Origin is foreign."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http":
            refused = objection(Headers(scope=scope), self.settings)
            if refused is None and is_readable(scope, self.settings):
                text = "the request came without TLS, so others can read it; ask by https"
                proxies = " (a proxy in front sends X-Forwarded-Proto: https)" if self.settings.trusted_proxy else ""
                refused = ConnectionNotSecure(text + proxies)
            if refused is not None:
                response = problem_response(refused, scope["state"]["request_id"])
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


def objection(headers: Headers, settings: Settings) -> RequestError | None:
    """Return why a request with these headers is refused, None if it is welcome."""
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not host_allowed(hosts[0], settings):
        return OriginNotAllowed("the Host header does not name this service; DM_ALLOWED_HOSTS adds names")
    origins = headers.getlist("origin")
    if any(not (same_origin(origin, hosts[0]) or origin in settings.cors_origins) for origin in origins):
        return OriginNotAllowed("the Origin header names another site")
    return None


def host_allowed(header: str, settings: Settings) -> bool:
    """Say whether a Host header names this service."""
    host, _ = _split(header)
    if host is None:
        return False
    own = "" if settings.url is None else urlsplit(settings.url).hostname or ""
    names = {settings.host.lower(), own, *(name.lower() for name in settings.allowed_hosts)} - {""}
    if is_loopback(host) or host in names:
        return True
    return not is_loopback(settings.host) and _is_address(host)


def same_origin(origin: str, host_header: str) -> bool:
    """Say whether an Origin header is that of the page that we ourselves serve under this Host; `null` never is."""
    scheme, separator, authority = origin.partition("://")
    default = _DEFAULT_PORTS.get(scheme.lower())
    if not separator or default is None:
        return False
    host, port = _split(authority)
    own_host, own_port = _split(host_header)
    return host is not None and (host, port or default) == (own_host, own_port or default)


def _split(authority: str) -> tuple[str | None, int | None]:
    """Split `host[:port]`; (None, None) for what is not exactly that."""
    if not authority or any(sign in authority for sign in "/?#@\\ \t"):
        return None, None
    try:
        parts = urlsplit(f"//{authority}")
        return (parts.hostname or "").rstrip(".") or None, parts.port
    except ValueError:
        return None, None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class HeadMiddleware:
    """ASGI middleware that serves HEAD wherever GET is served, as the same answer; the server sends no body of it.

    `scope["state"]["head"]` says it to endpoints whose body is long.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET", "state": {**scope["state"], "head": True}}
        await self.app(scope, receive, send)


def allowed_methods(request: Request) -> str:
    """Return all methods of a request's address, for `Allow` (RFC 9110, 10.2.1): each may be another route's."""
    routes, scope = request.app.routes, request.scope
    found = [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(
            not isinstance(route, Mount) and route.matches({**scope, "method": method})[0] is Match.FULL
            for route in routes
        )
    ]
    if not found:
        found = ["GET"]  # of a mounted folder
    return ", ".join(["HEAD", *found] if "GET" in found else found)


class RequestLogMiddleware:
    """ASGI middleware, the outermost one of ours. Never logs bodies, query strings or other headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request and log it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        status, shown = 0, scope["path"][:PATH_SHOWN]
        begun = time.monotonic()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        client = str((scope.get("client") or ("",))[0])
        with structlog.contextvars.bound_contextvars(request_id=request_id), requested(client, request_id, Means.NONE):
            try:
                await self.app(scope, receive, sending)
            except Exception:  # the last resort: a fault of ours is logged, and never described to the client
                log.exception("request_failed", method=scope["method"], path=shown)
                if status:
                    raise  # the answer has begun: the server cuts the connection, so nobody takes it for whole
                await problem_response(InternalError("unexpected"), request_id)(scope, receive, sending)
            finally:
                milliseconds = round((time.monotonic() - begun) * 1000, 1)
                log.info("request", method=scope["method"], path=shown, status=status, ms=milliseconds)


def request_id_of(headers: Headers) -> str:
    """Return the client's request identifier if it is a sane one, else a new one."""
    given = headers.get(HEADER, "")
    return given if _SANE.fullmatch(given) else str(uuid4())
