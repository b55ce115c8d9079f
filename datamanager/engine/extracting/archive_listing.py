"""The members of an archive: its headers are read from storage, and all of them checked before a byte is extracted.

tar: POSIX.1-2017, pax, "ustar Interchange Format", with GNU's long names. zip: see `zip_directory`.
"""

from __future__ import annotations

import io
import posixpath
import re
import struct
import tarfile
from collections.abc import Callable, Iterator
from typing import Literal, Self

from datamanager.domain.location import NAME_MAX, Place
from datamanager.engine.extracting import zip_directory
from datamanager.engine.extracting.archive_member import (
    MEMBERS_MAX,
    ArchiveListing,
    Packed,
    Refused,
    clamped,
    shown,
    sound,
)
from datamanager.engine.path_confinement import directories_of, real_base
from datamanager.errors import DataManagerError, DownloadFailed, TooLarge
from datamanager.machines import Machine
from datamanager.transports.port import Reader, Session

Packaging = Literal["tar", "zip"]

AHEAD = 256 * 1024
"""Bytes that are read at once: many small members' headers."""
TAR_HEADER_MAX = 256 * 1024
"""Bytes of one member's headers: its names and attributes, and (GNU) the map of a sparse file."""
TAR_GLOBALS_MAX = 100
"""Attributes that an archive says of all its members behind them."""
ENTRIES_MAX = 2 * MEMBERS_MAX
"""Entries, directories included, after which it is enough."""

_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
_NO_FILES = frozenset({b"V", b"D"})
"""What GNU tar writes besides files: the archive's label; a directory, with a list of what is in it."""
_DIGITS = re.compile(rb"\d+")


def members_of(
    session: Session,
    path: str,
    packaging: Packaging,
    machine: Machine,
    directory: str,
    limit: int,
    check: Callable[[], None],
) -> ArchiveListing:
    """Return the regular files of the archive at `path`, in the order of their bytes, and the members that can't be
    had: links, devices, names that lead elsewhere, what this service can't unpack.

    `directory` on `machine` is their destination, `limit` how many bytes they may be together. `check` is called from
    time to time and may raise. Directories are not listed: they come with their files.

    Raises: DownloadFailed for what is no such archive, damaged or cut off; TooLarge.
    """
    with session.open_read(path) as reader:
        size = reader.stat().size
        if packaging == "tar":
            found = _tar(_TarHeaders(reader, size, check))
        else:
            found = _zip(_Seekable(reader, size, check))
        try:
            listing = sound(found, machine, directory, limit)
        except RecursionError:
            raise DownloadFailed("the archive has headers without a file") from None
    return _without_hidden(session, machine, directory, listing)


def _without_hidden(session: Session, machine: Machine, directory: str, listing: ArchiveListing) -> ArchiveListing:
    """Judge dot names by where links lead: a directory may be the base directory under another name, in the request as
    in the archive.
    """
    base = real_base(session, machine)
    places = [Place.of(machine, directory, one.name).path for one in listing.members]
    wanted = Place.of(machine, directory, "x").path
    above = [posixpath.dirname(path) for path in places]
    found = directories_of(session, machine, base, {posixpath.dirname(wanted), *above})

    def first(parent: str, name: str) -> str | None:
        resolved = found[parent]  # one that leads out, or is a file, is refused when its files are stored
        if isinstance(resolved, DataManagerError):
            return None
        return posixpath.relpath(posixpath.join(resolved.path, name), base).split("/")[0]

    own = first(posixpath.dirname(wanted), "x")
    members, refused = [], list(listing.refused)
    for member, path, parent in zip(listing.members, places, above, strict=True):
        top = first(parent, posixpath.basename(path))
        if top is not None and top.startswith(".") and top != own:
            refused.append(Refused(member.name, "is hidden in the base directory"))
        else:
            members.append(member)
    return ArchiveListing(members, refused)


class _Seekable(io.RawIOBase):
    """An open file as the readers of the standard library want it. To read more than the next `left` bytes is refused:
    how much they read, and keep, is what the archive says."""

    def __init__(self, reader: Reader, size: int, check: Callable[[], None]) -> None:
        super().__init__()
        self._reader = reader
        self.size = size
        self._check = check
        self._position = 0
        self._start = 0
        self._data = b""
        self.left = TAR_HEADER_MAX

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, fewer only at the end."""
        there = max(0, self.size - self._position)
        wanted = there if size is None or size < 0 else min(size, there)
        if wanted > self.left:
            raise DownloadFailed("the archive has a header that is too long")
        self.left -= wanted
        begin = self._position - self._start
        if begin < 0 or begin + wanted > len(self._data):
            self._check()
            blocks = self._reader.blocks(self._position, min(there, max(AHEAD, wanted)))
            self._start, self._data, begin = self._position, b"".join(bytes(block) for block in blocks), 0
        found = self._data[begin : begin + wanted]
        self._position += len(found)
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go elsewhere."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Say where it is."""
        return self._position

    def seekable(self) -> bool:
        """Yes."""
        return True

    def readable(self) -> bool:
        """Yes."""
        return True


