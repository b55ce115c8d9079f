"""Copies on the machine itself: by the server's copy-data extension (draft-ietf-secsh-filexfer-extensions-00, section
7), else by a `cp` there."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from datamanager.errors import ConnectionLost, RemoteFailure
from datamanager.transports.base import FileKind, Progress
from datamanager.transports.paths import shown
from datamanager.transports.programs import SAY_PID, Programs, Running
from datamanager.transports.sftp_files import patient
from datamanager.transports.sftp_wire import Wire

if TYPE_CHECKING:
    from datamanager.transports.sftp_session import SftpSession

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

    def copy(self, session: SftpSession, source: str, destination: str, progress: Progress) -> bool:
        """Copy a file to a new name, created exclusively; False when neither way works."""
        if self._extension and self._by_server(session, source, destination, progress):
            return True
        return self._programs.can_copy(self._wire.channel) and self._by_program(session, source, destination, progress)

    def _by_server(self, session: SftpSession, source: str, destination: str, progress: Progress) -> bool:
        """Copy by the extension; False when the server does not know it after all, nothing is left then."""
        with session.open_read(source) as reader, session.create(destination) as writer:
            size = reader.stat().size
            for offset in range(0, size, _RANGE):
                count = min(_RANGE, size - offset)
                with patient(self._wire):
                    self._extension = writer.copy_from(reader, offset, count)
                if not self._extension:
                    break
                progress(count)
        if not self._extension:
            session.remove(destination)
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
        return True
