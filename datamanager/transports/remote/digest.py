"""A file's sha256, computed by a program on the machine: the other end's own view of its storage.

The program reads standard input, because `sha256sum` escapes odd names in what it prints.
"""

from __future__ import annotations

import logging
import re

from datamanager.errors import ConnectionLost
from datamanager.transports.channel import Channel
from datamanager.transports.paths import shown
from datamanager.transports.remote.programs import SAY_PID, Programs, Running
from datamanager.transports.values import Progress

_log = logging.getLogger(__name__)

SHA256 = re.compile(rb"\b[0-9a-f]{64}\b")
_SCRIPT = SAY_PID + 'exec <"$1"; shift; exec "$@"'


class RemoteDigest:
    """The digests of one machine."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs

    def available(self, channel: Channel) -> bool:
        """Say whether the machine has a shell that we may use and a program that computes sha256."""
        return self._programs.sha256(channel) is not None

    def compute(self, channel: Channel, path: str, progress: Progress) -> str | None:
        """Return the hex sha256 of the file, or None when the machine can't say.

        `progress(0)` is called while it works. Raises: what `progress` raises, once the remote program is ended;
        ConnectionLost.
        """
        program = self._programs.sha256(channel)
        if program is None:
            return None
        with Running(channel, _SCRIPT, [path, *program]) as running:
            status = running.wait(progress)
        if status is None and not channel.alive():
            raise ConnectionLost(f"{shown(path)}: the connection broke while the machine computed the digest")
        digest = running.said(SHA256)
        if status != 0 or digest is None:
            _log.info("the machine's digest of %s failed with status %s", shown(path), status)
            return None
        return digest[0].decode("ascii")
