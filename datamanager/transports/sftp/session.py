"""A session over SFTP version 3: the port's verbs in the protocol's, and in OpenSSH's extensions where advertised."""

from __future__ import annotations

import posixpath
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from paramiko import sftp

from datamanager.errors import PathExists, RemoteFailure, TransportError
from datamanager.transports.bulk_port import Results
from datamanager.transports.port import Session
from datamanager.transports.remote.many_files import ManyFiles
from datamanager.transports.remote.programs import RemotePrograms
from datamanager.transports.remote.running import InstalledPrograms
from datamanager.transports.sftp.bulk import NEW, SftpBulk
from datamanager.transports.sftp.errors import check, expect
from datamanager.transports.sftp.files import SftpReader, SftpWriter
from datamanager.transports.sftp.large_reads import LargeReader
from datamanager.transports.sftp.looks import (
    act_and_look,
    act_and_see,
    begin_look,
    look_at_rename,
    require_in_place,
    same_file,
)
from datamanager.transports.sftp.pipeline import close_handle
from datamanager.transports.sftp.program_bulk import ProgramBulk
from datamanager.transports.sftp.server_behaviour import FSYNC, STATVFS, ServerBehaviour
from datamanager.transports.sftp.wire import (
    NO_ATTRIBUTES,
    Wire,
    pack_attributes,
    string,
    u32,
    unpack_space,
    unpack_stat,
)
from datamanager.transports.values import (
    FileStat,
    KeptAttributes,
    Progress,
    from_wire,
    no_progress,
    own_file,
    require_file,
    shown,
)

T = TypeVar("T")

_LISTS_AT_FIRST, _LISTS_IN_FLIGHT = 2, 8
"""Pieces of a directory (OpenSSH's have 100 names) that are requested at once; more for one that has many."""
_COPY_DATA = "copy-data"
_COPY_RANGE = 128 * 1024 * 1024
"""Bytes per `copy-data`, which blocks the channel: between two of them progress is reported, and a cancellation
noticed."""