class _TarHeaders(_Seekable):
    """What is read of a tar file: its headers."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, unless they have more digits in a row than a name may have: the standard library looks
        for numbers in time that grows with the square of that (CVE-2024-6232)."""
        found = super().read(size)
        if any(len(digits) > NAME_MAX for digits in _DIGITS.findall(found)):
            raise DownloadFailed("the archive has a header of digits only")
        return found


class _TarInfo(tarfile.TarInfo):
    """A member's header. GNU tar's own format has times where POSIX has the beginning of a name (`tar --incremental`);
    the standard library takes them for it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse a header. Raises: tarfile.HeaderError."""
        info = super().frombuf(buf, encoding, errors)
        if buf[257:265] == tarfile.GNU_MAGIC and "/" in info.name:
            name = bytes(buf[:100]).partition(b"\0")[0].decode(encoding, errors)
            info.name = name.rstrip("/") if info.isdir() else name
        return info


def _tar(file: _Seekable) -> Iterator[Packed | Refused]:
    head = file.read(tarfile.BLOCKSIZE)
    file.seek(0)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            what = f"set decompress: {name} too" if name in ("gzip", "zstd") else "only gzip and zstd are supported"
            raise DownloadFailed(f"the archive is compressed ({name}); {what}")
    try:
        with tarfile.TarFile(
            fileobj=file, mode="r", tarinfo=_TarInfo, encoding="utf-8", errors="surrogateescape"
        ) as tar:
            yield from _tar_members(tar, file)
    except (tarfile.TarError, ValueError, OverflowError, IndexError, struct.error) as exc:
        raise DownloadFailed(f"this is not a complete tar file: {exc}") from exc


def _tar_members(tar: tarfile.TarFile, file: _Seekable) -> Iterator[Packed | Refused]:
    entries = 0
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined] # it would keep all of them
        entries += 1
        _require_few(entries)
        file.left = TAR_HEADER_MAX
        if len(tar.pax_headers) > TAR_GLOBALS_MAX:
            raise DownloadFailed("the archive has too many global headers")
        if info.isdir() or info.type in _NO_FILES:
            continue
        if not info.isreg() or info.issparse():
            yield Refused(info.name, f"is a {_kind(info)}; only files are extracted")
            continue
        if info.size < 0 or info.offset_data + info.size > file.size:
            raise DownloadFailed(f"the archive ends before its member {shown(info.name)} does")
        yield Packed(info.name, info.offset_data, info.size, info.size, clamped(float(info.mtime)))
    # tarfile takes a damaged header for the end
    file.seek(tar.offset)
    rest = file.read(tarfile.BLOCKSIZE)
    if rest.strip(b"\0") or 0 < len(rest) < tarfile.BLOCKSIZE:
        raise DownloadFailed(f"the archive is damaged at byte {tar.offset}")
    if not rest and tar.offset > file.size:
        raise DownloadFailed("the archive ends too early")


def _kind(info: tarfile.TarInfo) -> str:
    if info.issym():
        return "symbolic link"
    if info.islnk():
        return "hard link"
    return "sparse file" if info.issparse() else "special file"


def _zip(file: _Seekable) -> Iterator[Packed | Refused]:
    def read(offset: int, count: int) -> bytes:
        file.left = count
        file.seek(offset)
        return file.read(count)

    found = []
    for entry in zip_directory.entries(read, file.size):
        found.append(entry)
        _require_few(len(found))
    end = 0
    for entry in sorted(found, key=lambda one: one.offset):
        begin = zip_directory.data_offset(read, entry)
        if entry.offset < end or begin + entry.stored > file.size:
            raise DownloadFailed(f"the archive's member {shown(entry.name)} overlaps another one")
        end = begin + entry.stored
        if entry.is_directory:
            continue
        if (why := entry.unfit) is not None:
            yield Refused(entry.name, why)
        else:
            yield Packed(entry.name, begin, entry.stored, entry.size, entry.mtime, entry.deflated, entry.crc)


def _require_few(entries: int) -> None:
    if entries > ENTRIES_MAX:
        raise TooLarge(f"the archive has more than {ENTRIES_MAX} entries")
