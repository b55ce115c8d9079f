"""Sessions of browsers: a sealed cookie that pages of other sites can't send and no script reads, a lease that says
whether it was ended, and a token that every request to change something has to repeat.

The cookie is HttpOnly and SameSite=Strict, with https Secure and bound to the host (`__Host-`). It contains a random
identifier and either a service token, which is looked up at each request, or what the issuer's token permitted at the
login. A session is a lease of that identifier: who logs out drops it, and every process of the API refuses the cookie
from then on. Sites below the same domain are same-site too, so a write needs a token that is derived from the
identifier, which only our own pages can ask for.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.context import Context
from api.sessions.sealed_cookie import SealedCookie
from datamanager.errors import CsrfTokenMissing, NotAllowed
from datamanager.identity.grant import Grant, Means
from datamanager.sealing import Sealer
from models.access.tokens import is_withdrawn
from models.core.leases import drop_lease, hold_lease, is_held

COOKIE, SECURE_COOKIE = "dm_session", "__Host-dm_session"
COOKIE_MAX = 3800
"""Characters; browsers keep 4096 bytes with the name and the attributes."""
PENDING_FOR = 600
"""Seconds that a person has to log in at the issuer."""
CSRF_HEADER = "X-CSRF-Token"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
PURPOSE = "dm browser sessions"
LEASE_PREFIX = "session:"

TokenGrant = Callable[[str], Awaitable[Grant]]
"""Returns what the bearer of a token may. Raises: NotAuthenticated, NotAllowed."""


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """What a cookie says; `until` in seconds since 1970. Of `token` and `grant` it has one."""

    identifier: str
    until: float
    token: str | None = None
    grant: dict[str, Any] | None = None

    @property
    def lease(self) -> str:
        """The name of its lease."""
        return LEASE_PREFIX + self.identifier


class BrowserSessions:
    """Starts, knows and ends sessions, for one app. `grant_of` says what the bearer of a service token may."""

    def __init__(self, context: Context, grant_of: TokenGrant) -> None:
        self._context = context
        self._grant_of = grant_of
        self._sealer = Sealer.of(context.settings)
        self._cookie = SealedCookie(self._sealer, PURPOSE)
        self.pending = SealedCookie(self._sealer, f"{PURPOSE}: pending", PENDING_FOR)
        """Of logins that the issuer has not answered yet."""

    async def start(self, request: Request, response: Response, **known: Any) -> None:
        """Log a browser in with its answer: `token`, a service token, or `grant`, that of the issuer's token.

        Raises: NotAllowed when what it permits is too long for a cookie; CatalogueUnavailable, SecretsUnreadable.
        """
        lasting = self._context.settings.session
        session = BrowserSession(secrets.token_hex(16), time.time() + lasting.total_seconds(), **known)
        plain = {"id": session.identifier, "until": session.until, "token": session.token, "grant": session.grant}
        sealed = self._cookie.seal(plain)
        if len(sealed) > COOKIE_MAX:
            raise NotAllowed("the person has too many groups and scopes for a browser's session")
        await self._context.writing(lambda database: hold_lease(database, session.lease, session.identifier, lasting))
        self._set(request, response, sealed, int(lasting.total_seconds()))

    async def grant(self, request: Request) -> Grant | None:
        """Return who a request is from by its cookie; None without a session that lasts.

        Raises: CsrfTokenMissing; NotAuthenticated when its service token is revoked or expired; NotAllowed for a person
        who was withdrawn; CatalogueUnavailable.
        """
        session = self.find(request)
        if session is None:
            return None
        lasts, withdrawn = await self._context.reading(lambda database: _look(database, session))
        if not lasts:
            return None
        if withdrawn:
            raise NotAllowed("this person was withdrawn")
        if request.method not in SAFE_METHODS:
            self._require_csrf_token(request, session)
        if session.token is not None:
            return await self._grant_of(session.token)  # by the token: what it requests ends when it is revoked
        return replace(Grant.from_json(session.grant or {}), means=Means.SESSION)

    async def end(self, request: Request, response: Response) -> None:
        """Log the browser out: the session is over for every process, and for whoever copied the cookie.

        Raises: CsrfTokenMissing, CatalogueUnavailable.
        """
        session = self.find(request)
        if session is not None:
            self._require_csrf_token(request, session)
            await self._context.writing(lambda database: drop_lease(database, session.lease, session.identifier))
        self._set(request, response, "", 0)

    def find(self, request: Request) -> BrowserSession | None:
        """Return what the cookie says; None where there is none, it is not ours, or its time is over."""
        content = self._cookie.unseal(request.cookies.get(_cookie_name(request), ""))
        if content is None or content["until"] <= time.time():
            return None
        return BrowserSession(content["id"], content["until"], content["token"], content["grant"])

    def csrf_token(self, session: BrowserSession) -> str:
        """Return the token that requests with this session repeat."""
        return hmac.digest(self._csrf_key, session.identifier.encode(), "sha256").hex()

    def _require_csrf_token(self, request: Request, session: BrowserSession) -> None:
        given = request.headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(given.encode("latin-1"), self.csrf_token(session).encode()):
            raise CsrfTokenMissing(f"a request with a browser's session repeats its token in {CSRF_HEADER}")

    @cached_property
    def _csrf_key(self) -> bytes:
        return self._sealer.derived(f"{PURPOSE}: csrf")

    def _set(self, request: Request, response: Response, value: str, seconds: int) -> None:
        secure = request.url.scheme == "https"
        response.set_cookie(
            _cookie_name(request), value, max_age=seconds, path="/", secure=secure, httponly=True, samesite="strict"
        )


def _look(database: Session, session: BrowserSession) -> tuple[bool, bool]:
    """Say whether a session lasts, and whether its person was withdrawn since."""
    person = None if session.grant is None else session.grant["person"]
    withdrawn = person is not None and is_withdrawn(database, person)
    return is_held(database, session.lease, session.identifier), withdrawn


def _cookie_name(request: Request) -> str:
    """Return the name: browsers take one with `__Host-` by https and from this very host only."""
    return SECURE_COOKIE if request.url.scheme == "https" else COOKIE
