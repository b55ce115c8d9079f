"""Many small files over SFTP version 3, pipelined: the port's `Bulk` in the protocol's requests.

Each file's work is a generator (see `pipeline`) and waits for its own replies alone. Where the machine has a
shell, a program there does what SFTP can't: hash, unpack, sync.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256

from paramiko import sftp

from datamanager.errors import NotSupported, PathExists, PathMissing, PathReplaced, RemoteFailure, TransportError
from datamanager.transports.bulk_port import MOST_IN_FLIGHT, InOneTurn, Results, Sync
from datamanager.transports.remote.batch import digests, no_sync, syncing, unpack
from datamanager.transports.remote.running import InstalledPrograms
from datamanager.transports.sftp.errors import SPACE_IS_GONE, check, expect, status_error, write_error
from datamanager.transports.sftp.pipeline import Work, close_handle, pipelined
from datamanager.transports.sftp.server_behaviour import HARDLINK, RENAME, STATVFS, Naming, ServerBehaviour
from datamanager.transports.sftp.wire import (
    NO_ATTRIBUTES,
    Reply,
    Wire,
    pack_attributes,
    pack_mtime,
    string,
    u32,
    u64,
    unpack_space,
    unpack_stat,
)
from datamanager.transports.values import (
    FileKind,
    FileStat,
    KeptAttributes,
    NewFile,
    SmallFile,
    from_wire,
    own_file,
    own_file_gone,
    require_file,
    shown,
)

_IN_FLIGHT = 64
"""Open files at once on a machine that does not say how many it allows."""
_MEMORY = 32 * 1024 * 1024
"""Bytes of files that are read at once."""
_NAMES_IN_FLIGHT = 512
"""Requests at once that open nothing and carry no file's bytes."""
NEW = u32(sftp.SFTP_FLAG_WRITE | sftp.SFTP_FLAG_CREATE | sftp.SFTP_FLAG_EXCL)


