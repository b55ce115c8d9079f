"""The layout of a bundle: every header and offset of the tar file, known before a byte moves.

Pax headers are used where a name or size needs them. (POSIX.1-2017, pax, "ustar Interchange Format" and "pax
Interchange Format") The same entries give the same bytes at every attempt, on every mover.
"""

from __future__ import annotations

import tarfile
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from datamanager.domain.bundle_model import Member, Pack, member_name
from datamanager.domain.location import Place
from datamanager.transports.values import FileKind, FileStat

LARGE = 512 * 1024
"""Bytes from which on a member is read by itself; smaller ones are read together. (`bulk_chunk.SMALL`)"""


@dataclass(frozen=True, slots=True)
class BundleEntry:
    """A file that is to become a member: its real path on its machine, and what it was when it was looked at."""

    uuid: UUID
    source: Place
    path: str
    size: int
    mode: int
    mtime: int


def header_of(member: BundleEntry | Member) -> bytes:
    """Return what stands before a member's bytes in the tar file."""
    info = tarfile.TarInfo(member_name(member.uuid, member.source.name))
    info.size, info.mode, info.mtime = member.size, member.mode, member.mtime
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def padded(size: int) -> int:
    """Return the bytes that so many take in a tar file."""
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


class Layout:
    """Entries, in their order, as one stream of `size` bytes. With `Pack.NONE` it is the one entry's bytes alone."""

    def __init__(self, entries: Sequence[BundleEntry], pack: Pack) -> None:
        self.entries = tuple(entries)
        self.pack = pack
        self._starts = array("Q")
        self._data = array("Q")
        fingerprint = position = 0
        for entry in self.entries:
            head = header_of(entry)
            fingerprint = zlib.crc32(head, fingerprint)
            self._starts.append(position)
            self._data.append(position if pack is Pack.NONE else position + len(head))
            position = self._data[-1] + (entry.size if pack is Pack.NONE else padded(entry.size))
        self._starts.append(position)  # of the end mark
        self._large = array("L", [index for index, one in enumerate(self.entries) if one.size > LARGE])
        self._large_data = array("Q", [self._data[index] for index in self._large])
        self._fingerprint = fingerprint
        self.size = position if pack is Pack.NONE else _with_end(position)

    @property
    def stat(self) -> FileStat:
        """What the virtual file's stat says. For an mtime it has a number of its entries: a restart marker of other
        ones, even of the same length, does not fit."""
        return FileStat(FileKind.FILE, self.size, self._fingerprint, 0o600)

    def start(self, index: int) -> int:
        """Return where an entry's header begins; after the last entry, the end mark."""
        return self._starts[index]

    def data(self, index: int) -> int:
        """Return where an entry's bytes begin."""
        return self._data[index]

    def at(self, offset: int) -> int:
        """Return the entry in whose header, bytes or padding an offset lies; their number in the end mark."""
        return bisect_right(self._starts, offset) - 1

    def next_large(self, offset: int) -> int | None:
        """Return the first large entry whose bytes begin at the offset or later."""
        place = bisect_left(self._large_data, offset)
        return self._large[place] if place < len(self._large) else None

    def header(self, index: int) -> bytes:
        """Return an entry's header."""
        return b"" if self.pack is Pack.NONE else header_of(self.entries[index])

    def members(self, sums: Sequence[str]) -> tuple[Member, ...]:
        """Return the members; `sums` are the entries' sha256 (hex)."""
        return tuple(
            Member(one.uuid, one.source, one.size, one.mode, one.mtime, sha256, self._data[index])
            for index, (one, sha256) in enumerate(zip(self.entries, sums, strict=True))
        )


def _with_end(position: int) -> int:
    """Return where a tar file ends whose members end here: two blocks of zeros, and more up to a whole record."""
    return -(-(position + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
