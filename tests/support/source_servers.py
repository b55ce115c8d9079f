"""Real servers that getexternal reads from, alike for the contract suite of sources (tests/contract/test_sources.py).

To add a protocol: write a class with what `SourceServer` names, and a line in `SERVERS`. `CutProxy` breaks connections
after so many bytes from the server; a protocol with one port can use `SinglePort` for its `cut`.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from datamanager.sources.network.egress_guard import EgressGuard
from tests.support import ftp, rclone
from tests.support.sshd import PrivateSshd, make_key
from tests.support.web import PASSWORD, USER, Web

ALLOWED = EgressGuard(["127.0.0.0/8"])
"""A guard that lets the suite reach its servers."""


class SourceServer(Protocol):
    """One protocol's server on loopback, with files that the suite puts there."""

    protocol: str
    """The client's word."""
    options: dict[str, Any]
    """What `open_source` needs to reach public files there."""
    login: dict[str, Any]
    """What it needs besides for private files."""
    wrong_login: dict[str, Any]
    """The same with a wrong secret."""
    ca_file: Path | None
    """What must be trusted besides the public authorities."""

    def put(self, name: str, content: bytes, *, private: bool = False) -> str:
        """Store or replace a file, as a new version, and return its URL."""
        ...

    def remove(self, name: str) -> None:
        """Remove a public file."""
        ...

    def cut(self, *after: int) -> AbstractContextManager[Callable[[str], str]]:
        """Make a way to the server that breaks the first connections after so many bytes from the server each, and no
        later one. Gives a function from URL to the URL by that way.
        """
        ...


DRAINED = 0.05
"""Seconds before a connection is cut: what is under way then is mostly read, but a reset may take it away."""


class CutProxy:
    """Forwards to a port of this host; of the first connections each is cut after so many bytes from the server."""

    def __init__(self, target: int, after: Sequence[int]) -> None:
        self._target = target
        self._after = list(after)
        self.cuts = 0
        """How many connections were cut."""
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(60)

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            most = self._after.pop(0) if self._after else None
            thread = threading.Thread(target=self._carry, args=(client, most), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _carry(self, client: socket.socket, most: int | None) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self._target)) as server:
            open_ends = [client, server]
            while open_ends and not self._stopped.is_set():
                for end in select.select(open_ends, [], [], 0.2)[0]:
                    want = 65536 if end is client or most is None else min(65536, most)
                    data = end.recv(want)
                    other = server if end is client else client
                    if not data:
                        open_ends.remove(end)
                        other.shutdown(socket.SHUT_WR)
                        continue
                    other.sendall(data)
                    if end is server and most is not None:
                        most -= len(data)
                        if most <= 0:
                            self.cuts += 1
                            self._stopped.wait(DRAINED)
                            return


class SinglePort:
    """What a server with one port needs to be cut."""

    port: int

    @contextmanager
    def cut(self, *after: int) -> Iterator[Callable[[str], str]]:
        """See SourceServer.cut."""
        with CutProxy(self.port, after) as proxy:
            yield lambda url: url.replace(f":{self.port}/", f":{proxy.port}/")


class HttpServer(SinglePort):
    """nginx; over TLS with a certificate of its own."""

    def __init__(self, web: Web, *, tls: bool) -> None:
        self.options: dict[str, Any] = {}
        self.login: dict[str, Any] = {"username": USER, "password": PASSWORD}
        self.wrong_login: dict[str, Any] = {"username": USER, "password": "wrong-s3cret"}
        self.protocol = "https" if tls else "http"
        self.ca_file = web.certificate if tls else None
        self.port = web.tls_port if tls else web.port
        self._web = web
        self._age = 0

    def put(self, name: str, content: bytes, *, private: bool = False) -> str:
        """See SourceServer.put. nginx makes its ETag of size and modification time in seconds."""
        path = f"private/{name}" if private else name
        self._web.put(path, content)
        self._age += 1
        os.utime(self._web.root / path, (1_600_000_000 + self._age, 1_600_000_000 + self._age))
        return f"{self.protocol}://127.0.0.1:{self.port}/{path}"

    def remove(self, name: str) -> None:
        """See SourceServer.remove."""
        (self._web.root / name).unlink()


@contextmanager
def _nginx(directory: Path, tls: bool) -> Iterator[SourceServer]:
    with Web(directory) as web:
        yield HttpServer(web, tls=tls)


