"""A copy on the machine itself, by a `cp` there."""

from __future__ import annotations

from datamanager.errors import NotSupported, RemoteFailure
from datamanager.transports.channel import Channel
from datamanager.transports.paths import shown
from datamanager.transports.port import Session
from datamanager.transports.remote.running import Running
from datamanager.transports.values import FileKind, Progress


def copy_by_program(channel: Channel, session: Session, source: str, destination: str, progress: Progress) -> None:
    """Let `cp` write into a file that the session creates; see the port's `copy`.

    How far it got is asked over the session. Raises: what `progress` raises, once `cp` is ended.
    """
    if session.stat(source).kind is not FileKind.FILE:
        raise RemoteFailure(f"{shown(source)}: is not a regular file")
    done = 0

    def look(_: int) -> None:
        nonlocal done
        size = session.stat(destination).size
        count, done = size - done, size
        progress(count)

    with session.create(destination):
        pass
    with Running(channel, "run", ["cp", "--reflink=auto", "--", source, destination]) as running:
        status = running.wait(look, f"the machine copied {shown(source)}")
    if status != 0:
        session.remove(destination)
        raise NotSupported(f"the machine's cp of {shown(source)} failed with status {status}")
    look(0)
    with session.reopen(destination) as writer:
        writer.flush()
