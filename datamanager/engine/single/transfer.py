"""The second step: bytes into the attempt's partial file, hashed while they pass. Constant memory, no staging.

(docs/transfer-protocol.md, the publish protocol, 3)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from datamanager.domain.states import Phase, Route
from datamanager.engine.attempt import Attempt, Found, Moved, Restart
from datamanager.engine.control import Control, unwrapped
from datamanager.engine.endpoints import acquire_sessions, concurrently, refuse_one_place
from datamanager.engine.single.direct import push
from datamanager.engine.single.restart import marker_of, resume
from datamanager.engine.single.stream_plan import Stretch, connections
from datamanager.engine.single.verify import followed, following
from datamanager.errors import (
    NotSupported,
    PathMissing,
    SourceChanged,
    SourceMissing,
)
from datamanager.machines import VerifyPolicy
from datamanager.transports.port import Session

_log = logging.getLogger(__name__)

FOLLOWED_FROM = 16 * 1024 * 1024
"""Bytes from which on the destination hashes beside the transfer; for less, starting a program there takes longer."""

SHARED_FROM = 256 * 1024 * 1024
"""Bytes from which on a machine copies in two sessions at a time: its server works with one core for each."""

Remember = Callable[[Restart], None]


def forget(_: Restart) -> None:
    """Record no restart marker."""


def send(job: Attempt, found: Found, control: Control, remember: Remember = forget) -> Moved:
    """Bring the source's bytes into the partial file, by the route that the probe found; see `relay`."""
    if found.route is Route.WITHIN:
        return copy_within(job, found, control)
    if found.route is Route.DIRECT:
        return direct_or_relay(job, found, control, remember)
    return relay(job, found, control, remember)


def direct_or_relay(job: Attempt, found: Found, control: Control, remember: Remember) -> Moved:
    """Let the source push to the destination; what arrived before that failed, the relay goes on with."""
    with acquire_sessions(job) as (source, target):
        start = resume(job, found, source, target, control)
    marker = _marked(job, found, start, remember)
    moved = push(job, found, control, start)
    return moved or relay(replace(job, restart=marker), found, control, remember)


def relay(job: Attempt, found: Found, control: Control, remember: Remember = forget) -> Moved:
    """Read the source, write the partial file, through the mover; goes on with the partial file of an earlier try or
    attempt where there is a good one.

    Several connections are used for a large file over a long path. `remember` is told the restart marker before the
    first byte, and must have recorded it when it returns.

    Raises: SourceMissing, SourceChanged (other length than probed), DestinationExists (both names are one file), and
    what the transports raise.
    """
    wanted = found.source_stat.size
    control.enter(Phase.TRANSFER, wanted)
    with acquire_sessions(job) as (source, target), ExitStack() as stack:
        start = resume(job, found, source, target, control)
        _marked(job, found, start, remember)
        control.bytes_done = start
        ways = stack.enter_context(connections(job, source, target, wanted - start))
        try:
            readers = stack.enter_context(concurrently([found.open(one) for one in ways.sources]))
        except PathMissing:
            raise SourceMissing(f"{job.origin.place}: no such file") from None
        first = target.reopen(found.part) if start else target.create(found.part)
        further = [one.reopen(found.part) for one in ways.targets[1:]]
        writers = stack.enter_context(concurrently([first, *further], after_first=True))
        refuse_one_place(job, found, source)
        # a hash can't be taken up in the middle: after a restart both ends are hashed from their storage
        hashed = job.verify is VerifyPolicy.SHA256 and not start
        follower = stack.enter_context(following(target, found.part)) if hashed and wanted >= FOLLOWED_FROM else None
        digest = found.digest() if hashed or (found.content is not None and not start) else None
        stretch = Stretch(readers, writers, start, wanted, follower, digest)
        size = stretch.move(control)
        if size != wanted:
            raise SourceChanged(f"{job.origin.place} ended after {size} of {wanted} bytes")
        stored = followed(follower, control.watch)
    return Moved(size, stretch.sha256, stored)


def copy_within(job: Attempt, found: Found, control: Control) -> Moved:
    """Let the machine copy the file itself; falls back to the relay when it can't after all."""
    size = found.source_stat.size
    control.enter(Phase.TRANSFER, size)
    storage = job.target.storage
    with ExitStack() as stack:
        session = stack.enter_context(storage.session())
        beside = stack.enter_context(storage.extra_sessions(1)) if size >= SHARED_FROM else []
        remove_part(session, found)
        try:
            session.programs.copy(found.source_path, found.part, control.skip, beside)
            return Moved(session.stat(found.part).size)
        except PathMissing:
            raise SourceMissing(f"{job.origin.place}: no such file") from None
        except NotSupported as exc:
            _log.info("%s is copied through the mover: %s", job.origin.place, exc.detail)
    return relay(job, found, control)


def remove_part(session: Session, found: Found) -> None:
    """Remove this attempt's own partial file, if there is one: a new try never writes into an old inode."""
    try:
        session.remove(found.part)
    except PathMissing:
        return


def discard(job: Attempt, found: Found) -> None:
    """Remove what a failed attempt left, also one that was stopped. Touches only the attempt's own name."""
    with unwrapped(job.target.storage).session() as session:
        remove_part(session, found)


def _marked(job: Attempt, found: Found, start: int, remember: Remember) -> Restart | None:
    """Have the restart marker recorded, unless it is already: after `resume`, before a byte is written."""
    marker = marker_of(found)
    if marker is not None and (not start or marker != job.restart):
        remember(marker)
    return marker
