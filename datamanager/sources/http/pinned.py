"""HTTP connections to a checked address, which a slow server can't hold for ever.

The TCP connection goes to the address; Host header, SNI and certificate check keep the host's name. Waiting for an
answer's head is bounded as a whole, and a body must keep a minimum rate, not only send a byte before each timeout.
"""

from __future__ import annotations

import http.client
import io
import math
import select
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any

from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from datamanager.sources.http.head import MAX_HEAD, interim, parse_head
from datamanager.sources.http.proxy import ProxyTunnel
from datamanager.sources.network.blocks import MinimumRate
from datamanager.sources.terms.urls import Address, Target

SURPLUS_GRACE = 0.2
"""Seconds to see whether a server that was asked to close sends more than it announced."""
_BUFFER = 2**17
_FRAMING = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive", "proxy-connection"})


class _PacedReader(io.RawIOBase):
    """A socket's raw stream that must keep a minimum rate. While it is `suspended` nothing is read: the buffer over it
    returns only what it has.
    """

    def __init__(self, raw: io.RawIOBase, window: float | None) -> None:
        self._raw = raw
        self._window = window
        self._arrived = select.poll()
        self._arrived.register(raw.fileno(), select.POLLIN)
        self._in_head = True
        self._allowed = MAX_HEAD
        self._pace = MinimumRate(window, math.inf)  # the whole head within one window
        self.suspended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.suspended:
            return None
        began = time.monotonic()
        count = self._gather(memoryview(buffer))
        waited = time.monotonic() - began
        self._allowed -= count
        if self._allowed < 0:
            raise http.client.HTTPException("headers, interim responses or trailers do not end")
        if self._in_head and count == 0:  # http.client would take what is there for the whole head
            raise http.client.RemoteDisconnected("the connection ended in the response headers")
        self._pace.add(waited, count)
        return count

    def _gather(self, view: memoryview) -> int:
        """Wait for the first bytes, then take what is there already: TLS hands out one record of 16 KiB at a time."""
        count = more = self._raw.readinto(view) or 0
        while more and not self._in_head and count < len(view) and self._arrived.poll(0):
            more = self._raw.readinto(view[count:]) or 0
            count += more
        return count

    def arrives(self, seconds: float) -> bool:
        """Wait for bytes, at most so long: say whether there are any, or an end."""
        began = time.monotonic()
        found = bool(self._arrived.poll(1000 * seconds))
        self._pace.wait(time.monotonic() - began)
        return found

    def head_is_read(self) -> None:
        """Begin to measure the body."""
        self._in_head = False
        self._pace = MinimumRate(self._window)

    def allow(self, count: int) -> None:
        """Let the next read of the body take `count` bytes, and what may stand around them."""
        self._allowed = count + MAX_HEAD

    def close(self) -> None:
        self._raw.close()
        super().close()


class PinnedResponse(http.client.HTTPResponse):
    """An HTTP answer read at a minimum rate; `surplus` says that more came than Content-Length announced."""

    surplus = False

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._sock = sock
        if isinstance(sock, ssl.SSLSocket):
            # A body without a length ends where the connection does: over TLS only where the server says so
            # (close_notify), or whoever cuts the connection would end the file (RFC 9112, 9.8).
            sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        self._reader = _PacedReader(self.fp.detach(), sock.gettimeout())
        self.fp = io.BufferedReader(self._reader, _BUFFER)

    def begin(self) -> None:
        """Read the head of the answer, interim ones (1xx) before it passed over.

        http.client passes over 100 alone, and has limits of its own. It gets what is about the framing.
        """
        while True:
            version, status, headers = parse_head(self._head())
            if not interim(status):
                break
        framing = [f"{name}: {value}" for name, value in headers.items() if name.lower() in _FRAMING]
        told = "\r\n".join([f"{version.decode()} {status} ", *framing, "", ""])
        answer = self.fp
        self.fp = io.BufferedReader(io.BytesIO(told.encode("iso-8859-1")))
        try:
            super().begin()
        finally:
            self.fp = answer
        self.headers = self.msg = headers
        self._reader.head_is_read()

    def _head(self) -> bytes:
        lines = [self.fp.readline()]
        if not lines[0].startswith(b"HTTP/"):
            raise http.client.BadStatusLine("another protocol")
        while (line := self.fp.readline()) not in (b"\r\n", b"\n"):  # what ends before, or is too much, raises
            lines.append(line)
        return b"".join(lines)

    def read1(self, n: int = -1) -> bytes:
        self._reader.allow(max(n, _BUFFER))
        return super().read1(n)

    def pauses(self, seconds: float) -> bool:
        """Say whether the next read would have to wait for longer than this; nothing of the body is read."""
        if self.isclosed():
            return False
        self._reader.suspended = True
        here = len(self.fp.peek(1))
        self._reader.suspended = False
        if isinstance(self._sock, ssl.SSLSocket):
            here += self._sock.pending()
        end_of_chunk = 2 if self.chunked else 0  # is here, while what it is followed by may not be
        return here <= end_of_chunk and not self._reader.arrives(seconds)

    def close(self) -> None:
        """Close the answer; after its announced end, check whether the server sends more."""
        whole = self.status in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT)
        if not self.isclosed() and whole and not self.chunked and self.length == 0:
            try:
                self._sock.settimeout(SURPLUS_GRACE)
                self.surplus = bool(self.fp.peek(1))
            except OSError:
                pass  # nothing came, or the connection is gone: the announced bytes are all there
        super().close()


