"""The vocabulary of the transports: paths, what is at one, and the callbacks for ranges, progress and cancellation.

A path is a string whose bytes need not be UTF-8 (PEP 383).
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from datamanager.errors import (
    NoSpace,
    PathExists,
    PathMissing,
    PathReplaced,
    PermissionDenied,
    RemoteFailure,
    TransportError,
)

_log = logging.getLogger(__name__)

Bytes = bytes | bytearray | memoryview

NextRange = Callable[[bool], tuple[int, int] | None]
"""Deals out what a reader is to read next: (offset, length) in bytes, None at the end. Called with False it must not
block, and answers None too when nothing may be read just now; the reader asks again when its last block is given out,
then with True, and that call may block."""

Check = Callable[[], None]
"""Called now and then while a caller waits; it may raise (cancelled), which ends the wait. It must not block."""

Progress = Callable[[int], None]
"""Called with how many further bytes are done; it may raise (cancelled, lease lost), which ends the work at once."""


def no_progress(_: int) -> None:
    """Ignore progress."""


def no_check() -> None:
    """Continue waiting."""


def to_wire(path: str) -> bytes:
    """Return the path's bytes, surrogate escapes undone. Raises: ValueError for a NUL, which C servers would cut at."""
    if "\0" in path:
        raise ValueError("a path cannot contain a NUL")
    return path.encode("utf-8", "surrogateescape")


def from_wire(raw: bytes) -> str:
    """Return bytes as a path; those that are not UTF-8 become surrogate escapes."""
    return raw.decode("utf-8", "surrogateescape")


def shown(path: str) -> str:
    """Return the path for a message: quoted, odd characters escaped, so that it can be stored and printed anywhere."""
    return repr(path if path.isascii() else path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def printable(text: str) -> str:
    """Return a text as one line that does nothing to a terminal: control characters, line breaks and what turns the
    direction of letters are escaped, the rest is as it was.
    """
    return text if text.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


_ERRORS: dict[int, type[TransportError]] = {
    errno.ENOENT: PathMissing,
    errno.ENOTDIR: PathMissing,
    errno.EEXIST: PathExists,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: PermissionDenied,
    errno.ENOSPC: NoSpace,
    errno.EDQUOT: NoSpace,
}


def error_of(number: int, path: str) -> TransportError:
    """Return our error for a system's errno; what has no class of its own is RemoteFailure."""
    return _ERRORS.get(number, RemoteFailure)(f"{shown(path)}: {os.strerror(number)}")


def path_replaced(detail: str) -> PathReplaced:
    """Return the error, and have the log tell it whatever becomes of it: somebody may be trying to get out."""
    _log.warning("%s: %s", PathReplaced.code, detail)
    return PathReplaced(detail)


def own_file_gone(path: str) -> PathReplaced:
    """Return the error for a file of ours that is not there any more: over SFTP it may have been made in another
    directory."""
    return path_replaced(f"{shown(path)}: this file was made, but is not in its directory")


@contextmanager
def own_file(path: str) -> Iterator[None]:
    """Use a file that we made. Raises: PathReplaced where it is missing."""
    try:
        yield
    except PathMissing as exc:
        raise own_file_gone(path) from exc


class FileKind(enum.Enum):
    """What is at a path."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"

    @classmethod
    def of(cls, mode: int) -> FileKind:
        """Return the kind that a st_mode names; OTHER where it names none."""
        return _KINDS.get(stat.S_IFMT(mode), _OTHER)


_OTHER = FileKind.OTHER
_KINDS = {stat.S_IFREG: FileKind.FILE, stat.S_IFDIR: FileKind.DIRECTORY, stat.S_IFLNK: FileKind.SYMLINK}


class FileStat(NamedTuple):
    """What a machine says of a path: `size` in bytes, `mtime` in whole seconds since 1970 (SFTP v3 has no finer),
    `mode` the permission bits (0o7777).

    `identity` (device and inode), `links` (hard links), `mtime_ns` and `ctime_ns` (nanoseconds since 1970; ctime is the
    last change, which no program can set) where they can be had, which SFTP v3 does not tell.
    """

    kind: FileKind
    size: int
    mtime: int
    mode: int
    identity: tuple[int, int] | None = None
    links: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None

    @property
    def inode(self) -> int | None:
        """The number of the file on its file system; None where it can't be had."""
        return None if self.identity is None else self.identity[1]

    @property
    def last_change(self) -> float:
        """Seconds since 1970, by the machine's clock: of the last change where it is told, else of the last writing."""
        return float(self.mtime) if self.ctime_ns is None else self.ctime_ns / 1e9

    def is_version(self, then: FileStat) -> bool:
        """Say whether this has the size and mtime of an earlier look at a file, and its inode and nanoseconds where
        both looks told them."""
        if self.size != then.size or self.mtime != then.mtime:
            return False
        if self.identity != then.identity and self.identity is not None and then.identity is not None:
            return False
        return self.mtime_ns == then.mtime_ns or self.mtime_ns is None or then.mtime_ns is None


def clamped_mtime(mtime: int) -> int:
    """Return the nearest time to `mtime` (seconds since 1970) that SFTP version 3 can carry: 1970 to 2106."""
    return min(max(mtime, 0), 2**32 - 1)


def require_file(found: FileStat, path: str) -> None:
    """Return when a regular file was found at `path`. Raises: RemoteFailure."""
    if found.kind is not FileKind.FILE:
        raise RemoteFailure(f"{shown(path)}: is not a regular file")


class SmallFile(NamedTuple):
    """A whole small file that was read: its stat and its bytes."""

    stat: FileStat
    data: bytes


class NewFile(NamedTuple):
    """A whole small file to write under `path`, a new name: its bytes, permission bits and mtime (seconds)."""

    path: str
    data: Bytes
    mode: int
    mtime: int


class KeptAttributes(NamedTuple):
    """What a machine keeps of a file's attributes that were set: the `mtime` that the file has (seconds), and which of
    `mode`, `mtime` and `fsync` (the bytes are on stable storage) were not kept."""

    mtime: int
    not_kept: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: FileStat, *, mode: int, mtime: int) -> Self:
        """Compare what a file has with what was wanted."""
        if found.mtime == mtime and found.mode & 0o777 == mode & 0o777:
            return cls(mtime)
        wanted = {"mode": found.mode & 0o777 == mode & 0o777, "mtime": found.mtime == mtime}
        return cls(found.mtime, tuple(name for name, kept in wanted.items() if not kept))


@dataclass(frozen=True, slots=True)
class CurlExit:
    """How a machine's curl ended: its exit status, how many bytes of the body it received, and whether it had a
    connection at all."""

    status: int
    received: int
    connected: bool


@dataclass(frozen=True, slots=True)
class PushTarget:
    """Where a file is pushed to: another machine as the source reaches it, and a partial file there."""

    host: str
    port: int
    username: str | None
    """None: what the source's own ssh configuration says."""
    host_key_alias: str
    """The name under which `known_hosts` has its keys, and certificates its principal."""
    known_hosts: str
    """Lines of a known_hosts file: the keys that we know; the source's own known_hosts does not count."""
    connect_timeout: float
    stall_timeout: float
    """Seconds, as in the machine's configuration."""
    path: str
    """Absolute path of the partial file."""
    offset: int = 0
    """Bytes of it that are there already. 0: it is created, exclusively; else it must exist."""
    forward_agent: bool = False
    """The source may use our SSH agent for it."""
    certificate: str | None = None
    """The source logs in with this one, for this push only; None: with a key of its own, or our agent."""
    key: bytes = field(default=b"", repr=False)
    """The certificate's private key, as OpenSSH has it."""
