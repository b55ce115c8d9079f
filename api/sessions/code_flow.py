"""The login at the OIDC issuer: authorization code with PKCE (RFC 6749, 7636, 9700), by Authlib.

What the person may is read of the access token, by the same checks and rules as a bearer token that they send; the ID
token says that it is the answer to this login. Both come from the issuer itself.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import requests
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.requests_client import OAuth2Session

from datamanager.client.connection import authorities
from datamanager.errors import NotAuthenticated
from datamanager.identity.id_token import IdTokens
from datamanager.identity.issuer_keys import IssuerAway, IssuerKeys
from datamanager.settings import Settings

SCOPE = "openid profile email"
TIMEOUT = 5.0
"""Seconds for an answer of the issuer."""


@dataclass(frozen=True, slots=True)
class PendingLogin:
    """What the browser keeps, sealed, while a person is at the issuer."""

    state: str
    nonce: str
    verifier: str
    target: str
    """The page that they asked for."""


class IssuerAnswer(NamedTuple):
    """What a login brought."""

    access_token: str
    subject: str


class CodeFlow:
    """Logins at one issuer, by one client. Its methods ask the issuer, so they are called in a worker thread."""

    def __init__(self, settings: Settings, client: str, issuer: str) -> None:
        """Raises: OSError when the file of authorities can't be read."""
        self.issuer = issuer
        self._client = client
        self._secret = settings.oidc_login_secret
        self._verify = authorities(settings.oidc_ca)
        self._keys = IssuerKeys(issuer, jwks_url=settings.oidc_jwks_url, ca_file=settings.oidc_ca)
        self._id_tokens = IdTokens(issuer, client, self._keys, algorithms=settings.oidc_algorithms)

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return what the settings mean; None where people don't log in at an issuer. Nothing is fetched yet."""
        if settings.oidc_login is None or settings.oidc_issuer is None:
            return None
        return cls(settings, settings.oidc_login, settings.oidc_issuer)

    def begin(self, redirect_uri: str, target: str) -> tuple[str, PendingLogin]:
        """Return the issuer's address to go to, and what is to be kept meanwhile. Raises: NotAuthenticated."""
        verifier, nonce = secrets.token_urlsafe(48), secrets.token_urlsafe(24)
        with self._session(redirect_uri) as session:
            url, state = session.create_authorization_url(
                self._endpoint("authorization_endpoint"), code_verifier=verifier, nonce=nonce
            )
        return url, PendingLogin(state, nonce, verifier, target)

    def finish(self, redirect_uri: str, answer_url: str, pending: PendingLogin) -> IssuerAnswer:
        """Redeem the code of the address that the issuer sent the browser to. Raises: NotAuthenticated."""
        endpoint = self._endpoint("token_endpoint")
        try:
            with self._session(redirect_uri) as session:
                found = session.fetch_token(
                    endpoint,
                    authorization_response=answer_url,
                    state=pending.state,
                    code_verifier=pending.verifier,
                    timeout=TIMEOUT,
                    verify=self._verify,
                    allow_redirects=False,
                )
        except (AuthlibBaseError, requests.RequestException, ValueError) as exc:
            # its text may quote what the issuer, or the browser, has sent
            raise NotAuthenticated(
                f"the login was refused, or the issuer can't be reached ({type(exc).__name__})"
            ) from exc
        subject = self._id_tokens.verify_login(_text(found, "id_token"), pending.nonce)
        return IssuerAnswer(_text(found, "access_token"), subject)

    def _session(self, redirect_uri: str) -> OAuth2Session:
        secret = None if self._secret is None else self._secret.get_secret_value()
        session = OAuth2Session(
            self._client, secret, scope=SCOPE, redirect_uri=redirect_uri, code_challenge_method="S256"
        )
        session.trust_env = False
        return session

    def _endpoint(self, name: str) -> str:
        try:
            return self._keys.endpoint(name)
        except IssuerAway as exc:
            raise NotAuthenticated("the issuer can't be reached", retryable=True) from exc


def _text(found: Any, name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str):
        raise NotAuthenticated(f"the issuer's answer has no {name}")
    return value
