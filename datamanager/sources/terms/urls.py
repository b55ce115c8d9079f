"""URLs of external sources: parsed once, by the parser that also requests them; shown without what may be secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import quote, unquote_to_bytes, urlsplit

import requests
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from datamanager.errors import UrlNotAllowed

Address = IPv4Address | IPv6Address

MAX_URL = 8192
"""Longest URL in characters."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_SHOWN = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#\\]*)(?P<path>[^?#]*)(\?(?P<query>[^#]*))?(#.*)?",
    re.DOTALL,
)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:@\[\]]*)(:[0-9]*)?")
_ESCAPES = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")
_TO_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9._~!$&'()*+,;=:@/?%-]")
"""What can't stand in a path or query (RFC 3986, 3.3 and 3.4)."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


def scheme_of(url: str) -> str:
    """Return the URL's scheme in lower case. Raises: UrlNotAllowed when there is none."""
    match = _SCHEME.match(url)
    if match is None:
        raise UrlNotAllowed("the URL has no scheme; it must begin with http:// or https://")
    return match[1].lower()


def canonical_host(host: str) -> str | Address:
    """Return `host` as an address, or as a lower-case ASCII name without a final dot.

    A host that ends in a number is an IPv4 address to some parsers (WHATWG URL, inet_aton): only the plain dotted
    form is read; `127.1`, `0x7f.0.0.1`, `2130706433` and `0177.0.0.1` are refused, as are zones (`fe80::1%eth0`) and
    `%` escapes.

    Raises: UrlNotAllowed.
    """
    if "%" in host:  # not quoted: an escaped login looks like this
        raise UrlNotAllowed("a host with % in it, a zone or escapes, is not allowed")
    text = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    try:
        if ":" in text:
            address = IPv6Address(text)
            return address.ipv4_mapped or address
        name = text.lower().removesuffix(".")
        if _NUMBER.fullmatch(name.rpartition(".")[2]):
            return IPv4Address(text)
    except ValueError as exc:
        raise UrlNotAllowed(f"host {host!r} is not a plain IP address") from exc
    if not name.isascii() or not _HOST_NAME.fullmatch(name):
        raise UrlNotAllowed(f"host {host!r} is not a valid host name")
    return name


def require_plain(url: str) -> None:
    """Refuse a URL that is too long, or that two parsers could read differently. Raises: UrlNotAllowed."""
    if len(url) > MAX_URL or "\\" in url or not url.isprintable():
        raise UrlNotAllowed(f"the URL is longer than {MAX_URL} characters, or has control characters or backslashes")


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
    """An http(s) URL as it is requested: the host that is checked is the host that is connected to."""

    scheme: str
    host: str
    """Lower-case ASCII name without a final dot, or an address without brackets."""
    port: int
    url: str
    """What is requested: host and port canonical, path and query as they were given, but for what can't be sent so
    (escaped) and dot segments (removed); without fragment."""

    @property
    def path(self) -> str:
        """Path and query."""
        return self.url[len(f"{self.scheme}://{self.netloc}") :]

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
    """Read an http(s) URL with the parser that will also send it (requests), so that no two parsers can disagree about
    the host. That parser would also respell escapes (`%7E`, `%2f`), which are parts of names, and of signatures.

    Raises: UrlNotAllowed for another scheme, credentials, control characters, backslashes and malformed URLs.
    """
    scheme = scheme_of(url)
    if scheme not in _DEFAULT_PORTS:
        raise UrlNotAllowed(f"scheme {scheme!r} is not allowed; use http or https")
    require_plain(url)
    try:
        prepared = requests.Request("GET", url).prepare()
        parts = parse_url(prepared.url or "")
        given_port = parse_url(url).port  # requests drops port 0
    except (requests.RequestException, LocationParseError, ValueError):
        raise UrlNotAllowed(f"the URL {public_url(url)} is malformed") from None  # the parsers quote the URL as it is
    if parts.auth is not None:
        raise UrlNotAllowed("user and password in the URL are not supported")
    given = _SHOWN.fullmatch(url)
    if parts.scheme != scheme or not parts.host or given is None:
        raise UrlNotAllowed(f"the URL {public_url(url)} is malformed")
    port = _DEFAULT_PORTS[scheme] if given_port is None else given_port
    target = Target(scheme, str(canonical_host(parts.host)), port, "")
    query = "" if given["query"] is None else f"?{_escaped(given['query'])}"
    path = _without_dots(_escaped(given["path"])) or "/"
    return Target(scheme, target.host, port, f"{scheme}://{target.netloc}{path}{query}")


def _escaped(text: str) -> str:
    return _TO_ESCAPE.sub(lambda found: quote(found[0], safe=""), text)


def _without_dots(path: str) -> str:
    """Return a path without `.` and `..` (RFC 3986, 5.2.4); escaped ones are names."""
    kept = [""]
    for part in path.split("/")[1:]:
        if part == "..":
            del kept[max(1, len(kept) - 1) :]
        elif part != ".":
            kept.append(part)
    if path.endswith(("/.", "/..")):
        kept.append("")
    return "/".join(kept)


@dataclass(frozen=True, slots=True)
class FileUrl:
    """A file of an SFTP or FTP server: the host that is checked is the host that is connected to."""

    scheme: str
    host: str
    """Lower-case ASCII name without a final dot, or an address without brackets."""
    port: int
    path: bytes
    """As the server gets it: percent-decoded, beginning with a slash."""
    shown: str
    """The `public_url`."""

    @property
    def filename(self) -> str:
        """The last part of the path, hostile until `safe_name` made it safe."""
        return self.path.rpartition(b"/")[2].decode("utf-8", "replace")


def parse_file_url(url: str, ports: Mapping[str, int]) -> FileUrl:
    """Read a URL whose scheme is one of `ports`, which has each scheme's own port.

    Raises: UrlNotAllowed for another scheme, credentials, control characters (escaped ones too), a query or fragment,
    a path that does not name a file, and malformed URLs.
    """
    scheme, shown = scheme_of(url), public_url(url)
    if scheme not in ports:
        raise UrlNotAllowed(f"scheme {scheme!r} is not allowed; use {' or '.join(ports)}")
    require_plain(url)
    if "?" in url or "#" in url:
        raise UrlNotAllowed(f"{scheme} URLs have no query and no fragment; write ? as %3F and # as %23")
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise UrlNotAllowed(f"the URL {shown} is malformed") from None  # the parser's text quotes the URL
    if "@" in parts.netloc:
        raise UrlNotAllowed("user and password in the URL are not supported; use the options username and password")
    if not host or not _ESCAPES.fullmatch(parts.path):
        raise UrlNotAllowed(f"the URL {shown} is malformed")
    path = unquote_to_bytes(parts.path)
    if any(byte < 0x20 or byte == 0x7F for byte in path):
        raise UrlNotAllowed(f"the path of {shown} contains control characters")
    if path.rpartition(b"/")[2] in (b"", b".", b".."):
        raise UrlNotAllowed(f"the path of {shown} does not name a file")
    wanted = ports[scheme] if port is None else port
    return FileUrl(scheme, str(canonical_host(host)), wanted, path, shown)