class SftpSession:
    """One SFTP conversation as a Session of the port."""

    def __init__(self, wire: Wire, installed: InstalledPrograms, server: ServerBehaviour) -> None:
        self.bulk = self._one = SftpBulk(wire, installed, server)
        self.channel = wire.channel
        self._many: ManyFiles | None = None
        self._wire = wire
        self._installed = installed
        self._server = server

    @property
    def usable(self) -> bool:
        """Say whether the session may be used again."""
        return not self._wire.broken and not (self._many and self._many.broken) and self.channel.alive()

    @property
    def has_program(self) -> bool:
        """Say whether `bulk` works by a program on the machine."""
        return self._many is not None

    @property
    def round_trip(self) -> float:
        """Seconds of the shortest round trip seen."""
        return self._wire.round_trip

    @property
    def programs(self) -> SftpPrograms:
        """What the machine does by itself."""
        return SftpPrograms(self, self._wire, self._installed)

    def begin_many(self) -> bool:
        """Have `bulk` work by a program on the machine from now on, where that can be started."""
        if self._many is None and (many := self._installed.begin_many(self.channel)) is not None:
            self._many = many
            self.bulk = ProgramBulk(self._wire, self._installed, self._server, many)
        return self._many is not None

    def stat(self, path: str) -> FileStat:
        """Return what is at `path`, following links."""
        return unpack_stat(expect(self._wire.call(sftp.CMD_STAT, string(path)), sftp.CMD_ATTRS, path).fields())

    def lstat(self, path: str) -> FileStat:
        """Return what is at `path` itself."""
        return unpack_stat(expect(self._wire.call(sftp.CMD_LSTAT, string(path)), sftp.CMD_ATTRS, path).fields())

    def real_path(self, path: str) -> str:
        """Return `path` with every link resolved."""
        return _only(self._one.real_path([path]))

    def list_dir(self, path: str) -> Iterator[tuple[str, FileStat]]:
        """Yield (name, lstat) of each entry."""
        handle = self._handle(sftp.CMD_OPENDIR, path)
        asked = deque[int]()
        more, further = (sftp.CMD_READDIR, string(handle)), _LISTS_AT_FIRST
        try:
            with self._wire.joined():
                where = self._wire.post(sftp.CMD_REALPATH, string(path))
                asked.extend(self._wire.post(*more) for _ in range(further))
            require_in_place(self._wire, path, where)
            while asked:
                reply = self._wire.take(asked.popleft())
                if reply.code == sftp.SFTP_EOF:
                    further = 0  # a server that answers several at once may have names in its other answers
                    continue
                message = expect(reply, sftp.CMD_NAME, path).fields()
                with self._wire.joined():
                    while further and len(asked) < further:
                        asked.append(self._wire.post(*more))
                further = min(further * 2, _LISTS_IN_FLIGHT)
                for _ in range(message.get_int()):
                    name = from_wire(message.get_string())
                    message.get_string()  # the line that `ls -l` would show
                    attributes = unpack_stat(message)
                    if not name or "/" in name or "\0" in name:
                        raise RemoteFailure(f"{shown(path)}: the server lists {shown(name)}, which is no name")
                    if name not in (".", ".."):
                        yield name, attributes
        finally:
            self._wire.forget(asked)
            close_handle(self._wire, handle)

    def free_space(self, path: str) -> int | None:
        """Return f_bavail in bytes; None where the server has no answer."""
        if STATVFS not in self._wire.extensions:
            return None
        reply = self._wire.extended(STATVFS, string(path))
        free = unpack_space(reply.fields()) if reply.kind == sftp.CMD_EXTENDED_REPLY else None
        if free is None:
            self._server.note("does not say how much space is free")
        return free

    @contextmanager
    def open_read(self, path: str) -> Iterator[SftpReader]:
        """Open a file for reading."""
        handle = self._handle(sftp.CMD_OPEN, path, u32(sftp.SFTP_FLAG_READ), NO_ATTRIBUTES)
        reader = LargeReader(self._wire, handle, path, self._installed)
        try:
            reader.seen = same_file(self._wire, handle, path)
            yield reader
        finally:
            reader.close()

    @contextmanager
    def create(self, path: str, *, mode: int = 0o600) -> Iterator[SftpWriter]:
        """Create a new file, exclusively; leaving the context waits for every status."""
        reply = act_and_look(self._wire, sftp.CMD_OPEN, path, NEW, pack_attributes(mode=mode), there=True)
        if reply.code == sftp.SFTP_FAILURE and self._wire.call(sftp.CMD_LSTAT, string(path)).kind == sftp.CMD_ATTRS:
            raise PathExists(f"{shown(path)}: is taken")
        with self._written(expect(reply, sftp.CMD_HANDLE, path).fields().get_string(), path) as writer:
            yield writer

    @contextmanager
    def reopen(self, path: str) -> Iterator[SftpWriter]:
        """Open an existing regular file for writing.

        A link is looked for before, and before anything is written: SFTP can't open a file without following one.
        """
        require_file(self.lstat(path), path)
        handle = self._handle(sftp.CMD_OPEN, path, u32(sftp.SFTP_FLAG_WRITE), NO_ATTRIBUTES)
        try:
            same_file(self._wire, handle, path)
        except TransportError:
            close_handle(self._wire, handle)
            raise
        with self._written(handle, path) as writer:
            yield writer

    def rename(self, source: str, destination: str, *, overwrite: bool) -> None:
        """Give a file its new name; see the port's bulk work for how."""
        before = begin_look(self._wire, source)
        try:
            _only(self._one.rename([(source, destination)], overwrite=overwrite))
        except BaseException:
            self._wire.forget(before)
            raise
        look_at_rename(self._wire, before, source, destination)

    def remove(self, path: str) -> None:
        """Remove a file."""
        check(act_and_look(self._wire, sftp.CMD_REMOVE, path, there=False), path)

    def set_attributes(self, path: str, *, mode: int, mtime: int) -> KeptAttributes:
        """Set permission bits and modification time; `fsync` is kept as far as the server was seen to do it."""
        attributes = pack_attributes(mode=mode, mtime=mtime)
        told, seen = act_and_see(self._wire, sftp.CMD_SETSTAT, path, attributes, there=True)
        kept = _only(self._one.kept_attributes(path, mode, mtime, told, seen))
        if FSYNC in self._wire.extensions and self._server.syncs:
            return kept
        self._server.note("does not put files on stable storage")
        return KeptAttributes(kept.mtime, (*kept.not_kept, "fsync"))

    def abort(self) -> None:
        """Break the channel, from any thread."""
        self.channel.abort()

    def close(self) -> None:
        """Close the channel; the session can't be used afterwards."""
        if self._many is not None:
            self._installed.end_many(self._many)
        if self._wire.broken:
            self.channel.abort()
        self.channel.close()

    def _handle(self, kind: int, path: str, *fields: bytes) -> bytes:
        return expect(self._wire.call(kind, string(path), *fields), sftp.CMD_HANDLE, path).fields().get_string()

    @contextmanager
    def _written(self, handle: bytes, path: str) -> Iterator[SftpWriter]:
        """Close the file in the end, and wait for every status unless there was an error already."""
        writer = SftpWriter(self._wire, handle, path, self._server, lambda: self._space_left(path))
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
        writer.close()

    def _space_left(self, path: str) -> int | None:
        """Return the free space, to judge a failed write by; None when it can't be known."""
        return self.free_space(posixpath.dirname(path) or "/")


