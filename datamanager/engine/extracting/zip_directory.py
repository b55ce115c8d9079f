"""The central directory of a zip file, entry by entry, whatever its size: one that can't be read hinders no other.

Names are read as Info-ZIP's `unzip` reads them. (PKWARE's APPNOTE 6.3: 4.3.12 to 4.3.16, 4.4, 4.5.3, 4.6.9, appendix D)
"""

from __future__ import annotations

import calendar
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from datamanager.engine.extracting.archive_member import clamped
from datamanager.errors import DownloadFailed, TooLarge

ZIP_DIRECTORY_MAX = 64 * 2**20
"""Bytes of a zip file's central directory: ten thousand of the longest names."""

Read = Callable[[int, int], bytes]
"""Returns bytes of the archive: from an offset on, so many, fewer only at its end."""

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s4B4H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_COMMENT_MAX = 2**16 - 1
_FULL = 2**32 - 1
"""Stands where a field has 64 bits, in the extra field."""
_ZIP64, _UNICODE_PATH = 0x0001, 0x7075
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _UTF8 = 0x2041, 0x800
_WINDOWS = frozenset({0, 6, 10, 11, 14})
"""Systems (FAT, HPFS, NTFS, VFAT) on which no name can contain a backslash, and names are in the console's charset."""


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """One entry: `stored` bytes somewhere behind its own header at `offset` become `size` bytes."""

    name: str
    offset: int
    stored: int
    size: int
    crc: int
    mtime: int
    mode: int
    method: int
    flags: int

    @property
    def deflated(self) -> bool:
        """Whether it is compressed."""
        return self.method == _DEFLATED

    @property
    def is_directory(self) -> bool:
        """Whether it has no content."""
        return self.name.endswith("/") or stat.S_IFMT(self.mode) == stat.S_IFDIR

    @property
    def unfit(self) -> str | None:
        """Why it can't be extracted; None when it can."""
        if stat.S_IFMT(self.mode) not in (0, stat.S_IFREG):
            return f"is a {'symbolic link' if stat.S_ISLNK(self.mode) else 'special file'}; only files are extracted"
        if self.flags & _ENCRYPTED:
            return "is encrypted"
        if self.method not in (_STORED, _DEFLATED):
            return f"is compressed by another method (number {self.method}) than deflate"
        if self.method == _STORED and self.stored != self.size:
            return "has contradictory sizes"
        return None


def entries(read: Read, size: int) -> Iterator[ZipEntry]:
    """Yield the entries of an archive of `size` bytes, in the directory's order. Raises: DownloadFailed, TooLarge."""
    begin, length, count, shift = _directory(read, size)
    if length > ZIP_DIRECTORY_MAX:
        raise TooLarge(f"the archive's directory is {length} bytes, the maximum is {ZIP_DIRECTORY_MAX}")
    end, found = begin + length, 0
    while begin < end:
        head = read(begin, _ENTRY.size)
        if len(head) < _ENTRY.size or not head.startswith(b"PK\1\2"):
            raise _damaged(f"no entry begins at byte {begin} of its directory")
        fields = _ENTRY.unpack(head)
        name, extra, comment = fields[12:15]
        begin += _ENTRY.size
        named = read(begin, name + extra)
        begin += name + extra + comment
        if len(named) < name + extra or begin > end:
            raise _damaged("its directory ends within an entry")
        found += 1
        yield _entry(fields, named[:name], dict(_extras(named[name:])), shift)
    if found & 0xFFFF != count & 0xFFFF:  # not every program writes more than 16 bits of it
        raise _damaged(f"its directory has {found} entries, announced are {count}")


def data_offset(read: Read, entry: ZipEntry) -> int:
    """Return where an entry's bytes begin: only its own header says that. Raises: DownloadFailed."""
    head = read(entry.offset, _LOCAL.size)
    if len(head) < _LOCAL.size or not head.startswith(b"PK\3\4"):
        raise _damaged(f"no member begins at byte {entry.offset}")
    name, extra = _LOCAL.unpack(head)[-2:]
    return int(entry.offset + _LOCAL.size + name + extra)


