"""Copies on the machine itself: by the server's copy-data extension (draft-ietf-secsh-filexfer-extensions-00, section
7), else by a `cp` there."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from datamanager.errors import ConnectionLost, RemoteFailure
from datamanager.transports.paths import shown
from datamanager.transports.remote.programs import SAY_PID, Programs, Running
from datamanager.transports.sftp.files import SftpReader, SftpWriter
from datamanager.transports.sftp.wire import Wire
from datamanager.transports.values import FileKind, Progress

if TYPE_CHECKING:
    from datamanager.transports.sftp.session import SftpSession

_log = logging.getLogger(__name__)

_EXTENSION = "copy-data"
_RANGE = 128 * 1024 * 1024
"""Bytes per `copy-data`: it blocks the channel, so this is how often progress is told and a cancel heard."""
_SCRIPT = SAY_PID + 'exec cp --reflink=auto -- "$1" "$2"'


class RemoteCopy:
    """The copies of one session; see the port's `copy_within`."""

    def __init__(self, wire: Wire, programs: Programs) -> None:
        self._wire = wire
        self._programs = programs
        self._extension = _EXTENSION in wire.extensions

    @property
    def available(self) -> bool:
        """Say whether either way is there; the first call may run a program on the machine to find out."""
        return self._extension or self._programs.can_copy(self._wire.channel)

    def copy(
        self, session: SftpSession, source: str, destination: str, progress: Progress, beside: Sequence[SftpSession]
    ) -> bool:
        """Copy a file to a new name, created exclusively; False when neither way works."""
        if self._extension and self._by_server([session, *beside], source, destination, progress):
            return True
        return self._programs.can_copy(self._wire.channel) and self._by_program(session, source, destination, progress)

    def _by_server(self, sessions: Sequence[SftpSession], source: str, destination: str, progress: Progress) -> bool:
        """Copy by the extension, ranges in turn by each session; False when the server does not know it after all,
        nothing is left then."""
        with ExitStack() as stack:
            first = sessions[0]
            readers = [stack.enter_context(first.open_read(source))]
            writers = [stack.enter_context(first.create(destination))]
            size = readers[0].stat().size
            for one in sessions[1:] if size > _RANGE else ():
                readers.append(stack.enter_context(one.open_read(source)))
                writers.append(stack.enter_context(one.reopen(destination)))
            self._extension = _copy_ranges(list(zip(readers, writers, strict=True)), size, progress)
            if self._extension:
                writers[0].flush()
        if not self._extension:
            first.remove(destination)
        return self._extension

    def _by_program(self, session: SftpSession, source: str, destination: str, progress: Progress) -> bool:
        """Let `cp` write into a file that SFTP created; False when it fails, nothing is left then.

        How far it got is asked over SFTP. Raises: what `progress` raises, once `cp` is ended; ConnectionLost.
        """
        if session.stat(source).kind is not FileKind.FILE:
            raise RemoteFailure(f"{shown(source)}: is no regular file")
        done = 0

        def look(_: int) -> None:
            nonlocal done
            size = session.stat(destination).size
            count, done = size - done, size
            progress(count)

        with session.create(destination):
            pass
        with Running(self._wire.channel, _SCRIPT, [source, destination]) as running:
            status = running.wait(look)
        if status is None and not self._wire.channel.alive():
            raise ConnectionLost(f"{shown(source)}: the connection broke while the machine copied it")
        if status != 0:
            _log.info("the machine's cp of %s failed with status %s", shown(source), status)
            session.remove(destination)
            return False
        look(0)
        with session.reopen(destination) as writer:
            writer.flush()
        return True


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
