"""Members out of their archive, into partial files beside their destinations: many small ones together, with few round
trips (`engine.bulk`), or one large one (`engine.single`); and their bytes, for both."""

from __future__ import annotations

import hashlib
import posixpath
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from datamanager.domain.location import Place
from datamanager.engine.attempt import Attempt, Proof
from datamanager.engine.bulk import bulk_staging
from datamanager.engine.bulk.bulk_chunk import SMALL, BulkEndpoints, BulkRules, Deferred, Outcome, SmallItem
from datamanager.engine.control import Control
from datamanager.engine.extracting.archive_member import Packed, shown
from datamanager.engine.single.staged_file import ReadyFile, stage_content
from datamanager.engine.single.transfer import Remember
from datamanager.engine.virtual_files import (
    BulkContainerMembers,
    ContainerMember,
    ContainerMembers,
    Slice,
    VirtualReader,
)
from datamanager.errors import ChecksumMismatch, InternalError, PathMissing, SourceChanged
from datamanager.machines import Machine
from datamanager.transports.port import Reader, Session
from datamanager.transports.values import Bytes, FileKind, FileStat, NextRange, SmallFile

_BLOCK = 1 << 20
_RAW = -zlib.MAX_WBITS  # deflate without a header (RFC 1951)


class StoredArchive:
    """An archive at a path (absolute, links resolved) of its machine, with its size in bytes."""

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self._size = size

    def require_unchanged(self, session: Session) -> None:
        """Check that it is there, with its size. Raises: SourceChanged."""
        try:
            there = session.stat(self.path)
        except PathMissing:
            raise SourceChanged("the archive disappeared while it was extracted") from None
        if (there.kind, there.size) != (FileKind.FILE, self._size):
            raise SourceChanged("the archive changed while it was extracted")


def pieces(
    session: Session, machine: Machine, archive: StoredArchive, members: Mapping[Place, Packed]
) -> ContainerMembers:
    """Return small members as files of a machine, by the places that stand for them."""
    known = {posixpath.join(machine.base_dir, place.path): _piece(member) for place, member in members.items()}
    return ContainerMembers(
        BulkContainerMembers(session, lambda by: by.open_read(archive.path), archive.require_unchanged, known)
    )


class ExtractedContent:
    """One member, as a transfer's content; see `engine.attempt.Content`."""

    def __init__(self, archive: StoredArchive, member: Packed) -> None:
        self._archive = archive
        self._member = member
        self._digest = CheckedDigest()

    @property
    def stat(self) -> FileStat:
        """What it will be."""
        return self._member.stat

    @contextmanager
    def open(self, session: Session) -> Iterator[Reader]:
        """Open it. Raises: PathMissing; ChecksumMismatch while it is read, when it is damaged."""
        with session.open_read(self._archive.path) as reader:
            if self._member.deflated:
                yield Inflated(reader, self._member)
            else:
                yield Slice(reader, self._member.offset, self.stat)

    def digest(self) -> CheckedDigest:
        """Return a new hash, the one that counts from now on."""
        self._digest = CheckedDigest()
        return self._digest

    def require_unchanged(self, session: Session) -> None:
        """Look at the archive once more. Raises: SourceChanged."""
        self._archive.require_unchanged(session)

    def require_sound(self) -> None:
        """Compare what passed with the checksum in the archive. Raises: ChecksumMismatch."""
        if self._digest.count != self._member.size:
            raise InternalError(f"{self._digest.count} of {self._member.size} bytes of a member were hashed")
        if self._member.crc is not None and self._digest.crc != self._member.crc:
            raise damaged(self._member)


