"""webdav and webdavs as sources: logins by basic and digest, sent only when they are asked for."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from datamanager.errors import (
    AuthenticationFailed,
    DataManagerError,
    InvalidRequest,
    PermissionDenied,
    SourceMissing,
    UrlNotAllowed,
)
from datamanager.sources.network.egress_guard import EgressGuard
from tests.support import web as webs
from tests.support.downloads import open_download, open_source
from tests.support.odd_http import OddServer, answer, ok
from tests.support.site import eventually
from tests.support.web import Web

ALLOWED = EgressGuard(["127.0.0.0/8"])
USER, PASSWORD = "fetcher", "a pass phrase: of the server"
LOGIN = {"username": USER, "password": PASSWORD}
BODY = b"digested " * 100_000


def fetch(url: str, options: dict[str, Any], *part: int, protocol: str = "", **terms: Any) -> bytes:
    source = open_source(url, protocol, options, ALLOWED, max_size=2**30, connect_timeout=10, read_timeout=10, **terms)
    with source.open(*part) as download:
        return b"".join(bytes(block) for block in download.blocks())


def test_a_mirror_has_the_urls_protocol() -> None:
    mirrors = {"mirrors": ["webdavs://two.example/x"]}
    for protocol in ("", "webdavs"):
        assert len(open_download("webdavs://one.example/x", protocol, mirrors, ALLOWED, max_size=1).sources) == 2


class DigestHandler(BaseHTTPRequestHandler):
    """Wants a login by digest (RFC 7616) with a new nonce for every request."""

    server: DigestServer

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "")
        self.server.authorizations.append(given)
        if not self._good(given):
            self.send_response(401)
            self.send_header("WWW-Authenticate", f'Digest realm="r", nonce="{self.server.nonce}", qop="auth"')
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"go away")
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def _good(self, given: str) -> bool:
        said = dict(re.findall(r'(\w+)="?([^",]*)"?', given.removeprefix("Digest ")))
        if not given.startswith("Digest ") or said["uri"] != self.path:
            return False
        one = hashlib.md5(f"{USER}:r:{PASSWORD}".encode()).hexdigest()
        two = hashlib.md5(f"GET:{self.path}".encode()).hexdigest()
        nonce = self.server.nonce
        right = hashlib.md5(f"{one}:{nonce}:{said['nc']}:{said['cnonce']}:auth:{two}".encode()).hexdigest()
        return bool(said["response"] == right)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Stay silent."""


class DigestServer(ThreadingHTTPServer):
    """Keeps what came as Authorization."""

    nonce = "abc123"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), DigestHandler)
        self.authorizations: list[str] = []


@pytest.fixture
def digest() -> Iterator[DigestServer]:
    with DigestServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join(60)


@pytest.fixture
def odd() -> Iterator[OddServer]:
    with OddServer() as server:
        yield server


def test_login_by_digest(digest: DigestServer) -> None:
    url = f"webdav://127.0.0.1:{digest.server_port}/file"
    assert fetch(url, LOGIN) == BODY
    assert digest.authorizations[0] == ""
    assert PASSWORD not in "".join(digest.authorizations)
    with pytest.raises(AuthenticationFailed) as caught:
        fetch(url, {**LOGIN, "password": "wrong"})
    assert not caught.value.retryable
    assert len(digest.authorizations) == 4


def test_login_by_basic_only_when_it_is_asked_for(odd: OddServer) -> None:
    url = odd.url("/open").replace("http:", "webdav:")
    odd.answers["/open"] = [ok(b"abc")]
    assert fetch(url, LOGIN) == b"abc"
    assert "authorization" not in odd.heads[-1].lower()
    for challenge, asked in ((b'Basic realm="x"', 2), (b"Bearer", 1), (b"", 1)):
        odd.heads.clear()
        odd.answers["/open"] = [
            answer("401 Unauthorized", f"WWW-Authenticate: {challenge.decode()}", "Content-Length: 0")
        ]
        with pytest.raises(AuthenticationFailed) as caught:
            fetch(url, LOGIN)
        assert len(odd.heads) == asked
        assert PASSWORD not in caught.value.detail


def test_an_endless_challenge_is_not_read(odd: OddServer) -> None:
    head = 'WWW-Authenticate: Digest realm="r", nonce="n", qop="auth"'
    odd.answers["/x"] = [answer("401 Unauthorized", head, body=b"x" * 10_000_000)]
    with pytest.raises(AuthenticationFailed):
        fetch(odd.url("/x").replace("http:", "dav:"), LOGIN)
    assert len(odd.heads) == 2
    eventually(lambda: not odd.open, "both connections are closed", patience=5)


@pytest.mark.parametrize("scheme", ["webdavs", "davs"])
def test_over_tls(web: Web, scheme: str) -> None:
    web.put("private/dav.bin", BODY)
    url = f"{scheme}://127.0.0.1:{web.tls_port}/private/dav.bin"
    login = {"username": webs.USER, "password": webs.PASSWORD}
    ca = web.certificate.read_text()
    assert fetch(url, {**login, "ca": ca}) == BODY
    assert fetch(url, {**login, "ca": ca}, 5, 500) == BODY[5:500]
    assert fetch(url.replace(scheme, "https"), {**login, "ca": ca}, protocol="webdavs") == BODY
    with pytest.raises(DataManagerError, match="trusted"):
        fetch(url, login)


@pytest.mark.parametrize(
    ("status", "kind"),
    [("404 Not Found", SourceMissing), ("410 Gone", SourceMissing), ("403 Forbidden", PermissionDenied)],
)
def test_refusals(odd: OddServer, status: str, kind: type[DataManagerError]) -> None:
    odd.answers["/x"] = [answer(status, "Content-Length: 0")]
    with pytest.raises(kind):
        fetch(odd.url("/x").replace("http:", "webdav:"), {})


def test_what_can_not_be_asked_for() -> None:
    for url, protocol in (("webdav://h/a/", ""), ("webdav://h/a", "webdavs"), ("ftp://h/a", "webdav")):
        with pytest.raises(UrlNotAllowed):
            open_source(url, protocol, {}, ALLOWED, max_size=1)
    with pytest.raises(InvalidRequest):
        open_source("webdav://h/a", "", {**LOGIN, "token": "t"}, ALLOWED, max_size=1)
