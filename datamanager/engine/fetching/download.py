"""The transfer step of a download that passes the mover: the source's bytes into the partial file, hashed while they
pass.

A checkpoint has the sha256 of all that is surely stored. When a download is resumed, that much is read back from the
destination's storage: so the hash continues where it was, and what is resumed is verified.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from datamanager.domain.states import Phase
from datamanager.engine.attempt import Moved, Restart
from datamanager.engine.fetching.replica_fetch import (
    TAIL,
    ExpectedBytes,
    FetchContext,
    ReplicaFetch,
    SourceFailed,
    StoredPart,
    changed_bytes,
    checkpoint_due,
    in_turn,
    raised_as,
    resumable,
)
from datamanager.engine.single.restart import can_continue, parts_of, remove_earlier, take_over
from datamanager.engine.single.transfer import FOLLOWED_FROM, remove_part
from datamanager.engine.single.verify import followed, following
from datamanager.errors import ConnectionLost, Paused, TooLarge
from datamanager.machines import VerifyPolicy
from datamanager.sources.decompression import Decompressed
from datamanager.sources.source_port import Download, Source
from datamanager.transports.port import Follower, Session, Writer

log = logging.getLogger(__name__)


def download(context: FetchContext, sources: Mapping[str, Source]) -> Moved:
    """Write what an external source sends. `sources` are the replicas, by names that stay the same over all attempts;
    they are tried in turn, first the one whose bytes the partial file has.

    Raises: SizeMismatch, TooLarge, SourceChanged; ChecksumMismatch (retryable only after a resumption, which may be to
    blame); and what the source and the transports raise.
    """
    context.control.enter(Phase.TRANSFER)
    compressed = None
    if context.expected.compression is not None:
        compressed = context.expected
        context = replace(context, expected=ExpectedBytes(compressed.limit))
    context.control.bytes_done, context.control.bytes_total = 0, context.expected.size
    with context.job.target.storage.session() as session:
        stored = _read_back(context, session, sources) if context.job.restart is not None else None
        return in_turn(sources, stored, lambda name, source: _Fetch(context, session, name, source, compressed))


@dataclass(slots=True)
class _HashedPart(StoredPart):
    """What is stored and hashed so far; `digests` by algorithm, `tail` the last bytes."""

    tail: bytes = b""
    digests: dict[str, hashlib._Hash] = field(default_factory=dict)

    @classmethod
    def empty(cls, replica: str, expected: ExpectedBytes) -> _HashedPart:
        """Return the state before the first byte."""
        names = {"sha256"} | ({expected.checksum[0]} if expected.checksum is not None else set())
        return cls(replica, digests={name: hashlib.new(name, usedforsecurity=False) for name in names})

    def add(self, block: memoryview) -> None:
        """Count and hash the next block."""
        for digest in self.digests.values():
            digest.update(block)
        self.position += len(block)
        short = TAIL - len(block)
        self.tail = (self.tail[-short:] if short > 0 else b"") + bytes(block[-TAIL:])


def _read_back(context: FetchContext, session: Session, replicas: Container[str]) -> _HashedPart | None:
    """Return what an earlier try or attempt stored, verified by its checkpoint; None when nothing can be resumed, and
    no partial file of this transfer is left then.
    """
    job, found = context.job, context.found
    parts = parts_of(job, found.directory, session)
    noted, path = resumable(job.restart, parts, replicas) or (None, None)
    remove_earlier(session, [other for _, other in parts if other != path])
    if noted is None or path is None or job.restart is None or not take_over(session, path, found):
        return None
    stored = _HashedPart.empty(noted.replica, context.expected)
    stored.version, stored.size = noted.version, noted.size
    with session.open_read(found.part) as reader:
        for block in reader.blocks(0, noted.position):
            stored.add(block)
            context.control.check()
    if stored.position != noted.position or stored.digests["sha256"].hexdigest() != job.restart.sha256:
        log.warning("%s: what is stored does not match its checkpoint: from the start", job.target.place)
    elif not stored.position or can_continue(session, found.part, stored.position):
        return stored
    session.remove(found.part)
    return None


class _Fetch(ReplicaFetch[_HashedPart]):
    """One replica's bytes into the partial file; `compressed` is what is expected before they are decompressed."""

    def __init__(
        self, context: FetchContext, session: Session, replica: str, source: Source, compressed: ExpectedBytes | None
    ) -> None:
        super().__init__(context, session, replica)
        self._source = source
        self._compressed = compressed
        self._due = 0.0
        self._checkpoint: Restart | None = None

    def empty(self) -> _HashedPart:
        """See ReplicaFetch.empty."""
        return _HashedPart.empty(self.replica, self.context.expected)

    def write(self, stored: _HashedPart) -> Moved:
        """See ReplicaFetch.write."""
        session, part = self.session, self.context.found.part
        begin = stored.position
        if not begin:
            remove_part(session, self.context.found)
        with ExitStack() as stack:
            writer = stack.enter_context(session.reopen(part) if begin else session.create(part))
            follower: Follower | None = None

            def connection() -> None:
                nonlocal follower
                opened_at = stored.position
                with self._opened(stored) as answer:
                    large = (answer.size or 0) >= FOLLOWED_FROM and self.context.job.verify is VerifyPolicy.SHA256
                    if large and not begin and not opened_at:
                        follower = stack.enter_context(following(session, part))
                    self._move(answer, stored, writer, follower)

            try:
                self.reconnecting(stored, connection)
            except (SourceFailed, Paused) as end:
                if stored.position and stored.version is not None and not getattr(end, "is_change", False):
                    writer.settle()
                    self._note(stored, writer, at_once=True)
                raise
            writer.settle()
            writer.flush()
            self.require_size(stored)
            self.require_checksum(lambda algorithm: stored.digests[algorithm].hexdigest())
            at_destination = None
            if follower is not None:
                follower.advance(stored.position)
                at_destination = followed(follower, self.context.control.watch)
        return Moved(stored.position, stored.digests["sha256"].hexdigest(), at_destination)

    @contextmanager
    def _opened(self, stored: _HashedPart) -> Iterator[Download]:
        """Open the source at the last block that is stored."""
        opened = self._source.open(stored.position - len(stored.tail), version=stored.version)
        with raised_as(SourceFailed):
            answer = opened.__enter__()
        try:
            self.context.answered(self.replica, answer)
            if self._compressed is not None and self._compressed.compression is not None:
                with raised_as(SourceFailed):
                    answer = Decompressed(
                        answer, self._compressed.compression, self._compressed.size, self._compressed.checksum
                    )
            yield answer
        finally:
            opened.__exit__(None, None, None)

    def _move(self, answer: Download, stored: _HashedPart, writer: Writer, follower: Follower | None) -> None:
        limit = self.context.expected.limit
        self.accept(answer, stored, stored.position - len(stored.tail))
        blocks = _blocks(answer)
        if stored.position:
            blocks = _after_tail(answer, stored.tail, blocks)
        self._due = checkpoint_due()
        for block in blocks:
            if stored.position + len(block) > limit:
                raise TooLarge(f"the source sends more than the {limit} bytes allowed")
            writer.write(stored.position, block)
            stored.add(block)
            if follower is not None:
                follower.advance(stored.position if writer.unsettled is None else writer.unsettled)
            self._note(stored, writer)
            self.context.control.advance(len(block))

    def _note(self, stored: _HashedPart, writer: Writer, *, at_once: bool = False) -> None:
        """Record a checkpoint when one is due and its bytes are surely stored."""
        if self._checkpoint is None and (at_once or time.monotonic() >= self._due):
            self._checkpoint = stored.checkpoint(stored.digests["sha256"].copy().hexdigest())
        if self._checkpoint is not None:
            unsettled = writer.unsettled
            if unsettled is None or unsettled >= self._checkpoint.done:
                self.context.remember(self._checkpoint)
                self._checkpoint = None
                self._due = checkpoint_due()


def _blocks(answer: Download) -> Iterator[memoryview]:
    with raised_as(SourceFailed):
        yield from answer.blocks()


def _after_tail(answer: Download, tail: bytes, blocks: Iterator[memoryview]) -> Iterator[memoryview]:
    """Yield what follows the stored bytes. Raises: SourceFailed when other bytes come than are stored."""
    left = memoryview(tail)
    for block in blocks:
        count = min(len(left), len(block))
        if block[:count] != left[:count]:
            raise changed_bytes(answer)
        left = left[count:]
        if count < len(block):
            yield block[count:]
    if left:
        raise SourceFailed(ConnectionLost(f"{answer.url} is shorter than the part that is stored"))
