"""Many small files by a program on the machine, where it has one for us: the port's `Bulk` beside an SFTP conversation.

What the program has no way for (directories, tar streams, names on a file system without hard links) goes over SFTP.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from datamanager.errors import NotSupported, TransportError
from datamanager.transports.bulk_port import Results, Sync
from datamanager.transports.remote.many_files import ManyFiles
from datamanager.transports.remote.one_turn import ProgramInOneTurn
from datamanager.transports.remote.running import InstalledPrograms
from datamanager.transports.sftp.bulk import SftpBulk
from datamanager.transports.sftp.server_behaviour import ServerBehaviour
from datamanager.transports.sftp.wire import Wire
from datamanager.transports.values import FileStat, KeptAttributes, NewFile, SmallFile, path_replaced, shown


class ProgramBulk(SftpBulk):
    """Work on many small files by a running program; `many` is that of this conversation's session."""

    def __init__(self, wire: Wire, installed: InstalledPrograms, server: ServerBehaviour, many: ManyFiles) -> None:
        super().__init__(wire, installed, server)
        self._many = many
        self.in_one_turn = ProgramInOneTurn(many)

    def lstat(self, paths: Sequence[str]) -> Results[FileStat | TransportError]:
        """Yield each path's lstat."""
        return self._many.lstat(paths)

    def read(self, paths: Sequence[str], most: int, likely: int | None = None) -> Results[SmallFile | TransportError]:
        """Yield whole regular files; a link is not followed."""
        return self._many.read(paths, most, most if likely is None else likely)

    def write(self, files: Iterable[NewFile]) -> Results[KeptAttributes | TransportError]:
        """Create each file, write it, set its mode and mtime, close it."""
        return self._many.write(files)

    def digest(self, paths: Sequence[str], most: int) -> Results[str | TransportError]:
        """Yield each file's sha256, from the machine's storage."""
        return self._many.digest(paths, most)

    def rename(self, names: Sequence[tuple[str, str]], *, overwrite: bool) -> Results[TransportError | None]:
        """Give each file its new name."""
        without_links = list[int]()
        for index, found in self._many.rename(names, overwrite=overwrite):
            if isinstance(found, int):
                without_links.append(index)
            else:
                yield index, found
        if without_links:
            yield from self._rename_by_name(names, without_links)

    def _rename_by_name(
        self, names: Sequence[tuple[str, str]], places: Sequence[int]
    ) -> Results[TransportError | None]:
        """Give some files their new names over SFTP, and look where that was done."""
        directories = sorted({posixpath.dirname(names[place][1]) or "/" for place in places})
        results = [
            (places[index], error)
            for index, error in super().rename([names[place] for place in places], overwrite=False)
        ]
        away = {directories[index]: now for index, now in self.real_path(directories) if now != directories[index]}
        for place, error in results:
            now = away.get(posixpath.dirname(names[place][1]) or "/")
            if error is None and isinstance(now, str):
                error = path_replaced(f"{shown(names[place][1])}: its directory leads to {shown(now)} now")
            yield place, error

    def remove(self, paths: Sequence[str]) -> Results[TransportError | None]:
        """Remove each file."""
        return self._many.remove(paths)

    def unpack(self, files: Iterable[NewFile], directory: str) -> None:  # noqa: ARG002 - nothing is done
        """Refuse: `write` is as quick."""
        raise NotSupported("the program for many files writes as quickly as a tar unpacks")

    @contextmanager
    def syncing(self) -> Iterator[Sync]:
        """Put directories' file systems on stable storage, by the program; where it can't, by coreutils' `sync`."""

        def sync(directories: Sequence[str]) -> None:
            try:
                self._many.sync(directories)
            except NotSupported:
                with super(ProgramBulk, self).syncing() as other:
                    other(directories)

        yield sync
