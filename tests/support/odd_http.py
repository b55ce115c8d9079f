"""An HTTP server on loopback that answers each path with exactly the bytes, and the pauses, of a script."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterable
from types import TracebackType

Step = bytes | float
"""Bytes to send, or seconds to wait."""


def ok(body: bytes, *headers: str) -> bytes:
    """Return a sound answer with this body."""
    return answer("200 OK", f"Content-Length: {len(body)}", *headers, body=body)


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    """Return an answer with just these headers."""
    return "\r\n".join((f"HTTP/1.1 {status}", *headers, "", "")).encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    """Return a redirect."""
    return answer(status, f"Location: {location}", "Content-Length: 0")


class OddServer:
    """Serves `answers` (path → steps, may be changed at any time), one thread per connection, each closed afterwards.

    `heads` holds the heads of all requests, `connections` counts what was accepted, even if nothing was sent.
    """

    def __init__(self, address: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Iterable[Step]] = {}
        self.heads: list[str] = []
        self.connections = 0
        self.keep_open = False
        """Don't close after an answer, whatever the client asked for."""
        self._tls = tls
        self._stopped = threading.Event()
        self._listener = socket.create_server((address, port))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """Return the URL of a path of this server."""
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    @property
    def open(self) -> int:
        """How many connections are not closed yet."""
        return sum(thread.is_alive() for thread in self._threads[1:])

    def __enter__(self) -> OddServer:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        # clients that refuse, break off or distrust us are the point of the tests
        with contextlib.suppress(OSError), plain:
            plain.settimeout(10)
            with self._tls.wrap_socket(plain, server_side=True) if self._tls else plain as connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    more = connection.recv(65536)
                    if not more:
                        return
                    head += more
                text = head.decode("latin-1")
                self.heads.append(text)
                for step in self.answers.get(text.split(" ")[1], [answer("404 Not Found", "Content-Length: 0")]):
                    if isinstance(step, bytes):
                        connection.sendall(step)
                    elif self._stopped.wait(step):
                        return
                if self.keep_open:
                    self._stopped.wait(10)
                elif isinstance(connection, ssl.SSLSocket):
                    connection.unwrap()
