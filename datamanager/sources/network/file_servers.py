"""What sftp and ftp have in common: a URL that is a host and a path, and a connection to a checked address."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

from datamanager.errors import NotSupported, UrlNotAllowed
from datamanager.sources.network.connection_errors import translated
from datamanager.sources.network.egress_guard import Address, EgressGuard, canonical_host
from datamanager.sources.terms.options import CommonOptions
from datamanager.sources.terms.urls import MAX_URL, public_url, scheme_of

MAX_ADDRESSES = 4
"""How many of a host's addresses are tried until one accepts the connection."""

_ESCAPES = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")


@dataclass(frozen=True, slots=True)
class FileUrl:
    """A file on a server: the host that is checked is the host that is asked."""

    scheme: str
    host: str
    """Lower-case ASCII name without a final dot, or an address without brackets."""
    port: int
    path: bytes
    """As the server gets it: percent-decoded, beginning with a slash."""
    shown: str
    """The URL as it may be shown."""


def parse_file_url(url: str, ports: Mapping[str, int]) -> FileUrl:
    """Read a URL whose scheme is one of `ports`, which has each scheme's own port.

    Raises: UrlNotAllowed for another scheme, credentials, control characters (escaped ones too), a query or fragment,
    a path that names no file, and malformed URLs.
    """
    scheme, shown = scheme_of(url), public_url(url)
    if scheme not in ports:
        raise UrlNotAllowed(f"scheme {scheme!r} is not allowed; use {' or '.join(ports)}")
    if len(url) > MAX_URL or "\\" in url or not all(char.isprintable() for char in url):
        raise UrlNotAllowed(f"the URL is longer than {MAX_URL} characters, or holds control characters or backslashes")
    if "?" in url or "#" in url:
        raise UrlNotAllowed(f"{scheme} URLs have no query and no fragment; write ? as %3F and # as %23")
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise UrlNotAllowed(f"the URL {shown} is malformed") from None  # the parser's text quotes the URL
    if "@" in parts.netloc:
        raise UrlNotAllowed("user and password in the URL are not supported; use the options username and password")
    if not host or not _ESCAPES.fullmatch(parts.path):
        raise UrlNotAllowed(f"the URL {shown} is malformed")
    path = unquote_to_bytes(parts.path)
    if any(byte < 0x20 or byte == 0x7F for byte in path):
        raise UrlNotAllowed(f"the path of {shown} holds control characters")
    if path.rpartition(b"/")[2] in (b"", b".", b".."):
        raise UrlNotAllowed(f"the path of {shown} names no file")
    wanted = ports[scheme] if port is None else port
    return FileUrl(scheme, str(canonical_host(host)), wanted, path, shown)


def refuse_expect_type(options: CommonOptions, url: FileUrl) -> None:
    """Refuse an expectation that nothing can be held against. Raises: NotSupported."""
    if options.expect_type is not None:
        raise NotSupported(f"option expect_type is not supported by {url.scheme}, which has no media types")


@contextmanager
def bounded(seconds: float, abort: Callable[[], object]) -> Iterator[None]:
    """Call `abort`, from another thread, when the block takes longer: it has to make every wait in there end.

    Raises: TimeoutError in that case, whatever the block raised.
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        abort()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as exc:
        if late.is_set():
            raise TimeoutError("timed out") from exc
        raise
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError("timed out")


def connect(guard: EgressGuard, url: FileUrl, timeout: float) -> tuple[socket.socket, Address]:
    """Connect to the first of the host's checked addresses that accepts; return the socket, and which one it was.

    `timeout` is seconds, for each of at most four addresses.

    Raises: UrlNotAllowed, ConnectionLost, TransportTimeout.
    """
    addresses = guard.check(url.host, url.port)[:MAX_ADDRESSES]
    with translated(url.shown):
        for address in addresses[:-1]:
            try:
                return socket.create_connection((str(address), url.port), timeout), address
            except OSError:
                continue  # the next one may accept; the last one's error is told
        return socket.create_connection((str(addresses[-1]), url.port), timeout), addresses[-1]
