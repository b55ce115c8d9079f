"""What of the port's `Bulk` a running program for many files does, whichever way else there is for the rest."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence

from datamanager.errors import NotSupported, TransportError
from datamanager.transports.bulk_port import InOneTurn, Results
from datamanager.transports.remote.many_files import ManyFiles
from datamanager.transports.remote.one_turn import ProgramInOneTurn
from datamanager.transports.values import FileStat, KeptAttributes, NewFile, SmallFile


class ByProgram(abc.ABC):
    """Work on many small files by a running program."""

    def __init__(self, many: ManyFiles) -> None:
        self._many = many
        self.in_one_turn: InOneTurn | None = ProgramInOneTurn(many)

    def lstat(self, paths: Sequence[str]) -> Results[FileStat | TransportError]:
        """Yield each path's lstat."""
        return self._many.lstat(paths)

    def read(self, paths: Sequence[str], most: int, likely: int | None = None) -> Results[SmallFile | TransportError]:
        """Yield whole regular files; a link is not followed."""
        return self._many.read(paths, most, most if likely is None else likely)

    def write(self, files: Iterable[NewFile]) -> Results[KeptAttributes | TransportError]:
        """Create each file, write it, set its mode and mtime, close it."""
        return self._many.write(files)

    def unpack(self, files: Iterable[NewFile], directory: str) -> None:  # noqa: ARG002 - nothing is done
        """Refuse: `write` is as quick."""
        raise NotSupported("the program for many files writes as quickly as a tar unpacks")

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
            yield from self._rename_without_links(names, without_links)

    def remove(self, paths: Sequence[str]) -> Results[TransportError | None]:
        """Remove each file."""
        return self._many.remove(paths)

    @abc.abstractmethod
    def _rename_without_links(
        self, names: Sequence[tuple[str, str]], places: Sequence[int]
    ) -> Results[TransportError | None]:
        """Give some files, at these indices, their new names, which must be free; the file system has no hard links."""
