"""Many clients at once in one process that costs little: connections that are kept, requests that were made before."""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.race import WrongResult

CLIENTS = 16
PATIENCE = 60.0
"""Seconds without any answer after which the benchmark fails."""
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


def request_bytes(method: str, path: str, port: int, body: Any = None, token: str | None = None) -> bytes:
    """Return a request as it is sent; `body`: as JSON; `token`: who asks."""
    data = b"" if body is None else json.dumps(body).encode()
    head = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(data)}"]
    if data:
        head.append("Content-Type: application/json")
    if token is not None:
        head.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*head, "", ""]).encode() + data


def seconds_for(port: int, requests: Sequence[bytes], *, clients: int = CLIENTS) -> float:
    """Send requests over so many connections, on each the next one once the answer is there; return the seconds.

    Raises: WrongResult when one is not answered with success.
    """
    todo = iter(requests)
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.EpollSelector())
        for _ in range(clients):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(connection, selectors.EVENT_READ, _Exchange(connection))
        exchanges = [key.data for key in selector.get_map().values()]
        begun = time.perf_counter()
        busy = sum(exchange.send(todo) for exchange in exchanges)
        while busy:
            ready = selector.select(PATIENCE)
            if not ready:
                raise WrongResult(f"no answer within {PATIENCE:g} s")
            for key, _ in ready:
                if key.data.answered() and not key.data.send(todo):
                    selector.unregister(key.fileobj)
                    busy -= 1
        return time.perf_counter() - begun


class _Exchange:
    """One connection and the answer that it waits for."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._answer = b""

    def send(self, todo: Iterator[bytes]) -> bool:
        """Send the next request, if there is one."""
        request = next(todo, b"")
        self._connection.sendall(request)
        return bool(request)

    def answered(self) -> bool:
        """Read what has come; say whether the request is done. Raises: WrongResult."""
        data = self._connection.recv(65536)
        self._answer += data
        if _is_whole(self._answer):
            answer, self._answer = self._answer, b""
            if not answer.startswith(b"HTTP/1.1 2"):
                raise WrongResult(answer.decode(errors="replace"))
            return True
        if not data:
            raise WrongResult(f"the server closed the connection; it sent {self._answer[:500]!r}")
        return False


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = _LENGTH.search(head + b"\r\n")
    return bool(end) and (body.endswith(b"0\r\n\r\n") if length is None else len(body) >= int(length[1]))
