"""http and https: one GET, redirects followed by hand and checked again, the exact bytes as they were sent.

Nothing is taken from the environment (proxy, ~/.netrc), nothing is decompressed, no cookie goes to a next request, and
no login, client certificate or header of the client's to another origin than the URL's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from urllib.parse import urlencode, urljoin

import requests
from requests.auth import AuthBase, HTTPBasicAuth
from urllib3.exceptions import NewConnectionError

from datamanager.errors import DataManagerError, DownloadFailed, InvalidRequest, UrlNotAllowed
from datamanager.sources.http.answer import Head, HttpDownload, RangeRequest
from datamanager.sources.http.pinned import PinnedAdapter
from datamanager.sources.http.proxy import Proxy
from datamanager.sources.network.connections import MAX_ADDRESSES, causes, translated
from datamanager.sources.network.source_context import SourceContext
from datamanager.sources.network.tls import Trust
from datamanager.sources.source_port import Source
from datamanager.sources.terms.source_options import HttpOptions, option_error, plain_text
from datamanager.sources.terms.urls import Target, parse_target, public_url

MAX_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close", "User-Agent": "data-manager"}
NO_HEADERS: Mapping[str, str] = {}

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class HttpTerms:
    """An http or https URL with its options, parsed.

    Other protocols over HTTP use it with an `auth` of their own (it sees the request as it will be sent, Range
    included), and their own errors (`refusal`).
    """

    target: Target
    """What is requested first: the URL with the query of the options."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent to the URL's own origin only."""
    auth: AuthBase | None = field(default=None, repr=False)
    """Applied last to each request to the URL's own origin."""
    trust: Trust = field(default_factory=Trust, repr=False)
    proxy: Proxy | None = field(default=None, repr=False)
    expect_type: str | None = None
    encodings: frozenset[str] | None = frozenset()
    """See EncodedOptions.encodings."""

    @classmethod
    def parse(cls, url: str, options: Any) -> Self:
        """Return the terms of a URL with these options (HttpOptions).

        Raises: UrlNotAllowed, InvalidRequest (certificates that can't be read, two logins), NotSupported.
        """
        return cls.with_auth(url, options, auth_of(options))

    @classmethod
    def with_auth(cls, url: str, options: HttpOptions, auth: AuthBase | None) -> Self:
        """Return the terms with `auth` instead of the login of the options. Raises: UrlNotAllowed, InvalidRequest."""
        if options.query:
            base, hash_sign, fragment = url.partition("#")
            query = urlencode({name: value.get_secret_value() for name, value in options.query.items()})
            url = f"{base}{'&' if '?' in base else '?'}{query}{hash_sign}{fragment}"
        headers = {name: value.get_secret_value() for name, value in options.headers.items()}
        if options.token is not None:  # RFC 6750
            headers["Authorization"] = f"Bearer {options.token.get_secret_value()}"
        return cls(
            parse_target(url),
            headers=headers,
            auth=auth,
            trust=Trust.of(options),
            proxy=Proxy.of(options),
            expect_type=options.expect_type,
            encodings=options.encodings,
        )

    @property
    def hosts(self) -> list[tuple[str, int]]:
        """See SourceTerms.hosts."""
        targets = [self.target] if self.proxy is None else [self.target, self.proxy.target]
        return [(target.host, target.port) for target in targets]

    def open(self, context: SourceContext) -> Source:
        """See SourceTerms.open."""
        return HttpSource(self, context)

    def refusal(self, response: requests.Response, wanted: RangeRequest, shown: str) -> DataManagerError | None:
        """Return the error of the protocol for an answer; None leaves it to the checks of every answer."""
        del response, wanted, shown
        return None