def _directory(read: Read, size: int) -> tuple[int, int, int, int]:
    """Return where the directory begins, its bytes, its entries, and how far the offsets in it are from the archive's
    own: something (a program that unpacks it) may stand before the archive.
    """
    first = max(0, size - _END.size - _COMMENT_MAX)
    tail = read(first, size - first)
    found = [at for at in _places(tail, b"PK\5\6") if at + _END.size <= len(tail)]
    if not found:
        raise DownloadFailed("this is not a complete zip file: it has no end of a directory")
    # a comment may contain one, and something may follow: the one whose comment ends with the archive, or the last
    whole = [at for at in found if at + _END.size + _END.unpack_from(tail, at)[-1] == len(tail)]
    at = (whole or found)[-1]
    _, disk, start_disk, here, count, length, offset, _ = _END.unpack_from(tail, at)
    end = first + at
    locator = read(end - _LOCATOR64.size, _LOCATOR64.size) if end >= _LOCATOR64.size else b""
    if locator.startswith(b"PK\6\7"):
        end -= _LOCATOR64.size + _END64.size
        head = read(end, _END64.size) if end >= 0 else b""
        if not head.startswith(b"PK\6\6") or len(head) < _END64.size:
            raise _damaged("it has no ZIP64 end of its directory")
        *_, disk, start_disk, here, count, length, offset = _END64.unpack(head)
    if disk or start_disk or here != count:
        raise DownloadFailed("the archive is one of several parts of a zip file")
    begin = end - length
    if begin < offset:
        raise _damaged("its directory is not where it should be")
    return begin, length, count, begin - offset


def _places(data: bytes, signature: bytes) -> Iterator[int]:
    at = -1
    while (at := data.find(signature, at + 1)) >= 0:
        yield at


def _extras(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the extra fields by their number; what is no field ends them."""
    while len(data) >= 4:
        number, length = struct.unpack_from("<HH", data)
        yield number, data[4 : 4 + length]
        data = data[4 + length :]


def _entry(fields: tuple[int, ...], raw: bytes, extras: dict[int, bytes], shift: int) -> ZipEntry:
    system, flags, method, time, date, crc, stored, size = fields[2], *fields[5:12]
    mode, offset = fields[17] >> 16, fields[18]
    wide = extras.get(_ZIP64, b"")
    values = []
    for value in (size, stored, offset):
        if value == _FULL and len(wide) >= 8:
            value, wide = struct.unpack_from("<Q", wide)[0], wide[8:]
        values.append(value)
    size, stored, offset = values
    name = _name(raw, flags, system, extras.get(_UNICODE_PATH, b""))
    return ZipEntry(name, offset + shift, stored, size, crc, _mtime(date, time), mode, method, flags)


def _name(raw: bytes, flags: int, system: int, unicode_path: bytes) -> str:
    """Return a member's name: of the Unicode Path field if it is about this very name, else UTF-8 (with the flag that
    says so or without it), else that of the systems that write code page 437.
    """
    if len(unicode_path) > 5:
        version, crc = struct.unpack_from("<BL", unicode_path)
        if version == 1 and crc == zlib.crc32(raw):
            raw, flags = unicode_path[5:], flags | _UTF8
    old = system in _WINDOWS and not flags & _UTF8
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        name = raw.decode("cp437") if old else raw.decode(errors="surrogateescape")
    if system in _WINDOWS and "/" not in name:
        return name.replace("\\", "/")
    return name


def _mtime(date: int, time: int) -> int:
    moment = ((date >> 9) + 1980, date >> 5 & 15, date & 31, time >> 11, time >> 5 & 63, (time & 31) * 2)
    try:
        return clamped(calendar.timegm((*moment, 0, 0, 0)))
    except ValueError:  # no month: many a program writes zeros for no time
        return 0


def _damaged(how: str) -> DownloadFailed:
    return DownloadFailed(f"the archive is damaged: {how}")