class _Pinned:
    """A connection for one URL, made by a proxy where there is one."""

    tunnel: ProxyTunnel | None = None
    path = "/"
    """Path and query of all its requests: urllib3 respells them."""

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        super().putrequest(method, self.path, *args, **kwargs)  # type: ignore[misc]

    def _new_conn(self) -> socket.socket:
        connection: Any = self
        if self.tunnel is None:
            made: socket.socket = super()._new_conn()  # type: ignore[misc]
            return made
        try:
            timeout = connection.timeout
            seconds = timeout if isinstance(timeout, int | float) else None
            return self.tunnel.connect(connection.host, connection.port or 0, seconds)
        except TimeoutError as exc:
            raise ConnectTimeoutError(connection, "the proxy did not answer in time") from exc
        except OSError as exc:
            raise NewConnectionError(connection, "the proxy made no connection") from exc


class _Connection(_Pinned, HTTPConnection):
    response_class = PinnedResponse


class _TlsConnection(_Pinned, HTTPSConnection):
    response_class = PinnedResponse


class PinnedAdapter(HTTPAdapter):
    """Sends requests for one target to one checked address, and nowhere else; no retry, no redirect, and no proxy but
    `tunnel`. Over https, `context` says whom to trust.
    """

    def __init__(
        self, target: Target, address: Address, context: ssl.SSLContext | None = None, tunnel: ProxyTunnel | None = None
    ) -> None:
        super().__init__(max_retries=0)
        self._target = target
        self._address = address
        self._context = context
        self._tunnel = tunnel
        self._pool: HTTPConnectionPool | None = None

    def get_connection_with_tls_context(
        self,
        request: PreparedRequest,  # noqa: ARG002 its URL is the target's
        verify: Any,  # noqa: ARG002 the context says it
        proxies: Mapping[str, str] | None = None,  # noqa: ARG002 no proxy, whoever asks for one
        cert: Any = None,  # noqa: ARG002
    ) -> HTTPConnectionPool:
        """Return a pool that connects to the address and expects the target's host there."""
        if self._pool is None:
            options: dict[str, Any] = {}
            if self._target.scheme == "https" and self._context is not None:
                options["ssl_context"] = self._context
                options["cert_reqs"] = self._context.verify_mode
                options["assert_hostname"] = None if self._context.check_hostname else False
                options["server_hostname"] = self._target.host
            address, port, scheme = str(self._address), self._target.port, self._target.scheme
            self._pool = self.poolmanager.connection_from_host(address, port, scheme, pool_kwargs=options)
            self._pool.ConnectionCls = _connection_class(self._tunnel, self._target)
        return self._pool

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Leave the pool as it is: the context says whom to trust."""

    def close(self) -> None:
        """Close the connection; urllib3's pool manager would leave that to the garbage collector."""
        super().close()
        if self._pool is not None:
            self._pool.close()


def _connection_class(tunnel: ProxyTunnel | None, target: Target) -> type[_Connection] | type[_TlsConnection]:
    base = _TlsConnection if target.scheme == "https" else _Connection
    return type(base.__name__, (base,), {"tunnel": tunnel, "path": target.path})
