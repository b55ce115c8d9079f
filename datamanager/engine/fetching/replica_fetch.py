"""What both ways of fetching share: replicas (the URL and its mirrors) tried in turn, interrupted connections resumed,
sizes and checksums compared.

A checkpoint is recorded every few seconds: the source's version and how much is surely stored. A later try or attempt
resumes there: the last block before that point is compared with what the source sends now; then its further bytes
follow, on the same connection. A source that changed is fetched again from the start, once; so is one that answers a
range with the whole file. Two versions are never mixed.
"""

from __future__ import annotations

import abc
import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from datamanager.engine.attempt import Attempt, Found, Moved, Restart
from datamanager.engine.control import Control
from datamanager.engine.single.transfer import Remember, forget
from datamanager.errors import (
    ChecksumMismatch,
    ConnectionLost,
    DataManagerError,
    DownloadFailed,
    ServerBusy,
    SizeMismatch,
    SourceChanged,
    SourceMissing,
    TransportTimeout,
)
from datamanager.sources.decompression import Compression
from datamanager.sources.source_port import Download
from datamanager.sources.terms.checksums import Checksum
from datamanager.transports.port import Session

CHECKPOINT_EVERY = 2.0
"""Seconds between checkpoints: what at most is sent again after a kill."""
TAIL = 2**20
"""Bytes before the point of resumption that the source must send as they are stored."""
RECONNECT_FROM = 2**20
"""Bytes that an interrupted connection must have brought for another one to be opened at once."""

_TRY_MIRROR = (
    *(DownloadFailed, SourceMissing, SourceChanged, SizeMismatch, ChecksumMismatch, ConnectionLost, TransportTimeout),
    ServerBusy,
)

log = logging.getLogger(__name__)

Answered = Callable[[str, Download], None]
"""Called with each answer, and the name of the replica that it comes from."""


def ignore_answer(_: str, __: Download) -> None:
    """Record nothing of an answer."""


@dataclass(frozen=True, slots=True)
class ExpectedBytes:
    """What must arrive: `size` in bytes when the client gave it, at most `limit` bytes, and `checksum`. With
    `compression` these two are of the compressed bytes; `limit` is for what is stored, too.
    """

    limit: int
    size: int | None = None
    checksum: Checksum | None = None
    compression: Compression | None = None


@dataclass(frozen=True, slots=True)
class FetchContext:
    """What one download works with, whatever the replica; `remember` is called with the checkpoints."""

    job: Attempt
    found: Found
    control: Control
    expected: ExpectedBytes
    remember: Remember = forget
    answered: Answered = ignore_answer


@dataclass(slots=True)
class StoredPart:
    """How much of which version of which replica is stored; `size` is the whole file in bytes."""

    replica: str
    version: str | None = None
    size: int | None = None
    position: int = 0

    def checkpoint(self, sha256: str | None = None) -> Restart | None:
        """Return the restart marker of what is stored; None when it could not be resumed."""
        if self.version is None or self.size is None or not self.position:
            return None
        return Restart(self.size, 0, 0, f"{self.replica} {self.version}", self.position, sha256)


P = TypeVar("P", bound=StoredPart)
S = TypeVar("S")


def resumable(
    marker: Restart | None, parts: Iterable[tuple[int, str]], replicas: Container[str]
) -> tuple[StoredPart, str] | None:
    """Return what the restart marker says is stored, and the path of the partial file (of `parts`: size and path) that
    has it; None when there is none.
    """
    if marker is None or marker.version is None:
        return None
    replica, _, version = marker.version.partition(" ")
    fitting = [part for part in parts if 0 < marker.done <= part[0] <= marker.size]
    if not fitting or replica not in replicas:
        return None
    return StoredPart(replica, version, marker.size, marker.done), max(fitting)[1]


class _Failed(Exception):
    def __init__(self, error: DataManagerError) -> None:
        super().__init__(error.detail)
        self.error = error


class SourceFailed(_Failed):
    """The source failed, not the destination."""

    @property
    def is_change(self) -> bool:
        """Whether the source changed."""
        return isinstance(self.error, SourceChanged)


class MachineFailed(_Failed):
    """The machine that fetches failed, or the transfer is to stop: not the source's fault."""


@contextmanager
def raised_as(kind: type[_Failed]) -> Iterator[None]:
    """Raise our errors as failures of this kind."""
    try:
        yield
    except DataManagerError as error:
        raise kind(error) from error


class StartOver(Exception):
    """What is stored can't be resumed."""