class SftpServer(SinglePort):
    """sshd with its own host key. Every file is behind a login, so the public ones are reached with a good key."""

    protocol = "sftp"
    ca_file: Path | None = None

    def __init__(self, sshd: PrivateSshd, root: Path, other_key: Path) -> None:
        host_key = " ".join(sshd.host_key.with_suffix(".pub").read_text().split()[:2])
        self.options: dict[str, Any] = {
            "username": getpass.getuser(),
            "private_key": sshd.client_key.read_text(),
            "host_key": host_key,
        }
        self.login: dict[str, Any] = {}
        self.wrong_login: dict[str, Any] = {"private_key": other_key.read_text()}
        self.port = sshd.port
        self._root = root
        self._age = 0

    def put(self, name: str, content: bytes, *, private: bool = False) -> str:
        """See SourceServer.put."""
        path = self._root / name
        path.write_bytes(content)
        self._age += 1
        os.utime(path, (1_600_000_000 + self._age, 1_600_000_000 + self._age))
        return f"sftp://127.0.0.1:{self.port}{path}"

    def remove(self, name: str) -> None:
        """See SourceServer.remove."""
        (self._root / name).unlink()


@contextmanager
def _sshd(directory: Path) -> Iterator[SourceServer]:
    root = directory / "root"
    root.mkdir()
    with PrivateSshd(directory / "sshd") as sshd:
        yield SftpServer(sshd, root, make_key(directory / "other_key"))


class FtpFiles:
    """pyftpdlib, in clear text or over TLS from the first byte."""

    def __init__(self, server: ftp.FtpServer, protocol: str) -> None:
        self.options: dict[str, Any] = {}
        self.login: dict[str, Any] = {"username": ftp.USER, "password": ftp.PASSWORD}
        self.wrong_login: dict[str, Any] = {"username": ftp.USER, "password": "a wrong pass phrase"}
        self.protocol = protocol
        self.ca_file = server.certificate if protocol == "ftps" else None
        self.cut = server.cut
        self._server = server
        self._age = 0

    def put(self, name: str, content: bytes, *, private: bool = False) -> str:
        """See SourceServer.put."""
        path = (self._server.private if private else self._server.root) / name
        path.write_bytes(content)
        self._age += 1
        os.utime(path, (1_600_000_000 + self._age, 1_600_000_000 + self._age))
        return f"{self.protocol}://127.0.0.1:{self._server.port}/{name}"

    def remove(self, name: str) -> None:
        """See SourceServer.remove."""
        (self._server.root / name).unlink()


@contextmanager
def _ftp(directory: Path, protocol: str) -> Iterator[SourceServer]:
    with ftp.FtpServer(directory / protocol, "implicit" if protocol == "ftps" else None) as server:
        yield FtpFiles(server, protocol)


class RcloneServer(SinglePort):
    """rclone: S3, whose requests are signed, or WebDAV with a login. Every file is behind the login."""

    ca_file: Path | None = None

    def __init__(self, server: rclone.Rclone, protocol: str) -> None:
        self.protocol = protocol
        self.port = server.port
        self._folder = server.root / "bucket"
        self._folder.mkdir()
        self._age = 0
        self.options: dict[str, Any] = {"username": rclone.USER, "password": rclone.PASSWORD}
        self.login: dict[str, Any] = {}
        self.wrong_login: dict[str, Any] = {"password": "a wrong pass phrase"}
        if protocol == "s3":
            keys = {"access_key": rclone.ACCESS_KEY, "secret_key": rclone.SECRET_KEY}
            self.options = {"endpoint": f"http://127.0.0.1:{server.port}/", **keys}
            self.wrong_login = {"secret_key": "a/wrong+secret/key"}

    def put(self, name: str, content: bytes, *, private: bool = False) -> str:
        """See SourceServer.put."""
        path = self._folder / name
        path.write_bytes(content)
        self._age += 1
        os.utime(path, (1_600_000_000 + self._age, 1_600_000_000 + self._age))
        return f"s3://bucket/{name}" if self.protocol == "s3" else f"webdav://127.0.0.1:{self.port}/bucket/{name}"

    def remove(self, name: str) -> None:
        """See SourceServer.remove."""
        (self._folder / name).unlink()

    @contextmanager
    def cut(self, *after: int) -> Iterator[Callable[[str], str]]:
        """See SourceServer.cut; it is the endpoint of S3 that changes. WebDAV has a connection for each challenge."""
        connections = after if self.protocol == "s3" else [most for one in after for most in (2**40, one)]
        with super().cut(*connections) as by:
            kept = dict(self.options)
            if self.protocol == "s3":
                self.options["endpoint"] = by(kept["endpoint"])
            yield by
            self.options.update(kept)


@contextmanager
def _rclone(directory: Path, protocol: str) -> Iterator[SourceServer]:
    with rclone.s3(directory) if protocol == "s3" else rclone.webdav(directory) as server:
        yield RcloneServer(server, protocol)


SERVERS: dict[str, Callable[[Path], AbstractContextManager[SourceServer]]] = {
    "http": lambda directory: _nginx(directory, tls=False),
    "https": lambda directory: _nginx(directory, tls=True),
    "sftp": _sshd,
    "s3": lambda directory: _rclone(directory, "s3"),
    "ftp": lambda directory: _ftp(directory, "ftp"),
    "ftps": lambda directory: _ftp(directory, "ftps"),
    "webdav": lambda directory: _rclone(directory, "webdav"),
}
"""By protocol: starts a server in a new directory, and ends it."""
