"""The second step of a download: an external source's bytes into the attempt's partial file, hashed while they pass.

What was cut off is gone on with. While bytes move, a checkpoint is recorded every few seconds: whose bytes they are
(the source's version) and the sha256 of all that is surely stored. A later try or attempt reads that much back from the
destination's storage: so the hash goes on where it was, and what it goes on with is proved. The last block before that
point is compared with what the source sends now; then its further bytes follow, on the same connection.

A source that is another one now begins anew, once. One that answers a part with the whole begins anew as well: nothing
is ever put together from two versions.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from datamanager.domain.states import Phase
from datamanager.engine.attempt import Attempt, Found, Moved, Restart
from datamanager.engine.control import Control
from datamanager.engine.single.restart import parts_of
from datamanager.engine.single.transfer import FOLLOWED_FROM, Remember, forget, remove_part
from datamanager.engine.stored_hash import followed, following
from datamanager.errors import (
    ChecksumMismatch,
    ConnectionLost,
    DataManagerError,
    DownloadFailed,
    Paused,
    SizeMismatch,
    SourceChanged,
    SourceMissing,
    TooLarge,
    TransportTimeout,
)
from datamanager.machines import VerifyPolicy
from datamanager.sources.decompression import Packing, Unpacking
from datamanager.sources.port import Download, Source
from datamanager.transports.port import Follower, Session, Writer

CHECKPOINT_EVERY = 2.0
"""Seconds between checkpoints: what at most is sent again after a kill."""
TAIL = 2**20
"""Bytes before the point of restart that the source must send as they are stored."""
WORTH = 2**20
"""Bytes that a connection must have brought to be followed by another one at once, when it breaks."""

_ELSEWHERE = (DownloadFailed, SourceMissing, SourceChanged, SizeMismatch, ChecksumMismatch, ConnectionLost)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What must arrive: `size` in bytes when the client gave it, at most `limit` bytes, and `checksum` (algorithm of
    hashlib, lower-case hex). With `packing` these two are of the packed bytes; `limit` is for what is stored, too.
    """

    limit: int
    size: int | None = None
    checksum: tuple[str, str] | None = None
    packing: Packing | None = None


def download(
    job: Attempt,
    found: Found,
    sources: Mapping[str, Source],
    control: Control,
    wanted: Wanted,
    remember: Remember = forget,
) -> Moved:
    """Write what an external source sends. `sources` are the places where the same bytes are, by names that stay the
    same over all attempts; they are tried in turn, the one first whose bytes the partial file has.

    `remember` is told the checkpoints.

    Raises: SizeMismatch, TooLarge, SourceChanged; ChecksumMismatch (retryable only after a restart, which may be to
    blame); and what the source and the transports raise.
    """
    control.enter(Phase.TRANSFER)
    if wanted.packing is not None:
        packing, size, checksum = wanted.packing, wanted.size, wanted.checksum
        sources = {name: Unpacking(source, packing, size, checksum) for name, source in sources.items()}
        wanted = Wanted(wanted.limit)
    control.bytes_done, control.bytes_total = 0, wanted.size
    with job.target.storage.session() as session:
        kept = _Kept.of(job, found, session, control, wanted) if job.restart is not None else None
        if kept is not None and kept.place not in sources:
            kept = None

        def fetch(name: str) -> Moved:
            mine = kept if kept is not None and kept.place == name else None
            return _Fetch(job, found, session, control, wanted, remember, name, sources[name]).run(mine)

        return in_turn(sources, kept.place if kept is not None else None, fetch)


def in_turn(names: Iterable[str], first: str | None, fetch: Callable[[str], Moved]) -> Moved:
    """Return what `fetch` returns for the first of these places, `first` before the others, of which it does not raise
    Broke, SizeMismatch or ChecksumMismatch for a reason that another place may not have. Raises: the last reason.
    """
    ordered = sorted(names, key=lambda name: name != first)  # stable
    for name in ordered:
        try:
            return fetch(name)
        except Broke as broke:
            error = broke.error
        except (SizeMismatch, ChecksumMismatch) as mismatch:
            error = mismatch
        if name == ordered[-1] or not isinstance(error, (*_ELSEWHERE, TransportTimeout)):
            raise error
        log.warning("%s; the next mirror is tried", error.detail)
    raise DownloadFailed("there is no source")


class Broke(Exception):
    """The source failed, not the destination."""

    def __init__(self, error: DataManagerError) -> None:
        super().__init__(error.detail)
        self.error = error


class _Anew(Exception):
    """What is stored can't be gone on with."""


