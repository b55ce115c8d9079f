"""What one machine's SFTP server really does: an extension's name, and even a plain request's, is no proof of it.

Version 3 says that RENAME fails where the new name exists; Go's pkg/sftp (`rclone serve sftp`) replaces. So the server
is asked once, with own files, before it first gives a name that must be free. What need not work is not required: that
it is not there is noted, and logged once. (docs/adr/0020-what-a-server-does-is-tried.md)
"""

from __future__ import annotations

import enum
import logging
import posixpath
import threading
from uuid import uuid4

from paramiko import sftp

from datamanager.domain.location import temporary_name
from datamanager.errors import PathReplaced, RemoteFailure, TransportError
from datamanager.transports.sftp.errors import check, expect
from datamanager.transports.sftp.looks import act_and_look
from datamanager.transports.sftp.wire import (
    NO_ATTRIBUTES,
    Wire,
    pack_attributes,
    string,
    u32,
    u64,
    unpack_stat,
)
from datamanager.transports.values import FileKind, own_file_gone

_log = logging.getLogger(__name__)

HARDLINK, RENAME, STATVFS, FSYNC = (f"{name}@openssh.com" for name in ("hardlink", "posix-rename", "statvfs", "fsync"))
REFUSED = (sftp.SFTP_OP_UNSUPPORTED, sftp.SFTP_PERMISSION_DENIED, sftp.SFTP_BAD_MESSAGE)
"""Statuses of an extension that is not there, not allowed, or not for this file system (EINVAL). A FAILURE is none of
them: that is what a disk's error is, too."""
_NEW = sftp.SFTP_FLAG_WRITE | sftp.SFTP_FLAG_CREATE | sftp.SFTP_FLAG_EXCL


class Naming(enum.Enum):
    """How a file gets a name that must be free."""

    RENAME = "rename"
    """The server's RENAME refuses a name that is taken."""
    LINK = "link"
    """Its RENAME replaces; a hard link refuses, so the name is linked and the old one removed."""
    LOOK = "look"
    """Neither refuses: the name is looked at before, and what appears in between is replaced."""


class ServerBehaviour:
    """What was found out of a machine's server. Shared by the sessions of its pool, and kept as long as that."""

    def __init__(self, machine: str) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        self._noted = set[str]()
        self._naming: Naming | None = None
        self.syncs = True
        """False once it refused to put a file on stable storage."""

    def note(self, what: str) -> None:
        """Log what the server does not do; once."""
        with self._lock:
            if what in self._noted:
                return
            self._noted.add(what)
        _log.warning("%s: the SFTP server %s", self._machine, what)

    def naming(self, wire: Wire, directory: str) -> Naming:
        """Return how a file gets a name that must be free; the first call finds out in `directory`. Blocks.

        Where that can't be found out just now it is LOOK, until the next call. Raises: PathReplaced when the directory
        was exchanged meanwhile; what breaks the connection.
        """
        if self._naming is not None:
            return self._naming
        try:
            found = _Trial(wire, directory).naming()
        except TransportError as exc:
            if wire.broken or isinstance(exc, PathReplaced):
                raise
            _log.info("%s: how the SFTP server renames can't be found out: %s", self._machine, exc.detail)
            return Naming.LOOK
        self._naming = found
        if found is Naming.LINK:
            self.note("replaces a file by RENAME: names are given by hard links")
        elif found is Naming.LOOK:
            self.note(
                "replaces a file by RENAME and has no hard links: a file that appears under the name just before it is "
                "given is overwritten"
            )
        return found


class _Trial:
    """Own files under unique names, which go again; what a crash leaves a sweep removes, as it does partial files."""

    def __init__(self, wire: Wire, directory: str) -> None:
        self._wire = wire
        self._names = [posixpath.join(directory, temporary_name("rename", uuid4(), 1)) for _ in range(3)]
        self._made = set[str]()
        """Those that must be there when they are removed."""

    def naming(self) -> Naming:
        """Find out how the server gives names. Raises: TransportError; PathReplaced before any other."""
        try:
            return self._tried(*self._names)
        finally:
            replaced: PathReplaced | None = None
            for name in self._names:
                try:
                    self._remove(name)
                except PathReplaced as exc:
                    replaced = exc
                except TransportError:
                    pass  # the first error counts
            if replaced is not None:
                raise replaced

    def _tried(self, first: str, second: str, third: str) -> Naming:
        self._create(first, b"1")
        self._create(second, b"22")
        self._wire.call(sftp.CMD_RENAME, string(first), string(second))
        sizes = self._size(first), self._size(second)
        if sizes == (1, 2):
            return Naming.RENAME
        if sizes != (None, 1):  # neither left as they were nor replaced
            raise RemoteFailure(f"a trial of names left {sizes} bytes")
        self._made.remove(first)
        self._remove(first)
        self._remove(second)
        self._create(first, b"1")
        self._create(second, b"22")
        return Naming.LINK if self._links(first, second, third) else Naming.LOOK

    def _links(self, first: str, second: str, third: str) -> bool:
        """Say whether hard links refuse a name that is taken, and are hard links: one file with two names."""
        if HARDLINK not in self._wire.extensions:
            return False
        self._wire.extended(HARDLINK, string(first), string(second))
        if (self._size(first), self._size(second)) != (1, 2):
            return False
        if self._wire.extended(HARDLINK, string(first), string(third)).code == sftp.SFTP_OK:
            self._made.add(third)
        if self._size(third) != 1:
            return False
        try:
            self._write(third, b"333", sftp.SFTP_FLAG_WRITE)
        except RemoteFailure:
            return False
        if self._size(first) != 3:
            return False  # a copy, which others see half made
        self._remove(first)
        return self._size(third) == 3

    def _create(self, name: str, data: bytes) -> None:
        self._write(name, data, _NEW)

    def _write(self, name: str, data: bytes, flags: int) -> None:
        call = self._wire.call
        attributes = pack_attributes(mode=0o600) if flags & sftp.SFTP_FLAG_CREATE else NO_ATTRIBUTES
        reply = act_and_look(self._wire, sftp.CMD_OPEN, name, u32(flags), attributes, there=True)
        opened = expect(reply, sftp.CMD_HANDLE, name)
        self._made.add(name)
        handle = string(opened.fields().get_string())
        written = call(sftp.CMD_WRITE, handle, u64(0), string(data))
        for reply in (written, call(sftp.CMD_CLOSE, handle)):
            check(reply, name)

    def _size(self, name: str) -> int | None:
        """Return a file's size, None where there is no regular file."""
        reply = self._wire.call(sftp.CMD_LSTAT, string(name))
        if reply.kind != sftp.CMD_ATTRS:
            return None
        found = unpack_stat(reply.fields())
        return found.size if found.kind is FileKind.FILE else None

    def _remove(self, name: str) -> None:
        reply = act_and_look(self._wire, sftp.CMD_REMOVE, name, there=False)
        if reply.code == sftp.SFTP_NO_SUCH_FILE and name in self._made:
            raise own_file_gone(name)
        if reply.code == sftp.SFTP_OK:
            self._made.discard(name)
