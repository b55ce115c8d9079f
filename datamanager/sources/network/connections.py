"""Connections to checked addresses: how they are made, a deadline for conversations over them, and our errors for those
of requests, urllib3, http.client and sockets, by class.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import requests
import urllib3.exceptions

from datamanager.errors import ConnectionLost, DataManagerError, DownloadFailed, TransportTimeout, UrlNotAllowed
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.terms.urls import Address, FileUrl

MAX_ADDRESSES = 4
"""How many of a host's addresses are tried until one accepts the connection."""

FOREIGN = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
"""Everything that reading over HTTP may raise."""

_CLOSED = (http.client.RemoteDisconnected, http.client.IncompleteRead)
_NOT_A_URL = (
    requests.URLRequired,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    urllib3.exceptions.LocationValueError,
)
_TIMEOUT = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
_TLS = (requests.exceptions.SSLError, urllib3.exceptions.SSLError, ssl.SSLError)
_TLS_CUT = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
_BROKEN = (
    requests.ConnectionError,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.PoolError,
    *_CLOSED,
)


def connect_first(addresses: Sequence[Address], port: int, timeout: float | None) -> tuple[socket.socket, Address]:
    """Connect to the first of at most four addresses that accepts; return the socket and that address.

    `timeout` is seconds for each. Raises: OSError, of the last address tried.
    """
    *others, last = addresses[:MAX_ADDRESSES]
    for address in others:
        try:
            return socket.create_connection((str(address), port), timeout), address
        except OSError:
            continue
    return socket.create_connection((str(last), port), timeout), last


def connect_guarded(guard: EgressGuard, url: FileUrl, timeout: float) -> tuple[socket.socket, Address]:
    """Connect to a file server; see `connect_first`. Raises: UrlNotAllowed, ConnectionLost, TransportTimeout."""
    addresses = guard.check(url.host, url.port)
    with translated(url.shown):
        return connect_first(addresses, url.port, timeout)


@contextmanager
def time_limit(seconds: float, abort: Callable[[], object]) -> Iterator[None]:
    """Call `abort` from another thread when the block takes longer; it has to end every wait inside.

    Raises: TimeoutError in that case, whatever the block raised.
    """
    expired = threading.Event()

    def end() -> None:
        expired.set()
        abort()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as exc:
        if expired.is_set():
            raise TimeoutError("timed out") from exc
        raise
    finally:
        timer.cancel()
    if expired.is_set():
        raise TimeoutError("timed out")


def causes(exc: BaseException) -> Iterator[BaseException]:
    """Yield `exc` and everything it wraps: urllib3 and requests keep causes in args, `reason` and `__cause__`."""
    pending, seen = [exc], set[int]()
    while pending:
        one = pending.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inner = (*one.args, getattr(one, "reason", None), one.__cause__, one.__context__)
        pending.extend(cause for cause in inner if isinstance(cause, BaseException))


def as_ours(exc: BaseException, url: str) -> DataManagerError:
    """Return our error for a foreign one, named by class; `url` is shown and must be a `public_url`."""
    chain = list(causes(exc))
    kind, root = type(exc).__name__, type(chain[-1]).__name__
    kind = kind if kind == root else f"{kind} from {root}"

    def among(classes: tuple[type[BaseException], ...]) -> bool:
        return any(isinstance(one, classes) for one in chain)

    if among(_NOT_A_URL):
        return UrlNotAllowed(f"the URL {url} is malformed ({kind})")
    # a refused connection is a ConnectTimeoutError to urllib3
    if among(_TIMEOUT) and not among((urllib3.exceptions.NewConnectionError,)):
        return TransportTimeout(f"{url} did not answer, or stalled, or sent too slowly ({kind})")
    if among(_TLS) and not among(_TLS_CUT):
        reasons = (getattr(one, "verify_message", "") for one in chain if isinstance(one, ssl.SSLCertVerificationError))
        reason = next(filter(None, reasons), "the handshake failed")
        return DownloadFailed(f"no trusted TLS connection to {url}: {reason} ({kind})")
    if any(isinstance(one, http.client.HTTPException) and not isinstance(one, _CLOSED) for one in chain):
        return DownloadFailed(f"{url} did not answer in proper HTTP ({kind})")
    if among((urllib3.exceptions.NewConnectionError,)):
        return ConnectionLost(f"no connection to {url}: it was refused, or there is no route ({kind})")
    if among(_BROKEN) or type(exc) is OSError or among((ConnectionError, *_TLS_CUT)):
        return ConnectionLost(f"the connection to {url} broke ({kind})")
    return DownloadFailed(f"{url} could not be read ({kind})")


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise our errors for foreign ones; `url` is shown and must be a `public_url`."""
    try:
        yield
    except FOREIGN as exc:
        # Not chained: texts of urllib3 quote the URL with its query ("Max retries exceeded with url: /x?token=…"), and
        # tracebacks go to the log. The classes are named in our text instead.
        raise as_ours(exc, url) from None