@dataclass(slots=True)
class _Kept:
    """What is stored and hashed so far; `digests` by algorithm, `tail` the last bytes, `size` the whole in bytes."""

    place: str = ""
    version: str | None = None
    size: int | None = None
    position: int = 0
    tail: bytes = b""
    digests: dict[str, hashlib._Hash] = field(default_factory=dict)

    def take(self, block: memoryview) -> None:
        """Count and hash the next block."""
        for digest in self.digests.values():
            digest.update(block)
        self.position += len(block)
        short = TAIL - len(block)
        self.tail = (self.tail[-short:] if short > 0 else b"") + bytes(block[-TAIL:])

    @classmethod
    def new(cls, place: str, wanted: Wanted) -> _Kept:
        """Return the state before the first byte."""
        names = {"sha256"} | ({wanted.checksum[0]} if wanted.checksum is not None else set())
        return cls(place, digests={name: hashlib.new(name, usedforsecurity=False) for name in names})

    @classmethod
    def of(cls, job: Attempt, found: Found, session: Session, control: Control, wanted: Wanted) -> _Kept | None:
        """Return what an earlier try or attempt stored, proved by its checkpoint; None when there is nothing good, and
        no partial file of this transfer is left then.
        """
        marker, kept = job.restart, None
        parts = parts_of(job, found.directory, session)
        fitting = [(size, path) for size, path in parts if marker and 0 < marker.done <= size <= marker.size]
        path = max(fitting)[1] if fitting else None
        for _, other in parts:
            if other != path:
                session.remove(other)
        if path is None or marker is None or marker.version is None:
            return None
        if path != found.part:
            session.rename(path, found.part, overwrite=False)
        place, _, version = marker.version.partition(" ")
        kept = cls.new(place, wanted)
        kept.version, kept.size = version, marker.size
        with session.open_read(found.part) as reader:
            for block in reader.blocks(0, marker.done):
                kept.take(block)
                control.check()
        if kept.position == marker.done and kept.digests["sha256"].hexdigest() == marker.sha256:
            return kept
        log.warning("%s: what is stored is not what was noted: from the start", job.target.place)
        session.remove(found.part)
        return None


