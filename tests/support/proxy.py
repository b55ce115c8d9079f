"""A TCP proxy on loopback that stands for a bad or a long way: it adds a round trip, and cuts every connection after so
many bytes. The real thing can't be asked to do that at a chosen byte."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from types import TracebackType
from typing import Self

PIECE = 256 * 1024


class Proxy:
    """Forwards connections to a port of this host.

    `delay` is the round trip added, in seconds, half of it in each direction. `cut_after` bytes from the clients (all
    connections together), all connections are cut, once; then it forwards without end.
    """

    def __init__(self, target: int, *, delay: float = 0.0, cut_after: int | None = None) -> None:
        self._target = target
        self._delay = delay / 2
        self.cut_after = cut_after
        self.sent = 0
        """Bytes that clients have sent so far."""
        self.cuts = 0
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._thread.join(10)

    def cut(self) -> None:
        """Break every connection."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {client, server}
            self._pump(client, server, counted=True)
            self._pump(server, client, counted=False)

    def _pump(self, source: socket.socket, sink: socket.socket, *, counted: bool) -> None:
        pieces: queue.Queue[tuple[float, bytes]] = queue.Queue(maxsize=4096)
        threading.Thread(target=self._take, args=(source, pieces, counted), daemon=True).start()
        threading.Thread(target=self._give, args=(sink, pieces), daemon=True).start()

    def _take(self, source: socket.socket, pieces: queue.Queue[tuple[float, bytes]], counted: bool) -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(PIECE)
            except OSError:
                data = b""
            if counted and data:
                self._count(len(data))
            pieces.put((time.monotonic() + self._delay, data))
        source.close()

    def _give(self, sink: socket.socket, pieces: queue.Queue[tuple[float, bytes]]) -> None:
        while True:
            due, data = pieces.get()
            if (pause := due - time.monotonic()) > 0:
                time.sleep(pause)
            try:
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)
            except OSError:
                return

    def _count(self, count: int) -> None:
        with self._lock:
            self.sent += count
            due = self.cut_after is not None and self.sent >= self.cut_after
            if due:
                self.cut_after = None
                self.cuts += 1
        if due:
            self.cut()
