"""Certificates and proxies of http(s): whom they are shown, what passes through them."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
from pathlib import Path

import pytest

from datamanager.errors import (
    ConnectionLost,
    DownloadFailed,
    InvalidRequest,
    UrlNotAllowed,
)
from datamanager.sources.network.egress_guard import EgressGuard
from tests.support.authority import Authority
from tests.support.downloads import check_download, got, opened
from tests.support.odd_http import OddServer, ok, redirect
from tests.support.process import open_files

SECRET = "hunter2-s3cret"


def pem_of(authority: Authority, directory: Path, name: str) -> str:
    """Return a certificate that the authority signed for `name`, with its key."""
    authority.server_context(name)
    return (directory / f"{name}.pem").read_text()


def test_an_authority_of_the_clients(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with OddServer(tls=authority.server_context("127.0.0.1")) as secure:
        secure.answers["/"] = [ok(b"abc")]
        with pytest.raises(DownloadFailed, match="TLS"):
            got(secure.url("/"))
        assert got(secure.url("/"), ca=authority.ca_file.read_text()) == b"abc"
        assert got(secure.url("/"), insecure=True, verify_tls=False) == b"abc"
        with pytest.raises(InvalidRequest, match="DM_DOWNLOAD_INSECURE"):
            got(secure.url("/"), verify_tls=False)


def test_a_client_certificate_goes_to_its_origin_only_and_to_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    pem = pem_of(authority, tmp_path, "client.example")
    written = tmp_path / "tmp"
    written.mkdir()
    monkeypatch.setenv("TMPDIR", str(written))
    strict, lenient = (authority.server_context("127.0.0.1") for _ in range(2))
    for context, mode in ((strict, ssl.CERT_REQUIRED), (lenient, ssl.CERT_OPTIONAL)):
        context.verify_mode = mode
        context.load_verify_locations(authority.ca_file)
    ca = authority.ca_file.read_text()
    with OddServer(tls=strict) as asks, OddServer(tls=lenient) as elsewhere, OddServer(tls=strict) as demands:
        asks.answers["/"] = [ok(b"abc")]
        asks.answers["/away"] = [redirect(elsewhere.url("/"))]
        asks.answers["/demands"] = [redirect(demands.url("/"))]
        elsewhere.answers["/"] = demands.answers["/"] = [ok(b"def")]
        assert got(asks.url("/"), ca=ca, client_cert=pem) == b"abc"
        with pytest.raises((DownloadFailed, ConnectionLost)):
            got(asks.url("/"), ca=ca)
        assert got(asks.url("/away"), ca=ca, client_cert=pem) == b"def"
        with pytest.raises((DownloadFailed, ConnectionLost)):
            got(asks.url("/demands"), ca=ca, client_cert=pem)
        assert demands.heads == []
    assert not list(written.iterdir())
    assert not [name for name in open_files() if "client-certificate" in name]


# --- proxy -----------------------------------------------------------------------------------------------------------


class ConnectProxy:
    """A proxy that knows CONNECT; notes what it is asked."""

    def __init__(self, reply: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        self.heads: list[str] = []
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> ConnectProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(1)
            self.heads.append(head.decode())
            client.sendall(self._reply)
            if not self._reply.startswith(b"HTTP/1.1 200 Connection established"):
                return
            host, _, port = head.split(b" ")[1].decode().rpartition(":")
            with socket.create_connection((host, int(port))) as server:
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                _pump(client, server)
                back.join(30)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("tls", [False, True])
def test_a_proxy_is_asked_for_the_checked_address(tmp_path: Path, tls: bool) -> None:
    authority = Authority(tmp_path)
    context = authority.server_context("data.example") if tls else None
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    with OddServer(tls=context) as source, ConnectProxy() as proxy:
        source.answers["/"] = [ok(b"abc")]
        guard = EgressGuard(["127.0.0.1"], resolve=resolve)
        options = {"proxy": proxy.url, "proxy_username": "me", "proxy_password": SECRET, "ca_file": authority.ca_file}
        assert got(source.url("/", "data.example"), guard, **options) == b"abc"
        assert proxy.heads[0].startswith(f"CONNECT 127.0.0.1:{source.port} HTTP/1.1\r\n")
        token = base64.b64encode(f"me:{SECRET}".encode()).decode()
        assert f"Proxy-Authorization: Basic {token}\r\n" in proxy.heads[0]
        assert f"Host: data.example:{source.port}\r\n" in source.heads[0]
        assert token not in source.heads[0]
        assert asked == ["data.example"]


def test_what_is_refused_is_not_asked_of_a_proxy(server: OddServer) -> None:
    server.answers["/"] = [redirect("http://10.0.0.1/")]
    with ConnectProxy() as proxy:
        with pytest.raises(UrlNotAllowed):
            got("http://10.0.0.1/", proxy=proxy.url)
        assert proxy.heads == []
        with pytest.raises(UrlNotAllowed):
            got(server.url("/"), proxy=proxy.url)
        assert [head.split(" ")[1] for head in proxy.heads] == [f"127.0.0.1:{server.port}"]


def test_a_proxy_passes_the_guard(server: OddServer) -> None:
    server.answers["/"] = [ok(b"abc")]
    with ConnectProxy() as proxy:
        guard = EgressGuard([f"127.0.0.1:{server.port}"])
        with pytest.raises(UrlNotAllowed):
            check_download(server.url("/"), "http", {"proxy": proxy.url}, guard)
        (source,) = opened(server.url("/"), guard, proxy=proxy.url).sources.values()
        with pytest.raises(UrlNotAllowed), source.open():
            pass
        assert proxy.heads == []
        assert server.connections == 0


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 9999,
    ],
)
def test_a_proxy_that_does_not_help(server: OddServer, reply: bytes) -> None:
    server.answers["/"] = [ok(b"abc")]
    with ConnectProxy(reply) as proxy, pytest.raises(ConnectionLost):
        got(server.url("/"), proxy=proxy.url)
    assert server.heads == []
