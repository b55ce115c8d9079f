"""A session over SFTP version 3: the port's verbs in the protocol's, and in OpenSSH's extensions where advertised."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from paramiko.sftp import (
    CMD_ATTRS,
    CMD_CLOSE,
    CMD_EXTENDED_REPLY,
    CMD_HANDLE,
    CMD_LSTAT,
    CMD_NAME,
    CMD_OPEN,
    CMD_OPENDIR,
    CMD_READDIR,
    CMD_REMOVE,
    CMD_RENAME,
    CMD_SETSTAT,
    CMD_STAT,
    SFTP_EOF,
    SFTP_FLAG_CREATE,
    SFTP_FLAG_EXCL,
    SFTP_FLAG_READ,
    SFTP_FLAG_WRITE,
    SFTP_OK,
)

from datamanager.errors import NotSupported, PathExists, PathMissing, PermissionDenied, RemoteFailure, TransportError
from datamanager.transports.channel import Channel
from datamanager.transports.paths import from_wire, shown
from datamanager.transports.port import Session
from datamanager.transports.remote.copy import RemoteCopy
from datamanager.transports.remote.curl import RemoteCurl
from datamanager.transports.remote.digest import RemoteDigest
from datamanager.transports.remote.follower import RemoteFollower
from datamanager.transports.remote.programs import Programs
from datamanager.transports.remote.site_program import run
from datamanager.transports.remote.third_party_push import push
from datamanager.transports.sftp.attributes import NO_ATTRIBUTES, pack_attributes, unpack_stat
from datamanager.transports.sftp.bulk import SftpMany
from datamanager.transports.sftp.errors import SFTP_FAILURE, check, code_of, expect, status_error
from datamanager.transports.sftp.files import SftpReader, SftpWriter
from datamanager.transports.sftp.wire import Wire, string, u32
from datamanager.transports.values import Features, FileKind, FileStat, Progress, PushTarget, no_progress

_log = logging.getLogger(__name__)

_RENAME, _STATVFS = "posix-rename@openssh.com", "statvfs@openssh.com"


class SftpSession:
    """One SFTP conversation as a Session of the port."""

    def __init__(self, wire: Wire, programs: Programs) -> None:
        self._wire = wire
        self._programs = programs
        self._digester = RemoteDigest(programs)
        self._copying = RemoteCopy(wire, programs)
        # only OpenSSH is known to refuse an existing name without a gap; who advertises its rename is one or does alike
        self._rename_is_strict = _RENAME in wire.extensions

    @property
    def channel(self) -> Channel:
        """The channel that carries the session."""
        return self._wire.channel

    @property
    def usable(self) -> bool:
        """Say whether the session may be lent again."""
        return not self._wire.broken and self._wire.channel.alive()

    @property
    def features(self) -> Features:
        """Say what this session can do; the first call may run a program on the machine to find out."""
        extensions = self._wire.extensions
        return Features(
            server_side_copy=self._copying.available,
            remote_digest=self._digester.available(self._wire.channel),
            fsync="fsync@openssh.com" in extensions,
            free_space=_STATVFS in extensions,
            atomic_no_replace=self._rename_is_strict,
        )

    @property
    def round_trip(self) -> float:
        """Seconds of the shortest round trip seen."""
        return self._wire.round_trip

    def stat(self, path: str) -> FileStat:
        """Return what is at `path`, following links."""
        return unpack_stat(expect(self._wire.call(CMD_STAT, string(path)), CMD_ATTRS, path).fields())

    def lstat(self, path: str) -> FileStat:
        """Return what is at `path` itself."""
        return unpack_stat(expect(self._wire.call(CMD_LSTAT, string(path)), CMD_ATTRS, path).fields())

    def real_path(self, path: str) -> str:
        """Return `path` with every link resolved."""
        [(_, found)] = self.many.real_path([path])
        if isinstance(found, TransportError):
            raise found
        return found

    def list_dir(self, path: str) -> Iterator[tuple[str, FileStat]]:
        """Yield (name, lstat) of each entry."""
        handle = self._handle(CMD_OPENDIR, path)
        try:
            while True:
                reply = self._wire.call(CMD_READDIR, string(handle))
                if code_of(reply) == SFTP_EOF:
                    return
                message = expect(reply, CMD_NAME, path).fields()
                for _ in range(message.get_int()):
                    name = from_wire(message.get_string())
                    message.get_string()  # the line that `ls -l` would show
                    attributes = unpack_stat(message)
                    if name not in (".", ".."):
                        yield name, attributes
        finally:
            self._close(handle)

    def make_dirs(self, path: str) -> None:
        """Make the directory and its missing parents, the deepest tried first: mostly it is there."""
        try:
            self._make_dir(path)
        except PathMissing:
            parent = posixpath.dirname(path.rstrip("/"))
            if parent in ("", "/"):
                raise
            self.make_dirs(parent)
            self._make_dir(path)

    def free_space(self, path: str) -> int | None:
        """Return f_bavail in bytes."""
        if _STATVFS not in self._wire.extensions:
            return None
        reply = expect(self._wire.extended(_STATVFS, string(path)), CMD_EXTENDED_REPLY, path)
        message = reply.fields()
        _, fragment, _, _, available = (message.get_int64() for _ in range(5))
        return available * fragment

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
        with self._written(self._create(path, mode), path) as writer:
            yield writer

    @contextmanager
    def reopen(self, path: str) -> Iterator[SftpWriter]:
        """Open an existing regular file for writing.

        A link is looked for before: SFTP can't open a file without following one, so a gap stays.
        """
        if self.lstat(path).kind is not FileKind.FILE:
            raise RemoteFailure(f"{shown(path)}: is no regular file")
        handle = self._handle(CMD_OPEN, path, u32(SFTP_FLAG_WRITE), NO_ATTRIBUTES)
        with self._written(handle, path) as writer:
            yield writer

    def rename(self, source: str, destination: str, *, overwrite: bool) -> None:
        """Give a file its new name; see the port.

        To overwrite, the server needs OpenSSH's posix-rename; the plain RENAME refuses an existing name.
        """
        if overwrite and _RENAME in self._wire.extensions:
            check(self._wire.extended(_RENAME, string(source), string(destination)), source)
            return
        reply = self._wire.call(CMD_RENAME, string(source), string(destination))
        if code_of(reply) == SFTP_OK:
            return
        if code_of(reply) == SFTP_FAILURE and self._exists(destination):
            if overwrite:
                raise RemoteFailure(f"{shown(destination)}: the server can't replace a file atomically")
            raise PathExists(f"{shown(destination)}: is taken")
        if code_of(reply) != SFTP_FAILURE or _RENAME not in self._wire.extensions:
            raise status_error(reply, source)
        # no hard links there, so the server's RENAME can't work; the other has a gap since the look above, and says so
        check(self._wire.extended(_RENAME, string(source), string(destination)), destination)
        self._rename_is_strict = False

    def remove(self, path: str) -> None:
        """Remove a file."""
        check(self._wire.call(CMD_REMOVE, string(path)), path)

    def set_attributes(self, path: str, *, mode: int, mtime: int) -> None:
        """Set permission bits and modification time."""
        check(self._wire.call(CMD_SETSTAT, string(path), pack_attributes(mode=mode, mtime=mtime)), path)

    def copy_within(
        self,
        source: str,
        destination: str,
        progress: Progress = no_progress,
        beside: Sequence[Session] = (),
    ) -> bool:
        """Copy on the machine by the server's copy-data extension, else by a `cp` there."""
        others = [one for one in beside if isinstance(one, SftpSession)]
        return self._copying.copy(self, source, destination, progress, others)

    def digest(self, path: str, progress: Progress = no_progress) -> str | None:
        """Return the sha256 that a program on the machine computes, or None."""
        if self.stat(path).kind is not FileKind.FILE:
            raise RemoteFailure(f"{shown(path)}: is no regular file")
        return self._digester.compute(self._wire.channel, path, progress)

    def push(self, path: str, to: PushTarget, progress: Progress) -> bool:
        """Let the machine send a file to another one."""
        return push(self._wire.channel, path, to, progress)

    def run(self, words: Sequence[str], progress: Progress = no_progress) -> int:
        """Run a program on the machine, over the same connection."""
        return run(self._wire.channel, words, progress)

    @contextmanager
    def curl(
        self,
        config: bytes,
        authorities: bytes = b"",
        *,
        path: str = "",
        start: int = 0,
        progress: Progress = no_progress,
    ) -> Iterator[RemoteCurl]:
        """Begin to fetch a URL by the machine's own curl, over the same connection."""
        channel = self._wire.channel
        if not self._programs.can_fetch(channel):
            raise NotSupported("it has no shell for us, or no curl")
        with RemoteCurl(channel, config, authorities, path, start, progress) as curl:
            yield curl

    @property
    def many(self) -> SftpMany:
        """Work on many small files at once."""
        return SftpMany(self._wire, self._digester)

    @contextmanager
    def follow(self, path: str) -> Iterator[RemoteFollower | None]:
        """Begin to hash a file that is being written, by a program on the machine."""
        with ExitStack() as stack:
            channel, follower = self._wire.channel, None
            program = self._programs.sha256(channel)
            if program is not None and self._programs.can_pass_on(channel):
                try:
                    follower = stack.enter_context(RemoteFollower(channel, program, path))
                except RemoteFailure as exc:
                    _log.info("%s can't be followed: %s", shown(path), exc.detail)
            yield follower

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

    def _close(self, handle: bytes) -> None:
        if not self._wire.broken:
            self._wire.forget([self._wire.post(CMD_CLOSE, string(handle))])

    def _create(self, path: str, mode: int) -> bytes:
        flags = u32(SFTP_FLAG_WRITE | SFTP_FLAG_CREATE | SFTP_FLAG_EXCL)
        reply = self._wire.call(CMD_OPEN, string(path), flags, pack_attributes(mode=mode))
        if code_of(reply) == SFTP_FAILURE and self._exists(path):
            raise PathExists(f"{shown(path)}: is taken")
        return expect(reply, CMD_HANDLE, path).fields().get_string()

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

    def _make_dir(self, path: str) -> None:
        [(_, error)] = self.many.make_dir([path])
        if error is not None:
            raise error

    def _exists(self, path: str) -> bool:
        return self._wire.call(CMD_LSTAT, string(path)).kind == CMD_ATTRS

    def _space_left(self, path: str) -> int | None:
        """Return the free space, to judge a failed write by; None when it can't be known."""
        try:
            return self.free_space(posixpath.dirname(path) or "/")
        except (PathMissing, PermissionDenied, RemoteFailure):
            return None
