"""The public keys of an OIDC issuer: found by its discovery document, cached, and fetched again when they change.

Connections go to the issuer's origin alone, with TLS verified (http only on loopback), never through a proxy or after a
redirect, and what they bring is bounded. Keys are kept as public keys that can verify a signature; others in the set
(symmetric ones, ones for encryption, other curves, short ones) are left out.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import structlog
import urllib3
from joserfc.errors import JoseError
from joserfc.jwk import Key, import_key

from datamanager.domain.fields import objection
from datamanager.errors import NotAuthenticated
from datamanager.listening import is_loopback

FRESH = 300.0
"""Seconds after which the keys are fetched again."""
KEPT = 600.0
"""Seconds for which older ones are used while the issuer is away."""
PAUSE = 5.0
"""Seconds between two attempts to fetch them."""
TIMEOUT = 5.0
"""Seconds that a fetch may take."""
DOCUMENT_MAX = 2**20
"""Bytes of a discovery document, and of a set of keys."""
KEYS_MAX = 100
DISCOVERY = "/.well-known/openid-configuration"
# the members of a public key, by its type; nothing else in the set is looked at
MEMBERS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
RSA_BITS = range(2048, 8193)

log = structlog.get_logger(__name__)


class IssuerKey(NamedTuple):
    """A public key; `algorithm`: the only one that it is for, if its issuer says so."""

    key: Key
    algorithm: str | None


class IssuerAway(Exception):
    """The issuer can't be asked, or its answer can't be used."""


class IssuerKeys:
    """The keys of one issuer; safe to share between threads, of which one fetches. `monotonic` is the clock.

    `jwks_url` is where its keys are if they are not at its own origin; no discovery document is read then.
    """

    def __init__(
        self,
        issuer: str,
        *,
        jwks_url: str | None = None,
        ca_file: Path | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._monotonic = monotonic
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        self._http = urllib3.PoolManager(ssl_context=context, retries=False, timeout=TIMEOUT, maxsize=1)
        self._lock = threading.Lock()
        self._keys: dict[tuple[str, str], IssuerKey] = {}
        self._fetched: float | None = None
        self._tried: float | None = None

    def find(self, kid: str, kty: str) -> IssuerKey:
        """Return the key with this id and type. It may fetch the keys, which takes up to some seconds.

        Raises: NotAuthenticated when there is none; retryable, when the issuer is away for longer than `KEPT`.
        """
        name = (kid, kty)
        if not self._has_fresh(name):
            # who has a key that may still be used does not wait for the one that fetches
            usable = name in self._keys and self._is_younger(FRESH + KEPT)
            if self._lock.acquire(blocking=not usable):
                try:
                    if not self._has_fresh(name):
                        self._refresh()
                finally:
                    self._lock.release()
        if not self._is_younger(FRESH + KEPT):
            raise NotAuthenticated("the issuer of the token can't be reached", retryable=True)
        found = self._keys.get(name)
        if found is None:
            raise NotAuthenticated("the token is signed with a key that its issuer does not publish")
        return found

    def endpoint(self, name: str) -> str:
        """Return an address of the discovery document, which is read each time. Raises: IssuerAway."""
        url = self._document().get(name)
        if not isinstance(url, str) or _origin(url) is None:
            raise IssuerAway(f"the discovery document has no {name} with https")
        return url

    def _has_fresh(self, name: tuple[str, str]) -> bool:
        return self._is_younger(FRESH) and name in self._keys

    def _is_younger(self, seconds: float) -> bool:
        return self._fetched is not None and self._monotonic() - self._fetched < seconds

    def _refresh(self) -> None:
        if self._tried is not None and self._monotonic() - self._tried < PAUSE:
            return
        try:
            if self._jwks_url is None:
                self._jwks_url = self._discover()
            self._keys = _usable(self._get(self._jwks_url))
            self._fetched = self._monotonic()
        except IssuerAway as exc:
            log.warning("keys of the OIDC issuer can't be fetched", issuer=self._issuer, reason=str(exc))
        finally:
            self._tried = self._monotonic()  # a fetch may take as long as the pause

    def _discover(self) -> str:
        """Return where the keys are. Raises: IssuerAway."""
        url = self._document().get("jwks_uri")
        if not isinstance(url, str) or _origin(url) is None or _origin(url) != _origin(self._issuer):
            raise IssuerAway("jwks_uri is not at the issuer's origin; DM_OIDC_JWKS_URL allows another one")
        return url

    def _document(self) -> dict[str, Any]:
        """Return the discovery document. Raises: IssuerAway."""
        document = self._get(self._issuer.rstrip("/") + DISCOVERY)
        if document.get("issuer") != self._issuer:
            raise IssuerAway("the discovery document names another issuer")
        return document

    def _get(self, url: str) -> dict[str, Any]:
        """Return a JSON object. Raises: IssuerAway."""
        body, end = b"", time.monotonic() + TIMEOUT
        try:
            headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
            answer = self._http.request("GET", url, headers=headers, redirect=False, preload_content=False)
            with contextlib.closing(answer):
                if answer.status != 200:
                    raise IssuerAway(f"{url} is answered with {answer.status}")
                while part := answer.read1(65536, decode_content=False):
                    body += part
                    if len(body) > DOCUMENT_MAX:
                        raise IssuerAway(f"{url} has more than {DOCUMENT_MAX} bytes")
                    if time.monotonic() > end:
                        raise IssuerAway(f"{url} takes longer than {TIMEOUT:.0f} s")
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            raise IssuerAway(f"{url}: {exc}") from exc
        try:
            return read_object(body)
        except ValueError as exc:
            raise IssuerAway(f"{url}: {exc}") from exc


def read_object(text: bytes) -> dict[str, Any]:
    """Read a JSON object (RFC 8259) in which no name stands twice, of bounded depth. Raises: ValueError."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_no_name_twice, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("must not be nested so deeply") from None
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    if (wrong := objection(value)) is not None:
        raise ValueError(wrong)
    return value


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


