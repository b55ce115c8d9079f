"""webdav and webdavs: a GET over the guarded HTTP source, with the login that the server asks for: digest or basic.

(RFC 4918, 9.4; RFC 7616, RFC 7617)
"""

from __future__ import annotations

from typing import Any, Self

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
from datamanager.sources.http.answer import RangeRequest
from datamanager.sources.http.client import HttpTerms, auth_of
from datamanager.sources.terms.source_options import plain_text
from datamanager.sources.terms.urls import public_url, scheme_of

_OVER = {"webdav": "http", "dav": "http", "http": "http", "webdavs": "https", "davs": "https", "https": "https"}
_REFUSALS: dict[int, type[DataManagerError]] = {
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: SourceMissing,
    410: SourceMissing,
}


class ChallengedAuth(HTTPDigestAuth):
    """Sends no password before the server requires one; then as digest where it offers that, else as basic."""

    def handle_401(self, r: requests.Response, **kwargs: Any) -> requests.Response:
        """Answer a challenge, once."""
        if r.status_code != requests.codes.unauthorized:
            return self._by_digest(r, **kwargs)
        # the error's page may have any length: marked as read, or the base class would read all of it; and closed
        # before that class takes it for read to its end, and leaves the connection open
        r._content = b""  # noqa: SLF001
        r.close()
        offered = r.headers.get("WWW-Authenticate", "").lower()
        if "digest" in offered or "basic" not in offered or "Authorization" in r.request.headers:
            return self._by_digest(r, **kwargs)
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


class WebdavTerms(HttpTerms):
    """A webdav or webdavs URL with its options, parsed."""

    @classmethod
    def parse(cls, url: str, options: Any) -> Self:
        """Return the terms of a URL with these options (WebdavOptions).

        Raises: what `HttpTerms.parse` raises; UrlNotAllowed also for a collection, whose GET answers a page about it;
        NotSupported for `fetch: remote`.
        """
        if options.fetch == "remote":
            raise NotSupported("option fetch is not supported by webdav: the machine's curl cannot do its login")
        if url.partition("?")[0].partition("#")[0].endswith("/"):
            raise UrlNotAllowed(f"the URL {public_url(url)} names a collection, not a file")
        auth = auth_of(options)
        if options.username is not None:
            auth = ChallengedAuth(options.username, plain_text(options.password) or "")
        return cls.with_auth(http_url(url), options, auth)

    def refusal(self, response: requests.Response, wanted: RangeRequest, shown: str) -> DataManagerError | None:
        """Return an error for each kind of refusal."""
        del wanted
        kind = _REFUSALS.get(response.status_code)
        return None if kind is None else kind(f"{shown} answered {response.status_code}")