def in_turn(sources: Mapping[str, S], stored: P | None, fetch: Callable[[str, S], ReplicaFetch[P]]) -> Moved:
    """Fetch from the first replica that does not fail for a reason that another one may not have; the one whose bytes
    are `stored` is tried before the others. Raises: the last reason, or that of the first one that is to be asked again
    later.
    """
    first = None if stored is None else stored.replica
    later: DataManagerError | None = None
    ordered = sorted(sources, key=lambda name: name != first)  # stable
    for name in ordered:
        try:
            return fetch(name, sources[name]).run(stored if name == first else None)
        except SourceFailed as failed:
            error = failed.error
        except (SizeMismatch, ChecksumMismatch) as mismatch:
            error = mismatch
        if error.again is not None:
            later = later or error
        if not isinstance(error, _TRY_MIRROR):
            raise error
        if name == ordered[-1]:
            raise later or error
        log.warning("%s; trying the next mirror", error.detail)
    raise DownloadFailed("there is no source")


class ReplicaFetch(abc.ABC, Generic[P]):
    """The fetch of one replica's bytes into the partial file; `session` is of the destination's machine."""

    def __init__(self, context: FetchContext, session: Session, replica: str) -> None:
        self.context = context
        self.session = session
        self.replica = replica
        self._changed = False
        self._resumed = False
        self._whole_only = False

    def run(self, stored: P | None) -> Moved:
        """Fetch all that is missing. Raises: SourceFailed with what the source raised, SizeMismatch, ChecksumMismatch,
        and what the transports raise.
        """
        self._resumed = stored is not None
        while True:
            try:
                return self.write(stored or self.empty())
            except StartOver:
                self._whole_only = True
            except SourceFailed as failed:
                if self._changed or not failed.is_change:
                    raise
                self._changed = True
                log.warning("%s; starting again", failed.error.detail)
            stored, self._resumed = None, False

    @abc.abstractmethod
    def empty(self) -> P:
        """Return the state before the first byte."""

    @abc.abstractmethod
    def write(self, stored: P) -> Moved:
        """Fetch all that is missing of one version. Raises: as `run`; StartOver."""

    def reconnecting(self, stored: P, connection: Callable[[], None]) -> None:
        """Read over one connection after the other, so long as those that break have brought enough."""
        while True:
            opened_at = stored.position
            try:
                connection()
                return
            except SourceFailed as failed:
                cut = isinstance(failed.error, ConnectionLost | TransportTimeout) and not self._whole_only
                if not cut or stored.version is None or stored.position - opened_at < RECONNECT_FROM:
                    raise
                log.warning("%s; resumed at byte %d", failed.error.detail, stored.position)
                self.context.control.check()

    def accept(self, download: Download, stored: P, begin: int) -> None:
        """Accept an answer that was to begin at `begin`. Raises: StartOver, SourceFailed, SizeMismatch."""
        context, expected = self.context, self.context.expected.size
        if download.start != begin:
            log.warning("%s sends the whole file where a range was requested: from the start", download.url)
            raise StartOver
        if not stored.position:
            stored.version, stored.size = download.version, download.size
            if expected is not None and download.size is not None and expected != download.size:
                raise SizeMismatch(f"{expected} bytes were announced by the request, {download.size} by the source")
        elif download.size != stored.size or download.version != stored.version:
            raise SourceFailed(
                SourceChanged(f"{download.url} is not the version any more that the download began with")
            )
        context.control.bytes_done = stored.position
        context.control.bytes_total = stored.size if stored.size is not None else expected

    def require_size(self, stored: P) -> None:
        """Compare the size of what is stored. Raises: SizeMismatch."""
        for size, by in ((stored.size, "source"), (self.context.expected.size, "request")):
            if size is not None and stored.position != size:
                raise SizeMismatch(f"{size} bytes were announced by the {by}, {stored.position} arrived")

    def require_checksum(self, digest_of: Callable[[str], str | None]) -> None:
        """Compare the digest by the expected checksum's algorithm. Raises: ChecksumMismatch (retryable only after a
        resumption, which may be to blame).
        """
        if self.context.expected.checksum is None:
            return
        algorithm, expected = self.context.expected.checksum
        found = digest_of(algorithm)
        if found != expected:
            detail = f"{algorithm} {expected} was expected, {found} arrived"
            raise ChecksumMismatch(detail, retryable=self._resumed)


def changed_bytes(download: Download) -> SourceFailed:
    """Return the failure of a source that sends other bytes than are stored, as the same version."""
    return SourceFailed(SourceChanged(f"{download.url} sent different bytes for the same version"))


def checkpoint_due() -> float:
    """Return the monotonic time of the next checkpoint."""
    return time.monotonic() + CHECKPOINT_EVERY
