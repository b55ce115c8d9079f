"""The second step of a download that the machine itself does (`fetch: remote`): its curl brings the bytes; we judge the
answer's head, watch the partial file grow, and say what is stored in the end.

An interrupted download is resumed as in `engine.fetching.download`: the same version, of which the machine compares the
last MiB that is stored with what the source sends now. Only the hash is taken in the end, from storage, as the bytes
don't pass here. (docs/adr/0010-fetching-on-the-machine.md)
"""

from __future__ import annotations

import hashlib
import logging
import posixpath
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from datamanager.domain.states import Phase
from datamanager.engine.attempt import Attempt, Found, Moved, Restart
from datamanager.engine.control import Control
from datamanager.engine.fetching import download as downloading
from datamanager.engine.fetching.download import TAIL, Broke, Wanted, in_turn
from datamanager.engine.fetching.machine_curl import OurSide, into_file, named, ours
from datamanager.engine.fetching.remote_parts import Stored, take_over
from datamanager.engine.single.transfer import Remember, forget, remove_part
from datamanager.engine.single.verify import stored_sha256
from datamanager.errors import (
    ChecksumMismatch,
    ConnectionLost,
    DataManagerError,
    NoSpace,
    PathMissing,
    Paused,
    RemoteFailure,
    SizeMismatch,
    SourceChanged,
    TooLarge,
    TransportTimeout,
)
from datamanager.machines import VerifyPolicy
from datamanager.sources.remote_curl.remote_source import CurlDownload, RemoteHttpSource
from datamanager.transports.port import Session

NO_ROOM = 2**20
"""Bytes of free space below which a write that failed is put down to that."""

log = logging.getLogger(__name__)

Heard = Callable[[str, CurlDownload], None]
"""Told of each answer that is taken, and from which place it comes."""


def unheard(_: str, __: CurlDownload) -> None:
    """Keep nothing of what a source says."""


def fetch(
    job: Attempt,
    found: Found,
    sources: Mapping[str, RemoteHttpSource],
    control: Control,
    wanted: Wanted,
    remember: Remember = forget,
    heard: Heard = unheard,
) -> Moved:
    """Have the machine write what an external source sends into the partial file; see `downloading.download`.

    Nothing of ours runs on the machine any more when this returns or raises, unless the connection to it broke: then
    it ends when the machine notices that, and writes into a file that is not gone on with.

    Raises: NotSupported when the machine has not what it takes; SizeMismatch, TooLarge, SourceChanged,
    ChecksumMismatch; and what the source and the transports raise.
    """
    control.enter(Phase.TRANSFER)
    control.bytes_done, control.bytes_total = 0, wanted.size
    with named(job.target), job.target.storage.session() as session:
        kept = take_over(job, found, session, control, sources)

        def at(place: str) -> Moved:
            mine = kept if kept is not None and kept.place == place else Stored(place)
            return _Fetch(job, found, session, control, wanted, remember, heard, sources[place]).run(mine)

        try:
            return in_turn(sources, kept.place if kept is not None else None, at)
        except OurSide as end:
            raise end.error from end