@dataclass(frozen=True, slots=True)
class HttpSource:
    """What an http or https URL is read by."""

    terms: HttpTerms
    context: SourceContext

    @contextmanager
    def open(self, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Iterator[HttpDownload]:
        """Request the URL and follow redirects to the answer with the bytes.

        Raises: SourceChanged, UrlNotAllowed, DownloadFailed, TooLarge, ConnectionLost, TransportTimeout.
        """
        wanted = RangeRequest(start, stop, version)
        target, response = followed(
            self.terms.target, lambda at, trusted: self._get(at, wanted, trusted=trusted), Head.of, _close
        )
        try:
            yield HttpDownload(
                response, target, self.context.max_size, wanted, self.terms.expect_type, self.terms.encodings
            )
        finally:
            _close(response)

    def request(self, target: Target, wanted: RangeRequest, *, trusted: bool) -> requests.PreparedRequest:
        """Return the request as it is to be sent. `trusted`: the target is of the origin that the client's login and
        headers are for.
        """
        own = self.terms.headers if trusted else NO_HEADERS
        replaced = {name.lower() for name in own}
        headers = {name: value for name, value in _HEADERS.items() if name.lower() not in replaced}
        headers = {**headers, **own, **wanted.headers(), "Host": target.netloc}
        request = requests.Request("GET", target.url, headers=headers).prepare()
        request.url = target.url  # its parser respells escapes
        if trusted and self.terms.auth is not None:
            request = self.terms.auth(request)
        return request

    def _get(self, target: Target, wanted: RangeRequest, *, trusted: bool) -> requests.Response:
        response = self._send(self.request(target, wanted, trusted=trusted), target, trusted=trusted)
        try:
            refusal = self.terms.refusal(response, wanted, public_url(target.url))
            if refusal is not None:
                raise refusal
        except BaseException:
            _close(response)
            raise
        return response

    def _send(self, request: requests.PreparedRequest, target: Target, *, trusted: bool) -> requests.Response:
        """Send the request to the first of the host's checked addresses that accepts the connection."""
        guard, proxy = self.context.guard, self.terms.proxy
        trust = self.terms.trust if trusted else self.terms.trust.without_client()
        addresses = guard.check(target.host, target.port)[:MAX_ADDRESSES]
        with translated(public_url(target.url)):
            tls = trust.context(self.context.ca_file) if target.scheme == "https" else None
            tunnel = None if proxy is None else proxy.tunnel(guard)
            for address in addresses[:-1]:
                try:
                    return self._send_by(request, PinnedAdapter(target, address, tls, tunnel))
                except requests.ConnectionError as exc:  # its timeout is one as well
                    unreached = isinstance(exc, requests.ConnectTimeout) or any(
                        isinstance(cause, NewConnectionError) for cause in causes(exc)
                    )
                    if not unreached:
                        raise
            return self._send_by(request, PinnedAdapter(target, addresses[-1], tls, tunnel))

    def _send_by(self, request: requests.PreparedRequest, adapter: PinnedAdapter) -> requests.Response:
        # The adapter is used without a Session: cookies, proxies, ~/.netrc and redirects have no place to come from.
        timeout = (self.context.connect_timeout, self.context.read_timeout)
        response = adapter.send(request, stream=True, timeout=timeout, verify=True)
        # What an AuthBase hangs there answers a challenge (digest) over the same adapter, hence at the same address.
        for hook in request.hooks.get("response") or ():
            answered = hook(response, stream=True, timeout=timeout)
            response = response if answered is None else answered  # an error's answer is false to `or`
        return response


def auth_of(options: HttpOptions) -> AuthBase | None:
    """Return what adds the username and password of the options. Raises: InvalidRequest when they have two logins."""
    named = any(name.lower() == "authorization" for name in options.headers)
    logins = {
        "username": options.username is not None,
        "token": options.token is not None,
        "headers (Authorization)": named,
    }
    if sum(logins.values()) > 1:
        chosen = " and ".join(name for name, given in logins.items() if given)
        raise InvalidRequest(f"options: {chosen} are two logins; give one", {"options": f"{chosen} are two logins"})
    if options.username is not None:
        return HTTPBasicAuth(options.username.encode(), (plain_text(options.password) or "").encode())
    if options.password is not None:
        raise option_error("password", "needs username")
    return None


def followed(
    first: Target, get: Callable[[Target, bool], A], head_of: Callable[[A], Head], close: Callable[[A], None]
) -> tuple[Target, A]:
    """Follow redirects by hand; return the last target and its answer. `get` gets whether its target is of the first
    target's origin, and checks where it connects to.

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
    """Return the target of a redirect. Raises: DownloadFailed, UrlNotAllowed."""
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
