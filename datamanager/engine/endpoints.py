"""Both ends of a transfer at once: their sessions, and the look whether they are two places at all."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager

from datamanager.domain.states import TransferKind
from datamanager.engine.attempt import Attempt, Found
from datamanager.errors import DestinationExists, PathMissing
from datamanager.transports.port import Session


@contextmanager
def acquire_sessions(job: Attempt) -> Iterator[tuple[Session, Session]]:
    """Lend a session of each end. Pools are bounded, so they are asked in the order of the machines' names: two
    transfers in
    opposite directions can't wait for each other for ever. Two of one machine are lent together for the same reason."""
    origin, target = job.origin.storage, job.target.storage
    if origin is target:
        with origin.session_pair() as both:
            yield both
    elif origin.machine < target.machine:
        with origin.session() as source, target.session() as sink:
            yield source, sink
    else:
        with target.session() as sink, origin.session() as source:
            yield source, sink


def refuse_one_place(job: Attempt, found: Found, source: Session) -> None:
    """Refuse to replace or remove a file by itself: two machine names can stand for one directory.

    If the partial file, just made, shows beside the source, both are one place.
    """
    if job.origin.machine.name == job.target.machine.name:
        return
    if job.kind is not TransferKind.MOVE and not job.overwrite:
        return
    directory, name = posixpath.split(found.source_path)
    if name != posixpath.basename(found.final):
        return
    try:
        source.lstat(posixpath.join(directory, posixpath.basename(found.part)))
    except PathMissing:
        return
    raise DestinationExists(f"{job.origin.place} and {job.target.place} are the same file")
