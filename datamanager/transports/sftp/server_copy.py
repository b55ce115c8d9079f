"""The machine's programs, with copies by its SFTP server where that has the copy-data extension
(draft-ietf-secsh-filexfer-extensions-00, section 7)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol

from datamanager.transports.port import Session
from datamanager.transports.remote.programs import RemotePrograms
from datamanager.transports.remote.running import InstalledPrograms
from datamanager.transports.sftp.files import SftpReader, SftpWriter
from datamanager.transports.sftp.wire import Wire
from datamanager.transports.values import Progress, no_progress

_EXTENSION = "copy-data"
_RANGE = 128 * 1024 * 1024
"""Bytes per `copy-data`: it blocks the channel, so this is how often progress is told and a cancel heard."""


class CopySession(Session, Protocol):
    """A session whose open files the server can copy from and to."""

    def open_read(self, path: str) -> AbstractContextManager[SftpReader]: ...

    def create(self, path: str, *, mode: int = 0o600) -> AbstractContextManager[SftpWriter]: ...

    def reopen(self, path: str) -> AbstractContextManager[SftpWriter]: ...


class SftpPrograms(RemotePrograms):
    """See the port's Programs. `session` is the one that `wire` carries."""

    def __init__(self, session: CopySession, wire: Wire, installed: InstalledPrograms) -> None:
        super().__init__(session, wire.channel, installed)
        self._copying = session
        self._wire = wire

    @property
    def can_copy(self) -> bool:
        """Say whether the server or a program can copy."""
        return _EXTENSION in self._wire.extensions or super().can_copy

    def copy(
        self, source: str, destination: str, progress: Progress = no_progress, beside: Sequence[Session] = ()
    ) -> None:
        """Copy on the machine by the extension, else by a `cp` there."""
        if _EXTENSION in self._wire.extensions:
            others = [one for one in beside if isinstance(one, type(self._copying))]
            if _copy_by_server([self._copying, *others], source, destination, progress):
                return
            del self._wire.extensions[_EXTENSION]  # it does not know it after all
        super().copy(source, destination, progress)


def _copy_by_server(sessions: Sequence[CopySession], source: str, destination: str, progress: Progress) -> bool:
    """Copy a file to a new name, ranges in turn by each session; False when the server does not know the extension
    after all, nothing is left then."""
    first = sessions[0]
    with ExitStack() as stack:
        opened, created = stack.enter_context(first.open_read(source)), stack.enter_context(first.create(destination))
        size = opened.stat().size
        helpers = sessions[1:] if size > _RANGE else ()
        readers = [opened, *(stack.enter_context(one.open_read(source)) for one in helpers)]
        writers = [created, *(stack.enter_context(one.reopen(destination)) for one in helpers)]
        copied = _copy_ranges(list(zip(readers, writers, strict=True)), size, progress)
        if copied:
            created.flush()
    if not copied:
        first.remove(destination)
    return copied


def _copy_ranges(pairs: Sequence[tuple[SftpReader, SftpWriter]], size: int, progress: Progress) -> bool:
    """Have one range at work in each session; return False when a server does not know how."""
    offsets = iter(range(0, size, _RANGE))
    working: deque[tuple[SftpReader, SftpWriter, int, int]] = deque()

    def begin(reader: SftpReader, writer: SftpWriter) -> None:
        offset = next(offsets, None)
        if offset is not None:
            count = min(_RANGE, size - offset)
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
