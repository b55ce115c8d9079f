"""No error of requests, urllib3, http.client or the socket leaves a source untranslated."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator

import pytest
import requests
import urllib3.exceptions

from datamanager.errors import (
    ConnectionLost,
    DataManagerError,
    DownloadFailed,
    TransportTimeout,
    UrlNotAllowed,
)
from datamanager.sources.network.connections import as_ours, translated


def every_class(root: type[BaseException]) -> Iterator[type[BaseException]]:
    yield root
    for child in root.__subclasses__():
        yield from every_class(child)


FOREIGN = sorted(
    {
        cls
        for root in (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
        for cls in every_class(root)
        if cls.__module__.startswith(("requests", "urllib3", "http.client", "ssl", "socket", "builtins"))
    },
    key=lambda cls: (cls.__module__, cls.__qualname__),
)


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda cls: f"{cls.__module__}.{cls.__qualname__}")
def test_no_foreign_error_is_unmapped(foreign: type[BaseException]) -> None:
    made = foreign.__new__(foreign)  # their constructors want pools and responses, which say nothing of their class
    with pytest.raises(DataManagerError) as caught, translated("http://h.example/"):
        raise made
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__, "the foreign error's text may hold the URL with its query"
    assert "http://h.example/" in caught.value.detail
    assert foreign.__name__ in caught.value.detail


def test_the_first_and_the_last_of_a_chain_are_named() -> None:
    reason = urllib3.exceptions.ConnectTimeoutError("token=secret")
    reason.__cause__ = TimeoutError("token=secret")
    foreign = requests.ConnectTimeout(urllib3.exceptions.MaxRetryError(None, "/x?token=secret", reason))  # type: ignore[arg-type]
    ours = as_ours(foreign, "http://h.example/x?…")
    assert "ConnectTimeout from TimeoutError" in ours.detail
    assert "secret" not in ours.detail


def test_the_tables_see_all_of_requests() -> None:
    public = {cls for cls in vars(requests.exceptions).values() if isinstance(cls, type)}
    assert {cls for cls in public if issubclass(cls, requests.RequestException)} <= set(FOREIGN)


@pytest.mark.parametrize(
    ("foreign", "error", "retryable"),
    [
        (requests.ConnectTimeout(), TransportTimeout, True),
        (requests.ReadTimeout(), TransportTimeout, True),
        (requests.ConnectionError(), ConnectionLost, True),
        (requests.ConnectionError(ConnectionResetError()), ConnectionLost, True),
        (requests.ConnectionError(http.client.BadStatusLine("x")), DownloadFailed, False),
        (requests.exceptions.SSLError(), DownloadFailed, False),
        (requests.exceptions.SSLError(ssl.SSLEOFError()), ConnectionLost, True),
        (requests.exceptions.ChunkedEncodingError(), ConnectionLost, True),
        (requests.exceptions.InvalidURL(), UrlNotAllowed, False),
        (requests.exceptions.InvalidHeader(), DownloadFailed, False),
        (TimeoutError(), TransportTimeout, True),
        (BrokenPipeError(), ConnectionLost, True),
        (OSError(113, "No route to host"), ConnectionLost, True),
    ],
)
def test_how_foreign_errors_are_told(foreign: BaseException, error: type[DataManagerError], retryable: bool) -> None:
    ours = as_ours(foreign, "http://h.example/")
    assert type(ours) is error
    assert ours.retryable is retryable
