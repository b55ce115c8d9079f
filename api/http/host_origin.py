"""Who may ask: only requests addressed to us, and no page of another site.

There is no authentication yet, so a web page that a user happens to read must not reach the service through the user's
browser: not under a foreign name that was rebound to our address (Host), not by a form or script of its own (Origin).
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.problems import problem_response
from datamanager.errors import OriginNotAllowed
from datamanager.settings import Settings, is_loopback

_DEFAULT_PORTS = {"http": 80, "https": 443}


class HostOriginMiddleware:
    """ASGI middleware that answers 403 to requests whose Host or Origin is foreign."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http":
            refused = objection(Headers(scope=scope), self.settings)
            if refused is not None:
                response = problem_response(refused, scope["state"]["request_id"])
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


def objection(headers: Headers, settings: Settings) -> OriginNotAllowed | None:
    """Return why a request with these headers is refused, None if it is welcome."""
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not host_allowed(hosts[0], settings):
        return OriginNotAllowed("the Host header does not name this service; DM_ALLOWED_HOSTS adds names")
    if any(not same_origin(origin, hosts[0]) for origin in headers.getlist("origin")):
        return OriginNotAllowed("the Origin header names another site")
    return None


def host_allowed(header: str, settings: Settings) -> bool:
    """Say whether a Host header names this service."""
    host, _ = _split(header)
    if host is None:
        return False
    names = {settings.host.lower(), *(name.lower() for name in settings.allowed_hosts)}
    if is_loopback(host) or host in names:
        return True
    return settings.insecure_bind and _is_address(host)


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
