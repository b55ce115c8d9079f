"""Many small files by a program on the machine, where it has one for us: the port's `Bulk` beside an SFTP conversation.

What the program has no way for (directories, tar streams, names on a file system without hard links) goes over SFTP.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from datamanager.errors import NotSupported, TransportError
from datamanager.transports.bulk_port import Results, Sync
from datamanager.transports.remote.by_program import ByProgram
from datamanager.transports.remote.many_files import ManyFiles
from datamanager.transports.remote.running import InstalledPrograms
from datamanager.transports.sftp.bulk import SftpBulk
from datamanager.transports.sftp.server_behaviour import ServerBehaviour
from datamanager.transports.sftp.wire import Wire
from datamanager.transports.values import path_replaced, shown


class ProgramBulk(ByProgram, SftpBulk):
    """Work on many small files by a running program; `many` is that of this conversation's session."""

    def __init__(self, wire: Wire, installed: InstalledPrograms, server: ServerBehaviour, many: ManyFiles) -> None:
        SftpBulk.__init__(self, wire, installed, server)
        ByProgram.__init__(self, many)

    def _rename_without_links(
        self, names: Sequence[tuple[str, str]], places: Sequence[int]
    ) -> Results[TransportError | None]:
        """Give some files their new names over SFTP, and look where that was done."""
        directories = sorted({posixpath.dirname(names[place][1]) or "/" for place in places})
        results = [
            (places[index], error)
            for index, error in SftpBulk.rename(self, [names[place] for place in places], overwrite=False)
        ]
        away = {directories[index]: now for index, now in self.real_path(directories) if now != directories[index]}
        for place, error in results:
            now = away.get(posixpath.dirname(names[place][1]) or "/")
            if error is None and isinstance(now, str):
                error = path_replaced(f"{shown(names[place][1])}: its directory leads to {shown(now)} now")
            yield place, error

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
