"""Small files that lie in a larger one, as small files of a machine, for the bulk engine: looked at in the words of
whoever knows them, read in the order in which they lie there, with many reads in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from datamanager.errors import ChecksumMismatch, DataManagerError, PathMissing, TransportError
from datamanager.transports.bulk_port import Results
from datamanager.transports.port import Reader, Session
from datamanager.transports.values import FileStat, SmallFile, shown


@dataclass(frozen=True, slots=True)
class ContainerMember:
    """A file in a larger one: where what is read of it begins and how long that is (bytes), and what it is."""

    offset: int
    length: int
    stat: FileStat
    unfold: Callable[[bytes], SmallFile | ChecksumMismatch]
    """Makes the file of what was read, or says that it is damaged."""


class ContainerMembers:
    """See `engine.chunk.SmallFileSource`. The pieces are known by paths, as if the larger file were a directory."""

    def __init__(self, many: BulkContainerMembers) -> None:
        self.bulk = many

    def real_path(self, path: str) -> str:
        """Return the path: there are no links."""
        return path


class BulkContainerMembers:
    """See `engine.chunk.ReadsMany`. One damaged piece is its own failure."""

    def __init__(
        self,
        session: Session,
        opened: Callable[[Session], AbstractContextManager[Reader]],
        require_there: Callable[[Session], None],
        pieces: Mapping[str, ContainerMember],
    ) -> None:
        self._session = session
        self._opened = opened
        self._require_there = require_there
        self._pieces = pieces

    def real_path(self, paths: Sequence[str]) -> Results[str | TransportError]:
        """Yield each path: there are no links."""
        yield from enumerate(paths)

    def lstat(self, paths: Sequence[str]) -> Results[FileStat | TransportError]:
        """Yield what each one is. Raises: what `require_there` raises."""
        self._require_there(self._session)
        for index, path in enumerate(paths):
            piece = self._pieces.get(path)
            yield index, PathMissing(f"{shown(path)}: no such member") if piece is None else piece.stat

    def read(
        self,
        paths: Sequence[str],
        most: int,  # noqa: ARG002 - looked at before
        likely: int | None = None,  # noqa: ARG002
    ) -> Results[SmallFile | DataManagerError]:
        """Yield the pieces' bytes, or ChecksumMismatch, in the order in which they lie there."""
        pieces = [(index, self._pieces[path]) for index, path in enumerate(paths)]
        waiting = deque(sorted(pieces, key=lambda one: one[1].offset))
        with self._opened(self._session) as reader:
            while waiting:
                try:
                    yield from _read(reader, waiting)
                except ChecksumMismatch as damaged:  # a frame; what follows may be good
                    yield waiting.popleft()[0], damaged


def _read(
    reader: Reader, waiting: deque[tuple[int, ContainerMember]]
) -> Iterator[tuple[int, SmallFile | DataManagerError]]:
    ranges = iter([(piece.offset, piece.length) for _, piece in waiting if piece.length])
    data = bytearray()
    blocks = reader.ranges(lambda _: next(ranges, None))
    while waiting:
        index, piece = waiting[0]
        while len(data) < piece.length:
            found = next(blocks, None)
            if found is None:
                raise ChecksumMismatch("it ends before this member")
            data += found[1]
        waiting.popleft()
        yield index, piece.unfold(bytes(data[: piece.length]))
        del data[: piece.length]
