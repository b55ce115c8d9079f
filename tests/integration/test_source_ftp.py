"""ftp and ftps as sources: TLS, what a server may leave out, and servers that lie."""

from __future__ import annotations

import random
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyftpdlib.handlers import FTPHandler, TLS_DTPHandler

from datamanager.errors import (
    AuthenticationFailed,
    ConnectionLost,
    DataManagerError,
    DownloadFailed,
    InvalidRequest,
    NotSupported,
    ServerBusy,
    SizeMismatch,
    SourceChanged,
    SourceMissing,
    TooLarge,
    TransportTimeout,
    UrlNotAllowed,
)
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.network.host_limits import KEPT, HostLimits
from datamanager.sources.source_port import Source
from tests.support.downloads import open_source
from tests.support.ftp import PASSWORD, USER, FtpServer

BODY = random.Random(21).randbytes(3 * 2**20 + 5)
ALLOWED = EgressGuard(["127.0.0.0/8"])


@contextmanager
def serving(directory: Path, tls: str | None = None, **attributes: Any) -> Iterator[FtpServer]:
    """Run a server with one file; `attributes` take the place of what its connections do."""
    with FtpServer(directory / "ftp", tls, **attributes) as server:
        (server.root / "file").write_bytes(BODY)
        (server.private / "file").write_bytes(BODY[:1000])
        yield server


def source(server: FtpServer, tls: str | None = None, path: str = "/file", **options: Any) -> Source:
    url = f"{'ftps' if tls else 'ftp'}://127.0.0.1:{server.port}{path}"
    given = {**({"tls": tls, "ca": server.certificate.read_text()} if tls else {}), **options}
    return open_source(url, "", given, ALLOWED, max_size=2**30, connect_timeout=5, read_timeout=5)


def read(one: Source, *part: int) -> bytes:
    with one.open(*part) as download:
        return b"".join(bytes(block) for block in download.blocks())


def refused(error: type[DataManagerError], one: Source) -> str:
    with pytest.raises(error) as caught:
        read(one)
    assert type(caught.value) is error
    assert PASSWORD not in caught.value.detail
    return caught.value.detail


# --- TLS and logins ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", ["explicit", "implicit"])
def test_both_kinds_of_tls(tmp_path: Path, tls: str) -> None:
    with serving(tmp_path, tls) as server:
        assert read(source(server, tls)) == BODY
        assert read(source(server, tls, username=USER, password=PASSWORD)) == BODY[:1000]
        refused(AuthenticationFailed, source(server, tls, username=USER, password="wrong"))
        assert "self-signed" in refused(DownloadFailed, source(server, tls, ca=None))


def test_the_data_connection_takes_up_the_session(tmp_path: Path) -> None:
    """Many servers refuse one that does not: whoever connects there first would get the file."""
    with serving(tmp_path, "explicit") as server, source(server, "explicit").open() as download:
        data: Any = download
        assert isinstance(data._data, ssl.SSLSocket)
        assert data._data.session_reused
        assert b"".join(bytes(block) for block in download.blocks()) == BODY


def test_a_server_that_wants_tls_and_one_that_has_none(tmp_path: Path) -> None:
    with serving(tmp_path / "a", "explicit") as server:
        refused(AuthenticationFailed, source(server))
    with serving(tmp_path / "b") as server:
        one = open_source(
            f"ftps://127.0.0.1:{server.port}/file", "", {"tls": "explicit"}, ALLOWED, max_size=2**30, read_timeout=5
        )
        assert "TLS" in refused(DownloadFailed, one)


def test_an_unverified_server_only_where_the_operator_permits_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="verify_tls"):
        open_source("ftps://h/f", "", {"verify_tls": False}, ALLOWED, max_size=1)
    with serving(tmp_path, "implicit") as server:
        url = f"ftps://127.0.0.1:{server.port}/file"
        assert read(open_source(url, "", {"verify_tls": False}, ALLOWED, max_size=2**30, insecure=True)) == BODY


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"password": "alone"}, InvalidRequest),
        ({"username": "a\r\nDELE x", "password": "b"}, InvalidRequest),
        ({"username": "a", "password": "b\nDELE x"}, InvalidRequest),
        ({"tls": "perhaps"}, InvalidRequest),
        ({"ca": "no certificate"}, InvalidRequest),
        ({"expect_type": "image/*"}, NotSupported),
        ({"host_key": "x"}, NotSupported),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], error: type[DataManagerError]) -> None:
    with pytest.raises(error):
        open_source("ftp://h/f", "", options, ALLOWED, max_size=1)


