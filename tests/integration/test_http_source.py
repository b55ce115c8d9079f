"""Downloads over http and https from servers that behave (nginx) and from servers that don't."""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import requests
import urllib3.exceptions

from datamanager.errors import (
    ConnectionLost,
    DataManagerError,
    DownloadFailed,
    SizeMismatch,
    TooLarge,
    TransportTimeout,
    UrlNotAllowed,
)
from datamanager.sources import BLOCK, Guard, open_source
from datamanager.sources.faults import as_ours, translated
from datamanager.sources.http import MAX_REDIRECTS
from tests.support.authority import Authority
from tests.support.odd_http import OddServer, Step, answer, ok, redirect
from tests.support.web import Web

LOOPBACK = Guard(["127.0.0.0/8", "localhost"])
BODY = random.Random(6).randbytes(5 * 2**20 + 3)


@pytest.fixture
def server() -> Iterator[OddServer]:
    with OddServer() as running:
        yield running


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with Web(tmp_path_factory.mktemp("nginx")) as running:
        (running.root / "body.bin").write_bytes(BODY)
        (running.root / "empty").write_bytes(b"")
        yield running


def fetch(
    url: str,
    guard: Guard = LOOPBACK,
    *,
    max_size: int = 2**30,
    read_timeout: float = 5.0,
    ca_file: Path | None = None,
) -> bytes:
    source = open_source(
        url, "http", {}, guard, max_size=max_size, connect_timeout=5, read_timeout=read_timeout, ca_file=ca_file
    )
    with source.open() as download:
        return b"".join(bytes(block) for block in download.blocks())


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    head = answer("200 OK", "Transfer-Encoding: chunked")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


# --- what arrives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_exact_bytes_from_nginx(nginx: Web, scheme: str) -> None:
    port = nginx.port if scheme == "http" else nginx.tls_port
    source = open_source(
        f"{scheme}://127.0.0.1:{port}/body.bin#part", "HTTP", None, LOOPBACK, max_size=2**30, ca_file=nginx.certificate
    )
    digest = hashlib.sha256()
    with source.open() as download:
        assert download.size == len(BODY)
        assert download.etag
        assert download.last_modified
        assert download.last_modified.endswith("GMT")
        assert download.url == f"{scheme}://127.0.0.1:{port}/body.bin"
        for block in download.blocks():
            assert 0 < len(block) <= BLOCK
            digest.update(block)
    assert digest.digest() == hashlib.sha256(BODY).digest()
    assert fetch(f"{scheme}://127.0.0.1:{port}/empty", ca_file=nginx.certificate) == b""


