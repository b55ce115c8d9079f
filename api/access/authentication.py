"""Who sends a request: by a service token, a bearer token of the OIDC issuer, or a browser's session.

A service token is looked up at every request, so that one that was revoked is refused at once by each process of the
API. Look-ups have threads of their own (`ThreadLimits.logins`): they do not wait for slow queries of others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import structlog
from anyio.to_thread import run_sync
from sqlalchemy.orm import Session
from starlette.requests import Request

from api.context import Context
from datamanager.errors import CatalogueUnavailable, NotAllowed, NotAuthenticated
from datamanager.identity.grant import EVERYBODY, Grant
from datamanager.identity.oidc import OidcLogin
from datamanager.identity.roles import load_roles
from datamanager.identity.service_token import is_service_token
from datamanager.sealing import Sealer
from models.access.logins import TokenLogins
from models.access.tokens import is_withdrawn

T = TypeVar("T")
SessionLogin = Callable[[Request], Awaitable[Grant | None]]
"""Says who a request without `Authorization` is from, by its cookie; None for one without a session."""
REALM = "Data Manager"

log = structlog.get_logger(__name__)


class Authentication:
    """Makes grants of requests, for one app; belongs to its event loop. `session` is how browsers are known."""

    def __init__(self, context: Context) -> None:
        """Raises: SettingsError when roles.toml or identity.toml is wrong. Nothing is connected, and no key is read."""
        settings = context.settings
        self._context = context
        self._everybody = EVERYBODY if settings.auth == "none" else None
        self._oidc = OidcLogin.of(settings)
        self.tokens = TokenLogins(Sealer.of(settings), load_roles(settings.roles))
        self.session: SessionLogin | None = None
        self._noting: asyncio.Task[None] | None = None

    async def grant(self, request: Request) -> Grant:
        """Return who sends a request.

        Raises: NotAuthenticated, NotAllowed (a person whom no rule knows, or who was withdrawn), CatalogueUnavailable,
        ServerBusy (the issuer does not answer), SecretsUnreadable.
        """
        if self._everybody is not None:
            return self._everybody
        given = request.headers.getlist("authorization")
        if given:
            return await self.grant_of(bearer(given))
        grant = None if self.session is None else await self.session(request)
        if grant is None:
            raise NotAuthenticated("the request has no token; send it as Authorization: Bearer …")
        return grant

    async def grant_of(self, token: str) -> Grant:
        """Return what the bearer of a token may. Raises: as `grant`."""
        if is_service_token(token):
            grant = await self._reading(lambda session: self.tokens.grant(session, token))
            if self.tokens.unnoted and self._noting is None:
                self._noting = asyncio.create_task(self._note())
            return grant
        if self._oidc is None:
            raise NotAuthenticated("this is no service token, and no OIDC issuer is configured")
        grant = await self._context.limits.issuer.run(partial(self._oidc.grant, token))
        if await self._reading(lambda session: is_withdrawn(session, grant.person)):
            raise NotAllowed("this person was withdrawn")
        return grant

    async def _reading(self, work: Callable[[Session], T]) -> T:
        """Run `work` in a thread of its kind."""

        def look() -> T:
            with self._context.database.read() as session:
                return work(session)

        return await run_sync(look, limiter=self._context.limits.logins)

    async def _note(self) -> None:
        """Note uses beside the request: one that is lost is noted with the token's next use."""
        try:
            await self._context.writing(self.tokens.note)
        except CatalogueUnavailable as exc:
            log.warning("uses_of_tokens_not_noted", error=exc.detail)
        finally:
            self._noting = None


def bearer(given: list[str]) -> str:
    """Return the token of `Authorization` headers. Raises: NotAuthenticated for anything but one bearer token."""
    scheme, _, token = given[0].partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer":
        raise NotAuthenticated("Authorization must be one bearer token: Authorization: Bearer …")
    return token.strip()


def challenge(request: Request) -> str:
    """Return `WWW-Authenticate` of a 401 (RFC 6750, 3): with an error only where a token was given."""
    given = any(one.lower().startswith("bearer ") for one in request.headers.getlist("authorization"))
    return f'Bearer realm="{REALM}"' + (', error="invalid_token"' if given else "")


def authentication_of(request: Request) -> Authentication:
    """Return how the app that serves the request knows who asks."""
    found: Authentication = request.app.state.authentication
    return found
