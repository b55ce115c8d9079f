"""A program of the site's own on the machine, such as the one that brings a file back from tape."""

from __future__ import annotations

from collections.abc import Sequence

from datamanager.errors import ConnectionLost, RemoteFailure
from datamanager.transports.channel import Channel
from datamanager.transports.remote.programs import SAY_PID, Running
from datamanager.transports.values import Progress

_SCRIPT = SAY_PID + 'exec "$@"'
_NOT_RUN = (126, 127)
"""What a shell ends with when there is no such program, or none that may be run (POSIX)."""


def run(channel: Channel, words: Sequence[str], progress: Progress) -> int:
    """Run a program and return its exit status. Raises: RemoteFailure, ConnectionLost, and what `progress` raises."""
    with Running(channel, _SCRIPT, words) as running:
        status = running.wait(progress)
    if status is None and not channel.alive():
        raise ConnectionLost(f"the connection broke while {words[0]} ran")
    if status is None:
        raise RemoteFailure(f"{words[0]} was killed")
    if status in _NOT_RUN:
        raise RemoteFailure(f"{words[0]} can't be run")
    return status