BODIES: dict[str, tuple[list[Step], bytes]] = {
    "with a length": ([ok(BODY)], BODY),
    "empty": ([ok(b"")], b""),
    "one byte": ([ok(b"x")], b"x"),
    "a length that fills blocks": ([ok(BODY[: 2 * BLOCK])], BODY[: 2 * BLOCK]),
    "without a length": ([answer("200 OK", body=BODY)], BODY),
    "without a length, empty": ([answer("200 OK")], b""),
    "HTTP/1.0": ([b"HTTP/1.0 200 OK\r\n\r\n" + BODY[:1000]], BODY[:1000]),
    "chunked": ([chunked(BODY[:1], BODY[1:70000], BODY[70000:])], BODY),
    "chunked, empty": ([chunked()], b""),
    "chunked, with trailers": ([chunked(b"abc", end=b"0\r\nX: y\r\n\r\n")], b"abc"),
    "chunked, cut up": ([chunked(b"abc")[:-12], 0.05, chunked(b"abc")[-12:-7], 0.05, chunked(b"abc")[-7:]], b"abc"),
    "after an interim answer": ([b"HTTP/1.1 100 Continue\r\n\r\n", ok(b"abc")], b"abc"),
    "encoded as itself": ([ok(b"abc", "Content-Encoding: identity")], b"abc"),
    "looks compressed": (
        [ok(b"\x1f\x8b\x08 not to be touched", "Content-Type: application/gzip")],
        b"\x1f\x8b\x08 not to be touched",
    ),
    "in pieces": ([ok(b"abcdef")[:-3], 0.1, b"d", 0.1, b"ef"], b"abcdef"),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("keep_open", [False, True])
def test_sound_bodies(server: OddServer, name: str, keep_open: bool) -> None:
    steps, body = BODIES[name]
    # without a length only the end of the connection ends the body
    server.keep_open = keep_open and "without a length" not in name and name != "HTTP/1.0"
    server.answers["/"] = steps
    assert fetch(server.url("/")) == body


BROKEN: dict[str, tuple[list[Step], type[DataManagerError]]] = {
    "cut": ([ok(BODY)[:-1]], ConnectionLost),
    "cut after the head": ([ok(BODY)[: -len(BODY)]], ConnectionLost),
    "cut in the head": ([b"HTTP/1.1 200 OK\r\nContent-Le"], ConnectionLost),
    "no answer": ([b""], ConnectionLost),
    "longer than announced": ([ok(b"abc"), b"d"], SizeMismatch),
    "much longer than announced": ([ok(BODY), BODY], SizeMismatch),
    "longer, a moment later": ([ok(b"abc"), 0.05, b"d"], SizeMismatch),
    "longer than nothing": ([ok(b""), b"d"], SizeMismatch),
    "chunked, cut in a chunk": ([chunked(b"abc", BODY)[:-100]], ConnectionLost),
    "chunked, cut before the last chunk": ([chunked(b"abc", BODY, end=b"")], ConnectionLost),
    "chunked, cut in a chunk's length": ([chunked(b"abc", end=b"1")], ConnectionLost),
    "chunked, no number": ([chunked(b"abc", end=b"zz\r\n\r\n")], ConnectionLost),
    "chunked, negative": ([chunked(b"abc", end=b"-3\r\nabc\r\n0\r\n\r\n")], ConnectionLost),
    "two lengths": ([answer("200 OK", "Content-Length: 3", "Content-Length: 4", body=b"abcd")], DownloadFailed),
    "one length twice": ([answer("200 OK", "Content-Length: 3", "Content-Length: 3", body=b"abc")], DownloadFailed),
    "a list of lengths": ([answer("200 OK", "Content-Length: 3, 3", body=b"abc")], DownloadFailed),
    "length and chunks": ([answer("200 OK", "Content-Length: 3", "Transfer-Encoding: chunked")], DownloadFailed),
    "negative length": ([answer("200 OK", "Content-Length: -3", body=b"abc")], DownloadFailed),
    "signed length": ([answer("200 OK", "Content-Length: +3", body=b"abc")], DownloadFailed),
    "no number for a length": ([answer("200 OK", "Content-Length: many", body=b"abc")], DownloadFailed),
    "empty length": ([answer("200 OK", "Content-Length:", body=b"abc")], DownloadFailed),
    "unknown framing": ([answer("200 OK", "Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n")], DownloadFailed),
    "gzip": ([ok(b"\x1f\x8b\x08abc", "Content-Encoding: gzip")], DownloadFailed),
    "two encodings": ([ok(b"abc", "Content-Encoding: identity", "Content-Encoding: br")], DownloadFailed),
    "another protocol": ([b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"], DownloadFailed),
    "HTTP/0.9": ([b"<html>hello</html>\r\n"], DownloadFailed),
    "a head without end": ([b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 200], DownloadFailed),
    "a header line without end": ([b"HTTP/1.1 200 OK\r\nX: ", b"y" * 100_000], DownloadFailed),
    "a malformed header before the length": (
        [answer("200 OK", "oops", "Content-Length: 9", body=b"abc")],
        DownloadFailed,
    ),
    "trailers without end": ([chunked(b"abc", end=b"0\r\n" + b"X: y\r\n" * 400_000)], DownloadFailed),
    "interim answers without end": ([b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000], DownloadFailed),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_never_ends_quietly(server: OddServer, name: str) -> None:
    steps, error = BROKEN[name]
    server.answers["/"] = steps
    with pytest.raises(error) as caught:
        fetch(server.url("/"))
    assert type(caught.value) is error
    assert caught.value.retryable is (error is ConnectionLost)


@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        *((status, False) for status in (204, 206, 300, 304, 400, 401, 403, 404, 410, 416)),
        *((status, True) for status in (408, 429, 500, 502, 503, 504)),
    ],
)
def test_a_status_that_is_no_download(server: OddServer, status: int, retryable: bool) -> None:
    server.answers["/"] = [answer(f"{status} Whatever", "Content-Length: 3", body=b"abc")]
    with pytest.raises(DownloadFailed, match=str(status)) as caught:
        fetch(server.url("/"))
    assert caught.value.retryable is retryable


def test_too_large_is_refused_before_and_while_reading(server: OddServer) -> None:
    server.answers["/announced"] = [answer("200 OK", "Content-Length: 1001")]  # not a byte of it is sent
    server.answers["/chunked"] = [chunked(BODY)]
    server.answers["/open"] = [answer("200 OK", body=BODY)]
    server.answers["/fits"] = [ok(b"x" * 1000)]
    for path in ("/announced", "/chunked", "/open"):
        with pytest.raises(TooLarge):
            fetch(server.url(path), max_size=1000)
    assert len(fetch(server.url("/fits"), max_size=1000)) == 1000


# --- time ------------------------------------------------------------------------------------------------------------

DRIP: list[Step] = [0.1, b"y"] * 300
TRICKLE: list[Step] = [0.1, b"x" * 200] * 20
SLOW: dict[str, list[Step]] = {
    "accepts and is silent": [30.0],
    "stalls in the head": [b"HTTP/1.1 200 OK\r\n", 30.0],
    "drips its head": [b"HTTP/1.1 200 OK\r\nX: ", *DRIP],
    "drips interim answers": [0.1, b"HTTP/1.1 100 Continue\r\n\r\n"] * 300,
    "stalls in the body": [ok(BODY)[:-1000], 30.0],
    "drips its body": [ok(BODY)[: -len(BODY)], *DRIP],
    "drips a chunk's length": [answer("200 OK", "Transfer-Encoding: chunked"), b"1;", *DRIP],
}


@pytest.mark.parametrize("name", SLOW)
def test_a_server_that_stalls_or_drips_is_given_up(server: OddServer, name: str) -> None:
    server.answers["/"] = SLOW[name]
    began = time.monotonic()
    with pytest.raises(TransportTimeout):
        fetch(server.url("/"), read_timeout=0.5)
    assert time.monotonic() - began < 5


def test_a_slow_reader_is_not_a_slow_server(server: OddServer) -> None:
    server.answers["/"] = [ok(BODY)]
    source = open_source(server.url("/"), "http", {}, LOOPBACK, max_size=2**30, connect_timeout=5, read_timeout=0.3)
    with source.open() as download:
        total = 0
        for block in download.blocks():
            total += len(block)
            time.sleep(0.35)
    assert total == len(BODY)


def test_what_trickles_in_is_handed_on(server: OddServer) -> None:
    server.answers["/"] = [ok(b"x" * 4000)[:-4000], *TRICKLE]
    source = open_source(server.url("/"), "http", {}, LOOPBACK, max_size=2**30, connect_timeout=5, read_timeout=5)
    with source.open() as download:
        sizes = [len(block) for block in download.blocks()]
    assert sum(sizes) == 4000
    assert len(sizes) >= 3


def test_the_callers_own_errors_pass_untouched(server: OddServer) -> None:
    server.answers["/"] = [ok(BODY)]
    source = open_source(server.url("/"), "http", {}, LOOPBACK, max_size=2**30)
    full = OSError("no space left at the destination")

    def store() -> None:
        with source.open() as download:
            for _ in download.blocks():
                raise full

    with pytest.raises(OSError, match="no space left") as caught:
        store()
    assert caught.value is full


# --- where it goes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_followed(server: OddServer, status: str) -> None:
    with OddServer() as other:
        server.answers["/"] = [redirect("deeper/ü?a=b c".encode().decode("latin-1"), status)]
        server.answers["/"] = [redirect("/next", status)]
        server.answers["/next"] = [redirect(other.url("/end?x=y#part"), status)]
        other.answers["/end?x=y"] = [ok(b"abc")]
        source = open_source(server.url("/"), "http", {}, LOOPBACK, max_size=1000)
        with source.open() as download:
            assert download.url == other.url("/end?x=y")
            assert b"".join(bytes(block) for block in download.blocks()) == b"abc"


def test_a_redirects_answer_may_have_a_body_that_never_ends(server: OddServer) -> None:
    server.answers["/"] = [answer("302 Found", "Location: /end", "Content-Length: 1000000"), 30.0]
    server.answers["/end"] = [ok(b"abc")]
    assert fetch(server.url("/")) == b"abc"


def test_an_unescaped_location_is_understood(server: OddServer) -> None:
    server.answers["/"] = [answer("302 Found", "Location: /dir/ü b", "Content-Length: 0")]
    server.answers["/dir/%C3%BC%20b"] = [ok(b"abc")]
    assert fetch(server.url("/")) == b"abc"


@pytest.mark.parametrize(
    "location",
    [
        *("file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1:70/_x", "data:text/plain,x"),
        *("javascript:alert(1)", "http://10.0.0.1/", "http://169.254.169.254/latest/meta-data/", "http://[::1]/"),
        *("http://0x7f.1/", "http://user:secret@127.0.0.1/", "http://[::1", "http://a\\b/", "//169.254.169.254/"),
        *("http://nowhere.invalid/", "http://127.0.0.1:0/"),
    ],
)
def test_a_redirect_to_where_downloads_may_not_go(server: OddServer, location: str) -> None:
    server.answers["/"] = [redirect(location)]
    with pytest.raises(UrlNotAllowed) as caught:
        fetch(server.url("/"))
    assert "secret" not in str(caught.value)


def test_a_redirect_to_loopback_sends_nothing_there(server: OddServer) -> None:
    with OddServer() as canary:
        server.answers["/"] = [redirect(canary.url("/"))]
        canary.answers["/"] = [ok(b"the secret of the inner network")]
        with pytest.raises(UrlNotAllowed):
            fetch(server.url("/"), Guard([f"127.0.0.1:{server.port}"]))
        assert canary.connections == 0
        assert fetch(server.url("/")) == b"the secret of the inner network"  # it is there, once it is allowed


def test_loops_and_endless_chains(server: OddServer) -> None:
    server.answers["/self"] = [redirect("/self")]
    server.answers["/a"] = [redirect("/b#1")]
    server.answers["/b"] = [redirect("/a#2")]
    for number in range(MAX_REDIRECTS + 2):
        server.answers[f"/{number}"] = [redirect(f"/{number + 1}")]
    server.answers[f"/{MAX_REDIRECTS}"] = [redirect("/end")]
    server.answers["/end"] = [ok(b"abc")]
    with pytest.raises(DownloadFailed, match="loop"):
        fetch(server.url("/self"))
    with pytest.raises(DownloadFailed, match="loop"):
        fetch(server.url("/a"))
    with pytest.raises(DownloadFailed, match="more than 10"):
        fetch(server.url("/0"))
    assert fetch(server.url("/1")) == b"abc"


@pytest.mark.parametrize("head", [["Content-Length: 3"], ["Location:", "Content-Length: 3"]])
def test_a_redirect_to_nowhere(server: OddServer, head: list[str]) -> None:
    server.answers["/"] = [answer("302 Found", *head, body=b"abc")]
    with pytest.raises(DownloadFailed, match="without a Location"):
        fetch(server.url("/"))


class Changing:
    """A resolver whose answer changes with every question."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]


def test_a_name_that_answers_differently_the_next_time(server: OddServer) -> None:
    """DNS rebinding: the address that was checked is the one connected to."""
    server.answers["/"] = [ok(b"abc")]
    with OddServer("127.0.0.2", server.port) as inner:
        resolve = Changing(["127.0.0.1"], ["127.0.0.2"])
        guard = Guard(["127.0.0.1"], resolve=resolve)
        assert fetch(server.url("/", "data.example"), guard) == b"abc"
        assert resolve.asked == 1
        assert f"Host: data.example:{server.port}\r\n" in server.heads[0]
        with pytest.raises(UrlNotAllowed):  # asked again for the next download, and refused
            fetch(server.url("/", "data.example"), guard)
        assert inner.connections == 0


def test_a_redirect_to_the_same_name_is_checked_again(server: OddServer) -> None:
    server.answers["/"] = [redirect("/secret")]
    with OddServer("127.0.0.2", server.port) as inner:
        inner.answers["/secret"] = [ok(b"secret")]
        with pytest.raises(UrlNotAllowed):
            fetch(server.url("/", "data.example"), Guard(["127.0.0.1"], resolve=Changing(["127.0.0.1"], ["127.0.0.2"])))
        assert inner.connections == 0


def test_the_next_address_is_tried_when_one_does_not_answer(server: OddServer) -> None:
    server.answers["/"] = [ok(b"abc")]
    guard = Guard(["127.0.0.0/8"], resolve=Changing(["127.0.0.9", "127.0.0.1"]))
    assert fetch(server.url("/", "data.example"), guard) == b"abc"


def test_nobody_there() -> None:
    with OddServer() as gone:
        url = gone.url("/")
    with pytest.raises(ConnectionLost, match="no connection"):
        fetch(url)


def test_what_is_sent(server: OddServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the environment is used or told: no proxy, no ~/.netrc, no referer, no cookie on the next hop."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with OddServer() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url(""))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        server.answers["/"] = [answer("302 Found", "Location: /end", "Set-Cookie: a=b", "Content-Length: 0")]
        server.answers["/end"] = [ok(b"abc")]
        assert fetch(server.url("/")) == b"abc"
        assert proxy.connections == 0
    for head in server.heads:
        names = {line.partition(":")[0].lower() for line in head.split("\r\n")[1:] if line}
        assert names == {"host", "accept", "accept-encoding", "connection", "user-agent"}
        assert "Accept-Encoding: identity\r\n" in head
        assert f"Host: 127.0.0.1:{server.port}\r\n" in head


# --- TLS -------------------------------------------------------------------------------------------------------------


def test_tls_keeps_the_name_though_the_address_is_pinned(authority: Authority) -> None:
    asked: list[str | None] = []
    context = authority.server_context("data.example")
    context.sni_callback = lambda _sock, name, _context: asked.append(name)
    with OddServer(tls=context) as server:
        server.answers["/"] = [ok(BODY)]
        server.answers["/chunked"] = [chunked(BODY[:100_000], BODY[100_000:])]
        guard = Guard(["127.0.0.1"], resolve=Changing(["127.0.0.1"]))
        for path in ("/", "/chunked"):
            assert fetch(server.url(path, "data.example"), guard, ca_file=authority.ca_file) == BODY
        assert asked == ["data.example"] * 2


def test_tls_to_an_address(authority: Authority) -> None:
    with OddServer(tls=authority.server_context("127.0.0.1")) as server:
        server.answers["/"] = [ok(b"abc")]
        assert fetch(server.url("/"), ca_file=authority.ca_file) == b"abc"


def test_tls_that_is_not_trusted(authority: Authority, tmp_path: Path) -> None:
    guard = Guard(["127.0.0.1"], resolve=Changing(["127.0.0.1"]))
    with OddServer(tls=authority.server_context("data.example")) as server:
        server.answers["/"] = [ok(b"secret")]
        stranger = Authority(tmp_path, "Somebody else")
        for host, ca_file in (
            ("data.example", None),
            ("data.example", stranger.ca_file),
            ("other.example", authority.ca_file),
            ("127.0.0.1", authority.ca_file),
        ):
            with pytest.raises(DownloadFailed, match="TLS") as caught:
                fetch(server.url("/", host), guard, ca_file=ca_file)
            assert not caught.value.retryable
            assert isinstance(caught.value.__cause__, requests.exceptions.SSLError)
        assert server.heads == []  # nothing was asked of a server that could not prove its name


def test_https_never_becomes_http(authority: Authority, server: OddServer) -> None:
    server.answers["/"] = [ok(b"abc")]
    with OddServer(tls=authority.server_context("127.0.0.1")) as secure:
        secure.answers["/down"] = [redirect(server.url("/"))]
        secure.answers["/end"] = [ok(b"abc")]
        server.answers["/up"] = [redirect(secure.url("/end"))]
        with pytest.raises(UrlNotAllowed, match="https to http"):
            fetch(secure.url("/down"), ca_file=authority.ca_file)
        assert server.connections == 0
        assert fetch(server.url("/up"), ca_file=authority.ca_file) == b"abc"


def test_tls_cut_short(authority: Authority) -> None:
    with OddServer(tls=authority.server_context("127.0.0.1")) as server:
        server.answers["/"] = [ok(BODY)[:-1]]
        server.answers["/stall"] = [ok(BODY)[:-1], 30.0]
        server.answers["/longer"] = [ok(BODY), b"x"]
        with pytest.raises(ConnectionLost):
            fetch(server.url("/"), ca_file=authority.ca_file)
        with pytest.raises(TransportTimeout):
            fetch(server.url("/stall"), ca_file=authority.ca_file, read_timeout=0.5)
        with pytest.raises(SizeMismatch):
            fetch(server.url("/longer"), ca_file=authority.ca_file)


def test_plain_http_spoken_to_a_tls_port(authority: Authority) -> None:
    with OddServer(tls=authority.server_context("127.0.0.1")) as secure:
        plain = secure.url("/").replace("https", "http")
        with pytest.raises((DownloadFailed, ConnectionLost)):
            fetch(plain)


# --- errors ----------------------------------------------------------------------------------------------------------


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
    assert caught.value.__cause__ is made
    assert "http://h.example/" in caught.value.detail


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


# --- resources -------------------------------------------------------------------------------------------------------


def test_nothing_is_left_open(server: OddServer, nginx: Web) -> None:
    server.answers["/cut"] = [ok(BODY)[:-1]]
    server.answers["/failed"] = [answer("500 Oops", "Content-Length: 1000000"), b"abc"]
    server.answers["/moved"] = [redirect("/failed")]
    server.answers["/longer"] = [ok(b"abc"), b"d"]
    source = open_source(f"http://127.0.0.1:{nginx.port}/body.bin", "http", {}, LOOPBACK, max_size=2**30)

    kept: list[object] = []  # so that the garbage collector can't do what was left undone

    def once() -> None:
        for path in ("/cut", "/failed", "/moved", "/longer"):
            with pytest.raises(DataManagerError) as caught:
                fetch(server.url(path))
            kept.append(caught.value)
        for blocks_read in (1, 100):  # abandoned half-way; read to the end from a server that keeps connections
            with source.open() as download:
                kept.append((download, blocks := download.blocks()))
                for _ in range(blocks_read):
                    next(blocks, None)

    def descriptors() -> set[str]:
        return {os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if is_open(name)}

    def is_open(name: str) -> bool:
        return os.path.islink(f"/proc/self/fd/{name}")

    once()
    before = len(descriptors())
    for _ in range(10):
        once()
    # the odd server's side of a connection may take a moment to close
    deadline = time.monotonic() + 5
    while len(descriptors()) > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(descriptors()) <= before


def test_one_source_read_by_many_threads(nginx: Web) -> None:
    source = open_source(f"http://127.0.0.1:{nginx.port}/body.bin", "http", {}, LOOPBACK, max_size=2**30)
    digests: list[str] = []

    def read() -> None:
        digest = hashlib.sha256()
        with source.open() as download:
            for block in download.blocks():
                digest.update(block)
        digests.append(digest.hexdigest())

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert digests == [hashlib.sha256(BODY).hexdigest()] * 8
