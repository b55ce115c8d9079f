"""webdav and webdavs: a GET over the guarded HTTP source, with the login that the server asks for: digest or basic.

(RFC 4918, 9.4; RFC 7616, RFC 7617)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests
from requests.auth import HTTPBasicAuth, HTTPDigestAuth

from datamanager.errors import (
    AuthenticationFailed,
    DataManagerError,
    NotSupported,
    PermissionDenied,
    SourceMissing,
    UrlNotAllowed,
)
from datamanager.sources.http.answer import Asked
from datamanager.sources.http.client import HttpSource, auth_of
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.terms.options import WebdavOptions
from datamanager.sources.terms.urls import Target, public_url, scheme_of

_OVER = {"webdav": "http", "dav": "http", "http": "http", "webdavs": "https", "davs": "https", "https": "https"}
_REFUSALS: dict[int, type[DataManagerError]] = {
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: SourceMissing,
    410: SourceMissing,
}


class ChallengedAuth(HTTPDigestAuth):
    """Sends no password before the server asked for one; then as digest where it offers that, else as basic."""

    def handle_401(self, r: requests.Response, **kwargs: Any) -> requests.Response:
        """Answer a challenge, once."""
        if r.status_code != requests.codes.unauthorized:
            return self._by_digest(r, **kwargs)
        # the error's page may be as long as a stranger likes: taken for read, or the base class would read it all
        r._content = b""  # noqa: SLF001
        offered = r.headers.get("WWW-Authenticate", "").lower()
        if "digest" in offered or "basic" not in offered or "Authorization" in r.request.headers:
            return self._by_digest(r, **kwargs)
        r.close()
        again = HTTPBasicAuth(self.username, self.password)(r.request.copy())
        answer: requests.Response = r.connection.send(again, **kwargs)
        answer.history.append(r)
        answer.request = again
        return answer

    def _by_digest(self, r: requests.Response, **kwargs: Any) -> requests.Response:
        answer: requests.Response = super().handle_401(r, **kwargs)  # type: ignore[no-untyped-call]
        return answer


def http_url(url: str) -> str:
    """Return the http(s) URL of a webdav one. Raises: UrlNotAllowed."""
    scheme = scheme_of(url)
    if scheme not in _OVER:
        raise UrlNotAllowed(f"scheme {scheme!r} is not allowed; use webdav or webdavs")
    return _OVER[scheme] + url[len(scheme) :]


class DavSource(HttpSource):
    """The HTTP source, whose refusals say what they are about."""

    def _get(self, target: Target, asked: Asked, *, trusted: bool) -> requests.Response:
        response = super()._get(target, asked, trusted=trusted)
        kind = _REFUSALS.get(response.status_code)
        if kind is None:
            return response
        response.close()
        response.connection.close()
        raise kind(f"{public_url(target.url)} answered {response.status_code}")


def webdav_source(
    url: str,
    options: WebdavOptions,
    *,
    guard: EgressGuard,
    max_size: int,
    connect_timeout: float,
    read_timeout: float,
    ca_file: Path | None,
) -> HttpSource:
    """Return the source for a URL with these options.

    Raises: what `HttpSource.of` raises; UrlNotAllowed also for a collection, whose GET answers a page about it;
    NotSupported for `fetch: remote`.
    """
    if options.fetch == "remote":
        raise NotSupported("option fetch is not supported by webdav: the machine's curl can't log in as it is asked to")
    if url.partition("?")[0].partition("#")[0].endswith("/"):
        raise UrlNotAllowed(f"the URL {public_url(url)} names a collection, not a file")
    auth = auth_of(options)
    if options.username is not None:
        password = "" if options.password is None else options.password.get_secret_value()
        auth = ChallengedAuth(options.username, password)
    return DavSource.of(
        http_url(url),
        options,
        guard=guard,
        max_size=max_size,
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        ca_file=ca_file,
        auth=auth,
    )