def _origin(url: str) -> tuple[str, str, int | None] | None:
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    host = parts.hostname or ""
    if parts.username is not None or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))):
        return None
    return parts.scheme, host, port


def _usable(document: dict[str, Any]) -> dict[tuple[str, str], IssuerKey]:
    """Return the keys that can verify, by id and type; of two with one name neither. Raises: IssuerAway."""
    entries = document.get("keys")
    if not isinstance(entries, list) or len(entries) > KEYS_MAX:
        raise IssuerAway(f"the set of keys must be a list of at most {KEYS_MAX}")
    named = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("kid"), str)]
    count = Counter((entry["kid"], str(entry.get("kty"))) for entry in named)
    found = {(entry["kid"], str(entry.get("kty"))): _public_key(entry) for entry in named}
    return {name: key for name, key in found.items() if key is not None and count[name] == 1}


def _public_key(entry: dict[str, Any]) -> IssuerKey | None:
    kty, algorithm, operations = entry.get("kty"), entry.get("alg"), entry.get("key_ops", ["verify"])
    if not isinstance(kty, str) or kty not in MEMBERS:
        return None
    if "d" in entry or entry.get("use", "sig") != "sig" or not isinstance(operations, list):
        return None
    if "verify" not in operations or not (algorithm is None or isinstance(algorithm, str)):
        return None
    if kty in ("EC", "OKP") and entry.get("crv") != {"EC": "P-256", "OKP": "Ed25519"}[kty]:
        return None
    try:
        key = import_key({"kty": kty, **{name: entry[name] for name in MEMBERS[kty]}})
        bits = getattr(key.public_key, "key_size", None)
    except (JoseError, KeyError, TypeError, ValueError):
        return None
    return None if kty == "RSA" and bits not in RSA_BITS else IssuerKey(key, algorithm)
