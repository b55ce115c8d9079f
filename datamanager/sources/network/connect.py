"""Connections to checked addresses, and a deadline for blocking conversations over them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from datamanager.sources.network.connection_errors import translated
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.terms.urls import Address, FileUrl

MAX_ADDRESSES = 4
"""How many of a host's addresses are tried until one accepts the connection."""


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
