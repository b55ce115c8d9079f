"""A large file passed on by a program on the machine: its bytes come without a request for each piece, and without the
copies that an SFTP server makes.
"""

from __future__ import annotations

import logging
import posixpath
import re
import time
from collections.abc import Iterator
from typing import Self

from datamanager.errors import RemoteFailure, TransportTimeout
from datamanager.transports.channel import Channel
from datamanager.transports.remote.running import POLL, Running, exit_status
from datamanager.transports.values import shown

_log = logging.getLogger(__name__)

_OPEN = re.compile(rb"^dm-open\n", re.MULTILINE)
_BLOCK = 1 << 20


class FileStream:
    """The program that passes on the file at `path` (its directory's links resolved), once it is told from where.

    It opens the file in the directory that it went to, if that still was at its path then, and no link. Leaving the
    context ends it. Used by the session's thread. Raises: RemoteFailure when the machine refuses to run it.
    """

    def __init__(self, channel: Channel, path: str) -> None:
        self._channel = channel
        self._path = path
        self._running = Running(channel, "read", posixpath.split(path), stdin=True)
        self._begun = False

    @property
    def refused(self) -> bool:
        """Whether the machine ran no program at all."""
        return self._running.ended and not self._running.out

    def ready(self) -> bool:
        """Say, without waiting, whether it has the file open."""
        if self._running.said(_OPEN) is None and not self._running.ended:
            try:
                self._running.listen(0)
            except RemoteFailure as exc:
                self._fail(exc)
        return self._running.said(_OPEN) is not None

    @property
    def ended(self) -> bool:
        """Whether it has ended, which before the file's end is a failure of its own."""
        return self._running.ended

    def blocks(self, offset: int) -> Iterator[memoryview]:
        """Yield the bytes from `offset` on, in blocks of at most 1 MiB, until the program ends: at the end of the file,
        or before, if it failed. A block is valid until the next one is taken. Once, and only when it is `ready`.

        Raises: ConnectionLost; TransportTimeout when nothing comes for the channel's `patience`.
        """
        self._begun = True
        try:
            self._running.remote.write(b"%d\n" % offset)
        except RemoteFailure as exc:
            self._fail(exc)
            return
        buffer = memoryview(bytearray(_BLOCK))
        while count := self._receive(buffer):
            yield buffer[:count]
        self._running.ended = True
        exit_status(self._channel, self._running.remote, f"the machine passed on {shown(self._path)}")

    def _fail(self, reason: RemoteFailure) -> None:
        _log.info("%s is not passed on: %s", shown(self._path), reason.detail)
        self._running.ended = True

    def _receive(self, buffer: memoryview) -> int:
        deadline = time.monotonic() + self._channel.patience
        while (count := self._running.remote.read_into(buffer, POLL)) is None:
            if not self._channel.alive():  # it was aborted, perhaps
                raise self._channel.lost(f"the connection broke while the machine passed on {shown(self._path)}")
            if time.monotonic() > deadline:
                raise TransportTimeout(f"no data for {self._channel.patience:g} seconds")
        return count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._running:
            if not self._begun:  # it ends with its input, maybe before it has said its process id
                self._running.ended = True
