"""The members of a stored bundle as small files of a machine, for the bulk engine: looked at in the catalogue's words,
read in the bundle's order, with many reads in flight."""

from __future__ import annotations

import posixpath
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256

from datamanager.domain.bundles import Member, Pack
from datamanager.domain.location import Place
from datamanager.engine.bundles.layout import header_of
from datamanager.engine.bundles.stored import Stored, require_header, require_there
from datamanager.errors import ChecksumMismatch, DataManagerError, PathMissing, TransportError
from datamanager.machines import Machine
from datamanager.transports.base import FileKind, FileStat, Reader, Session
from datamanager.transports.many import Results, SmallFile
from datamanager.transports.paths import shown


class Members:
    """See `engine.chunk.Source`. A member's place is below the bundle's, as if that were a directory."""

    def __init__(self, session: Session, machine: Machine, stored: Stored, members: Sequence[Member]) -> None:
        self._bundle = stored.bundle.place
        self.many = ManyMembers(
            session, stored, {posixpath.join(machine.base_dir, self.place(one).path): one for one in members}
        )

    def real_path(self, path: str) -> str:
        """Return the path: there are no links."""
        return path

    def place(self, member: Member) -> Place:
        """Return a member's place."""
        return Place(self._bundle.machine, posixpath.join(self._bundle.path, member.name))


class ManyMembers:
    """See `engine.chunk.ReadsMany`. One damaged member is its own failure."""

    def __init__(self, session: Session, stored: Stored, members: Mapping[str, Member]) -> None:
        self._session = session
        self._stored = stored
        self._members = members
        self._headed = stored.bundle.pack is not Pack.NONE

    def real_path(self, paths: Sequence[str]) -> Results[str | TransportError]:
        """Yield each path: there are no links."""
        yield from enumerate(paths)

    def lstat(self, paths: Sequence[str]) -> Results[FileStat | TransportError]:
        """Yield what each member's file was. Raises: SourceMissing, SourceChanged (the bundle is not what it was)."""
        require_there(self._session, self._stored.path, self._stored.bundle)
        for index, path in enumerate(paths):
            member = self._members.get(path)
            if member is None:
                yield index, PathMissing(f"{shown(path)}: no such member")
            else:
                yield index, FileStat(FileKind.FILE, member.size, member.mtime, member.mode)

    def read(
        self,
        paths: Sequence[str],
        most: int,  # noqa: ARG002 - looked at before
        likely: int | None = None,  # noqa: ARG002
    ) -> Results[SmallFile | DataManagerError]:
        """Yield the members' bytes, or ChecksumMismatch, in the bundle's order."""
        members = [(index, self._members[path]) for index, path in enumerate(paths)]
        waiting = deque(sorted(members, key=lambda one: one[1].offset))
        with self._stored.open(self._session) as reader:
            while waiting:
                try:
                    yield from self._read(reader, waiting)
                except ChecksumMismatch as damaged:  # a frame; what follows may be good
                    yield waiting.popleft()[0], damaged

    def _read(
        self, reader: Reader, waiting: deque[tuple[int, Member]]
    ) -> Iterator[tuple[int, SmallFile | DataManagerError]]:
        ranges = iter([self._range(member) for _, member in waiting])
        data = bytearray()
        blocks = reader.ranges(lambda _: next(ranges, None))
        while waiting:
            index, member = waiting[0]
            _, length = self._range(member)
            while len(data) < length:
                found = next(blocks, None)
                if found is None:
                    raise ChecksumMismatch(f"{self._stored.bundle.place} ends before {member.name}")
                data += found[1]
            waiting.popleft()
            yield index, self._checked(member, bytes(data[:length]))
            del data[:length]

    def _range(self, member: Member) -> tuple[int, int]:
        """Return where a member's header begins, and the length of both."""
        head = len(header_of(member)) if self._headed else 0
        return member.offset - head, head + member.size

    def _checked(self, member: Member, data: bytes) -> SmallFile | ChecksumMismatch:
        head = len(data) - member.size
        try:
            if self._headed:
                require_header(member, data[:head])
        except ChecksumMismatch as other:
            return other
        if sha256(memoryview(data)[head:]).hexdigest() != member.sha256:
            return ChecksumMismatch(f"{self._stored.bundle.place}: {member.name} has another sha256 than was stored")
        return SmallFile(FileStat(FileKind.FILE, member.size, member.mtime, member.mode), data[head:])