class _Fetch:
    """One place's bytes into the partial file."""

    def __init__(
        self,
        job: Attempt,
        found: Found,
        session: Session,
        control: Control,
        wanted: Wanted,
        remember: Remember,
        place: str,
        source: Source,
    ) -> None:
        self._job = job
        self._found = found
        self._session = session
        self._control = control
        self._wanted = wanted
        self._remember = remember
        self._place = place
        self._source = source
        self._changed = False
        self._restarted = False
        self._whole_only = False
        self._due = 0.0
        self._checkpoint: Restart | None = None

    def run(self, kept: _Kept | None) -> Moved:
        """Fetch all that is missing. Raises: Broke with what the source raised, and what the transports raise."""
        self._restarted = kept is not None
        while True:
            state = kept or _Kept.new(self._place, self._wanted)
            try:
                return self._write(state)
            except _Anew:
                self._whole_only, kept, self._restarted = True, None, False
            except Broke as broke:
                if self._changed or not isinstance(broke.error, SourceChanged):
                    raise
                self._changed, kept, self._restarted = True, None, False
                log.warning("%s; from the start", broke.error.detail)

    def _write(self, state: _Kept) -> Moved:
        session, part = self._session, self._found.part
        self._control.bytes_done = begin = state.position
        if not begin:
            remove_part(session, self._found)
        hashed = self._job.verify is VerifyPolicy.SHA256
        with ExitStack() as stack:
            writer = stack.enter_context(session.reopen(part) if begin else session.create(part))
            follower = None
            try:
                while True:
                    opened_at = state.position
                    try:
                        with self._opened(state) as download:
                            large = (download.size or 0) >= FOLLOWED_FROM
                            if hashed and large and not begin and not opened_at:
                                follower = stack.enter_context(following(session, part))
                            self._move(download, state, writer, follower)
                        break
                    except Broke as broke:
                        if not self._goes_on_at_once(broke.error, state, opened_at):
                            raise
                        log.warning("%s; it is gone on with at byte %d", broke.error.detail, state.position)
                        self._control.check()
            except (Broke, Paused) as end:
                if state.position and state.version is not None and not _is_change(end):
                    writer.settle()
                    self._note(state, writer, at_once=True)
                raise
            writer.settle()
            writer.flush()
            self._check_end(state)
            stored = None
            if follower is not None:
                follower.advance(state.position)
                stored = followed(follower, self._control.watch)
        return Moved(state.position, state.digests["sha256"].hexdigest(), stored)

    def _opened(self, state: _Kept) -> _Opened:
        return _Opened(self._source, state.position - len(state.tail), state.version)

    def _goes_on_at_once(self, error: DataManagerError, state: _Kept, opened_at: int) -> bool:
        cut = isinstance(error, ConnectionLost | TransportTimeout)
        return cut and not self._whole_only and state.version is not None and state.position - opened_at >= WORTH

    def _move(self, download: Download, state: _Kept, writer: Writer, follower: Follower | None) -> None:
        control, limit = self._control, self._wanted.limit
        blocks = _read(download)
        if state.position:
            blocks = self._after_tail(download, state, blocks)
        else:
            state.version, state.size = download.version, download.size
            control.bytes_total = download.size if download.size is not None else self._wanted.size
            expected = self._wanted.size
            if expected is not None and download.size is not None and expected != download.size:
                raise SizeMismatch(f"{expected} bytes were announced by the request, {download.size} by the source")
        self._due = time.monotonic() + CHECKPOINT_EVERY
        for block in blocks:
            if state.position + len(block) > limit:
                raise TooLarge(f"the source sends more than the {limit} bytes that are allowed")
            writer.write(state.position, block)
            state.take(block)
            if follower is not None:
                follower.advance(state.position if writer.unsettled is None else writer.unsettled)
            self._note(state, writer)
            control.advance(len(block))

    def _after_tail(self, download: Download, state: _Kept, blocks: Iterator[memoryview]) -> Iterator[memoryview]:
        """Yield what follows the stored bytes. Raises: _Anew, SourceChanged when it isn't these that are followed."""
        start = state.position - len(state.tail)
        if download.start != start:
            log.warning("%s sends the whole where a part was asked for: from the start", download.url)
            raise _Anew
        if download.size != state.size or download.version != state.version:
            raise Broke(SourceChanged(f"{download.url} is not the version any more that was begun"))
        left = memoryview(state.tail)
        for block in blocks:
            count = min(len(left), len(block))
            if block[:count] != left[:count]:
                raise Broke(SourceChanged(f"{download.url} sends other bytes than before, as the same version"))
            left = left[count:]
            if count < len(block):
                yield block[count:]
        if left:
            raise Broke(ConnectionLost(f"{download.url} ended before what is stored of it"))

    def _note(self, state: _Kept, writer: Writer, *, at_once: bool = False) -> None:
        """Record a checkpoint when one is due and its bytes are surely stored."""
        if state.version is None or state.size is None:
            return
        if self._checkpoint is None and (at_once or time.monotonic() >= self._due):
            digest = state.digests["sha256"].copy().hexdigest()
            version = f"{self._place} {state.version}"
            self._checkpoint = Restart(state.size, 0, 0, version, state.position, digest)
        if self._checkpoint is not None:
            unsettled = writer.unsettled
            if unsettled is None or unsettled >= self._checkpoint.done:
                self._remember(self._checkpoint)
                self._checkpoint = None
                self._due = time.monotonic() + CHECKPOINT_EVERY

    def _check_end(self, state: _Kept) -> None:
        wanted = self._wanted
        if state.size is not None and state.position != state.size:
            raise Broke(SizeMismatch(f"{state.size} bytes were announced by the source, {state.position} arrived"))
        if wanted.size is not None and state.position != wanted.size:
            raise SizeMismatch(f"{wanted.size} bytes were announced by the request, {state.position} arrived")
        if wanted.checksum is not None:
            algorithm, expected = wanted.checksum
            found = state.digests[algorithm].hexdigest()
            if found != expected:
                raise ChecksumMismatch(
                    f"{algorithm} {expected} was expected, {found} arrived", retryable=self._restarted
                )


class _Opened:
    """A source that is open; what it raises is marked as its own."""

    def __init__(self, source: Source, start: int, version: str | None) -> None:
        self._context = source.open(start, version=version)

    def __enter__(self) -> Download:
        try:
            return self._context.__enter__()
        except DataManagerError as error:
            raise Broke(error) from error

    def __exit__(self, *exc: object) -> None:
        self._context.__exit__(None, None, None)


def _read(download: Download) -> Iterator[memoryview]:
    try:
        yield from download.blocks()
    except DataManagerError as error:
        raise Broke(error) from error


def _is_change(end: BaseException) -> bool:
    return isinstance(end, Broke) and isinstance(end.error, SourceChanged)
