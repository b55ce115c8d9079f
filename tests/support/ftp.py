"""An FTP server on loopback (pyftpdlib), in clear text or over TLS, that can break off after so many bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import DTPHandler, FTPHandler, TLS_DTPHandler, TLS_FTPHandler
from pyftpdlib.servers import ThreadedFTPServer

from tests.support.web import make_certificate

USER, PASSWORD = "fetcher", "a pass phrase of the server"


class _Cuts:
    """What the data connections of one server share: after how many bytes the next ones are cut."""

    after: ClassVar[list[int]]
    left: int | None

    def begin(self) -> None:
        self.left = self.after.pop(0) if self.after else None

    def cut_at(self, sent: int) -> bool:
        if self.left is None:
            return False
        self.left -= sent
        return self.left <= 0


class FtpServer:
    """Serves `root` to everybody and `private` to USER. `tls`: None, "explicit" (it is demanded then) or "implicit"."""

    def __init__(self, directory: Path, tls: str | None = None, **attributes: Any) -> None:
        self.root, self.private = directory / "root", directory / "private"
        self.root.mkdir(parents=True)
        self.private.mkdir()
        self.certificate = directory / "certificate.pem"
        self.after: list[int] = []
        """Bytes after which the next data connections are cut, one each."""
        authorizer = DummyAuthorizer()
        authorizer.add_anonymous(str(self.root))
        authorizer.add_user(USER, PASSWORD, str(self.private))
        handler = _handler(self.after, tls)
        handler.authorizer = authorizer
        handler.auth_failed_timeout = 0
        handler.encoding = "utf-8"
        for name, value in attributes.items():
            setattr(handler, name, value)
        if tls is not None:
            key = directory / "key.pem"
            make_certificate(self.certificate, key)
            both = directory / "both.pem"
            both.write_bytes(key.read_bytes() + self.certificate.read_bytes())
            handler.certfile = str(both)
            handler.tls_control_required = handler.tls_data_required = True
        self._server = ThreadedFTPServer(("127.0.0.1", 0), handler)
        self.port: int = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"timeout": 0.1}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._server.close_all()
        self._thread.join(60)

    def allow(self, connections: int) -> None:
        """Allow so many connections to one address; others get 421."""
        self._server.max_cons_per_ip = connections

    @contextmanager
    def cut(self, *after: int) -> Iterator[Callable[[str], str]]:
        """Break the next data connections after so many bytes each; the way to the server stays the same."""
        self.after[:] = after
        yield lambda url: url
        self.after.clear()


def _handler(after: Sequence[int], tls: str | None) -> Any:
    """Return the class of a server's connections."""
    data: Any = DTPHandler if tls is None else TLS_DTPHandler
    control: Any = FTPHandler if tls is None else TLS_FTPHandler

    class Data(_Cuts, data):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.begin()
            super().__init__(*args, **kwargs)

        def send(self, content: bytes) -> int:
            sent: int = super().send(content if self.left is None else content[: max(self.left, 1)])
            if self.cut_at(sent):
                self.cmd_channel.close()  # and this one with it
            return sent

    class Control(control):  # type: ignore[misc]
        dtp_handler = Data
        use_sendfile = False
        remote_ip: str
        server: Any

        def handle(self) -> None:
            if tls == "implicit":
                self.secure_connection(self.ssl_context)
            else:
                super().handle()

        def close(self) -> None:
            if self.remote_ip in self.server.ip_map:  # before the client sees its end, and connects again
                self.server.ip_map.remove(self.remote_ip)
                self.remote_ip = ""
            super().close()

        def handle_ssl_established(self) -> None:
            super().handle_ssl_established()
            if tls == "implicit":
                super().handle()

    Data.after = after  # type: ignore[assignment]  # a list
    return Control
