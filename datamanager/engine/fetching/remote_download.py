"""The transfer step of a download that the machine itself does (`fetch: remote`): its curl brings the bytes; the mover
checks the answer's head, watches the partial file grow, and hashes it from storage in the end.

The bytes don't pass the mover: the machine compares the last MiB that is stored when a download is resumed.
(docs/adr/0010-fetching-on-the-machine.md)
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import posixpath
import time
from collections.abc import Container, Mapping

from datamanager.domain.location import temporary_name
from datamanager.domain.states import Phase
from datamanager.engine.attempt import Moved
from datamanager.engine.control import Control
from datamanager.engine.fetching.machine_curl import into_file, named
from datamanager.engine.fetching.replica_fetch import (
    TAIL,
    FetchContext,
    MachineFailed,
    ReplicaFetch,
    SourceFailed,
    StoredPart,
    changed_bytes,
    checkpoint_due,
    in_turn,
    raised_as,
    resumable,
)
from datamanager.engine.single.restart import parts_of, remove_earlier
from datamanager.engine.single.transfer import remove_part
from datamanager.engine.single.verify import stored_sha256
from datamanager.errors import (
    DataManagerError,
    NoSpace,
    PathMissing,
    Paused,
    RemoteFailure,
    SizeMismatch,
    TooLarge,
    TransportTimeout,
)
from datamanager.machines import VerifyPolicy
from datamanager.sources.http.remote_source import CurlDownload, RemoteHttpSource
from datamanager.transports.port import Session
from datamanager.transports.remote.running import shell_words

NO_ROOM = 2**20
"""Bytes of free space below which a failed write is put down to a full file system."""

log = logging.getLogger(__name__)


def fetch(context: FetchContext, sources: Mapping[str, RemoteHttpSource]) -> Moved:
    """Have the machine write what an external source sends into the partial file; see `download.download`.

    No program of ours runs on the machine any more when this returns or raises, unless the connection to it broke: then
    the program ends when the machine notices that, and writes into a file that is not resumed.

    Raises: NotSupported when the machine lacks a program for it; SizeMismatch, TooLarge, SourceChanged,
    ChecksumMismatch; and what the source and the transports raise.
    """
    target, control = context.job.target, context.control
    control.enter(Phase.TRANSFER)
    control.bytes_done, control.bytes_total = 0, context.expected.size
    with named(target), target.storage.session() as session:
        stored = _take_over(context, session, sources)
        try:
            return in_turn(sources, stored, lambda name, source: _RemoteFetch(context, session, name, source))
        except MachineFailed as end:
            raise end.error from end


def _take_over(context: FetchContext, session: Session, replicas: Container[str]) -> StoredPart | None:
    """Return what is stored and can be resumed, copied into the attempt's own partial file; None when there is nothing.
    No other partial file of this transfer is left then. It is a copy, as a curl that is out of reach, because the
    connection to its machine broke, may still write into the old file.

    An interrupted copy leaves the old file for the next try. Raises: what the transports and `control` raise.
    """
    job, found = context.job, context.found
    parts = parts_of(job, found.directory, session)
    stored, old = resumable(job.restart, parts, replicas) or (None, None)
    if stored is not None and old is not None:
        if old == found.part:
            old = posixpath.join(found.directory, temporary_name(job.target.place.name, job.transfer, 0))
            session.rename(found.part, old, overwrite=True)
        remove_part(session, found)
        if not _copied(session, old, found.part, stored.position, context.control):
            stored = None
        parts = parts_of(job, found.directory, session)
    remove_earlier(session, [path for _, path in parts if stored is None or path != found.part])
    return stored


def _copied(session: Session, source: str, destination: str, size: int, control: Control) -> bool:
    """Have the machine copy the first `size` bytes of a file to a new name; say whether it could."""
    try:
        words = shell_words("copy_head", [str(size), source, destination])
        status = session.programs.run(words, control.watch)
    except RemoteFailure as error:
        log.info("what is stored can't be resumed: %s", error.detail)
        return False
    if status != 0 or session.stat(destination).size != size:
        log.info("what is stored can't be resumed: its copy ended with status %d", status)
        return False
    return True


class _RemoteFetch(ReplicaFetch[StoredPart]):
    """One replica's bytes into the partial file."""

    def __init__(self, context: FetchContext, session: Session, replica: str, source: RemoteHttpSource) -> None:
        super().__init__(context, session, replica)
        self._source = source

    def empty(self) -> StoredPart:
        """See ReplicaFetch.empty."""
        return StoredPart(self.replica)

    def write(self, stored: StoredPart) -> Moved:
        """See ReplicaFetch.write. Raises, besides: MachineFailed."""
        if not stored.position:
            with raised_as(MachineFailed):
                remove_part(self.session, self.context.found)

        def connection() -> None:
            try:
                self._connection(stored)
            except (SourceFailed, MachineFailed) as end:
                if isinstance(end.error, Paused) or (isinstance(end, SourceFailed) and not end.is_change):
                    self._try_note(stored)
                raise

        self.reconnecting(stored, connection)
        with raised_as(MachineFailed):
            self._flush()
        self.require_size(stored)
        return self._hashed(stored)

    def _connection(self, stored: StoredPart) -> None:
        """Fetch what follows the stored bytes, over one connection of the machine's to the source."""
        context = self.context
        begun, tail = stored.position, min(TAIL, stored.position)
        growth = _Growth(self, stored)
        run = into_file(self.session, context.found.part, begun, growth.look)
        rate = None if context.control.throttle is None else context.control.throttle.rate
        try:
            with self._source.by(run, rate).open(begun - tail, version=stored.version) as download:
                self.accept(download, stored, begun - tail)
                if begun and not download.same(tail):
                    raise changed_bytes(download)
                context.answered(self.replica, download)
                growth.begin(download.patience + context.job.target.machine.stall_timeout)
                limit = context.expected.limit
                most = min(size for size in (limit, stored.size, context.expected.size) if size is not None)
                self._store(download, stored, most + 1 - begun)
                if stored.position > limit:
                    raise TooLarge(f"the source sends more than the {limit} bytes allowed")
                if stored.position > most:
                    self.require_size(stored)
                download.require_end(tail + stored.position - begun)
        except SizeMismatch:
            raise
        except DataManagerError as error:
            raise SourceFailed(error) from error

    def _store(self, download: CurlDownload, stored: StoredPart, room: int) -> None:
        """Have up to `room` bytes stored, and count them. Raises: MachineFailed."""
        try:
            download.store(room)
        except MachineFailed as end:
            with contextlib.suppress(MachineFailed):
                self.count(stored)
                if isinstance(end.error, RemoteFailure):
                    free = self.session.free_space(posixpath.dirname(self.context.found.part))
                    if free is not None and free < NO_ROOM:
                        name = self.context.job.target.machine.name
                        raise MachineFailed(NoSpace(f"{name}: no space left")) from end
            raise
        self.count(stored)

    def _try_note(self, stored: StoredPart) -> None:
        """Record a checkpoint if that is possible: the error that leads here matters more."""
        try:
            self.note(stored)
        except DataManagerError as error:
            log.info("%s: no checkpoint: %s", self.context.job.target.place, error.detail)

    def note(self, stored: StoredPart) -> None:
        """Record a checkpoint, once its bytes are on stable storage."""
        checkpoint = stored.checkpoint()
        if checkpoint is not None:
            self._flush()
            self.context.remember(checkpoint)

    def count(self, stored: StoredPart) -> None:
        """Count what is stored now, without waiting for a bandwidth limit: curl keeps to it. Raises: MachineFailed."""
        before = stored.position
        with raised_as(MachineFailed):
            try:
                stored.position = self.session.stat(self.context.found.part).size
            except PathMissing:
                stored.position = 0
            self.context.control.skip(max(0, stored.position - before))

    def _flush(self) -> None:
        with self.session.reopen(self.context.found.part) as writer:
            writer.flush()

    def _hashed(self, stored: StoredPart) -> Moved:
        """Return what is stored, hashed from storage, if it is what was expected. Raises: MachineFailed,
        ChecksumMismatch.
        """
        context, checksum = self.context, self.context.expected.checksum
        sha256 = None
        if context.job.verify is VerifyPolicy.SHA256 or (checksum is not None and checksum[0] == "sha256"):
            with raised_as(MachineFailed):
                sha256 = stored_sha256(self.session, context.found.part, context.control.watch)
        self.require_checksum(lambda algorithm: sha256 if algorithm == "sha256" else self._read_back(algorithm))
        return Moved(stored.position, sha256, sha256)

    def _read_back(self, algorithm: str) -> str:
        digest = hashlib.new(algorithm, usedforsecurity=False)
        with raised_as(MachineFailed), self.session.open_read(self.context.found.part) as reader:
            for block in reader.blocks():
                digest.update(block)
                self.context.control.check()
        return digest.hexdigest()


class _Growth:
    """The progress of the partial file, which the machine's curl writes."""

    def __init__(self, fetch: _RemoteFetch, stored: StoredPart) -> None:
        self._fetch = fetch
        self._stored = stored
        self._patience: float | None = None
        self._since = self._due = 0.0

    def begin(self, patience: float) -> None:
        """Expect growth from now on, within `patience` seconds each time."""
        self._patience = patience
        self._since, self._due = time.monotonic(), checkpoint_due()

    def look(self, _: int) -> None:
        """Count what came, and record a checkpoint when one is due. Raises: TransportTimeout when nothing came for too
        long; the reason to stop."""
        self._fetch.context.control.check()
        if self._patience is None:
            return
        before = self._stored.position
        self._fetch.count(self._stored)
        now = time.monotonic()
        if self._stored.position != before:
            self._since = now
        elif now - self._since > self._patience:
            raise TransportTimeout(f"no data arrived for {self._patience:g} seconds")
        if now >= self._due:
            self._fetch.note(self._stored)
            self._due = checkpoint_due()