class _Anew(Exception):
    """What is stored can't be gone on with."""


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
        heard: Heard,
        source: RemoteHttpSource,
    ) -> None:
        self._job = job
        self._found = found
        self._session = session
        self._control = control
        self._wanted = wanted
        self._remember = remember
        self._heard = heard
        self._source = source
        self._changed = False
        self._restarted = False
        self._whole_only = False

    def run(self, stored: Stored) -> Moved:
        """Fetch all that is missing. Raises: Broke with what the source raised, OurSide, SizeMismatch,
        ChecksumMismatch.
        """
        self._restarted = stored.position > 0
        while True:
            try:
                return self._write(stored)
            except _Anew:
                self._whole_only = True
            except Broke as broke:
                if self._changed or not isinstance(broke.error, SourceChanged):
                    raise
                self._changed = True
                log.warning("%s; from the start", broke.error.detail)
            stored, self._restarted = Stored(stored.place), False

    def _write(self, stored: Stored) -> Moved:
        if not stored.position:
            with ours():
                remove_part(self._session, self._found)
        while True:
            opened_at = stored.position
            try:
                self._connection(stored)
                break
            except Broke as broke:
                if not isinstance(broke.error, SourceChanged):
                    self._keep(stored)
                if not self._goes_on_at_once(broke.error, stored, opened_at):
                    raise
                log.warning("%s; it is gone on with at byte %d", broke.error.detail, stored.position)
            except OurSide as end:
                if isinstance(end.error, Paused):
                    self._keep(stored)
                raise
        with ours():
            self._flush()
        self._check_size(stored)
        return self._proved(stored)

    def _connection(self, stored: Stored) -> None:
        """Go on with what is stored, over one connection of the machine's to the source."""
        begun, tail = stored.position, min(TAIL, stored.position)
        growth = _Growth(self, stored)
        run = into_file(self._session, self._found.part, begun, growth.look)
        rate = None if self._control.throttle is None else self._control.throttle.rate
        try:
            with self._source.by(run, rate).open(begun - tail, version=stored.version) as download:
                self._accept(download, stored, tail)
                growth.begin(download.patience + self._job.target.machine.stall_timeout)
                most = self._most(stored)
                self._store(download, stored, most + 1 - begun)
                if stored.position > self._wanted.limit:
                    raise TooLarge(f"the source sends more than the {self._wanted.limit} bytes that are allowed")
                if stored.position > most:
                    self._check_size(stored)
                download.require_end(tail + stored.position - begun)
        except SizeMismatch:
            raise
        except DataManagerError as error:
            raise Broke(error) from error

    def _accept(self, download: CurlDownload, stored: Stored, tail: int) -> None:
        """Take an answer whose head is good for one that fits. Raises: _Anew, SourceChanged, SizeMismatch."""
        start = stored.position - tail
        if download.start != start:
            log.warning("%s sends the whole where a part was asked for: from the start", download.url)
            raise _Anew
        if not stored.position:
            stored.version, stored.size = download.version, download.size
            expected = self._wanted.size
            if expected is not None and download.size is not None and expected != download.size:
                raise SizeMismatch(f"{expected} bytes were announced by the request, {download.size} by the source")
        elif download.size != stored.size or download.version != stored.version:
            raise SourceChanged(f"{download.url} is not the version any more that was begun")
        elif not download.same(tail):
            raise SourceChanged(f"{download.url} sends other bytes than before, as the same version")
        self._heard(stored.place, download)
        self._control.bytes_done = stored.position
        self._control.bytes_total = stored.size if stored.size is not None else self._wanted.size

    def _store(self, download: CurlDownload, stored: Stored, room: int) -> None:
        """Have up to `room` bytes stored, and take in how many there are. Raises: OurSide."""
        try:
            download.store(room)
        except OurSide as end:
            with suppress(OurSide):
                self.count(stored)
                if isinstance(end.error, RemoteFailure):
                    free = self._session.free_space(posixpath.dirname(self._found.part))
                    if free is not None and free < NO_ROOM:
                        raise OurSide(NoSpace(f"{self._job.target.machine.name}: no space left")) from end
            raise
        self.count(stored)

    def _most(self, stored: Stored) -> int:
        """Return how many bytes there may be in the end."""
        sizes = (self._wanted.limit, stored.size, self._wanted.size)
        return min(size for size in sizes if size is not None)

    def _check_size(self, stored: Stored) -> None:
        for size, whose in ((stored.size, "source"), (self._wanted.size, "request")):
            if size is not None and stored.position != size:
                raise SizeMismatch(f"{size} bytes were announced by the {whose}, {stored.position} arrived")

    def _goes_on_at_once(self, error: DataManagerError, stored: Stored, opened_at: int) -> bool:
        cut = isinstance(error, ConnectionLost | TransportTimeout)
        worth = stored.position - opened_at >= downloading.WORTH
        return cut and worth and not self._whole_only and stored.version is not None

    def _keep(self, stored: Stored) -> None:
        """Note how far it got, if that can be done: the error that leads here matters more."""
        try:
            self.note(stored)
        except DataManagerError as error:
            log.info("%s: no checkpoint: %s", self._job.target.place, error.detail)

    def note(self, stored: Stored) -> None:
        """Record a checkpoint, once its bytes are on stable storage."""
        if stored.version is not None and stored.size is not None and stored.position:
            position = stored.position
            self._flush()
            self._remember(Restart(stored.size, 0, 0, f"{stored.place} {stored.version}", position))

    def count(self, stored: Stored) -> None:
        """Take in how much is stored now. It waits for no limit: curl keeps to it. Raises: OurSide."""
        before = stored.position
        with ours():
            try:
                stored.position = self._session.stat(self._found.part).size
            except PathMissing:
                stored.position = 0
            self._control.skip(max(0, stored.position - before))

    def check(self) -> None:
        """Raise the reason to stop, if there is one."""
        self._control.check()

    def _flush(self) -> None:
        with self._session.reopen(self._found.part) as writer:
            writer.flush()

    def _proved(self, stored: Stored) -> Moved:
        """Return what is stored, hashed from storage, if it is what was wanted. Raises: OurSide, ChecksumMismatch."""
        sha256, checksum = None, self._wanted.checksum
        with ours():
            if self._job.verify is VerifyPolicy.SHA256 or (checksum is not None and checksum[0] == "sha256"):
                sha256 = stored_sha256(self._session, self._found.part, self._control.watch)
            arrived = sha256 if checksum is None or checksum[0] == "sha256" else self._read_back(checksum[0])
        if checksum is not None and arrived != checksum[1]:
            raise ChecksumMismatch(
                f"{checksum[0]} {checksum[1]} was expected, {arrived} arrived", retryable=self._restarted
            )
        return Moved(stored.position, sha256, sha256)

    def _read_back(self, algorithm: str) -> str:
        digest = hashlib.new(algorithm, usedforsecurity=False)
        with self._session.open_read(self._found.part) as reader:
            for block in reader.blocks():
                digest.update(block)
                self._control.check()
        return digest.hexdigest()


class _Growth:
    """The progress of the partial file, which the machine's curl writes."""

    def __init__(self, fetch: _Fetch, stored: Stored) -> None:
        self._fetch = fetch
        self._stored = stored
        self._patience: float | None = None
        self._since = self._due = 0.0

    def begin(self, patience: float) -> None:
        """Expect it to grow, within `patience` seconds each time."""
        self._patience = patience
        self._since = time.monotonic()
        self._due = self._since + downloading.CHECKPOINT_EVERY

    def look(self, _: int) -> None:
        """Count what came, and record a checkpoint when one is due. Raises: TransportTimeout when nothing came for too
        long; what `control` was told to stop with."""
        self._fetch.check()
        if self._patience is None:
            return
        before = self._stored.position
        self._fetch.count(self._stored)
        now = time.monotonic()
        if self._stored.position != before:
            self._since = now
        elif now - self._since > self._patience:
            raise TransportTimeout(f"no byte arrived for {self._patience:g} seconds")
        if now >= self._due:
            self._fetch.note(self._stored)
            self._due = time.monotonic() + downloading.CHECKPOINT_EVERY
