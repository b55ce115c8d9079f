"""A bundle's members from the bundle itself: for audits, and for bundles of which nothing else is left.

Only what this project writes is accepted: regular files, with pax headers where they need them. (POSIX.1-2017, pax)
"""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol
from uuid import UUID

from datamanager.domain.bundles import MEMBERS_MAX, Member, Pack, member_name
from datamanager.domain.location import NAME_MAX, Place
from datamanager.engine.attempt import End
from datamanager.engine.bundles.format.layout import padded
from datamanager.engine.control import Control
from datamanager.engine.path_confinement import confined
from datamanager.errors import ChecksumMismatch, NotSupported, RemoteFailure
from datamanager.transports.port import Reader
from datamanager.transports.values import Bytes

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STREAM_MAX = 1 << 50
"""Bytes of the longest tar file that is read to its end."""
_PAX_MAX = 64 * 1024
_BLOCK = 1 << 20
_NOTHING = bytes(tarfile.BLOCKSIZE)


def scan_bundle(end: End, pack: Pack, control: Control, *, most: int = STREAM_MAX) -> Iterator[Member]:
    """Read a whole bundle in constant memory and yield its members, hashed; of their sources only the name is known.

    Nothing is written anywhere. Raises: RemoteFailure for what is no bundle of ours (absolute names, `..`, links,
    devices, duplicates, sizes that go beyond its end or `most`, more than MEMBERS_MAX members); ChecksumMismatch where
    compressed data is damaged; PathMissing; NotSupported with `Pack.NONE`.
    """
    if pack is Pack.NONE:
        raise NotSupported("a file that stands alone has its manifest only")
    with ExitStack() as stack:
        session = stack.enter_context(end.storage.session())
        reader = stack.enter_context(session.open_read(confined(session, end.machine, end.place.path)))
        limit = min(most, reader.stat().size) if pack is Pack.TAR else most
        stored = io.BufferedReader(_File(reader), _BLOCK)
        file: _Readable = stored if pack is Pack.TAR else stack.enter_context(zstd.ZstdFile(stored))
        with _damage_told(end):
            yield from _Scan(file, limit, control).members()


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _File(io.RawIOBase):
    """A Reader as Python's file."""

    def __init__(self, reader: Reader) -> None:
        self._blocks = reader.blocks()
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Bytes, /) -> int:  # type: ignore[override]
        """Fill a buffer with the next bytes; 0 at the end."""
        if not self._rest:
            self._rest = next(self._blocks, memoryview(b""))
        view = memoryview(buffer)
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _Scan:
    def __init__(self, file: _Readable, limit: int, control: Control) -> None:
        self._file = file
        self._limit = limit
        self._control = control
        self._position = 0
        self._seen = set[UUID]()

    def members(self) -> Iterator[Member]:
        """Yield the members up to the end mark."""
        while (head := self._take(tarfile.BLOCKSIZE)) != _NOTHING:
            info, pax = _info(head), {}
            if info.type == tarfile.XHDTYPE:
                if info.size > _PAX_MAX:
                    raise RemoteFailure(f"an extended header of {info.size} bytes is none of ours")
                pax = _records(self._take(padded(info.size))[: info.size])
                info = _info(self._take(tarfile.BLOCKSIZE))
            yield self._member(info, pax)
        if self._take(tarfile.BLOCKSIZE) != _NOTHING:
            raise RemoteFailure("the bundle has half an end mark")

    def _member(self, info: tarfile.TarInfo, pax: dict[str, str]) -> Member:
        name = pax.get("path", info.name)
        if info.type != tarfile.REGTYPE:
            raise RemoteFailure(f"{name!r} is no regular file")
        uuid, filename = _parsed(name)
        if uuid in self._seen:
            raise RemoteFailure(f"{name!r} is there twice")
        if len(self._seen) == MEMBERS_MAX:
            raise RemoteFailure(f"more than {MEMBERS_MAX} members are in it")
        self._seen.add(uuid)
        size, mtime = _number(pax.get("size"), info.size), _number(pax.get("mtime"), int(info.mtime))
        offset = self._position
        if not 0 <= size <= self._limit - offset:
            raise RemoteFailure(f"{name!r} has {size} bytes, more than there can be")
        sha256 = self._sha256(size)
        self._take(padded(size) - size)
        return Member(uuid, Place("", filename), size, info.mode & 0o777, mtime, sha256, offset)

    def _sha256(self, size: int) -> str:
        digest = hashlib.sha256()
        while size > 0:
            self._control.check()
            block = self._take(min(size, _BLOCK))
            digest.update(block)
            size -= len(block)
        return digest.hexdigest()

    def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            block = self._file.read(count - len(data))
            if not block:
                raise RemoteFailure("the bundle ends in the middle")
            data += block
        self._position += count
        return data


@contextmanager
def _damage_told(end: End) -> Iterator[None]:
    try:
        yield
    except (zstd.ZstdError, EOFError) as exc:
        raise ChecksumMismatch(f"{end.place}: compressed data is damaged") from exc


def _info(head: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError as exc:
        raise RemoteFailure(f"there is no tar header where one should be: {exc}") from exc


def _records(body: bytes) -> dict[str, str]:
    """Read the records of an extended header: `length keyword=value`, each with a newline."""
    records: dict[str, str] = {}
    while body:
        length, _, rest = body.partition(b" ")
        count = _number(length.decode("ascii", "replace"), 0) - len(length) - 1
        keyword, equals, value = rest[:count].partition(b"=")
        if not 0 < count <= len(rest) or not equals or not value.endswith(b"\n"):
            raise RemoteFailure("an extended header can't be read")
        records[keyword.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        body = rest[count:]
    return records


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not text.lstrip("-").isascii() or not text.lstrip("-").isdigit() or len(text) > 20:
        raise RemoteFailure(f"{text!r} is no number of ours in a header")
    return int(text)


def _parsed(name: str) -> tuple[UUID, str]:
    """Return the object and the file's name of a member. Raises: RemoteFailure for every other name."""
    first, _, filename = name.partition("/")
    try:
        uuid = UUID(first)
    except ValueError:
        uuid = None
    length = len(filename.encode("utf-8", "surrogateescape"))
    good = filename not in ("", ".", "..") and not {"/", "\0"} & set(filename) and length <= NAME_MAX
    if uuid is None or name != member_name(uuid, filename) or not good:
        raise RemoteFailure(f"{name!r} is no member's name")
    return uuid, filename
