"""A TCP proxy on loopback that stands for a long, a slow or a bad way: it adds a round trip, carries so many bytes a
second, says how many have passed, and breaks connections, also after so many bytes. The real thing can't be asked to do
that at a chosen byte."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

PIECE = 64 * 1024
"""Bytes passed on at once."""
UNDER_WAY = 4096
"""Pieces that a long way holds in each direction."""
BUFFER = 256 * 1024
"""Bytes that the kernel holds at either end of a slow way: more would be on it before they are counted."""

Pieces = queue.Queue[tuple[float, bytes]]


class Proxy:
    """Forwards connections to a port of this host; while nothing listens there, connections are reset.

    `delay` is the round trip added, in seconds, half of it in each direction. `rate` is bytes per second from the
    clients, all connections together; it may be changed at any time, None is no limit. `cut_after` bytes from the
    clients, all connections are cut, once; then it forwards without end.
    """

    def __init__(
        self, target: int, *, delay: float = 0.0, rate: float | None = None, cut_after: int | None = None
    ) -> None:
        self._target = target
        self._delay = delay / 2
        self.rate = rate
        self.cut_after = cut_after
        self.sent = 0
        """Bytes from clients that have passed so far."""
        self.cuts = 0
        """How often `cut_after` came."""
        self._free_at = 0.0
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        if not delay:
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
        self.cut()
        self._thread.join(60)

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
                if not self._delay:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            with self._lock:
                self._sockets |= {client, server}
            self._carry(client, server, counted=True)
            self._carry(server, client, counted=False)

    def _carry(self, source: socket.socket, sink: socket.socket, *, counted: bool) -> None:
        pieces: Pieces = queue.Queue(maxsize=UNDER_WAY if self._delay else 1)
        threading.Thread(target=self._take, args=(source, pieces), daemon=True).start()
        threading.Thread(target=self._give, args=(source, sink, pieces, counted), daemon=True).start()

    def _take(self, source: socket.socket, pieces: Pieces) -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(PIECE)
            except OSError:
                data = b""
            pieces.put((time.monotonic() + self._delay, data))

    def _give(self, source: socket.socket, sink: socket.socket, pieces: Pieces, counted: bool) -> None:
        broken = False
        while True:
            due, data = pieces.get()
            if broken and data:
                continue  # until the other end is read to its end
            if (pause := due - time.monotonic()) > 0:
                time.sleep(pause)
            if not data:
                break
            if counted:
                self._pass(len(data))
            try:
                sink.sendall(data)
            except OSError:
                broken = True
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        if not counted:
            # the answering direction ends last: nobody needs the two any more
            with self._lock:
                self._sockets -= {source, sink}

    def _pass(self, count: int) -> None:
        """Count bytes; cut if it is time, wait until the way has room for them."""
        with self._lock:
            self.sent += count
            due = self.cut_after is not None and self.sent >= self.cut_after
            if due:
                self.cut_after = None
                self.cuts += 1
            begin = now = time.monotonic()
            if self.rate is not None:
                begin = max(now, self._free_at)
                self._free_at = begin + count / self.rate
        if due:
            self.cut()
        time.sleep(begin - now)