class SftpBulk:
    """One SFTP conversation's work on many small files."""

    def __init__(self, wire: Wire, installed: InstalledPrograms, server: ServerBehaviour) -> None:
        self._wire = wire
        self._installed = installed
        self._server = server
        self._full = False
        self.in_one_turn: InOneTurn | None = None

    def lstat(self, paths: Sequence[str]) -> Results[FileStat | TransportError]:
        """Yield each path's lstat."""
        return pipelined(self._wire, map(self._lstat, paths), _NAMES_IN_FLIGHT)

    def real_path(self, paths: Sequence[str]) -> Results[str | TransportError]:
        """Yield each path with every link resolved."""
        return pipelined(self._wire, map(self._real_path, paths), _NAMES_IN_FLIGHT)

    def make_dir(self, paths: Sequence[str]) -> Results[TransportError | None]:
        """Make each directory."""
        return pipelined(self._wire, map(self._make_dir, paths), _NAMES_IN_FLIGHT)

    def read(self, paths: Sequence[str], most: int, likely: int | None = None) -> Results[SmallFile | TransportError]:
        """Yield whole regular files. Looked at before they are opened: a link is not followed, a FIFO would block."""
        at_once = max(1, min(self._open_at_once, _MEMORY // max(1, most if likely is None else likely)))
        return pipelined(self._wire, (self._read(path, most) for path in paths), at_once)

    def write(self, files: Iterable[NewFile]) -> Results[KeptAttributes | TransportError]:
        """Create each file, write it, set its mode and mtime, close it."""
        self._full = False
        return pipelined(self._wire, map(self._write, files), self._open_at_once)

    def kept_attributes(
        self, path: str, mode: int, mtime: int, told: Reply, seen: Reply
    ) -> Results[KeptAttributes | TransportError]:
        """Yield what the server keeps of a file's mode and mtime, which it was `told`; `seen`: of a first LSTAT behind
        that."""
        if told.code == sftp.SFTP_OK and seen.kind == sftp.CMD_ATTRS:
            kept = KeptAttributes.of(unpack_stat(seen.fields()), mode=mode, mtime=mtime)
            if not kept.not_kept:
                yield 0, kept
                return
        yield from pipelined(self._wire, [self._look_at_attributes(path, mode, mtime, told)], 1)

    def rename(self, names: Sequence[tuple[str, str]], *, overwrite: bool) -> Results[TransportError | None]:
        """Give each file its new name."""
        if overwrite:
            works = (self._replace(source, destination) for source, destination in names)
            yield from pipelined(self._wire, works, _NAMES_IN_FLIGHT)
            return
        directories = [posixpath.dirname(destination) or "/" for _, destination in names]
        naming, away = None, dict[str, PathReplaced]()
        for directory in dict.fromkeys(directories):
            try:
                naming = self._server.naming(self._wire, directory)
                break
            except PathReplaced as exc:
                away[directory] = exc
        yield from ((index, away[directory]) for index, directory in enumerate(directories) if directory in away)
        if naming is not None:
            rest = [index for index, directory in enumerate(directories) if directory not in away]
            works = (self._rename(*names[index], naming) for index in rest)
            for place, error in pipelined(self._wire, works, _NAMES_IN_FLIGHT):
                yield rest[place], error

    def remove(self, paths: Sequence[str]) -> Results[TransportError | None]:
        """Remove each file."""
        return pipelined(self._wire, map(self._remove, paths), _NAMES_IN_FLIGHT)

    def digest(self, paths: Sequence[str], most: int) -> Results[str | TransportError]:
        """Yield each file's sha256: the machine's, else of what is read back."""
        files = list[int]()
        for index, found in self.lstat(paths):
            if isinstance(found, TransportError):
                yield index, found
            elif found.kind is not FileKind.FILE:  # a program that reads a FIFO would wait for ever
                yield index, RemoteFailure(f"{shown(paths[index])}: is not a regular file")
            else:
                files.append(index)
        hashed = set[int]()
        if files and self._has_shell():
            for place, digest in digests(self._wire.channel, [paths[index] for index in files]):
                hashed.add(files[place])
                yield files[place], digest
        rest = [index for index in files if index not in hashed]
        for place, file in self.read([paths[index] for index in rest], most):
            yield rest[place], file if isinstance(file, TransportError) else sha256(file.data).hexdigest()

    def unpack(self, files: Iterable[NewFile], directory: str) -> None:
        """Create the files by a tar stream."""
        if not self._has_shell():
            raise NotSupported("the machine has no shell for us")
        unpack(self._wire.channel, files, directory)

    def syncing(self) -> AbstractContextManager[Sync]:
        """Make ready to put directories' file systems on stable storage, by a program."""
        return syncing(self._wire.channel) if self._has_shell() else nullcontext(no_sync)

    @property
    def _open_at_once(self) -> int:
        allowed = self._wire.open_handles
        return min(MOST_IN_FLIGHT, allowed // 2) if allowed else _IN_FLIGHT

    def _has_shell(self) -> bool:
        return self._installed.sha256(self._wire.channel) is not None

    def _lstat(self, path: str) -> Work[FileStat]:
        [reply] = yield [self._wire.post(sftp.CMD_LSTAT, string(path))]
        return unpack_stat(expect(reply, sftp.CMD_ATTRS, path).fields())

    def _real_path(self, path: str) -> Work[str]:
        # sent together: servers resolve a path whose last part is missing, too
        resolved, there = yield [self._wire.post(kind, string(path)) for kind in (sftp.CMD_REALPATH, sftp.CMD_STAT)]
        expect(there, sftp.CMD_ATTRS, path)
        message = expect(resolved, sftp.CMD_NAME, path).fields()
        message.get_int()  # always one name
        return from_wire(message.get_string())

    def _make_dir(self, path: str) -> Work[None]:
        [reply] = yield [self._wire.post(sftp.CMD_MKDIR, string(path) + NO_ATTRIBUTES)]
        if reply.code == sftp.SFTP_OK:
            return
        error = status_error(reply, path)
        if isinstance(error, PathMissing):
            raise error
        # FAILURE mostly means that it exists; automounters answer "permission denied" for what exists
        there, itself = yield [self._wire.post(kind, string(path)) for kind in (sftp.CMD_STAT, sftp.CMD_LSTAT)]
        if there.kind == sftp.CMD_ATTRS:
            if unpack_stat(there.fields()).kind is not FileKind.DIRECTORY:
                raise PathExists(f"{shown(path)}: a file exists there")
        elif itself.kind == sftp.CMD_ATTRS:
            raise PathExists(f"{shown(path)}: a link that leads nowhere is in the way")
        else:
            raise error

    def _read(self, path: str, most: int) -> Work[SmallFile]:
        _require_small((yield from self._lstat(path)), path, most)
        [reply] = yield [self._wire.post(sftp.CMD_OPEN, string(path), u32(sftp.SFTP_FLAG_READ) + NO_ATTRIBUTES)]
        handle = expect(reply, sftp.CMD_HANDLE, path).fields().get_string()
        try:
            # one byte more than allowed shows a file that is larger
            status, first = yield [self._wire.post(sftp.CMD_FSTAT, string(handle)), self._request(handle, 0, most + 1)]
            stat = unpack_stat(expect(status, sftp.CMD_ATTRS, path).fields())
            _require_small(stat, path, most)
            data = bytearray()
            while first.code != sftp.SFTP_EOF and (block := expect(first, sftp.CMD_DATA, path).body[4:]):
                data += block
                if len(data) > most:
                    raise _too_large(path, most)
                if len(data) == stat.size:
                    break
                [first] = yield [self._request(handle, len(data), most + 1 - len(data))]
            return SmallFile(stat, bytes(data))
        finally:
            close_handle(self._wire, handle)

    def _write(self, file: NewFile) -> Work[KeptAttributes]:
        path = file.path
        [reply] = yield [self._wire.post(sftp.CMD_OPEN, string(path), NEW + pack_attributes(mode=0o600))]
        if reply.code == sftp.SFTP_FAILURE and (yield from self._exists(path)):
            raise PathExists(f"{shown(path)}: is taken")
        handle = string(expect(reply, sftp.CMD_HANDLE, path).fields().get_string())
        data, block, post = memoryview(file.data), self._wire.write_block, self._wire.post
        posted = []
        for start in range(0, len(data), block):
            piece = data[start : start + block]
            posted.append(post(sftp.CMD_WRITE, handle + u64(start) + u32(len(piece)), piece))
        posted.append(post(sftp.CMD_CLOSE, handle))
        # set by name, after the close: some servers take a time that an open file was given back
        posted += self._post_attributes(path, file.mode, file.mtime)
        mode, mtime = file.mode, file.mtime
        del file, data  # what was sent need not be kept until the answers are there
        *replies, told, seen = yield posted
        bad = next((reply for reply in replies if reply.code != sftp.SFTP_OK), None)
        if bad is None:
            with own_file(path):
                return (yield from self._kept(path, mode, mtime, told, seen))
        error = write_error(bad, path, full=bad.code == sftp.SFTP_FAILURE and (yield from self._space_is_gone(path)))
        [removed] = yield [post(sftp.CMD_REMOVE, string(path))]
        raise own_file_gone(path) if removed.code == sftp.SFTP_NO_SUCH_FILE else error

    def _post_attributes(self, path: str, mode: int, mtime: int) -> list[int]:
        """Set both, and look: a server may accept what it ignores. Costs no round trip of its own."""
        post, name = self._wire.post, string(path)
        return [post(sftp.CMD_SETSTAT, name + pack_attributes(mode=mode, mtime=mtime)), post(sftp.CMD_LSTAT, name)]

    def _look_at_attributes(self, path: str, mode: int, mtime: int, told: Reply) -> Work[KeptAttributes]:
        [seen] = yield [self._wire.post(sftp.CMD_LSTAT, string(path))]
        return (yield from self._kept(path, mode, mtime, told, seen))

    def _kept(self, path: str, mode: int, mtime: int, told: Reply, seen: Reply) -> Work[KeptAttributes]:
        """Return what the server keeps. One that refuses both may take each alone; one that answers several requests
        at once may have looked too early."""
        post, name = self._wire.post, string(path)
        kept = KeptAttributes.of(unpack_stat(expect(seen, sftp.CMD_ATTRS, path).fields()), mode=mode, mtime=mtime)
        if told.code == sftp.SFTP_OK and not kept.not_kept:
            return kept
        if told.code != sftp.SFTP_OK:
            if isinstance(error := status_error(told, path), PathMissing):
                raise error
            yield [post(sftp.CMD_SETSTAT, name + one) for one in (pack_attributes(mode=mode), pack_mtime(mtime))]
        [seen] = yield [post(sftp.CMD_LSTAT, name)]
        kept = KeptAttributes.of(unpack_stat(expect(seen, sftp.CMD_ATTRS, path).fields()), mode=mode, mtime=mtime)
        for lost in kept.not_kept:
            self._server.note(f"does not keep the {lost} of files")
        return kept

    def _replace(self, source: str, destination: str) -> Work[None]:
        """Rename and replace, by OpenSSH's posix-rename; a plain RENAME that replaces will do, too."""
        names = string(source) + string(destination)
        if RENAME in self._wire.extensions:
            [reply] = yield [self._wire.post(sftp.CMD_EXTENDED, string(RENAME) + names)]
            if reply.code != sftp.SFTP_OP_UNSUPPORTED:
                return check(reply, source)
        [reply] = yield [self._wire.post(sftp.CMD_RENAME, names)]
        if reply.code == sftp.SFTP_FAILURE and (yield from self._exists(destination)):
            raise RemoteFailure(f"{shown(destination)}: the server can't replace a file atomically")
        check(reply, source)

    def _rename(self, source: str, destination: str, naming: Naming) -> Work[None]:
        """Rename to a name that must be free, as this server does it."""
        names = string(source) + string(destination)
        if naming is Naming.LINK and (yield from self._link(source, destination)):
            return
        if naming is not Naming.RENAME and (yield from self._exists(destination)):
            raise PathExists(f"{shown(destination)}: is taken")
        [reply] = yield [self._wire.post(sftp.CMD_RENAME, names)]
        if reply.code == sftp.SFTP_OK:
            return
        if reply.code == sftp.SFTP_FAILURE and (yield from self._exists(destination)):
            raise PathExists(f"{shown(destination)}: is taken")
        if reply.code != sftp.SFTP_FAILURE or RENAME not in self._wire.extensions:
            raise status_error(reply, source)
        # no hard links there, so the server's RENAME can't work; the other has a gap since the look above
        [reply] = yield [self._wire.post(sftp.CMD_EXTENDED, string(RENAME) + names)]
        check(reply, destination)

    def _link(self, source: str, destination: str) -> Work[bool]:
        """Rename by link and unlink; False where hard links don't work, nothing is changed then."""
        names = string(source) + string(destination)
        [linked] = yield [self._wire.post(sftp.CMD_EXTENDED, string(HARDLINK) + names)]
        if linked.code != sftp.SFTP_OK:
            there, itself = yield [self._wire.post(sftp.CMD_LSTAT, string(path)) for path in (destination, source)]
            if there.kind == sftp.CMD_ATTRS:
                raise PathExists(f"{shown(destination)}: is taken")
            expect(itself, sftp.CMD_ATTRS, source)
            return False
        [reply] = yield [self._wire.post(sftp.CMD_REMOVE, string(source))]
        if reply.code in (sftp.SFTP_OK, sftp.SFTP_NO_SUCH_FILE):
            return True
        # as OpenSSH's server does it: left there, our own link would be in the way of the next try
        looks = yield [self._wire.post(sftp.CMD_LSTAT, string(path)) for path in (source, destination)]
        if all(look.kind == sftp.CMD_ATTRS for look in looks) and looks[0].body == looks[1].body:
            yield [self._wire.post(sftp.CMD_REMOVE, string(destination))]
        raise status_error(reply, source)

    def _remove(self, path: str) -> Work[None]:
        [reply] = yield [self._wire.post(sftp.CMD_REMOVE, string(path))]
        check(reply, path)

    def _exists(self, path: str) -> Work[bool]:
        [reply] = yield [self._wire.post(sftp.CMD_LSTAT, string(path))]
        return reply.kind == sftp.CMD_ATTRS

    def _space_is_gone(self, path: str) -> Work[bool]:
        """Say whether a full file system is what made a write fail.

        Once it was full it stays so for the files under way: those that failed are removed, which makes room again
        before others are judged.
        """
        if not self._full and STATVFS in self._wire.extensions:
            directory = string(posixpath.dirname(path) or "/")
            [reply] = yield [self._wire.post(sftp.CMD_EXTENDED, string(STATVFS) + directory)]
            if reply.kind == sftp.CMD_EXTENDED_REPLY:
                free = unpack_space(reply.fields())
                self._full = free is not None and free < SPACE_IS_GONE
        return self._full

    def _request(self, handle: bytes, offset: int, size: int) -> int:
        return self._wire.post(sftp.CMD_READ, string(handle) + u64(offset) + u32(min(self._wire.read_block, size)))


def _require_small(stat: FileStat, path: str, most: int) -> None:
    require_file(stat, path)
    if stat.size > most:
        raise _too_large(path, most)


def _too_large(path: str, most: int) -> RemoteFailure:
    return RemoteFailure(f"{shown(path)}: is larger than {most} bytes")
