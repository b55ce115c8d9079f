"""ID tokens: what an issuer says to the client by which a person has just logged in (OpenID Connect Core, 3.1.3.7)."""

from __future__ import annotations

import hmac
from typing import Any

from datamanager.errors import NotAuthenticated
from datamanager.identity.oidc import BearerTokens


class IdTokens(BearerTokens):
    """Checks the ID tokens of one client; the audience is its name."""

    KINDS = frozenset({"ID"})

    def verify_login(self, token: str, nonce: str) -> str:
        """Return the subject of the token of the login that began with `nonce`. Called in a worker thread.

        Raises: NotAuthenticated, whatever is wrong.
        """
        claims: dict[str, Any] = self.verify(token)
        given = claims.get("nonce")
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(), nonce.encode()):
            raise NotAuthenticated("the ID token belongs to another login")
        subject: str = claims["sub"]
        return subject