class CheckedDigest:
    """The sha256, and the CRC-32 that zip files have, of bytes that pass in order; see `engine.attempt.Digest`."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.crc = 0
        self.count = 0

    def update(self, data: Bytes, /) -> None:
        """Take the next bytes."""
        self._sha256.update(data)
        self.crc = zlib.crc32(data, self.crc)
        self.count += len(data)

    def hexdigest(self) -> str:
        """Return the sha256 (hex)."""
        return self._sha256.hexdigest()


class Inflated(VirtualReader):
    """A member that is compressed by deflate, as an open file; see the port's Reader.

    It can be read in order only: what comes before a range is inflated and dropped.
    """

    def __init__(self, reader: Reader, member: Packed) -> None:
        self._reader = reader
        self._member = member
        self.size = member.size

    def stat(self) -> FileStat:
        """Return what it will be."""
        return self._member.stat

    def ranges(self, following: NextRange) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, block) of the requested ranges."""
        blocks, begin, block = self._inflated(), 0, memoryview(b"")
        while (dealt := following(True)) is not None:
            offset, length = dealt
            stop = min(offset + length, self.size)
            if offset < begin:
                blocks, begin, block = self._inflated(), 0, memoryview(b"")
            while offset < stop:
                while begin + len(block) <= offset:
                    begin += len(block)
                    block = memoryview(next(blocks))
                found = block[offset - begin : stop - begin]
                yield offset, found
                offset += len(found)

    def _inflated(self) -> Iterator[bytes]:
        """Yield just the bytes that the archive announces. Raises: ChecksumMismatch when there are others."""
        member, given = self._member, 0
        inflate = zlib.decompressobj(_RAW)
        try:
            for block in self._reader.blocks(member.offset, member.stored):
                data: Bytes = block
                while data and not inflate.eof:
                    found = inflate.decompress(data, _BLOCK)
                    data = inflate.unconsumed_tail
                    given += len(found)
                    if given > member.size:
                        raise damaged(member)
                    if found:
                        yield found
            while not inflate.eof and (found := inflate.decompress(b"", _BLOCK)):
                given += len(found)
                if given > member.size:
                    raise damaged(member)
                yield found
        except zlib.error as exc:
            raise damaged(member) from exc
        if given != member.size or not inflate.eof:
            raise damaged(member)


def damaged(member: Packed) -> ChecksumMismatch:
    """Return the error that says that a member is not what the archive says."""
    return ChecksumMismatch(f"the archive's member {shown(member.name)} is damaged")


def _piece(member: Packed) -> ContainerMember:
    def unfold(data: bytes) -> SmallFile | ChecksumMismatch:
        if member.deflated:
            inflate = zlib.decompressobj(_RAW)
            try:
                data = inflate.decompress(data, member.size + 1)
            except zlib.error:
                return damaged(member)
            if not inflate.eof and (inflate.decompress(inflate.unconsumed_tail, 1) or not inflate.eof):
                return damaged(member)
        if len(data) != member.size or (member.crc is not None and zlib.crc32(data) != member.crc):
            return damaged(member)
        return SmallFile(member.stat, data)

    return ContainerMember(member.offset, member.stored, member.stat, unfold)


@dataclass(frozen=True, slots=True)
class ExtractItem:
    """A member to extract; `number` is the caller's, `source` the place that stands for it in the archive."""

    number: int
    member: Packed
    source: Place
    destination: Place


def stage_small(
    ends: BulkEndpoints[Session],
    archive: StoredArchive,
    items: Sequence[ExtractItem],
    rules: BulkRules,
    control: Control,
) -> list[Outcome]:
    """Bring the items' bytes into partial files beside their destinations and verify them; see `bulk_staging.stage`.
    Members with many stored bytes are for later, however few they are said to become: all of them would be in memory.

    `ends` are two sessions of the machine on which the archive lies and the members are to lie. Raises: SourceChanged
    (the archive changed), what breaks a connection and what `control` raises.
    """
    fit = [item for item in items if item.member.stored <= SMALL]
    members = pieces(ends.source, ends.origin, archive, {item.source: item.member for item in fit})
    small = [SmallItem(item.number, item.source, item.destination) for item in fit]
    outcomes = bulk_staging.stage(
        BulkEndpoints(members, ends.target, ends.origin, ends.destination), small, rules, control
    )
    return outcomes + [Deferred(item.number) for item in items if item.member.stored > SMALL]


def stage_large(
    job: Attempt, archive: StoredArchive, member: Packed, control: Control, remember: Remember
) -> ReadyFile:
    """Do all that comes before the rename; the bytes are hashed at both ends, whatever `job.verify` says.

    Raises: ChecksumMismatch (the archive is damaged there), SourceChanged, DestinationExists, NoSpace, what the
    transports raise. An error leaves the partial file: retry, or `transfer.discard`.
    """
    content = ExtractedContent(archive, member)

    def judge(_: Proof) -> None:
        content.require_sound()

    return stage_content(job, content, archive.path, judge, control, remember)
