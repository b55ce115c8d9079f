"""http and https: one GET, redirects followed by hand and checked again, the exact bytes as they were sent.

Nothing is taken from the environment (proxy, ~/.netrc), nothing is decompressed, no cookie goes to a next request, and
no login, client certificate or header of the client's to another origin than the URL's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode, urljoin

import requests
from requests.auth import AuthBase, HTTPBasicAuth
from urllib3.exceptions import NewConnectionError

from datamanager.errors import DownloadFailed, InvalidRequest, UrlNotAllowed
from datamanager.sources.http.answer import Asked, Head, HttpDownload
from datamanager.sources.http.pinned import PinnedAdapter
from datamanager.sources.http.proxy import Proxy
from datamanager.sources.network.connection_errors import causes, translated
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.network.tls import Trust
from datamanager.sources.terms.options import HttpOptions
from datamanager.sources.terms.urls import Target, parse_target, public_url

MAX_REDIRECTS = 10
MAX_ADDRESSES = 4
"""How many of a host's addresses are tried until one accepts the connection."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "data-manager",
}
NO_HEADERS: Mapping[str, str] = {}

A = TypeVar("A")


class BearerAuth(AuthBase):
    """Authorization by a bearer token (RFC 6750)."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


@dataclass(frozen=True, slots=True)
class HttpSource:
    """An http or https URL. `connect_timeout` and `read_timeout` are seconds, `max_size` is bytes.

    Other protocols over HTTP ride on it with an `auth` of their own (it sees the request as it will be sent, Range
    included), `headers` and `query`.
    """

    url: str
    guard: EgressGuard
    max_size: int
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    ca_file: Path | None = None
    """Certificate authorities to trust besides the public ones."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent to the URL's own origin only."""
    auth: AuthBase | None = field(default=None, repr=False)
    """Applied to each request to the URL's own origin, as the last."""
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Added to the URL's query; not to where it redirects."""
    trust: Trust = field(default_factory=Trust, repr=False)
    proxy: Proxy | None = field(default=None, repr=False)
    expect_type: str | None = None

    @classmethod
    def of(
        cls,
        url: str,
        options: HttpOptions,
        *,
        guard: EgressGuard,
        max_size: int,
        connect_timeout: float,
        read_timeout: float,
        ca_file: Path | None,
        auth: AuthBase | None = None,
    ) -> HttpSource:
        """Return the source for a URL with these options; `auth` instead of the one that they ask for.

        Raises: UrlNotAllowed, InvalidRequest (certificates that can't be read, two logins).
        """
        parse_target(url)
        return cls(
            url,
            guard,
            max_size,
            connect_timeout,
            read_timeout,
            ca_file,
            headers={name: value.get_secret_value() for name, value in options.headers.items()},
            auth=auth or auth_of(options),
            query={name: value.get_secret_value() for name, value in options.query.items()},
            trust=Trust.of(options),
            proxy=Proxy.of(options),
            expect_type=options.expect_type,
        )

    def check(self) -> None:
        """Refuse a malformed URL, and a host or proxy where downloads may not go. Raises: UrlNotAllowed."""
        target = self.first()
        self.guard.check(target.host, target.port)
        if self.proxy is not None:
            self.proxy.check(self.guard)

    @contextmanager
    def open(self, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Iterator[HttpDownload]:
        """Ask for the URL and follow redirects to the answer with the bytes.

        Raises: SourceChanged, UrlNotAllowed, DownloadFailed, TooLarge, ConnectionLost, TransportTimeout.
        """
        asked = Asked(start, stop, version)
        target, response = followed(
            self.first(), lambda at, trusted: self._get(at, asked, trusted=trusted), Head.of, _close
        )
        try:
            yield HttpDownload(response, target, self.max_size, asked, self.expect_type)
        finally:
            _close(response)

    def first(self) -> Target:
        """Return what is asked for first: the URL with the query that was given beside it. Raises: UrlNotAllowed."""
        if not self.query:
            return parse_target(self.url)
        base, hash_sign, fragment = self.url.partition("#")
        joint = "&" if "?" in base else "?"
        return parse_target(f"{base}{joint}{urlencode(self.query)}{hash_sign}{fragment}")

    def request(self, target: Target, asked: Asked, *, trusted: bool) -> requests.PreparedRequest:
        """Return the request as it is to be sent. `trusted`: the target is of the origin that the client's login and
        headers are for.
        """
        own = self.headers if trusted else NO_HEADERS
        replaced = {name.lower() for name in own}
        headers = {name: value for name, value in _HEADERS.items() if name.lower() not in replaced}
        headers = {**headers, **own, **asked.headers(), "Host": target.netloc}
        request = requests.Request("GET", target.url, headers=headers).prepare()
        if trusted and self.auth is not None:
            request = self.auth(request)
        return request

    def _get(self, target: Target, asked: Asked, *, trusted: bool) -> requests.Response:
        """Send the request to the first of the host's checked addresses that accepts the connection."""
        request = self.request(target, asked, trusted=trusted)
        trust = self.trust if trusted else self.trust.without_client()
        addresses = self.guard.check(target.host, target.port)[:MAX_ADDRESSES]
        with translated(public_url(target.url)):
            context = trust.context(self.ca_file) if target.scheme == "https" else None
            way = None if self.proxy is None else self.proxy.way(self.guard)
            for address in addresses[:-1]:
                try:
                    return self._send(request, PinnedAdapter(target, address, context, way))
                except requests.ConnectionError as exc:  # its timeout is one as well
                    unreached = isinstance(exc, requests.ConnectTimeout) or any(
                        isinstance(cause, NewConnectionError) for cause in causes(exc)
                    )
                    if not unreached:
                        raise
            return self._send(request, PinnedAdapter(target, addresses[-1], context, way))

    def _send(self, request: requests.PreparedRequest, adapter: PinnedAdapter) -> requests.Response:
        # The adapter is used without a Session: cookies, proxies, ~/.netrc and redirects have no place to come from.
        timeout = (self.connect_timeout, self.read_timeout)
        response = adapter.send(request, stream=True, timeout=timeout, verify=True)
        # What an AuthBase hangs there answers a challenge (digest) over the same adapter, hence at the same address.
        for hook in request.hooks.get("response") or ():
            answered = hook(response, stream=True, timeout=timeout)
            response = response if answered is None else answered  # an error's answer is false to `or`
        return response


def auth_of(options: HttpOptions) -> AuthBase | None:
    """Return what adds the login that the options ask for. Raises: InvalidRequest when they ask for two."""
    named = any(name.lower() == "authorization" for name in options.headers)
    logins = {
        "username": options.username is not None,
        "token": options.token is not None,
        "headers (Authorization)": named,
    }
    if sum(logins.values()) > 1:
        chosen = " and ".join(name for name, given in logins.items() if given)
        raise InvalidRequest(f"options: {chosen} are two logins; give one", {"options": f"{chosen} are two logins"})
    if options.token is not None:
        return BearerAuth(options.token.get_secret_value())
    if options.username is not None:
        password = options.password.get_secret_value() if options.password is not None else ""
        return HTTPBasicAuth(options.username.encode(), password.encode())
    if options.password is not None:
        why = "needs username"
        raise InvalidRequest(f"options.password: {why}", {"options.password": why})
    return None


def followed(
    first: Target, get: Callable[[Target, bool], A], head_of: Callable[[A], Head], close: Callable[[A], None]
) -> tuple[Target, A]:
    """Follow redirects by hand; return the target and the answer of the one that is none. `get` is told whether its
    target is of the first one's origin, and checks where it goes.

    Raises: DownloadFailed, UrlNotAllowed, and what `get` raises.
    """
    target, seen = first, set[str]()
    while True:
        seen.add(target.url)
        answer = get(target, target.origin == first.origin)
        head = head_of(answer)
        if head.status not in _REDIRECTS:
            return target, answer
        close(answer)
        target = _redirected(target, head)
        if target.url in seen:
            raise DownloadFailed(f"{public_url(first.url)} redirects in a loop")
        if len(seen) > MAX_REDIRECTS:
            raise DownloadFailed(f"{public_url(first.url)} redirects more than {MAX_REDIRECTS} times")


def _redirected(target: Target, head: Head) -> Target:
    """Return where the answer leads. Raises: DownloadFailed, UrlNotAllowed."""
    location = head.headers.get("Location")
    if not location:
        raise DownloadFailed(f"{public_url(target.url)} answered {head.status} without a Location")
    try:
        # http.client reads headers as latin-1; what servers send unescaped is UTF-8
        onward = parse_target(urljoin(target.url, location.encode("latin-1").decode("utf-8")))
    except UrlNotAllowed as exc:
        raise UrlNotAllowed(f"{public_url(target.url)} redirects to a URL that is refused: {exc.detail}") from exc
    except ValueError:
        # urllib.parse quotes what it can't read, credentials included
        raise UrlNotAllowed(f"{public_url(target.url)} redirects to a malformed URL") from None
    if target.scheme == "https" and onward.scheme != "https":
        raise UrlNotAllowed(f"{public_url(target.url)} redirects from https to http")
    return onward


def _close(response: requests.Response) -> None:
    response.close()
    response.connection.close()
