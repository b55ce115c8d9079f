"""The way to a machine: a TCP forwarder on loopback that carries so many bytes a second, counts them and can break.

It makes transfers last long enough for a fault to hit them in the middle, and says when which byte has passed.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

PIECE = 64 * 1024
"""Bytes passed on at once."""
BUFFER = 256 * 1024
"""Bytes that the kernel holds at either end: more would pass the way before they are counted."""


class Way:
    """Forwards connections to a port of this host; `rate` is bytes per second from the clients, all together.

    While nothing listens at the other end, connections are reset.
    """

    def __init__(self, target: int, *, rate: float | None = None) -> None:
        self.rate = rate
        self.sent = 0
        """Bytes that clients have sent so far."""
        self._target = target
        self._free_at = 0.0
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        self.cut()

    def cut(self) -> int:
        """Break every connection; return how many there were."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        return len(sockets) // 2

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                # an end that is reset, not one that was reached and closed
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                continue
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            with self._lock:
                self._sockets |= {client, server}
            for source, sink, counted in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._carry, args=(source, sink, counted), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                if counted:
                    self._pay(len(data))
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        if counted:
            return
        # the answering direction ends last: nobody needs the two any more
        with self._lock:
            self._sockets -= {source, sink}

    def _pay(self, count: int) -> None:
        """Wait until the way has room for `count` bytes."""
        with self._lock:
            self.sent += count
            if self.rate is None:
                return
            now = time.monotonic()
            begin = max(now, self._free_at)
            self._free_at = begin + count / self.rate
        time.sleep(begin - now)
