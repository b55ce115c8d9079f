"""The issuer of the tests with a login of its own: authorization code with PKCE, as a browser and our API see it."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from datamanager.identity.issuer_keys import DISCOVERY
from tests.support.oidc_issuer import JWKS, OidcIssuer, key_of, signed
from tests.support.web import OddHandler, status

CLIENT, SECRET = "dm-browser", "s3cret-of-the-client"
GROUPS = ["/fire"]
RULES = """
[[person]]
source = "{email}"
match = '(.*)@example\\.org'
output = "{0}"

[[groups]]
source = "{groups}"
match = "/(.*)"
output = "{0}"

[[roles]]
source = "{email}"
match = '.*'
output = "mover"
"""
"""Everybody is a mover of their groups (identity.toml)."""


class LoginIssuer(OidcIssuer):
    """An issuer at which whoever comes is logged in at once. `changes` alter what it answers, by the part's name:
    `access` and `id` (claims), `token` (members of the answer), `callback` (parameters of the address).
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock.now = time.time()
        self.changes: dict[str, dict[str, Any]] = {}
        self.codes: dict[str, dict[str, str]] = {}
        """Parameters of the login of each code that was not redeemed."""
        self.redeemed: list[dict[str, str]] = []
        self.issued: list[str] = []
        """Tokens that logins were given."""
        document = {
            "issuer": self.url,
            "jwks_uri": self.url + JWKS,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
        }
        self.on(DISCOVERY, status(200, json.dumps(document).encode()))
        self.on("/authorize", self._authorize)
        self.on("/token", self._redeem)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of an API whose people log in here."""
        return {
            "oidc_issuer": self.url,
            "oidc_audience": "datamanager",
            "oidc_login": CLIENT,
            "oidc_login_secret": SECRET,
        }

    def _authorize(self, request: OddHandler) -> None:
        asked = dict(parse_qsl(urlsplit(request.path).query))
        code = secrets.token_hex(8)
        self.codes[code] = asked
        answer = {"code": code, "state": asked["state"], "iss": self.url, **self.changes.get("callback", {})}
        request.begin(302, Location=f"{asked['redirect_uri']}?{urlencode(answer)}", Content_Length=0)

    def _redeem(self, request: OddHandler) -> None:
        """Check what RFC 6749 (4.1.3) and RFC 7636 (4.6) have a token endpoint check."""
        body = request.rfile.read(int(request.headers["Content-Length"])).decode()
        sent = {name: values[0] for name, values in parse_qs(body).items()}
        self.redeemed.append(sent)
        asked = self.codes.pop(sent.get("code", ""), None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(sent.get("code_verifier", "").encode()).digest())
        expected = "Basic " + base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        right = (
            asked is not None
            and asked["code_challenge_method"] == "S256"
            and asked["code_challenge"] == challenge.rstrip(b"=").decode()
            and asked["redirect_uri"] == sent["redirect_uri"]
            and request.headers["Authorization"] == expected
        )
        if asked is None or not right:
            return _answer(request, 400, {"error": "invalid_grant"})
        access = self.token(typ="Bearer", azp=CLIENT, groups=GROUPS, **self.changes.get("access", {}))
        claims = {"aud": CLIENT, "azp": CLIENT, "typ": "ID", "nonce": asked["nonce"], **self.changes.get("id", {})}
        key = key_of("RS256")
        identity = signed({"alg": "RS256", "kid": key.kid, "typ": "JWT"}, self.claims(**claims), key)
        self.issued += [access, identity]
        answer = {"access_token": access, "id_token": identity, "token_type": "Bearer", "expires_in": 300}
        return _answer(request, 200, {**answer, **self.changes.get("token", {})})


def _answer(request: OddHandler, code: int, document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()
    request.begin(code, Content_Type="application/json", Content_Length=len(body))
    request.wfile.write(body)
