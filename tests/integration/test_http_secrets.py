"""Tokens and signatures in a URL's query stay between us and the source: no error, chained or not, tells them."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from datamanager.errors import (
    ConnectionLost,
    DataManagerError,
    DownloadFailed,
    SizeMismatch,
    TooLarge,
    TransportTimeout,
    UrlNotAllowed,
)
from tests.support.authority import Authority
from tests.support.downloads import BODY, chunked, fetch
from tests.support.odd_http import OddServer, Step, answer, ok, redirect
from tests.support.ports import free_port

TOKEN = "5ignatur3"
QUERY = f"?X-Amz-Signature={TOKEN}&token={TOKEN}"


def assert_untold(error: DataManagerError) -> None:
    """Look for the token wherever an error shows itself: its texts, and the traceback with all that is chained."""
    shown = "".join(traceback.format_exception(error))
    assert "Traceback" in shown
    for text in (str(error), repr(error), error.detail, shown):
        assert TOKEN not in text


def nowhere() -> str:
    """Return a URL with a token of a server that refuses connections."""
    return f"http://127.0.0.1:{free_port()}/x{QUERY}"


Steps = Callable[[], list[Step]]
BROKEN: dict[str, tuple[Steps, type[DataManagerError]]] = {
    "404": (lambda: [answer("404 Not Found", "Content-Length: 0")], DownloadFailed),
    "500": (lambda: [answer("500 Oops", "Content-Length: 0")], DownloadFailed),
    "no answer": (lambda: [b""], ConnectionLost),
    "no HTTP": (lambda: [b"SSH-2.0-OpenSSH_9.2p1\r\n"], DownloadFailed),
    "silent": (lambda: [5.0], TransportTimeout),
    "stalls in the body": (lambda: [ok(BODY)[:-1000], 5.0], TransportTimeout),
    "short body": (lambda: [ok(BODY)[:-1]], ConnectionLost),
    "short chunked body": (lambda: [chunked(b"abc", end=b"")], ConnectionLost),
    "longer than announced": (lambda: [ok(b"abc"), b"d"], SizeMismatch),
    "too large": (lambda: [answer("200 OK", "Content-Length: 9999999999")], TooLarge),
    "redirect without a Location": (lambda: [answer("302 Found", "Content-Length: 0")], DownloadFailed),
    "redirect in a loop": (lambda: [redirect(f"/x{QUERY}")], DownloadFailed),
    "redirect to a host that refuses": (lambda: [redirect(nowhere())], ConnectionLost),
    "redirect to what is not allowed": (lambda: [redirect(f"http://10.0.0.1/x{QUERY}")], UrlNotAllowed),
    "redirect to credentials": (lambda: [redirect(f"http://bob:{TOKEN}@127.0.0.1/x{QUERY}")], UrlNotAllowed),
    "redirect to a malformed host": (lambda: [redirect(f"http://[::1/x{QUERY}")], UrlNotAllowed),
    "redirect to a malformed port": (lambda: [redirect(f"http://127.0.0.1:99999/x{QUERY}")], UrlNotAllowed),
    "redirect to a host of odd letters": (lambda: [redirect(f"http://bob:{TOKEN}@h\u2100/x{QUERY}")], UrlNotAllowed),
    "redirect to escaped credentials": (lambda: [redirect(f"http://bob%3A{TOKEN}%40h.example/")], UrlNotAllowed),
    "redirect to ambiguous credentials": (lambda: [redirect(f"http://bob:{TOKEN}/@h.example/")], UrlNotAllowed),
    "redirect to credentials of ftp": (lambda: [redirect(f"ftp://bob:{TOKEN}@h.example/x{QUERY}")], UrlNotAllowed),
    "redirect to no address": (lambda: [redirect(f"http://0x7f.1/x{QUERY}")], UrlNotAllowed),
    "redirect to a shut port": (lambda: [redirect(f"http://192.0.2.1:25/x{QUERY}#{TOKEN}")], UrlNotAllowed),
}


@pytest.mark.parametrize("name", BROKEN)
def test_no_error_tells_the_query(server: OddServer, name: str) -> None:
    steps, error = BROKEN[name]
    server.answers[f"/x{QUERY}"] = steps()
    with pytest.raises(error) as caught:
        fetch(server.url(f"/x{QUERY}"), read_timeout=0.5)
    assert type(caught.value) is error
    assert_untold(caught.value)


def test_a_refused_connection_tells_its_kind_but_not_the_query() -> None:
    with pytest.raises(ConnectionLost, match="ConnectionRefusedError") as caught:
        fetch(nowhere())
    assert_untold(caught.value)


def test_a_failed_certificate_check_does_not_tell_the_query(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with OddServer(tls=authority.server_context("other.example")) as server:
        for ca_file in (None, authority.ca_file):  # not trusted; not this host's
            with pytest.raises(DownloadFailed, match="SSLCertVerificationError") as caught:
                fetch(server.url(f"/x{QUERY}"), ca_file=ca_file)
            assert_untold(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/x", "http://[::1/x", "http://127.0.0.1:80:80/x", "http:///x"])
def test_a_malformed_url_does_not_tell_the_query(url: str) -> None:
    with pytest.raises(UrlNotAllowed) as caught:
        fetch(url + QUERY)
    assert_untold(caught.value)
