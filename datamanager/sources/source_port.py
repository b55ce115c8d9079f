"""The port: what the engine needs of an external source, whatever its protocol.

A source reads one URL. It never writes, keeps nothing between two `open`s and stages nothing on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

BLOCK = 2**20
"""Largest block of a download in bytes."""


class Download(Protocol):
    """An answer whose head has arrived; used by one thread."""

    @property
    def size(self) -> int | None:
        """The length of the whole file in bytes, not of the range; None when the source does not say."""

    @property
    def start(self) -> int:
        """The offset at which `blocks` begins: the requested one, or 0 where the source can't begin there."""

    @property
    def version(self) -> str | None:
        """Opaque text that another open returns again only while the bytes are the same: a strong validator
        (RFC 9110, 8.8.1), or a file server's size and modification time. None: the download can't be resumed.
        """

    @property
    def ranges(self) -> bool:
        """Whether further opens may ask for ranges of this version, several at the same time."""

    @property
    def etag(self) -> str | None:
        """The source's version mark as it was sent (RFC 9110, 8.8.3)."""

    @property
    def last_modified(self) -> str | None:
        """The source's modification time as it was sent."""

    @property
    def content_type(self) -> str | None:
        """The media type, as it was sent."""

    @property
    def filename(self) -> str | None:
        """The name that the source suggests, as it was sent: hostile until `safe_name` made it safe."""

    @property
    def url(self) -> str:
        """Where the bytes come from in the end, after redirects, as it may be shown: without credentials and query."""

    def blocks(self) -> Iterator[memoryview]:
        """Yield the source's exact bytes from `start` on, in order, in blocks of at most 1 MiB; only once.

        A block is valid until the next one is taken. Memory held is bounded, whatever the size. What trickles in is
        yielded about every half second, so that the caller can show progress or stop.

        Raises: ConnectionLost when the body ends early; SizeMismatch when there is more than announced; TooLarge;
        TransportTimeout when nothing, or next to nothing, arrives; DownloadFailed. A short body never ends quietly.
        """


class Source(Protocol):
    """One URL that can be read; safe to share between threads, each `open` is its own connection."""

    def open(
        self, start: int = 0, stop: int | None = None, *, version: str | None = None
    ) -> AbstractContextManager[Download]:
        """Connect and request; the body is read by `blocks`. Leaving the context closes the connection.

        `start` and `stop` are offsets in bytes, `stop` is not included. A source that can't begin at `start` begins at
        0 and says so (`Download.start`); one that can't end at `stop` continues to its end. `version` is what an
        earlier download had: with it, and only then, no other bytes come than those.

        Raises: SourceChanged when `version` is given and the source is another one now; UrlNotAllowed (also for where
        a redirect leads), SourceMissing, DownloadFailed, AuthenticationFailed, TooLarge, ConnectionLost,
        TransportTimeout, ServerBusy (it has as many connections of this mover as it allows).
        """
