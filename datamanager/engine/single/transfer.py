"""The second step: bytes into the attempt's partial file, by the route that the probe chose: copied by the machine
itself, pushed by the source (`push`), or read and written by the mover and hashed while they pass (`relay`). Constant
memory, no staging.

(docs/transfer-protocol.md, the publish protocol, 3; docs/adr/0007-direct-transfers.md)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

from datamanager.domain.states import Phase, Route
from datamanager.engine.attempt import Attempt, Digest, Found, Moved, Restart
from datamanager.engine.control import Control, unwrapped
from datamanager.engine.path_confinement import lstat_or_none
from datamanager.engine.single.endpoints import (
    acquire_sessions,
    concurrently,
    refuse_one_place,
    vanished,
    with_parallel_sessions,
)
from datamanager.engine.single.parallel_streams import ParallelStreams, Seen
from datamanager.engine.single.restart import marker_of, resume
from datamanager.engine.single.verify import followed, following, require_unchanged
from datamanager.errors import (
    ConnectionLost,
    NotSupported,
    PathMissing,
    PermissionDenied,
    RemoteFailure,
    SourceChanged,
    SourceMissing,
    TransportTimeout,
)
from datamanager.machines import Machine, TransportKind, VerifyPolicy
from datamanager.transports.port import Follower, Reader, Session, Writer
from datamanager.transports.remote.third_party_push import push_target
from datamanager.transports.values import FileStat

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
    if found.route is not Route.DIRECT:
        return relay(job, found, control, remember)
    with acquire_sessions(job) as (source, target):
        start = resume(job, found, source, target, control)
    marker = _marked(job, found, start, remember)
    # what arrived before a push failed, the relay resumes
    return push(job, found, control, start) or relay(replace(job, restart=marker), found, control, remember)


def relay(job: Attempt, found: Found, control: Control, remember: Remember = forget) -> Moved:
    """Read the source, write the partial file, through the mover; resumes the partial file of an earlier try or attempt
    where there is a good one.

    Several connections are used for a large file over a long path; a server that does not write one file over several
    gets it over one. `remember` is called with the restart marker before the first byte, and must have recorded it when
    it returns.

    Raises: SourceMissing, SourceChanged (other length than probed), DestinationExists (both names are one file),
    RemoteFailure (the destination's directory disappeared), and what the transports raise.
    """
    several = list[Session]()
    try:
        return _relay(job, found, control, remember, several)
    except (PermissionDenied, RemoteFailure) as exc:
        if not several:
            raise
        _log.warning("%s is written over one connection: %s", job.target.place, exc.detail)
    return _relay(job, found, control, remember)


def _relay(
    job: Attempt, found: Found, control: Control, remember: Remember, several: list[Session] | None = None
) -> Moved:
    """See `relay`; `several` gets the further sessions that write, None: there may be none."""
    wanted = found.source_stat.size
    control.enter(Phase.TRANSFER, wanted)
    with acquire_sessions(job) as (source, target), ExitStack() as stack:
        start = resume(job, found, source, target, control)
        _marked(job, found, start, remember)
        control.bytes_done = start
        worth = 0 if several is None else wanted - start
        sources, targets = stack.enter_context(with_parallel_sessions(job, source, target, worth))
        if several is not None:
            several += targets[1:]
        try:
            readers = stack.enter_context(concurrently([found.open(one) for one in sources]))
        except PathMissing:
            raise SourceMissing(f"{job.origin.place}: no such file") from None
        if found.content is None and not all(one.stat().is_version(found.source_stat) for one in readers):
            raise SourceChanged(f"{job.origin.place} changed before it was read")
        first = target.reopen(found.part) if start else target.create(found.part)
        further = [one.reopen(found.part) for one in targets[1:]]
        try:
            writers = stack.enter_context(concurrently([first, *further], after_first=True))
        except PathMissing as exc:
            raise vanished(job, found, source) from exc
        refuse_one_place(job, found, source, target)
        # a hash can't be taken up in the middle: after a restart both ends are hashed from their storage
        hashed = job.verify is VerifyPolicy.SHA256 and not start
        follower = stack.enter_context(following(target, found.part)) if hashed and wanted >= FOLLOWED_FROM else None
        digest = found.digest() if hashed or (found.content is not None and not start) else None
        size = _stream(readers, writers, start, wanted, control, follower, digest)
        if size != wanted:
            raise SourceChanged(f"{job.origin.place} ended after {size} of {wanted} bytes")
        stored = followed(follower, control.watch)
    return Moved(size, digest.hexdigest() if digest is not None else None, stored)


def _stream(
    readers: Sequence[Reader],
    writers: Sequence[Writer],
    start: int,
    stop: int,
    control: Control,
    follower: Follower | None = None,
    digest: Digest | None = None,
) -> int:
    """Move the bytes from `start` to `stop`, put them on stable storage, and return where they end: before `stop` if
    the source did. `digest` is fed with what is read; `follower` is notified of what is stored.

    Raises: what the transports raise; the reason that `control` was stopped with.
    """

    def seen(block: memoryview, stored: int) -> None:
        if digest is not None:
            digest.update(block)
        if follower is not None:
            follower.advance(stored)
        control.advance(len(block))

    if len(readers) == len(writers) == 1:
        position = _stream_alone(readers[0], writers[0], start, stop, seen)
    else:
        position = ParallelStreams(readers, writers, start, stop).move(seen)
    for writer in writers:
        writer.settle()
    writers[0].flush()
    if follower is not None:
        follower.advance(position)
    return position


def _stream_alone(reader: Reader, writer: Writer, start: int, stop: int, seen: Seen) -> int:
    position = start
    for block in reader.blocks(start, stop - start):
        writer.write(position, block)
        position += len(block)
        unsettled = writer.unsettled
        seen(block, position if unsettled is None else unsettled)
    return position


def copy_within(job: Attempt, found: Found, control: Control) -> Moved:
    """Have the machine copy the file itself; falls back to the relay when it can't after all."""
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
        except PathMissing as exc:
            raise vanished(job, found, session) from exc
        except NotSupported as exc:
            _log.info("%s is copied through the mover: %s", job.origin.place, exc.detail)
    return relay(job, found, control)


def can_go_direct(job: Attempt) -> bool:
    """Say whether the source may push to the destination: two SFTP machines that both allow it, and no bandwidth limit
    in force, which nobody could keep to."""
    if job.limited or job.source is None or job.destination is None:
        return False
    source, destination = job.source.machine, job.destination.machine
    allowed = all(one.direct and one.transport is TransportKind.SFTP for one in (source, destination))
    return allowed and source.name != destination.name


def push(job: Attempt, found: Found, control: Control, offset: int = 0) -> Moved | None:
    """Have the source push its bytes from `offset` on into the partial file (a third-party transfer); None when that
    did not work, which is no error of the transfer.

    The reason is logged then, and the partial file, if there is one, holds a prefix of the source. With `offset` 0 it
    must not exist yet, else it must, and its bytes before `offset` must be the source's. Nothing runs on either machine
    any more when this returns or raises.

    Raises: SourceChanged; DestinationExists (both names are one file); the reason that `control` was stopped with;
    what the transports raise when a machine can't be reached at all.
    """
    wanted = found.source_stat.size
    control.enter(Phase.TRANSFER, wanted)
    control.bytes_done = offset
    machine = job.target.machine
    with acquire_sessions(job) as (source, target):
        growth = _Growth(target, found.part, control, machine)
        try:
            to = push_target(machine, found.part, offset, forward_agent=job.origin.machine.forward_agent)
            source.programs.push(found.source_path, to, growth.look)
            stored = growth.count()
            refuse_one_place(job, found, source, target)
            if stored == wanted:
                with target.reopen(found.part) as writer:
                    writer.flush()
                return Moved(stored)
        except (ConnectionLost, NotSupported, TransportTimeout) as exc:
            _log.info("%s could not be pushed to %s: %s", job.origin.place, machine.name, exc.detail)
            return None
    require_unchanged(job, found)
    _log.info("%s: %d bytes arrived at %s, %d were pushed", job.origin.place, stored, machine.name, wanted)
    return None


def remove_part(session: Session, found: Found) -> None:
    """Remove this attempt's own partial file, if there is one: a new try never writes into an old inode.

    It is looked for first: a server that hangs may do what it was told long after the try that told it was given up,
    and a removal would take the next try's file.
    """
    if lstat_or_none(session, found.part) is not None:
        with suppress(PathMissing):
            session.remove(found.part)


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


class _Growth:
    """The progress of a file that another program writes: its size, polled over our own session."""

    def __init__(self, session: Session, path: str, control: Control, machine: Machine) -> None:
        self._session = session
        self._path = path
        self._control = control
        self._patience = machine.stall_timeout
        self._seen: FileStat | None = None
        self._since = time.monotonic() + machine.connect_timeout  # the first byte waits for a connection, too

    def look(self, _: int) -> None:
        """Count what came since the last look. Raises: TransportTimeout when the machine's stall_timeout passed without
        a byte; the reason that `control` was stopped with."""
        self._control.check()
        before = self._seen
        self.count()
        now = time.monotonic()
        if self._seen != before:  # a part that is written once more grows late, but its mtime moves
            self._since = now
        elif now - self._since > self._patience:
            raise TransportTimeout(f"no data arrived for {self._patience:g} seconds")

    def count(self) -> int:
        """Count what came since the last look, and return the file's size in bytes."""
        try:
            self._seen = self._session.stat(self._path)
        except PathMissing:
            self._seen = None
            return 0
        self._control.advance(max(0, self._seen.size - self._control.bytes_done))
        return self._seen.size
