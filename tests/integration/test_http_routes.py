"""Where a download goes: redirects, names that change, addresses, TLS; and what it never sends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from datamanager.errors import (
    ConnectionLost,
    DownloadFailed,
    SizeMismatch,
    TransportTimeout,
    UrlNotAllowed,
)
from datamanager.sources.http.client import MAX_REDIRECTS
from datamanager.sources.network.egress_guard import EgressGuard
from tests.support.authority import Authority
from tests.support.downloads import BODY, LOOPBACK, chunked, fetch, open_source
from tests.support.odd_http import OddServer, answer, ok, redirect


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


# --- where it goes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_followed(server: OddServer, status: str) -> None:
    with OddServer() as other:
        server.answers["/"] = [redirect("/next", status)]
        server.answers["/next"] = [redirect(other.url("/end?x=y#part"), status)]
        other.answers["/end?x=y"] = [ok(b"abc")]
        source = open_source(server.url("/"), "http", {}, LOOPBACK, max_size=1000)
        with source.open() as download:
            assert download.url == other.url("/end?…")
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
    guard = EgressGuard(["127.0.0.1"], resolve=Changing([]))
    with pytest.raises(UrlNotAllowed) as caught:
        fetch(server.url("/"), guard)
    assert "secret" not in str(caught.value)


@pytest.mark.attack(cwe=918, title="A source redirects to the service's own network")
def test_a_redirect_to_loopback_sends_nothing_there(server: OddServer) -> None:
    with OddServer() as canary:
        server.answers["/"] = [redirect(canary.url("/"))]
        canary.answers["/"] = [ok(b"the secret of the inner network")]
        with pytest.raises(UrlNotAllowed):
            fetch(server.url("/"), EgressGuard([f"127.0.0.1:{server.port}"]))
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


@pytest.mark.attack(cwe=350, title="A source's name leads to the service's own network once it was checked")
def test_a_name_that_answers_differently_the_next_time(server: OddServer) -> None:
    """DNS rebinding: the address that was checked is the one connected to."""
    server.answers["/"] = [ok(b"abc")]
    with OddServer("127.0.0.2", server.port) as inner:
        resolve = Changing(["127.0.0.1"], ["127.0.0.2"])
        guard = EgressGuard(["127.0.0.1"], resolve=resolve)
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
            fetch(
                server.url("/", "data.example"),
                EgressGuard(["127.0.0.1"], resolve=Changing(["127.0.0.1"], ["127.0.0.2"])),
            )
        assert inner.connections == 0


def test_the_next_address_is_tried_when_one_does_not_answer(server: OddServer) -> None:
    server.answers["/"] = [ok(b"abc")]
    guard = EgressGuard(["127.0.0.0/8"], resolve=Changing(["127.0.0.9", "127.0.0.1"]))
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
        guard = EgressGuard(["127.0.0.1"], resolve=Changing(["127.0.0.1"]))
        for path in ("/", "/chunked"):
            assert fetch(server.url(path, "data.example"), guard, ca_file=authority.ca_file) == BODY
        assert asked == ["data.example"] * 2


def test_tls_to_an_address(authority: Authority) -> None:
    with OddServer(tls=authority.server_context("127.0.0.1")) as server:
        server.answers["/"] = [ok(b"abc")]
        assert fetch(server.url("/"), ca_file=authority.ca_file) == b"abc"


@pytest.mark.attack(cwe=295, title="Somebody between us and a source shows a certificate of their own")
def test_tls_that_is_not_trusted(authority: Authority, tmp_path: Path) -> None:
    guard = EgressGuard(["127.0.0.1"], resolve=Changing(["127.0.0.1"]))
    with OddServer(tls=authority.server_context("data.example")) as server:
        server.answers["/"] = [ok(b"secret")]
        stranger = Authority(tmp_path, "Somebody else")
        for host, ca_file in (
            ("data.example", None),
            ("data.example", stranger.ca_file),
            ("other.example", authority.ca_file),
            ("127.0.0.1", authority.ca_file),
        ):
            with pytest.raises(DownloadFailed, match=r"TLS.*SSLCertVerificationError") as caught:
                fetch(server.url("/", host), guard, ca_file=ca_file)
            assert not caught.value.retryable
        assert server.heads == []  # nothing was asked of a server that could not prove its name


@pytest.mark.attack(cwe=319, title="A source redirects from https to http")
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
