"""A bundle in the making: the attempt that makes it, its bytes and their hashes, whether its files still are what they
were, and how it is sent where it is compressed on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from uuid import UUID

from datamanager.domain.bundle_model import Frame, Pack, VerifyLevel, WantedMember, manifest_place
from datamanager.domain.location import Place
from datamanager.domain.states import Phase, TransferKind
from datamanager.engine.attempt import Attempt, Endpoint, Found, Intent, Moved, Restart
from datamanager.engine.bundles.content_reader import Blamed, BundleReader, changed, same
from datamanager.engine.bundles.frames import compressed, cuts, seek_table
from datamanager.engine.bundles.layout import Layout
from datamanager.engine.control import Control
from datamanager.engine.single.endpoints import acquire_sessions
from datamanager.engine.single.transfer import FOLLOWED_FROM, remove_part
from datamanager.engine.single.verify import followed, following
from datamanager.errors import InternalError, PathMissing, TransportError
from datamanager.machines import Machine, VerifyPolicy
from datamanager.transports.port import Session, Storage
from datamanager.transports.values import Bytes, Check


@dataclass(frozen=True, slots=True)
class ArchiveAttempt:
    """One attempt to make one bundle of files that lie on one machine.

    `destination` is the bundle's place (`bundle_model.bundle_place`). `made_by` goes into the manifest. `wanted`, its
    sequence included, must be the same at each attempt, but for members that failed for good.
    """

    transfer: UUID
    epoch: int
    bundle: UUID
    pack: Pack
    level: VerifyLevel
    machine: Machine
    storage: Storage
    """The sources'."""
    wanted: tuple[WantedMember, ...]
    destination: Endpoint
    made_by: str
    intent: Intent | None = None
    """Recorded for this bundle by an earlier attempt that may have published."""
    restart: Restart | None = None
    """Recorded for this bundle by an earlier try or attempt before it wrote a partial file."""

    @property
    def as_transfer(self) -> Attempt:
        """The bundle's way as a transfer of one file."""
        there = Place(self.machine.name, f"the files of bundle {self.bundle}")
        return Attempt(
            self.transfer,
            self.epoch,
            TransferKind.COPY,
            Endpoint(there, self.machine, self.storage),
            self.destination,
            verify=VerifyPolicy.SIZE if self.level is VerifyLevel.SIZES else VerifyPolicy.SHA256,
            intent=self.intent,
            restart=None if self.pack is Pack.TAR_ZST else self.restart,
        )

    @property
    def manifest(self) -> Place:
        """The manifest's place."""
        return manifest_place(self.bundle, self.destination.place)


class BundleDigest:
    """Fed with the uncompressed bundle from its start."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._position = 0
        self._whole = hashlib.sha256()
        self._sums: list[str] = []
        self._member = hashlib.sha256()

    def update(self, data: Bytes, /) -> None:
        """Take the next bytes."""
        start = self._position
        self._position += len(data)
        if self._layout.pack is not Pack.TAR_ZST:  # of that the compressed bytes are hashed
            self._whole.update(data)
        if self._layout.pack is not Pack.NONE:
            self._update_members(memoryview(data), start)

    @property
    def complete(self) -> bool:
        """Whether all bytes have passed."""
        return self._position == self._layout.size

    @property
    def sums(self) -> list[str]:
        """The members' sha256 (hex), in order. Raises: InternalError before all bytes have passed."""
        if not self.complete:
            raise InternalError(f"{self._position} of {self._layout.size} bytes of a bundle were hashed")
        return [self._whole.hexdigest()] if self._layout.pack is Pack.NONE else self._sums

    def hexdigest(self) -> str:
        """Return the sha256 (hex) of all bytes so far; of no use for a bundle that is to be compressed."""
        return self._whole.hexdigest()

    def _update_members(self, view: memoryview, start: int) -> None:
        while len(self._sums) < len(self._layout.entries):
            index = len(self._sums)
            first = self._layout.data(index)
            last = first + self._layout.entries[index].size
            if first < self._position:
                self._member.update(view[max(0, first - start) : max(0, last - start)])
            if last > self._position:
                break
            self._sums.append(self._member.hexdigest())
            self._member = hashlib.sha256()


class BundleContent:
    """See `engine.attempt.Content`. `blamed`: the entries that made it fail."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.blamed: Blamed = {}
        self._digest: BundleDigest | None = None

    @contextmanager
    def open(self, session: Session) -> Iterator[BundleReader]:
        """Open it over a session of the members' machine."""
        reader = BundleReader(session, self.layout, self.blamed)
        try:
            yield reader
        finally:
            reader.close()

    def digest(self) -> BundleDigest:
        """Return a new hash, the one that counts from now on."""
        self._digest = BundleDigest(self.layout)
        return self._digest

    @property
    def hashed(self) -> BundleDigest:
        """The last hash, which was fed with everything. Raises: InternalError when there is none."""
        if self._digest is None or not self._digest.complete:
            raise InternalError("a bundle was not hashed")
        return self._digest

    def examine(self, session: Session, check: Check) -> None:
        """Find all entries that can't be read, after one was found."""
        with self.open(session) as reader:
            reader.examine(check)

    def require_unchanged(self, session: Session) -> None:
        """Look at every file once more. Raises: SourceChanged."""
        entries = self.layout.entries
        for index, now in session.bulk.lstat([entry.path for entry in entries]):
            if isinstance(now, TransportError) and not isinstance(now, PathMissing):
                self.blamed[index] = now
            elif isinstance(now, PathMissing) or not same(entries[index], now):
                self.blamed[index] = changed(entries[index])
        if self.blamed:
            raise next(iter(self.blamed.values()))


def send_compressed(
    job: Attempt, found: Found, content: BundleContent, control: Control
) -> tuple[Moved, tuple[Frame, ...]]:
    """Write frames and their table; return what was written, and the frames. Progress counts uncompressed bytes.

    Raises: what the members' reading and the transports raise.
    """
    layout = content.layout
    control.enter(Phase.TRANSFER, layout.size)
    with acquire_sessions(job) as (source, target), ExitStack() as stack:
        remove_part(target, found)
        reader = stack.enter_context(content.open(source))
        writer = stack.enter_context(target.create(found.part))
        hashed = job.verify is VerifyPolicy.SHA256 and layout.size >= FOLLOWED_FROM
        follower = stack.enter_context(following(target, found.part)) if hashed else None
        digest, stored = content.digest(), hashlib.sha256()
        frames, position = list[Frame](), 0

        def write(data: bytes) -> None:
            nonlocal position
            stored.update(data)
            writer.write(position, data)
            position += len(data)
            unsettled = writer.unsettled
            if follower is not None:
                follower.advance(position if unsettled is None else unsettled)

        def read() -> Iterator[memoryview]:
            for block in reader.blocks():
                digest.update(block)
                control.advance(len(block))
                yield block

        for frame, data in compressed(read(), cuts(layout)):
            frames.append(frame)
            write(data)
        write(seek_table(frames))
        writer.flush()
        if follower is not None:
            follower.advance(position)
        far = followed(follower, control.watch)
    return Moved(position, stored.hexdigest(), far), tuple(frames)
