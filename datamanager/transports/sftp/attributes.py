"""File attributes on the wire (draft-ietf-secsh-filexfer-02, section 5)."""

from __future__ import annotations

import stat

from paramiko.message import Message

from datamanager.transports.sftp.wire import u32
from datamanager.transports.values import FileKind, FileStat

_SIZE, _OWNER, _PERMISSIONS, _TIMES, _EXTENDED = 0x1, 0x2, 0x4, 0x8, 0x80000000

NO_ATTRIBUTES = u32(0)


def pack_attributes(*, mode: int, mtime: int | None = None) -> bytes:
    """Encode permission bits (setuid, setgid and sticky never) and, when given, the time of access and modification."""
    if mtime is None:
        return u32(_PERMISSIONS) + u32(mode & 0o777)
    return u32(_PERMISSIONS | _TIMES) + u32(mode & 0o777) + u32(mtime) * 2


def unpack_stat(message: Message) -> FileStat:
    """Decode attributes; what the server leaves out is 0, a file without a type is OTHER."""
    flags = message.get_int()
    size = message.get_int64() if flags & _SIZE else 0
    if flags & _OWNER:
        message.get_int(), message.get_int()
    mode = message.get_int() if flags & _PERMISSIONS else 0
    mtime = 0
    if flags & _TIMES:
        _, mtime = message.get_int(), message.get_int()
    if flags & _EXTENDED:
        for _ in range(message.get_int()):
            message.get_string(), message.get_string()
    return FileStat(FileKind.of(mode), size, mtime, stat.S_IMODE(mode))


def unpack_space(message: Message) -> int:
    """Decode a reply of OpenSSH's statvfs: the bytes that this login may still write."""
    _, fragment, _, _, available = (message.get_int64() for _ in range(5))
    return available * fragment
