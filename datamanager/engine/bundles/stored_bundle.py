"""A bundle as it lies in an archive: its tar file, read at any offset, and its members, each with the header that is to
stand before it."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager

from datamanager.domain.bundle_model import Frame, Member, Pack, SealedBundle, manifest_place
from datamanager.engine.attempt import Digest
from datamanager.engine.bundles import manifest
from datamanager.engine.bundles.frames import FOOTER, FramesReader, read_table, require_whole, table_size
from datamanager.engine.bundles.layout import header_of
from datamanager.engine.path_confinement import confined
from datamanager.engine.virtual_files import Slice
from datamanager.errors import ChecksumMismatch, PathMissing, RemoteFailure, SourceChanged, SourceMissing
from datamanager.machines import Machine
from datamanager.transports.port import Reader, Session
from datamanager.transports.values import FileKind, FileStat


class StoredBundle:
    """A bundle at a path (absolute, links resolved) of its machine; `frames` of a compressed one."""

    def __init__(self, path: str, bundle: SealedBundle, frames: tuple[Frame, ...]) -> None:
        self.path = path
        self.bundle = bundle
        self._frames = frames

    @classmethod
    def find(cls, session: Session, archive: Machine, bundle: SealedBundle) -> StoredBundle:
        """Look at a bundle on its machine. Raises: SourceMissing, SourceChanged (it has another size), RemoteFailure,
        PathNotAllowed."""
        try:
            path = confined(session, archive, bundle.place.path)
        except PathMissing:
            raise SourceMissing(f"{bundle.place}: no such bundle") from None
        require_there(session, path, bundle)
        return cls(path, bundle, _frames(session, path, bundle) if bundle.pack is Pack.TAR_ZST else ())

    @contextmanager
    def open(self, session: Session) -> Iterator[Reader]:
        """Open the tar file in it, or, with `Pack.NONE`, the member that it is. Raises: PathMissing."""
        with session.open_read(self.path) as reader:
            yield FramesReader(reader, self._frames) if self._frames else reader


class BundleMemberContent:
    """One member, as a transfer's content; see `engine.attempt.Content`."""

    def __init__(self, stored: StoredBundle, member: Member) -> None:
        self._stored = stored
        self._member = member

    @property
    def stat(self) -> FileStat:
        """What the member's file was."""
        return FileStat(FileKind.FILE, self._member.size, self._member.mtime, self._member.mode)

    @contextmanager
    def open(self, session: Session) -> Iterator[Reader]:
        """Open it, after a look at its header. Raises: ChecksumMismatch when another one, or none, is there."""
        with self._stored.open(session) as reader:
            if self._stored.bundle.pack is not Pack.NONE:
                head = header_of(self._member)
                found = b"".join(bytes(one) for one in reader.blocks(self._member.offset - len(head), len(head)))
                require_header(self._member, found)
            yield Slice(reader, self._member.offset, self.stat)

    def digest(self) -> Digest:
        """Return a new hash."""
        return hashlib.sha256()

    def require_unchanged(self, session: Session) -> None:
        """Look at the bundle once more. Raises: SourceChanged."""
        try:
            require_there(session, self._stored.path, self._stored.bundle)
        except SourceMissing:
            raise SourceChanged(f"{self._stored.bundle.place} disappeared during the transfer") from None


def require_header(member: Member, found: bytes | memoryview) -> None:
    """Compare what stands before a member with its header: name, type, size, all of it. Raises: ChecksumMismatch."""
    if found != header_of(member):
        raise ChecksumMismatch(f"{member.name}: the bundle has another header at this offset")


def require_there(session: Session, path: str, bundle: SealedBundle) -> None:
    """Check that the bundle is there, with its size. Raises: SourceMissing, SourceChanged."""
    try:
        there = session.stat(path)
    except PathMissing:
        raise SourceMissing(f"{bundle.place}: no such bundle") from None
    if there.kind is not FileKind.FILE:
        raise SourceMissing(f"{bundle.place} is not a regular file")
    if there.size != bundle.size:
        raise SourceChanged(f"{bundle.place} has {there.size} bytes, not the {bundle.size} that were stored")


def _frames(session: Session, path: str, bundle: SealedBundle) -> tuple[Frame, ...]:
    """Return the frames: from the table at the end or, where that is damaged, from the manifest."""
    try:
        return _table(session, path, bundle.size)
    except RemoteFailure:
        beside = posixpath.basename(manifest_place(bundle.uuid, bundle.place).path)
        frames = manifest.read(session, posixpath.join(posixpath.dirname(path), beside)).frames
        require_whole(frames, bundle.size - sum((8, 8 * len(frames), FOOTER)))
        return frames


def _table(session: Session, path: str, size: int) -> tuple[Frame, ...]:
    with session.open_read(path) as reader:

        def end(length: int) -> bytes:
            if not 0 < length <= size:
                raise RemoteFailure("the bundle's table of frames is damaged")
            return b"".join(bytes(block) for block in reader.blocks(size - length, length))

        return read_table(end(table_size(end(FOOTER))), size)
