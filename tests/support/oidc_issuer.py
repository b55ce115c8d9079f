"""A real OIDC issuer on loopback: a discovery document, its keys, and tokens that it signs with them (joserfc)."""

from __future__ import annotations

import json
from typing import Any, Self

from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64encode

from datamanager.identity.issuer_keys import DISCOVERY, IssuerKeys
from datamanager.identity.oidc import BearerTokens
from tests.support.web import Answer, OddServer, status

AUDIENCE = "datamanager"
JWKS = "/jwks"
START = 1_800_000_000.0
"""When the tests' clock begins, in seconds since 1970."""
_KEYS: dict[str, Key] = {}


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def key_of(algorithm: str, number: int = 1) -> Key:
    """Return a private key for an algorithm; the same one for the same number."""
    name = f"{algorithm}-{number}"
    if name not in _KEYS:
        match algorithm:
            case "ES256":
                made: Key = ECKey.generate_key("P-256", {"kid": name})
            case "EdDSA":
                made = OKPKey.generate_key("Ed25519", {"kid": name})
            case _:
                made = RSAKey.generate_key(2048, {"kid": name})
        _KEYS[name] = made
    return _KEYS[name]


def encoded(value: Any) -> str:
    """Return bytes, or JSON, in base64url without padding."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(text).decode()


def signed(header: dict[str, Any], payload: bytes | dict[str, Any], key: Key) -> str:
    """Return a JWS of any header and payload, which `key` signs."""
    body = f"{encoded(header)}.{encoded(payload)}"
    return f"{body}.{encoded(JWSRegistry.algorithms[header['alg']].sign(body.encode(), key))}"


class OidcIssuer(OddServer):
    """The issuer; `entries` are the keys that it publishes (JWK). It runs inside its `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.entries: list[dict[str, Any]] = []
        self.publish(key_of("RS256"), key_of("ES256"), key_of("EdDSA"))
        document = {"issuer": self.url, "jwks_uri": self.url + JWKS}
        self.on(DISCOVERY, status(200, json.dumps(document).encode()))

    def publish(self, *keys: Key, **members: Any) -> Self:
        """Publish these keys, and no others."""
        self.entries = [{**key.as_dict(private=False), "use": "sig", **members} for key in keys]
        return self.answer_keys()

    def answer_keys(self, answer: Answer | None = None) -> Self:
        """Answer a request for the keys with `entries`, or in another way."""
        self.on(JWKS, answer or status(200, json.dumps({"keys": self.entries}).encode()))
        return self

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return the claims of a good token; a claim that is None is left out."""
        now = int(self.clock.now)
        good = {
            "iss": self.url,
            "sub": "4711",
            "aud": AUDIENCE,
            "iat": now,
            "nbf": now,
            "exp": now + 300,
            "azp": "dm-cli",
            "email": "jo@example.org",
            "groups": ["/fire", "/flood"],
        }
        return {name: value for name, value in {**good, **changes}.items() if value is not None}

    def token(self, algorithm: str = "RS256", header: dict[str, Any] | None = None, **changes: Any) -> str:
        """Return a token with its claims and header changed."""
        key = key_of("RS256" if algorithm == "PS256" else algorithm)
        head = {"alg": algorithm, "kid": key.kid, "typ": "JWT", **(header or {})}
        return signed({name: value for name, value in head.items() if value is not None}, self.claims(**changes), key)

    def keys(self) -> IssuerKeys:
        """Return a new cache of its keys."""
        return IssuerKeys(self.url, monotonic=self.clock)

    def tokens(self, **options: Any) -> BearerTokens:
        """Return new checks of its tokens."""
        return BearerTokens(self.url, AUDIENCE, self.keys(), now=self.clock, **options)

    def fetches(self, path: str = JWKS) -> int:
        """Return how often a path was asked for."""
        return sum(asked == path for asked, _ in self.requests)
