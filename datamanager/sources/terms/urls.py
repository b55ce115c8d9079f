"""URLs of external sources: read once by one parser, shown without what may be secret."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from datamanager.errors import UrlNotAllowed
from datamanager.sources.network.egress_guard import canonical_host

MAX_URL = 8192
"""Longest URL in characters."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_SHOWN = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#\\]*)(?P<path>[^?#]*)(\?(?P<query>[^#]*))?(#.*)?",
    re.DOTALL,
)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:@\[\]]*)(:[0-9]*)?")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def scheme_of(url: str) -> str:
    """Return the URL's scheme in lower case. Raises: UrlNotAllowed when there is none."""
    match = _SCHEME.match(url)
    if match is None:
        raise UrlNotAllowed("the URL has no scheme; it must begin with http:// or https://")
    return match[1].lower()


def public_url(url: str) -> str:
    """Return `url` without user, password, query and fragment, fit for logs, errors and an object's originator.

    Queries carry tokens and the signatures of pre-signed URLs: `?…` says that there is one. What can't be read for
    certain is left out rather than shown.
    """
    match = _SHOWN.fullmatch(url)
    if match is None:
        scheme = _SCHEME.match(url)
        return f"{scheme[1].lower()}:…" if scheme else "…"
    authority = match["authority"].rpartition("@")[2]
    if not _AUTHORITY.fullmatch(authority):  # a password with an unescaped / ? or # looks like this
        return f"{match['scheme'].lower()}://…"
    shown = f"{match['scheme'].lower()}://{authority}{match['path']}"
    shown = "".join(char if char.isprintable() else "?" for char in shown)
    if match["query"] is None:
        return shown
    return f"{shown}?…" if match["query"] else f"{shown}?"


def origin_of(url: str) -> tuple[str, str, int | None]:
    """Return a URL's scheme, host and port, to compare with another's.

    Raises: UrlNotAllowed when it can't be read.
    """
    scheme = scheme_of(url)
    if scheme in _DEFAULT_PORTS:
        return parse_target(url).origin
    try:
        parts = urlsplit(url)
        return scheme, (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise UrlNotAllowed(f"the URL {public_url(url)} is malformed") from None


@dataclass(frozen=True, slots=True)
class Target:
    """An http(s) URL as it is requested: the host that is checked is the host that is asked."""

    scheme: str
    host: str
    """Lower-case ASCII name without a final dot, or an address without brackets."""
    port: int
    url: str
    """Canonical, percent-encoded, without fragment."""

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: whom credentials are for."""
        return self.scheme, self.host, self.port

    @property
    def netloc(self) -> str:
        """The Host header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse_target(url: str) -> Target:
    """Read an http(s) URL with the parser that will also send it (requests), so that no two parsers can disagree.

    Raises: UrlNotAllowed for another scheme, credentials, control characters, backslashes and malformed URLs.
    """
    scheme = scheme_of(url)
    if scheme not in _DEFAULT_PORTS:
        raise UrlNotAllowed(f"scheme {scheme!r} is not allowed; use http or https")
    if len(url) > MAX_URL or "\\" in url or not all(char.isprintable() for char in url):
        raise UrlNotAllowed(f"the URL is longer than {MAX_URL} characters, or holds control characters or backslashes")
    try:
        prepared = requests.Request("GET", url).prepare()
        parts = parse_url(prepared.url or "")
        asked_port = parse_url(url).port  # requests drops port 0
    except (requests.RequestException, LocationParseError, ValueError):
        raise UrlNotAllowed(f"the URL {public_url(url)} is malformed") from None  # the parsers quote the URL as it is
    if parts.auth is not None:
        raise UrlNotAllowed("user and password in the URL are not supported")
    if parts.scheme != scheme or not parts.host:
        raise UrlNotAllowed(f"the URL {public_url(url)} is malformed")
    port = _DEFAULT_PORTS[scheme] if asked_port is None else asked_port
    target = Target(scheme, str(canonical_host(parts.host)), port, "")
    return Target(scheme, target.host, port, f"{scheme}://{target.netloc}{prepared.path_url}")