@pytest.mark.parametrize(
    "url", ["ftp://h/a%0D%0ADELE%20b", "ftp://h/a%00", "ftp://u:p@h/a", "ftp://h/", "ftp://h/a;type=a?x", "ftp://h"]
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(UrlNotAllowed):
        open_source(url, "ftp", {}, ALLOWED, max_size=1)


def test_the_guard_stands_before_the_connection(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        one = open_source(f"ftp://127.0.0.1:{listener.getsockname()[1]}/f", "", {}, EgressGuard(), max_size=1)
        refused(UrlNotAllowed, one)
        with pytest.raises(TimeoutError):
            listener.accept()


# --- what a server may leave out -----------------------------------------------------------------------------------


def _no(self: Any, *_: object) -> None:
    self.respond("502 Not here.")


def test_without_size_and_time_there_is_no_version(tmp_path: Path) -> None:
    with serving(tmp_path, ftp_SIZE=_no, ftp_MDTM=_no) as server:
        with source(server).open() as download:
            assert (download.size, download.version, download.last_modified) == (None, None, None)
            assert b"".join(bytes(block) for block in download.blocks()) == BODY
        with pytest.raises(SourceChanged), source(server).open(version="1-1"):
            pass
        with server.cut(1000):
            refused(ConnectionLost, source(server))


def test_without_rest_it_begins_at_the_beginning(tmp_path: Path) -> None:
    with serving(tmp_path, ftp_REST=_no) as server, source(server).open(1000) as download:
        assert download.start == 0
        assert b"".join(bytes(block) for block in download.blocks()) == BODY


def test_rest_is_the_last_command_before_the_transfer(tmp_path: Path) -> None:
    """Servers may forget it at any other one (RFC 3659, 5.3)."""

    def pasv(self: Any, line: str) -> None:
        self._restart_position = 0
        FTPHandler.ftp_PASV(self, line)

    with serving(tmp_path, ftp_PASV=pasv) as server, source(server).open(1000) as download:
        assert download.start == 1000
        assert b"".join(bytes(block) for block in download.blocks()) == BODY[1000:]


def test_absolute_paths_and_names_that_are_not_utf8(tmp_path: Path) -> None:
    asked: list[str] = []

    def retr(self: Any, path: str) -> None:
        asked.append(path)
        self.respond("550 Not here.")

    with serving(tmp_path, ftp_RETR=retr, ftp_SIZE=_no, ftp_MDTM=_no, encoding="latin-1") as server:
        for path in ("/%2Fetc/motd", "/%FFname", "/a%20b"):
            refused(SourceMissing, source(server, path=path))
    assert [name.rpartition("/")[2] for name in asked] == ["motd", "ÿname", "a b"]


# --- servers that lie -------------------------------------------------------------------------------------------------


@pytest.mark.attack(cwe=441, title="An FTP server has the service connect to somebody else")
def test_another_address_for_the_data_is_not_followed(tmp_path: Path) -> None:
    with serving(tmp_path, masquerade_address="192.0.2.1") as server:
        assert read(source(server)) == BODY


def test_a_data_connection_to_a_low_port_is_refused(tmp_path: Path) -> None:
    def pasv(self: Any, _line: str) -> None:
        self.respond("227 Entering passive mode (127,0,0,1,0,22).")

    with serving(tmp_path, ftp_PASV=pasv) as server:
        refused(DownloadFailed, source(server))


@pytest.mark.parametrize("entry", [":{port}", "127.0.0.1:{port}", "127.0.0.0/8:{port}", "files.example:{port}"])
def test_a_denied_port_is_denied_for_the_data_too(tmp_path: Path, entry: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]

        def pasv(self: Any, _line: str) -> None:
            self.respond(f"227 Entering passive mode (127,0,0,1,{port // 256},{port % 256}).")

        guard = EgressGuard(["files.example"], [entry.format(port=port)], resolve=lambda *_: ["127.0.0.1"])
        with serving(tmp_path, ftp_PASV=pasv) as server:
            url = f"ftp://files.example:{server.port}/file"
            one = open_source(url, "", {}, guard, max_size=2**30, read_timeout=5)
            assert "DM_DOWNLOAD_DENY" in refused(UrlNotAllowed, one)
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize("wrong", [1, -1])
def test_a_wrong_size(tmp_path: Path, wrong: int) -> None:
    def size(self: Any, _path: str) -> None:
        self.respond(f"213 {len(BODY) + wrong}")

    with serving(tmp_path, ftp_SIZE=size) as server:
        refused(SizeMismatch, source(server))


def test_too_large_is_refused_before_a_byte_is_sent(tmp_path: Path) -> None:
    def size(self: Any, _path: str) -> None:
        self.respond(f"213 {2**40}")

    with serving(tmp_path, ftp_SIZE=size, ftp_RETR=_no) as server:
        refused(TooLarge, source(server))


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    times = iter(["20200101000000", "20200101000001"])

    def modified(self: Any, _path: str) -> None:
        self.respond(f"213 {next(times)}")

    with serving(tmp_path, ftp_MDTM=modified) as server:
        refused(SourceChanged, source(server))


def test_all_the_bytes_but_no_word_that_they_are_all(tmp_path: Path) -> None:
    with serving(tmp_path) as server, server.cut(len(BODY)):
        refused(ConnectionLost, source(server))


def test_without_size_a_data_connection_that_is_cut_below_tls_is_no_end(tmp_path: Path) -> None:
    class Cut(TLS_DTPHandler):  # type: ignore[misc]
        def send(self, content: bytes) -> int:
            super().send(content[:1000])
            self.cmd_channel.respond("226 Transfer complete.")
            self.socket.sock_shutdown(socket.SHUT_WR)  # no close_notify, as somebody on the way would do
            return len(content)

    with serving(tmp_path, "implicit", dtp_handler=Cut, ftp_SIZE=_no) as server:
        refused(ConnectionLost, source(server, "implicit"))


@contextmanager
def saying(*words: bytes) -> Iterator[Source]:
    """Make a server that says this to whoever comes, and nothing more."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    for word in words:
                        connection.sendall(word)
                        done.wait(0.05)
                except OSError:
                    return
                done.wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"ftp://127.0.0.1:{listener.getsockname()[1]}/f"
        yield open_source(url, "", {}, ALLOWED, max_size=1, connect_timeout=0.5, read_timeout=0.5)
        done.set()
        thread.join(30)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], TransportTimeout),
        ([b"2"] * 200, TransportTimeout),
        ([b"220-hello\r\n" * 2000], DownloadFailed),
        ([b"220 " + b"x" * 300_000], DownloadFailed),
        ([(b"220-" + b"x" * 1000 + b"\r\n") * 300], DownloadFailed),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], DownloadFailed),
        ([b"\xff\xfe\r\n"], DownloadFailed),
        ([b"421 too many\r\n"], DownloadFailed),
    ],
    ids=["silence", "drips", "no end", "a long line", "long lines", "http", "no text", "busy"],
)
def test_no_proper_server(words: list[bytes], error: type[DataManagerError]) -> None:
    with saying(*words) as one:
        refused(error, one)


def test_a_welcome_may_be_long_and_late(tmp_path: Path) -> None:
    def wordy(self: Any, resp: str, logfun: Any = None) -> None:
        del logfun
        if resp.startswith("220"):
            FTPHandler.respond(self, "120 Ready in a moment.")
            resp = f"220-{'x' * 20_000}\r\n{resp}"
        FTPHandler.respond(self, resp)

    with serving(tmp_path, respond=wordy) as server:
        assert read(source(server)) == BODY


# --- how many connections it allows -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "busy"),
    [
        (b"530 Sorry, the maximum number of clients (2) from your host are already connected.", True),
        (b"530 Too many users logged in, try again later.", True),
        (b"421 There are too many connections from your internet address.", True),
        (b"530 Login incorrect.", False),
        (b"530 Too many failed login attempts.", False),
    ],
)
def test_a_server_that_is_full_is_asked_again_later(word: bytes, busy: bool) -> None:
    with saying(b"220 hello\r\n" + word + b"\r\n") as one:
        with pytest.raises(DownloadFailed if busy else AuthenticationFailed) as caught:
            read(one)
        assert caught.value.retryable is busy
        assert (getattr(caught.value, "again", None) is not None) is busy


def test_our_own_connections_keep_to_what_a_server_allows(tmp_path: Path) -> None:
    now = [0.0]
    hosts, accepted = HostLimits(lambda: now[0]), []

    def connected(self: Any) -> None:
        accepted.append(self.remote_port)

    with serving(tmp_path, on_connect=connected) as server:
        server.allow(2)
        one, two, three = (
            replace(source(server), context=replace(source(server).context, hosts=hosts))  # type: ignore[type-var,attr-defined]
            for _ in range(3)
        )
        with one.open(), two.open():
            for error in (DownloadFailed, ServerBusy, ServerBusy):  # it refuses once, and is not asked again
                with pytest.raises(error) as caught:
                    read(three)
                assert caught.value.again is not None
            assert len(accepted) == 2
        assert read(three) == BODY
        now[0] += KEPT + 1  # it is forgotten: the server may have been busy with others
        with one.open(), two.open(), pytest.raises(DownloadFailed):
            read(three)
