"""HTTP connections that go to an address already checked, and that a dripping server can't hold for ever.

The TCP connection goes to the address; Host header, SNI and certificate check keep the host's name. Waiting for an
answer's head is bounded as a whole, and a body must keep a minimum rate, not only send a byte before each timeout.
"""

from __future__ import annotations

import http.client
import io
import select
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any

from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HeaderParsingError, NewConnectionError
from urllib3.util.response import assert_header_parsing

from datamanager.sources.http.proxy import Way
from datamanager.sources.network.egress_guard import Address
from datamanager.sources.terms.urls import Target

MIN_RATE = 100
"""Bytes per second that a body must bring, averaged over one read timeout spent waiting."""
MAX_HEAD = 2**20
"""Largest head of an answer in bytes, interim answers (1xx) included; the same for its trailers."""
SURPLUS_GRACE = 0.2
"""Seconds to see whether a server that was asked to close sends more than it announced."""
_BUFFER = 2**17


class _PacedReader(io.RawIOBase):
    """A socket's raw stream that counts bytes and the seconds spent waiting for them. While it is `shut` nothing is
    read: what the buffer over it gives then is what that has.
    """

    def __init__(self, raw: io.RawIOBase, window: float | None) -> None:
        self._raw = raw
        self._window = window
        self._arrived = select.poll()
        self._arrived.register(raw.fileno(), select.POLLIN)
        self._in_head = True
        self._allowed = MAX_HEAD
        self._waited = 0.0
        self._received = 0
        self.shut = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.shut:
            return None
        began = time.monotonic()
        count = self._gather(memoryview(buffer))
        self._waited += time.monotonic() - began
        self._received += count
        self._allowed -= count
        if self._allowed < 0:
            raise http.client.HTTPException("there is no end of headers, interim answers or trailers")
        if self._in_head and count == 0:  # http.client would take what is there for the whole head
            raise http.client.RemoteDisconnected("the connection ended in the answer's head")
        if self._window is not None and self._waited > self._window:
            if self._in_head or self._received < MIN_RATE * self._waited:
                raise TimeoutError("timed out: the server sends too slowly")
            self._waited, self._received = 0.0, 0
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
        self._waited += time.monotonic() - began
        return found

    def head_is_read(self) -> None:
        """Begin to measure the body."""
        self._in_head = False
        self._waited, self._received = 0.0, 0

    def allow(self, count: int) -> None:
        """Let the next read of the body take `count` bytes, and what may stand around them."""
        self._allowed = count + MAX_HEAD

    def close(self) -> None:
        self._raw.close()
        super().close()


class Answer(http.client.HTTPResponse):
    """An HTTP answer read at a minimum pace; `surplus` says that more came than Content-Length announced."""

    surplus = False

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._sock = sock
        if isinstance(sock, ssl.SSLSocket):
            # A body without a length ends where the connection does: over TLS only where the server says so
            # (close_notify), or whoever cuts the connection would end the file (RFC 9112, 9.8).
            sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        self._pace = _PacedReader(self.fp.detach(), sock.gettimeout())
        self.fp = io.BufferedReader(self._pace, _BUFFER)

    def begin(self) -> None:
        super().begin()
        try:
            assert_header_parsing(self.headers)  # http.client ignores every header after a malformed line
        except HeaderParsingError as exc:
            raise http.client.HTTPException("malformed headers") from exc
        self._pace.head_is_read()

    def read1(self, n: int = -1) -> bytes:
        self._pace.allow(max(n, _BUFFER))
        return super().read1(n)

    def pauses(self, seconds: float) -> bool:
        """Say whether the next read would have to wait for longer than this; nothing of the body is read."""
        if self.isclosed():
            return False
        self._pace.shut = True
        here = len(self.fp.peek(1))
        self._pace.shut = False
        if isinstance(self._sock, ssl.SSLSocket):
            here += self._sock.pending()
        end_of_chunk = 2 if self.chunked else 0  # is here, while what it is followed by may not be
        return here <= end_of_chunk and not self._pace.arrives(seconds)

    def close(self) -> None:
        """Close the answer; one that was read to its announced end is asked for what lies behind it."""
        whole = self.status in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT)
        if not self.isclosed() and whole and not self.chunked and self.length == 0:
            try:
                self._sock.settimeout(SURPLUS_GRACE)
                self.surplus = bool(self.fp.peek(1))
            except OSError:
                pass  # nothing came, or the connection is gone: the announced bytes are all there
        super().close()


class _Connection(HTTPConnection):
    response_class = Answer
    way: Way | None = None

    def _new_conn(self) -> socket.socket:
        return super()._new_conn() if self.way is None else _through(self.way, self)


class _TlsConnection(HTTPSConnection):
    response_class = Answer
    way: Way | None = None

    def _new_conn(self) -> socket.socket:
        return super()._new_conn() if self.way is None else _through(self.way, self)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class PinnedAdapter(HTTPAdapter):
    """Sends requests for one target to one checked address, and nowhere else; no retry, no redirect, and no proxy but
    `way`. Over https, `context` says whom to trust.
    """

    def __init__(
        self, target: Target, address: Address, context: ssl.SSLContext | None = None, way: Way | None = None
    ) -> None:
        super().__init__(max_retries=0)
        self._target = target
        self._address = address
        self._context = context
        self._way = way
        self._pool: HTTPConnectionPool | None = None
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

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
            self._pool.ConnectionCls = _sent_by(self._way, scheme)
        return self._pool

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Leave the pool as it is: the context says whom to trust."""

    def close(self) -> None:
        """Close the connection; urllib3's pool manager would leave that to the garbage collector."""
        super().close()
        if self._pool is not None:
            self._pool.close()


def _sent_by(way: Way | None, scheme: str) -> type[_Connection] | type[_TlsConnection]:
    base = _TlsConnection if scheme == "https" else _Connection
    return base if way is None else type(base.__name__, (base,), {"way": way})


def _through(way: Way, connection: HTTPConnection) -> socket.socket:
    """Connect through a proxy, with urllib3's errors. Raises: ConnectTimeoutError, NewConnectionError."""
    try:
        timeout = connection.timeout
        seconds = timeout if isinstance(timeout, int | float) else None
        return way.connect(connection.host, connection.port or 0, seconds)
    except TimeoutError as exc:
        raise ConnectTimeoutError(connection, "the proxy did not answer in time") from exc
    except OSError as exc:
        raise NewConnectionError(connection, "the proxy made no connection") from exc
