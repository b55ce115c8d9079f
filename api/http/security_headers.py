"""Headers of every answer for browsers: what it may load, who may frame it, what is kept and sent on of it."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from datamanager.listening import is_loopback
from datamanager.settings import Settings

ASSETS = ("/docs/assets/", "/pages/")
"""Files without a secret, which browsers may keep."""
NOTHING = b"default-src 'none'; frame-ancestors 'none'"
"""The policy (CSP) of answers that are no pages."""
PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""The policy of our pages; Swagger UI makes styles of its own."""
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    # with `no-referrer` browsers send `Origin: null` with our own forms
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", NOTHING),
    (b"cache-control", b"no-store"),
)
STRICT_TRANSPORT = (b"strict-transport-security", b"max-age=31536000")
"""With TLS, a year; not where people use a loopback name, which has other services too."""


class SecurityHeadersMiddleware:
    """ASGI middleware that adds the headers which an answer has not."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._strict = not is_loopback(settings.host) or bool(settings.trusted_proxy)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        added = (
            [*SECURITY_HEADERS, STRICT_TRANSPORT] if self._strict and scope["scheme"] == "https" else SECURITY_HEADERS
        )
        is_asset = scope["path"].startswith(ASSETS)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                present = {name for name, _ in headers}
                if is_asset:
                    present.add(b"cache-control")
                message["headers"] = [*headers, *(header for header in added if header[0] not in present)]
            await send(message)

        await self.app(scope, receive, sending)
