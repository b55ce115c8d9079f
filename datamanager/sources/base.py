"""The port: what the engine asks of an external source, whatever its protocol.

A source reads one URL. It never writes, keeps nothing between two `open`s and stages nothing on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

BLOCK = 2**20
"""Largest block of a download in bytes."""


class Download(Protocol):
    """An answer that has begun; used by one thread."""

    @property
    def size(self) -> int | None:
        """The announced length in bytes, None when the source does not say."""
        ...

    @property
    def etag(self) -> str | None:
        """The source's version mark as it was sent (RFC 9110, 8.8.3)."""
        ...

    @property
    def last_modified(self) -> str | None:
        """The source's modification time as it was sent."""
        ...

    @property
    def url(self) -> str:
        """Where the bytes come from in the end, after redirects, as it may be shown: without credentials and query."""
        ...

    def blocks(self) -> Iterator[memoryview]:
        """Yield the source's exact bytes, in order, in blocks of at most 1 MiB; only once.

        A block is valid until the next one is asked for. Memory held is bounded, whatever the size. What trickles in is
        handed on about every half second, so that the caller can show progress or stop.

        Raises: ConnectionLost when the body ends early; SizeMismatch when there is more than announced; TooLarge;
        TransportTimeout when nothing, or next to nothing, arrives; DownloadFailed. A short body never ends quietly.
        """
        ...


class Source(Protocol):
    """One URL that can be read; safe to share between threads, each `open` is its own connection."""

    def check(self) -> None:
        """Refuse at once what `open` would refuse before it sends a byte; resolves the host. Raises: UrlNotAllowed."""
        ...

    def open(self) -> AbstractContextManager[Download]:
        """Connect and ask; the body is read by `blocks`. Leaving the context closes the connection.

        Raises: UrlNotAllowed (also for where a redirect leads), DownloadFailed, TooLarge, ConnectionLost,
        TransportTimeout.
        """
        ...
