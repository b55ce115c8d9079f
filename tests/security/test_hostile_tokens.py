"""Hostile bearer tokens: each is refused, and nothing but the issuer's own documents is asked for (CWE-287, CWE-347).

Each case names the weakness that it tries. All but the broken ones carry what a good token has.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from joserfc import jwe
from joserfc.jwk import ECKey, OctKey, RSAKey

from datamanager.errors import NotAuthenticated
from datamanager.identity.issuer_keys import DISCOVERY, DOCUMENT_MAX, FRESH, KEPT, PAUSE, IssuerKeys
from datamanager.identity.oidc import LEEWAY, TOKEN_MAX, BearerTokens
from tests.support.authority import Authority
from tests.support.oidc_issuer import AUDIENCE, JWKS, OidcIssuer, encoded, key_of, signed
from tests.support.web import endless, redirect, status

RSA, OTHER = key_of("RS256"), key_of("RS256", 2)


@pytest.fixture
def issuer() -> Iterator[OidcIssuer]:
    with OidcIssuer() as running:
        yield running


def unsigned(issuer: OidcIssuer, signature: str = "AAAA", **header: Any) -> str:
    """Return a token with a header of its own and a signature that nobody has made."""
    return f"{encoded({'kid': RSA.kid} | header)}.{encoded(issuer.claims())}.{signature}"


def with_hmac(issuer: OidcIssuer, secret: bytes, algorithm: str = "HS256") -> str:
    body = f"{encoded({'alg': algorithm, 'kid': RSA.kid})}.{encoded(issuer.claims())}"
    return f"{body}.{encoded(hmac.new(secret, body.encode(), hashlib.sha256).digest())}"


def raw_payload(issuer: OidcIssuer, payload: str) -> str:
    return signed({"alg": "RS256", "kid": RSA.kid}, payload.encode(), RSA)


def with_nested(issuer: OidcIssuer, depth: int) -> str:
    return f'{json.dumps(issuer.claims())[:-1]}, "a": {"[" * depth}{"]" * depth}}}'


def duplicated(issuer: OidcIssuer, name: str, first: object) -> str:
    return raw_payload(issuer, f'{{"{name}": {json.dumps(first)}, {json.dumps(issuer.claims())[1:]}')


def encrypted(issuer: OidcIssuer) -> str:
    header = {"alg": "RSA-OAEP", "enc": "A256GCM", "kid": RSA.kid}
    return jwe.encrypt_compact(header, json.dumps(issuer.claims()).encode(), RSA)


def last_character_changed(token: str) -> str:
    return token[:-10] + ("A" if token[-10] != "A" else "B") + token[-9:]


def changed_payload(issuer: OidcIssuer) -> str:
    header, _, signature = issuer.token().split(".")
    return f"{header}.{encoded(issuer.claims(email='root@example.org'))}.{signature}"


TWO_ALGS = b'{"alg": "none", "alg": "RS256", "kid": "RS256-1"}'
assert isinstance(RSA, RSAKey)
PEM = RSA.as_pem(private=False)
HOSTILE: dict[str, Callable[[OidcIssuer], str]] = {
    "alg none": lambda i: unsigned(i, "", alg="none"),
    "alg None with a signature": lambda i: unsigned(i, alg="None"),
    "alg none, header of a signed one": lambda i: i.token(header={"alg": "RS256"}).rpartition(".")[0] + ".",
    "HS256 with the public key as secret": lambda i: with_hmac(i, PEM),
    "HS256 with the modulus as secret": lambda i: with_hmac(i, i.entries[0]["n"].encode()),
    "HS256 with an empty secret": lambda i: with_hmac(i, b""),
    "RS512, which is not in the list": lambda i: signed({"alg": "RS512", "kid": RSA.kid}, i.claims(), RSA),
    "alg is a list": lambda i: unsigned(i, alg=["RS256"]),
    "alg of another type of key": lambda i: unsigned(i, "A" * 86, alg="ES256"),
    "no alg": lambda i: unsigned(i),
    "wrong aud": lambda i: i.token(aud="other"),
    "list of aud without ours": lambda i: i.token(aud=["other", "datamanager2", "data"]),
    "aud that begins like ours": lambda i: i.token(aud=AUDIENCE + "/"),
    "no aud": lambda i: i.token(aud=None),
    "aud is an object": lambda i: i.token(aud={AUDIENCE: True}),
    "token of another service of the issuer": lambda i: i.token(aud="wiki", azp="wiki"),
    "wrong iss": lambda i: i.token(iss="https://evil.example"),
    "iss with a slash more": lambda i: i.token(iss=i.url + "/"),
    "no iss": lambda i: i.token(iss=None),
    "no sub": lambda i: i.token(sub=None),
    "sub is a number": lambda i: i.token(sub=4711),
    "not yet valid": lambda i: i.token(nbf=int(i.clock.now) + LEEWAY + 2),
    "expired": lambda i: i.token(exp=int(i.clock.now) - LEEWAY),
    "no exp": lambda i: i.token(exp=None),
    "exp is a text": lambda i: i.token(exp="2999-01-01"),
    "exp is true": lambda i: i.token(exp=True),
    "exp is NaN": lambda i: raw_payload(i, json.dumps({**i.claims(), "exp": float("nan")})),
    "exp is Infinity": lambda i: raw_payload(i, json.dumps({**i.claims(), "exp": float("inf")})),
    "exp beyond 64 bits": lambda i: raw_payload(i, json.dumps({**i.claims(), "exp": 10**400})),
    "issued in the future": lambda i: i.token(iat=int(i.clock.now) + 3600),
    "kid with a path": lambda i: i.token(header={"kid": "../../../../dev/null"}),
    "kid with SQL": lambda i: i.token(header={"kid": "x' UNION SELECT 'secret"}),
    "kid is an address": lambda i: i.token(header={"kid": f"{i.url}/evil"}),
    "kid is a list": lambda i: i.token(header={"kid": [RSA.kid]}),
    "kid of nobody": lambda i: i.token(header={"kid": "unknown"}),
    "kid that is huge": lambda i: i.token(header={"kid": "k" * 1500}),
    "no kid": lambda i: i.token(header={"kid": None}),
    "jku": lambda i: i.token(header={"jku": f"{i.url}/evil"}),
    "x5u": lambda i: i.token(header={"x5u": f"{i.url}/evil"}),
    "x5c": lambda i: i.token(header={"x5c": ["AAAA"]}),
    "jwk with the attacker's own key": lambda i: signed(
        {"alg": "RS256", "kid": "mine", "jwk": OTHER.as_dict(private=False)}, i.claims(), OTHER
    ),
    "signed with the attacker's own key": lambda i: signed(
        {"alg": "RS256", "kid": RSA.kid}, i.claims(), key_of("RS256", 2)
    ),
    "crit": lambda i: i.token(header={"crit": ["exp"], "exp": 1}),
    "crit that is empty": lambda i: unsigned(i, alg="RS256", crit=[]),
    "b64=false": lambda i: i.token(header={"b64": False, "crit": ["b64"]}),
    "oversized": lambda i: i.token(filler="x" * TOKEN_MAX),
    "oversized header": lambda i: i.token(header={"x5t": "x" * 3000}),
    "deep JSON": lambda i: raw_payload(i, with_nested(i, 5000)),
    "deep JSON in the header": lambda i: f"{encoded(b'[' * 1500)}.{encoded(i.claims())}.AAAA",
    "JSON nested deeper than 32": lambda i: raw_payload(i, with_nested(i, 40)),
    "duplicated aud": lambda i: duplicated(i, "aud", "other"),
    "duplicated sub": lambda i: duplicated(i, "sub", "1"),
    "duplicated alg": lambda i: f"{encoded(TWO_ALGS)}.{encoded(i.claims())}.AAAA",
    "payload is a list": lambda i: raw_payload(i, json.dumps([i.claims()])),
    "payload is no JSON": lambda i: raw_payload(i, "sub=4711"),
    "payload is not UTF-8": lambda i: signed({"alg": "RS256", "kid": RSA.kid}, b'{"sub": "\xff"}', RSA),
    "nested JWT": lambda i: signed({"alg": "RS256", "kid": RSA.kid, "cty": "JWT"}, i.token().encode(), RSA),
    "nested JWT without cty": lambda i: raw_payload(i, i.token()),
    "JWE": encrypted,
    "empty signature": lambda i: i.token().rpartition(".")[0] + ".",
    "no signature": lambda i: i.token().rpartition(".")[0],
    "truncated": lambda i: i.token()[:-20],
    "signature that is changed": lambda i: last_character_changed(i.token()),
    "payload that is changed": changed_payload,
    "ES256 with a signature of zeros": lambda i: i.token("ES256").rpartition(".")[0] + "." + encoded(bytes(64)),
    "padding": lambda i: i.token() + "=",
    "line break at its end": lambda i: i.token() + "\n",
    "JWS as JSON": lambda i: json.dumps(
        dict(zip(("protected", "payload", "signature"), i.token().split("."), strict=True))
    ),
    "typ of a logout token": lambda i: i.token(header={"typ": "logout+jwt"}),
    "typ of a DPoP proof": lambda i: i.token(header={"typ": "dpop+jwt"}),
    "refresh token of Keycloak": lambda i: i.token(typ="Refresh"),
    "ID token of Keycloak": lambda i: i.token(typ="ID"),
    "token bound to a client's key": lambda i: i.token(cnf={"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}),
    "azp of another client": lambda i: i.token(azp="wiki"),
    "azp that is a list": lambda i: i.token(azp=["dm-cli"]),
    "no azp": lambda i: i.token(azp=None),
    "empty": lambda i: "",
    "dots": lambda i: "..",
    "not ASCII": lambda i: i.token().replace(".", "．"),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[OidcIssuer, BearerTokens]]:
    with OidcIssuer() as running:
        yield running, running.tokens(clients=("dm-cli",))


def refused(tokens: BearerTokens, token: str) -> NotAuthenticated:
    with pytest.raises(NotAuthenticated) as error:
        tokens.verify(token)
    assert error.value.code == "not_authenticated"
    assert "\n" not in error.value.detail
    assert not any(part and part in error.value.detail for part in token.split(".") if len(part) > 8)
    return error.value


@pytest.mark.attack(
    cwe=347,
    title="A bearer token is forged, changed, expired, signed with another key, or of another service of the issuer",
)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_token_is_refused(shared: tuple[OidcIssuer, BearerTokens], case: str) -> None:
    issuer, tokens = shared
    assert tokens.verify(issuer.token())["sub"] == "4711"  # the good one, with the same checks
    refused(tokens, HOSTILE[case](issuer))
    assert {path for path, _ in issuer.requests} == {DISCOVERY, JWKS}
    assert not any("Authorization" in headers for _, headers in issuer.requests)


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
def test_good_token_is_accepted(issuer: OidcIssuer, algorithm: str) -> None:
    token = issuer.token(algorithm, {"typ": "at+jwt"}, aud=["other", AUDIENCE])
    assert issuer.tokens().verify(token)["email"] == "jo@example.org"
    others = {"RS256", "PS256", "ES256", "EdDSA"} - {algorithm}
    refused(issuer.tokens(algorithms=others), token)


def test_leeway_is_a_minute(issuer: OidcIssuer) -> None:
    tokens, now = issuer.tokens(), int(issuer.clock.now)
    tokens.verify(issuer.token(exp=now - LEEWAY + 1, iat=now - 100, nbf=now - 100))
    tokens.verify(issuer.token(nbf=now + LEEWAY, iat=now + LEEWAY))


# --- the issuer's keys -----------------------------------------------------------------------------------------------


def test_rotated_keys_are_fetched_and_withdrawn_ones_forgotten(issuer: OidcIssuer) -> None:
    tokens = issuer.tokens()
    old = issuer.token()
    tokens.verify(old)
    new = key_of("RS256", 3)
    issuer.publish(new)
    tokens.verify(old)  # nobody has asked for another key yet
    token = signed({"alg": "RS256", "kid": new.kid}, issuer.claims(), new)
    refused(tokens, token)  # within the pause
    issuer.clock.now += PAUSE
    tokens.verify(token)
    refused(tokens, old)
    assert issuer.fetches() == 2
    assert issuer.fetches(DISCOVERY) == 1


@pytest.mark.attack(cwe=406, title="Bearer tokens with unknown keys make the service flood the issuer")
def test_unknown_kids_ask_the_issuer_once_in_a_pause(issuer: OidcIssuer) -> None:
    tokens = issuer.tokens()
    tokens.verify(issuer.token())
    for number in range(50):
        refused(tokens, issuer.token(header={"kid": f"unknown{number}"}))
    assert issuer.fetches() == 1
    issuer.clock.now += PAUSE
    for number in range(50):
        refused(tokens, issuer.token(header={"kid": f"unknown{number}"}))
    assert issuer.fetches() == 2


def test_issuer_that_is_away_for_ten_minutes_is_bridged_and_no_longer(issuer: OidcIssuer) -> None:
    tokens = issuer.tokens()
    tokens.verify(issuer.token())
    issuer.answer_keys(status(503))
    issuer.clock.now += FRESH + KEPT - 1
    tokens.verify(issuer.token())
    assert issuer.fetches() == 2
    issuer.clock.now += PAUSE
    assert refused(tokens, issuer.token()).retryable
    issuer.answer_keys()
    issuer.clock.now += PAUSE
    tokens.verify(issuer.token())


@pytest.mark.attack(cwe=636, title="The issuer is away, so that nothing can be checked")
def test_issuer_that_was_never_there_lets_nobody_in() -> None:
    with OidcIssuer() as gone:
        token = gone.token()
    assert refused(gone.tokens(), token).retryable  # its port is closed


ODD_ANSWERS = {
    "redirect": redirect("/evil"),
    "too large": status(200, b'{"keys": []' + b" " * DOCUMENT_MAX + b"}"),
    "endless": endless(b" " * 65536),
    "no JSON": status(200, b"<html>"),
    "a list": status(200, b"[]"),
    "deep": status(200, b"[" * 100_000),
    "no keys": status(200, b"{}"),
    "too many keys": status(200, json.dumps({"keys": [{}] * 101}).encode()),
    "error": status(500),
}


@pytest.mark.parametrize("path", [JWKS, DISCOVERY])
@pytest.mark.parametrize("case", ODD_ANSWERS)
def test_odd_answer_of_the_issuer_lets_nobody_in(issuer: OidcIssuer, path: str, case: str) -> None:
    issuer.on(path, ODD_ANSWERS[case])
    refused(issuer.tokens(), issuer.token())
    assert {asked for asked, _ in issuer.requests} <= {DISCOVERY, JWKS}


@pytest.mark.attack(cwe=346, title="The issuer's document names keys of another origin")
@pytest.mark.parametrize(
    "change", [{"issuer": "http://127.0.0.1:1"}, {"jwks_uri": "https://evil.example/jwks"}, {"jwks_uri": 5}]
)
def test_discovery_that_names_another_place_is_refused(issuer: OidcIssuer, change: dict[str, object]) -> None:
    document = {"issuer": issuer.url, "jwks_uri": issuer.url + JWKS, **change}
    issuer.on(DISCOVERY, status(200, json.dumps(document).encode()))
    refused(issuer.tokens(), issuer.token())
    assert issuer.fetches() == 0


def with_entry(issuer: OidcIssuer, **members: Any) -> OidcIssuer:
    issuer.entries[0] |= members
    return issuer.answer_keys()


@pytest.mark.parametrize(
    "members",
    [
        {"use": "enc"},
        {"key_ops": ["encrypt"]},
        {"alg": "PS256"},
        {"alg": 5},
        {"d": "AQAB"},
        {"n": "AQAB"},
        {"e": 3},
        {"kty": "EC"},
    ],
    ids=str,
)
def test_key_that_is_not_for_this_is_not_used(issuer: OidcIssuer, members: dict[str, Any]) -> None:
    refused(with_entry(issuer, **members).tokens(), issuer.token())


@pytest.mark.attack(cwe=326, title="A bearer token is signed with a key that is too short")
@pytest.mark.filterwarnings("ignore:Key size")
def test_short_rsa_key_is_not_used(issuer: OidcIssuer) -> None:
    short = RSAKey.generate_key(1024, {"kid": "short"})
    refused(issuer.publish(short).tokens(), signed({"alg": "RS256", "kid": "short"}, issuer.claims(), short))


def test_key_of_another_curve_is_not_used(issuer: OidcIssuer) -> None:
    other = ECKey.generate_key("P-384", {"kid": "curve"})
    token = signed({"alg": "ES384", "kid": "curve"}, issuer.claims(), other)
    refused(issuer.publish(other).tokens(), token)
    header = encoded({"alg": "ES256", "kid": "curve"})
    refused(issuer.tokens(), f"{header}.{token.partition('.')[2]}")


def test_symmetric_key_in_the_set_is_not_used(issuer: OidcIssuer) -> None:
    secret = OctKey.import_key("s" * 32, {"kid": "RS256-1"})
    issuer.entries = [secret.as_dict(private=True)]
    issuer.answer_keys()
    refused(issuer.tokens(), with_hmac(issuer, b"s" * 32))
    refused(issuer.tokens(), issuer.token())


def test_two_keys_of_one_name_are_not_used(issuer: OidcIssuer) -> None:
    issuer.publish(RSA, key_of("RS256", 2))
    issuer.entries[1]["kid"] = RSA.kid
    refused(issuer.answer_keys().tokens(), issuer.token())


@pytest.mark.attack(cwe=295, title="Somebody between us and the issuer shows a certificate of their own")
def test_tls_of_the_issuer_is_verified(tmp_path: Any) -> None:
    authority = Authority(tmp_path)
    with OidcIssuer() as issuer:
        issuer.socket = authority.server_context("127.0.0.1").wrap_socket(issuer.socket, server_side=True)
        url = issuer.url.replace("http:", "https:")
        document = {"issuer": url, "jwks_uri": url + JWKS}
        issuer.on(DISCOVERY, status(200, json.dumps(document).encode()))
        token = issuer.token(iss=url)
        for ca_file, known in ((authority.ca_file, True), (None, False)):
            keys = IssuerKeys(url, ca_file=ca_file, monotonic=issuer.clock)
            tokens = BearerTokens(url, AUDIENCE, keys, now=issuer.clock)
            if known:
                assert tokens.verify(token)["sub"] == "4711"
            else:
                refused(tokens, token)
