"""What an earlier try left of a file that a machine fetches itself: taken over into a file of this try's own.

A curl that nobody reaches any more, as the network between us and its machine broke, may still write into the old one.
"""

from __future__ import annotations

import contextlib
import logging
import posixpath
from collections.abc import Container
from dataclasses import dataclass

from datamanager.domain.location import temporary_name
from datamanager.engine.attempt import Attempt, Found
from datamanager.engine.control import Control
from datamanager.engine.single.restart import parts_of
from datamanager.errors import PathMissing, RemoteFailure
from datamanager.transports.port import Session

_COPY = 'umask 077; set -C; head -c "$1" <"$2" >"$3"'

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Stored:
    """How much of which version of what is stored, from which place; `size` is the whole in bytes."""

    place: str
    version: str | None = None
    size: int | None = None
    position: int = 0


def take_over(job: Attempt, found: Found, session: Session, control: Control, places: Container[str]) -> Stored | None:
    """Return what is stored and can be gone on with, in the attempt's partial file, which nobody else has open; None
    when there is nothing good. No other partial file of this transfer is left then.

    A copy that is broken off leaves the old file for the next try. Raises: what the transports and `control` raise.
    """
    marker, stored = job.restart, None
    parts = parts_of(job, found.directory, session)
    if marker is not None and marker.version is not None:
        place, _, version = marker.version.partition(" ")
        fitting = [(size, path) for size, path in parts if 0 < marker.done <= size <= marker.size]
        if fitting and place in places:
            old = max(fitting)[1]
            if old == found.part:
                old = posixpath.join(found.directory, temporary_name(job.target.place.name, job.transfer, 0))
                session.rename(found.part, old, overwrite=True)
            with contextlib.suppress(PathMissing):
                session.remove(found.part)
            if _copied(session, old, found.part, marker.done, control):
                stored = Stored(place, version, marker.size, marker.done)
            parts = parts_of(job, found.directory, session)
    for _, path in parts:
        if stored is None or path != found.part:
            session.remove(path)
    return stored


def _copied(session: Session, source: str, destination: str, size: int, control: Control) -> bool:
    """Have the machine copy the first `size` bytes of a file to a new name; say whether it could."""
    try:
        status = session.programs.run(["sh", "-c", _COPY, "sh", str(size), source, destination], control.watch)
    except RemoteFailure as error:
        log.info("what is stored can't be gone on with: %s", error.detail)
        return False
    if status != 0 or session.stat(destination).size != size:
        log.info("what is stored can't be gone on with: its copy ended with status %d", status)
        return False
    return True
