"""A session over SFTP version 3: the port's verbs in the protocol's, and in OpenSSH's extensions where advertised."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from paramiko.sftp import (
    CMD_ATTRS,
    CMD_EXTENDED_REPLY,
    CMD_HANDLE,
    CMD_LSTAT,
    CMD_NAME,
    CMD_OPEN,
    CMD_OPENDIR,
    CMD_READDIR,
    CMD_REMOVE,
    CMD_SETSTAT,
    CMD_STAT,
    SFTP_EOF,
    SFTP_FLAG_READ,
    SFTP_FLAG_WRITE,
)

from datamanager.errors import PathExists, PathMissing, PermissionDenied, RemoteFailure, TransportError
from datamanager.transports.bulk_port import Results
from datamanager.transports.channel import Channel
from datamanager.transports.remote.running import InstalledPrograms
from datamanager.transports.sftp.bulk import NEW, STATVFS, SftpBulk
from datamanager.transports.sftp.errors import SFTP_FAILURE, check, expect
from datamanager.transports.sftp.files import SftpReader, SftpWriter
from datamanager.transports.sftp.pipeline import close_handle
from datamanager.transports.sftp.server_copy import SftpPrograms
from datamanager.transports.sftp.wire import (
    NO_ATTRIBUTES,
    Wire,
    pack_attributes,
    string,
    u32,
    unpack_space,
    unpack_stat,
)
from datamanager.transports.values import FileKind, FileStat, from_wire, shown

T = TypeVar("T")


class SftpSession:
    """One SFTP conversation as a Session of the port."""

    def __init__(self, wire: Wire, installed: InstalledPrograms) -> None:
        self._wire = wire
        self._installed = installed

    @property
    def channel(self) -> Channel:
        """The channel that carries the session."""
        return self._wire.channel

    @property
    def usable(self) -> bool:
        """Say whether the session may be used again."""
        return not self._wire.broken and self._wire.channel.alive()

    @property
    def round_trip(self) -> float:
        """Seconds of the shortest round trip seen."""
        return self._wire.round_trip

    @property
    def bulk(self) -> SftpBulk:
        """Work on many small files at once."""
        return SftpBulk(self._wire, self._installed)

    @property
    def programs(self) -> SftpPrograms:
        """What the machine does by itself."""
        return SftpPrograms(self, self._wire, self._installed)

    def stat(self, path: str) -> FileStat:
        """Return what is at `path`, following links."""
        return unpack_stat(expect(self._wire.call(CMD_STAT, string(path)), CMD_ATTRS, path).fields())

    def lstat(self, path: str) -> FileStat:
        """Return what is at `path` itself."""
        return unpack_stat(expect(self._wire.call(CMD_LSTAT, string(path)), CMD_ATTRS, path).fields())

    def real_path(self, path: str) -> str:
        """Return `path` with every link resolved."""
        return _only(self.bulk.real_path([path]))

    def list_dir(self, path: str) -> Iterator[tuple[str, FileStat]]:
        """Yield (name, lstat) of each entry."""
        handle = self._handle(CMD_OPENDIR, path)
        try:
            while True:
                reply = self._wire.call(CMD_READDIR, string(handle))
                if reply.code == SFTP_EOF:
                    return
                message = expect(reply, CMD_NAME, path).fields()
                for _ in range(message.get_int()):
                    name = from_wire(message.get_string())
                    message.get_string()  # the line that `ls -l` would show
                    attributes = unpack_stat(message)
                    if name not in (".", ".."):
                        yield name, attributes
        finally:
            close_handle(self._wire, handle)

    def free_space(self, path: str) -> int | None:
        """Return f_bavail in bytes."""
        if STATVFS not in self._wire.extensions:
            return None
        return unpack_space(expect(self._wire.extended(STATVFS, string(path)), CMD_EXTENDED_REPLY, path).fields())

    @contextmanager
    def open_read(self, path: str) -> Iterator[SftpReader]:
        """Open a file for reading."""
        handle = self._handle(CMD_OPEN, path, u32(SFTP_FLAG_READ), NO_ATTRIBUTES)
        reader = SftpReader(self._wire, handle, path)
        try:
            yield reader
        finally:
            reader.close()

    @contextmanager
    def create(self, path: str, *, mode: int = 0o600) -> Iterator[SftpWriter]:
        """Create a new file, exclusively; leaving the context waits for every status."""
        reply = self._wire.call(CMD_OPEN, string(path), NEW, pack_attributes(mode=mode))
        if reply.code == SFTP_FAILURE and self._wire.call(CMD_LSTAT, string(path)).kind == CMD_ATTRS:
            raise PathExists(f"{shown(path)}: is taken")
        with self._written(expect(reply, CMD_HANDLE, path).fields().get_string(), path) as writer:
            yield writer

    @contextmanager
    def reopen(self, path: str) -> Iterator[SftpWriter]:
        """Open an existing regular file for writing.

        A link is looked for before: SFTP can't open a file without following one, so a gap stays.
        """
        if self.lstat(path).kind is not FileKind.FILE:
            raise RemoteFailure(f"{shown(path)}: is not a regular file")
        handle = self._handle(CMD_OPEN, path, u32(SFTP_FLAG_WRITE), NO_ATTRIBUTES)
        with self._written(handle, path) as writer:
            yield writer

    def rename(self, source: str, destination: str, *, overwrite: bool) -> None:
        """Give a file its new name; see the port's bulk work for how."""
        _only(self.bulk.rename([(source, destination)], overwrite=overwrite))

    def remove(self, path: str) -> None:
        """Remove a file."""
        check(self._wire.call(CMD_REMOVE, string(path)), path)

    def set_attributes(self, path: str, *, mode: int, mtime: int) -> None:
        """Set permission bits and modification time."""
        check(self._wire.call(CMD_SETSTAT, string(path), pack_attributes(mode=mode, mtime=mtime)), path)

    def abort(self) -> None:
        """Break the channel, from any thread."""
        self._wire.channel.abort()

    def close(self) -> None:
        """Close the channel; nothing can be asked of the session afterwards."""
        if self._wire.broken:
            self._wire.channel.abort()
        self._wire.channel.close()

    def _handle(self, kind: int, path: str, *fields: bytes) -> bytes:
        return expect(self._wire.call(kind, string(path), *fields), CMD_HANDLE, path).fields().get_string()

    @contextmanager
    def _written(self, handle: bytes, path: str) -> Iterator[SftpWriter]:
        """Close the file in the end, and wait for every status unless there was an error already."""
        writer = SftpWriter(self._wire, handle, path, lambda: self._space_left(path))
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
        writer.close()

    def _space_left(self, path: str) -> int | None:
        """Return the free space, to judge a failed write by; None when it can't be known."""
        try:
            return self.free_space(posixpath.dirname(path) or "/")
        except (PathMissing, PermissionDenied, RemoteFailure):
            return None


def _only(results: Results[T | TransportError]) -> T:
    """Return the one result of work on one thing. Raises: its error."""
    [(_, result)] = results
    if isinstance(result, TransportError):
        raise result
    return result
