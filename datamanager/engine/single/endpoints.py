"""Both ends of a transfer at once: their sessions, and the check whether they are two places at all."""

from __future__ import annotations

import math
import posixpath
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

from datamanager.domain.location import folded
from datamanager.domain.states import TransferKind
from datamanager.engine.attempt import Attempt, Found
from datamanager.engine.path_confinement import lstat_or_none
from datamanager.engine.single.parallel_streams import CHUNK
from datamanager.engine.single.same_file import is_one_name
from datamanager.errors import DestinationExists, RemoteFailure, SourceMissing
from datamanager.transports.channel import LONG_PATH
from datamanager.transports.port import Session, Storage

LARGE = 32 * 1024 * 1024
"""Bytes from which on several connections are worth their making."""
CHANNEL_WINDOW = 2 * 1024 * 1024
"""Bytes that OpenSSH lets a channel have under way."""
WANTED_RATE = 800e6
"""Bytes per second that the windows of all connections together allow. What gets through is half of it where the ends'
cores are busy: a window is opened again when its reader has had the time to empty it."""

T = TypeVar("T")


@contextmanager
def acquire_sessions(job: Attempt) -> Iterator[tuple[Session, Session]]:
    """Acquire a session of each end. Pools are bounded, so they are acquired in the sequence of the machines' names:
    two transfers in opposite directions can't wait for each other for ever. Two of one machine are acquired together
    for the same reason.
    """
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


@contextmanager
def with_parallel_sessions(
    job: Attempt, source: Session, target: Session, size: int
) -> Iterator[tuple[list[Session], list[Session]]]:
    """Acquire the further sessions that `size` bytes are worth at either end, as far as they are free just now; yield
    all sessions of the source and of the target, the given ones first.

    Over a long path a connection carries no more than its window per round trip, so several carry chunks of the file in
    turn. On a short path one thread reads, hashes and writes: more would only wait for each other.
    """
    with ExitStack() as stack:

        def sessions(session: Session, storage: Storage) -> list[Session]:
            further = _streams_for(session.round_trip, size) - 1
            return [session, *(stack.enter_context(storage.extra_sessions(further)) if further else [])]

        yield sessions(source, job.origin.storage), sessions(target, job.target.storage)


def refuse_one_place(job: Attempt, found: Found, source: Session, target: Session) -> None:
    """Refuse to replace or remove a file by itself: two machine names can stand for one directory.

    If the partial file, just made, shows beside the source, both are one place; and one file if the two names are one
    there.
    """
    if job.origin.machine.name == job.target.machine.name:
        return
    if job.kind is not TransferKind.MOVE and not job.overwrite:
        return
    directory, name = posixpath.split(found.source_path)
    if folded(name) != folded(posixpath.basename(found.final)):
        return
    if lstat_or_none(source, posixpath.join(directory, posixpath.basename(found.part))) is None:
        return
    if is_one_name((target, found.final), (target, posixpath.join(found.directory, name))):
        raise DestinationExists(f"{job.origin.place} and {job.target.place} are the same file")


def vanished(job: Attempt, found: Found, session: Session) -> SourceMissing | RemoteFailure:
    """Return the error for a path that was not found by an act with both ends: the source is gone, or else it is the
    destination's directory, which the next attempt makes again. `session` is the source's.
    """
    if lstat_or_none(session, found.source_path) is None:
        return SourceMissing(f"{job.origin.place}: no such file")
    return RemoteFailure(f"{job.target.place}: its directory disappeared during the transfer", retryable=True)


@contextmanager
def concurrently(contexts: Sequence[AbstractContextManager[T]], *, after_first: bool = False) -> Iterator[list[T]]:
    """Enter all of the contexts, each in a thread of its own, and yield what they give, in their sequence: over a long
    path each one costs round trips.

    `after_first`: the others once the first one is entered, which makes what they need. Left in threads too, each with
    the error that leads there. Raises: the first one's error, in that sequence; when one can't be entered, those that
    were are left first.
    """
    if len(contexts) < 2:
        with ExitStack() as stack:
            yield [stack.enter_context(one) for one in contexts]
        return
    with ThreadPoolExecutor(len(contexts)) as threads:  # which waits for all of them
        entering = [threads.submit(contexts[0].__enter__)]
        if not after_first or entering[0].exception() is None:
            entering += [threads.submit(one.__enter__) for one in contexts[1:]]
        entered = [one for one, future in zip(contexts, entering, strict=False) if future.exception() is None]
        try:
            yield [future.result() for future in entering]
        except BaseException:
            for one in entered:
                threads.submit(one.__exit__, *sys.exc_info())
            raise
        for future in [threads.submit(one.__exit__, None, None, None) for one in entered]:
            future.result()


def _streams_for(round_trip: float, size: int) -> int:
    """Return how many connections a path of this round trip (seconds) is worth for so many bytes."""
    if round_trip < LONG_PATH or size < LARGE:
        return 1
    return min(math.ceil(WANTED_RATE * round_trip / CHANNEL_WINDOW), size // CHUNK)
