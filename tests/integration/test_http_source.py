"""Downloads over http from servers that behave (nginx) and from servers that don't."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.errors import (
    ConnectionLost,
    DataManagerError,
    DownloadFailed,
    SizeMismatch,
    TooLarge,
    TransportTimeout,
)
from datamanager.sources.network import blocks
from datamanager.sources.source_port import BLOCK
from tests.support.authority import Authority
from tests.support.downloads import BODY, LOOPBACK, chunked, fetch, open_source
from tests.support.odd_http import OddServer, Step, answer, ok, redirect
from tests.support.process import open_files
from tests.support.web import Web


@pytest.fixture
def nginx(web: Web) -> Web:
    (web.root / "body.bin").write_bytes(BODY)
    (web.root / "empty").write_bytes(b"")
    return web


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
    "after two other interim answers": (
        [b"HTTP/1.1 102 Processing\r\n\r\n", 0.05, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok(b"abc")],
        b"abc",
    ),
    "after an interim answer with a length": (
        [b"HTTP/1.1 103 Early Hints\r\nContent-Length: 7\r\n\r\n", ok(b"abc")],
        b"abc",
    ),
    "with many headers": ([ok(b"abc", *(f"X-{number}: y" for number in range(5000)))], b"abc"),
    "with a long header": ([ok(b"abc", f"Link: {'y' * 500_000}")], b"abc"),
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
    "a head without end": ([b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 400_000], DownloadFailed),
    "a header line without end": ([b"HTTP/1.1 200 OK\r\nX: ", b"y" * 2_000_000], DownloadFailed),
    "another protocol than was spoken": ([answer("101 Switching Protocols", "Upgrade: x"), b"abc"], DownloadFailed),
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
TRICKLE: list[Step] = [0.02, b"x" * 200] * 20
SLOW: dict[str, list[Step]] = {
    "accepts and is silent": [30.0],
    "stalls in the head": [b"HTTP/1.1 200 OK\r\n", 30.0],
    "drips its head": [b"HTTP/1.1 200 OK\r\nX: ", *DRIP],
    "drips interim answers": [0.1, b"HTTP/1.1 100 Continue\r\n\r\n"] * 300,
    "stalls in the body": [ok(BODY)[:-1000], 30.0],
    "drips its body": [ok(BODY)[: -len(BODY)], *DRIP],
    "drips a chunk's length": [answer("200 OK", "Transfer-Encoding: chunked"), b"1;", *DRIP],
}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What trickles in is handed on after 0.1 s."""
    monkeypatch.setattr(blocks, "FLUSH_AFTER", 0.1)


@pytest.mark.parametrize("name", SLOW)
def test_a_server_that_stalls_or_drips_is_given_up(server: OddServer, name: str) -> None:
    server.answers["/"] = SLOW[name]
    with pytest.raises(TransportTimeout):  # after its 30 s the server breaks off, which is another error
        fetch(server.url("/"), read_timeout=0.5)


def test_a_slow_reader_is_not_a_slow_server(server: OddServer) -> None:
    server.answers["/"] = [ok(BODY)]
    source = open_source(server.url("/"), "http", {}, LOOPBACK, max_size=2**30, connect_timeout=30, read_timeout=0.5)
    with source.open() as download:
        total = 0
        for number, block in enumerate(download.blocks()):
            total += len(block)
            if number < 2:
                time.sleep(0.6)
    assert total == len(BODY)


def test_what_trickles_in_is_handed_on(server: OddServer, soon: None) -> None:
    server.answers["/"] = [ok(b"x" * 4000)[:-4000], *TRICKLE]
    source = open_source(server.url("/"), "http", {}, LOOPBACK, max_size=2**30, connect_timeout=30, read_timeout=30)
    with source.open() as download:
        sizes = [len(block) for block in download.blocks()]
    assert sum(sizes) == 4000
    assert len(sizes) >= 3


@pytest.mark.parametrize("framing", ["length", "chunks", "neither"])
@pytest.mark.parametrize("tls", [False, True])
def test_what_came_is_handed_on_although_nothing_follows(tmp_path: Path, soon: None, framing: str, tls: bool) -> None:
    first, rest = b"a" * 40_000, b"b" * 10
    handed_on = threading.Event()

    def steps() -> Iterator[Step]:
        if framing == "chunks":
            yield chunked(first, end=b"")
        else:
            yield answer("200 OK", *([f"Content-Length: {len(first + rest)}"] if framing == "length" else [])) + first
        if handed_on.wait(20):
            yield chunked(rest).partition(b"\r\n\r\n")[2] if framing == "chunks" else rest

    authority = Authority(tmp_path)
    with OddServer(tls=authority.server_context("127.0.0.1") if tls else None) as server:
        server.answers["/"] = steps()
        source = open_source(server.url("/"), "http", {}, LOOPBACK, max_size=2**30, ca_file=authority.ca_file)
        received = b""
        with source.open() as download:
            for block in download.blocks():
                received += block
                if len(received) == len(first):
                    handed_on.set()
    assert handed_on.is_set()
    assert received == first + rest


def test_a_server_that_stalls_with_something_held_back_is_given_up(server: OddServer, soon: None) -> None:
    server.answers["/"] = [ok(b"x" * 4000)[:-1000], 5.0]
    source = open_source(server.url("/"), "http", {}, LOOPBACK, max_size=2**30, read_timeout=0.5)
    received = 0
    with source.open() as download, pytest.raises(TransportTimeout):
        for block in download.blocks():
            received += len(block)
    assert received == 3000


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

    once()
    before = len(open_files())
    for _ in range(10):
        once()
    # the odd server's side of a connection may take a moment to close
    deadline = time.monotonic() + 60
    while len(open_files()) > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(open_files()) <= before


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