def _only(results: Results[T | TransportError]) -> T:
    """Return the one result of work on one thing. Raises: its error."""
    [(_, result)] = results
    if isinstance(result, TransportError):
        raise result
    return result


class SftpPrograms(RemotePrograms):
    """See the port's Programs. A copy is made by the SFTP server where that has the copy-data extension
    (draft-ietf-secsh-filexfer-extensions-00, section 7). `session` is the one that `wire` carries."""

    def __init__(self, session: SftpSession, wire: Wire, installed: InstalledPrograms) -> None:
        super().__init__(session, wire.channel, installed)
        self._copying = session
        self._wire = wire

    @property
    def can_copy(self) -> bool:
        """Say whether the server or a program can copy."""
        return _COPY_DATA in self._wire.extensions or super().can_copy

    def copy(
        self, source: str, destination: str, progress: Progress = no_progress, beside: Sequence[Session] = ()
    ) -> None:
        """Copy on the machine by the extension, else by a `cp` there."""
        if _COPY_DATA in self._wire.extensions:
            others = [one for one in beside if isinstance(one, SftpSession)]
            if _copy_by_server([self._copying, *others], source, destination, progress):
                return
            del self._wire.extensions[_COPY_DATA]  # it does not know it after all
        super().copy(source, destination, progress)


def _copy_by_server(sessions: Sequence[SftpSession], source: str, destination: str, progress: Progress) -> bool:
    """Copy a file to a new name, ranges in turn by each session; False when the server does not know the extension
    after all, or copied something else by it; nothing is left then."""
    first = sessions[0]
    with ExitStack() as stack:
        opened, created = stack.enter_context(first.open_read(source)), stack.enter_context(first.create(destination))
        size = opened.stat().size
        helpers = sessions[1:] if size > _COPY_RANGE else ()
        readers = [opened, *(stack.enter_context(one.open_read(source)) for one in helpers)]
        writers = [created, *(stack.enter_context(one.reopen(destination)) for one in helpers)]
        copied = _copy_ranges(list(zip(readers, writers, strict=True)), size, progress)
        if copied:
            created.flush()
            with own_file(destination):
                copied = first.stat(destination).size == size
    if not copied:
        with own_file(destination):
            first.remove(destination)
    return copied


def _copy_ranges(pairs: Sequence[tuple[SftpReader, SftpWriter]], size: int, progress: Progress) -> bool:
    """Have one range at work in each session; return False when a server does not know how."""
    offsets = iter(range(0, size, _COPY_RANGE))
    working: deque[tuple[SftpReader, SftpWriter, int, int]] = deque()

    def begin(reader: SftpReader, writer: SftpWriter) -> None:
        offset = next(offsets, None)
        if offset is not None:
            count = min(_COPY_RANGE, size - offset)
            working.append((reader, writer, count, writer.begin_copy(reader, offset, count)))

    try:
        for pair in pairs:
            begin(*pair)
        while working:
            reader, writer, count, number = working.popleft()
            if not writer.copied(number):
                return False
            begin(reader, writer)
            progress(count)
    finally:
        for _, writer, _, number in working:
            writer.forget(number)
    return True
