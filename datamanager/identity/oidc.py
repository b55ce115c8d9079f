"""Bearer tokens of an OIDC issuer: signed JWTs (RFC 7519, with the advice of RFC 8725 and the rules of RFC 9068).

The order is: form and sizes, header, key, signature, claims. Nothing of a token is used before its signature is
verified, but its algorithm (of an allow list) and the id of its key, which is looked up in the issuer's set and nowhere
else. Neither the token nor what is in it is in an error.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from typing import Any, Self

from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry
from joserfc.jwt import JWTClaimsRegistry
from joserfc.util import urlsafe_b64decode

from datamanager.errors import NotAuthenticated, SettingsError
from datamanager.identity.grant import Grant, Means
from datamanager.identity.issuer_keys import IssuerKeys, read_object
from datamanager.identity.mapping import IdentityRules, load_identity_rules
from datamanager.identity.roles import Roles, load_roles
from datamanager.setting_values import OIDC_ALGORITHMS
from datamanager.settings import Settings

TOKEN_MAX = 16_384
"""Characters of a token."""
HEADER_MAX = 2048
KID_MAX = 256
LEEWAY = 60
"""Seconds that the clocks of the issuer and of this host may differ."""
HEADERS = frozenset({"alg", "kid", "typ", "x5t", "x5t#S256"})
"""What a header may have; the thumbprints are not looked at. Others name a key, or change what is signed."""
TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
"""Types of the header, in lower case."""
KEY_TYPES = {"RS256": "RSA", "PS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}
_FORM = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


class BearerTokens:
    """Checks the tokens of one issuer; safe to share between threads. `now` is the clock, in seconds since 1970.

    `clients`: those that a token may have been issued to (`azp`, else `client_id`); none: any of the issuer's.
    """

    KINDS = frozenset({"Bearer"})
    """What the claim `typ` may be, where there is one."""

    def __init__(
        self,
        issuer: str,
        audience: str,
        keys: IssuerKeys,
        *,
        algorithms: Collection[str] = OIDC_ALGORITHMS,
        clients: Collection[str] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._algorithms = frozenset(algorithms) & KEY_TYPES.keys()
        self._clients = frozenset(clients)
        self._claims = JWTClaimsRegistry(
            now=lambda: int(now()),
            leeway=LEEWAY,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
            sub={"essential": True},
        )

    def verify(self, token: str) -> dict[str, Any]:
        """Return the claims of a token. It may ask the issuer for its keys, so it is called in a worker thread.

        Raises: NotAuthenticated, whatever is wrong.
        """
        found = _FORM.fullmatch(token) if len(token) <= TOKEN_MAX else None
        if found is None:
            raise NotAuthenticated(f"the bearer token must be a signed JWT of at most {TOKEN_MAX} characters")
        header, payload, signature = (part.encode("ascii") for part in found.groups())
        algorithm, kid = self._read_header(header)
        key, only = self._keys.find(kid, KEY_TYPES[algorithm])
        if only not in (None, algorithm):
            raise NotAuthenticated("the token's key is for another algorithm")
        model = JWSRegistry.algorithms[algorithm]
        try:
            model.check_key(key)
            valid = model.verify(header + b"." + payload, urlsafe_b64decode(signature), key)
        except (JoseError, ValueError):
            valid = False
        if not valid:
            raise NotAuthenticated("the token's signature is wrong")
        claims = _read_part(payload, "payload")
        self._check(claims)
        return claims

    def _read_header(self, part: bytes) -> tuple[str, str]:
        """Return algorithm and key id. Raises: NotAuthenticated."""
        if len(part) > HEADER_MAX:
            raise NotAuthenticated(f"the token's header is limited to {HEADER_MAX} characters")
        header = _read_part(part, "header")
        if not header.keys() <= HEADERS:
            raise NotAuthenticated(f"the token's header may have {', '.join(sorted(HEADERS))} only")
        algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise NotAuthenticated(f"the token must be signed with one of {', '.join(sorted(self._algorithms))}")
        if not isinstance(kid, str) or not 0 < len(kid) <= KID_MAX:
            raise NotAuthenticated("the token must name the key that it is signed with (kid)")
        if not isinstance(kind, str) or kind.lower() not in TYPES:
            raise NotAuthenticated("the token is of another type; an access token is required")
        return algorithm, kid

    def _check(self, claims: dict[str, Any]) -> None:
        """Check the claims. Raises: NotAuthenticated."""
        try:
            self._claims.validate(claims)
        except JoseError as exc:
            claim = getattr(exc, "claim", None) or "claims"
            raise NotAuthenticated(f"the token is not valid here or now: {claim}") from exc
        # Keycloak's way to tell its access tokens from the others that it signs with the same key
        if claims.get("typ", next(iter(self.KINDS))) not in tuple(self.KINDS):
            raise NotAuthenticated("the token is of another type; an access token is required")
        if "cnf" in claims:
            raise NotAuthenticated("the token is bound to a key of its client (cnf), and can't be used as a bearer's")
        if self._clients and claims.get("azp", claims.get("client_id")) not in tuple(self._clients):
            raise NotAuthenticated("the token was issued to a client that is not accepted (azp)")


class OidcLogin:
    """Makes grants of bearer tokens; safe to share between threads."""

    def __init__(self, tokens: BearerTokens, rules: IdentityRules, roles: Roles) -> None:
        self._tokens, self._rules, self._roles = tokens, rules, roles

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return what the settings mean; None without an issuer. Nothing is fetched yet. Raises: SettingsError."""
        issuer, audience = settings.oidc_issuer, settings.oidc_audience
        if issuer is None or audience is None:
            return None
        try:
            keys = IssuerKeys(issuer, jwks_url=settings.oidc_jwks_url, ca_file=settings.oidc_ca)
        except OSError as exc:
            raise SettingsError(f"DM_OIDC_CA: can't be read: {exc}") from exc
        algorithms, clients = settings.oidc_algorithms, settings.oidc_clients
        tokens = BearerTokens(issuer, audience, keys, algorithms=algorithms, clients=clients)
        return cls(tokens, load_identity_rules(settings.identity_file), load_roles(settings.roles))

    def grant(self, token: str) -> Grant:
        """Return what the bearer of a token may. Raises: NotAuthenticated; NotAllowed when no rule knows them."""
        claims = self._tokens.verify(token)
        who = self._rules.map(claims, self._roles)
        scopes = self._roles.scopes_of(who.roles)
        return Grant(who.person, who.groups, scopes, Means.OIDC, claims["sub"], who.principal, who.roles)


def _read_part(part: bytes, name: str) -> dict[str, Any]:
    try:
        return read_object(urlsafe_b64decode(part))
    except ValueError as exc:
        raise NotAuthenticated(f"the token's {name} must be a JSON object in base64url without repeated names") from exc
