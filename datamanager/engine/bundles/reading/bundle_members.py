"""The members of a stored bundle as small files of a machine, for the bulk engine (`engine.pieces`)."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from hashlib import sha256

from datamanager.domain.archive.bundle_model import Member, Pack
from datamanager.domain.location import Place
from datamanager.engine.bundles.format.layout import header_of
from datamanager.engine.bundles.reading.stored_bundle import StoredBundle, require_header, require_there
from datamanager.engine.container_members import BulkContainerMembers, ContainerMember, ContainerMembers
from datamanager.errors import ChecksumMismatch
from datamanager.machines import Machine
from datamanager.transports.port import Session
from datamanager.transports.values import FileKind, FileStat, SmallFile


class Members(ContainerMembers):
    """See `engine.chunk.SmallFileSource`. A member's place is below the bundle's, as if that were a directory."""

    def __init__(self, session: Session, machine: Machine, stored: StoredBundle, members: Sequence[Member]) -> None:
        self._stored = stored
        pieces = {posixpath.join(machine.base_dir, self.place(one).path): self._piece(one) for one in members}

        def there(asked: Session) -> None:
            require_there(asked, stored.path, stored.bundle)

        super().__init__(BulkContainerMembers(session, stored.open, there, pieces))

    def place(self, member: Member) -> Place:
        """Return a member's place."""
        bundle = self._stored.bundle.place
        return Place(bundle.machine, posixpath.join(bundle.path, member.name))

    def _piece(self, member: Member) -> ContainerMember:
        """Return where a member's header begins, the length of both, and how they are judged."""
        bundle = self._stored.bundle
        head = 0 if bundle.pack is Pack.NONE else len(header_of(member))
        stat = FileStat(FileKind.FILE, member.size, member.mtime, member.mode)

        def unfold(data: bytes) -> SmallFile | ChecksumMismatch:
            try:
                if head:
                    require_header(member, data[:head])
            except ChecksumMismatch as other:
                return other
            if sha256(memoryview(data)[head:]).hexdigest() != member.sha256:
                return ChecksumMismatch(f"{bundle.place}: {member.name} has a different sha256 than the stored one")
            return SmallFile(stat, data[head:])

        return ContainerMember(member.offset - head, head + member.size, stat, unfold)
