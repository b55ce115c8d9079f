"""One stretch of a file from its reader to its writer, or over several connections at either end.

Over a long path a connection carries no more than its window per round trip, so several carry chunks of the file in
turn (`engine.crew`). On a short path one thread reads, hashes and writes: more would only wait for each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from datamanager.engine.attempt import Attempt, Digest
from datamanager.engine.control import Control
from datamanager.engine.single.parallel_streams import CHUNK, ParallelStreams, Seen
from datamanager.transports.port import Follower, Reader, Session, Storage, Writer

LONG_PATH = 0.004
"""Seconds of a round trip from which on one connection's window is the bottleneck."""
LARGE = 32 * 1024 * 1024
"""Bytes from which on several connections are worth their making."""
CHANNEL_WINDOW = 2 * 1024 * 1024
"""Bytes that OpenSSH lets a channel have under way."""
WANTED_RATE = 800e6
"""Bytes per second that the windows of all connections together allow. What gets through is half of it where the ends'
cores are busy: a window is opened again when somebody has had the time to empty it."""


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """The sessions of a transfer at either end, the first of each being the one it had before."""

    sources: list[Session]
    targets: list[Session]


@contextmanager
def connections(job: Attempt, source: Session, target: Session, size: int) -> Iterator[StreamPlan]:
    """Lend the further sessions that the paths ask for, as far as they are free just now."""
    with ExitStack() as stack:

        def ways(session: Session, storage: Storage) -> list[Session]:
            further = streams_for(session.round_trip, size) - 1
            return [session, *(stack.enter_context(storage.extra_sessions(further)) if further else [])]

        yield StreamPlan(ways(source, job.origin.storage), ways(target, job.target.storage))


def streams_for(round_trip: float, size: int) -> int:
    """Return how many connections a path of this round trip (seconds) is worth for so many bytes."""
    if round_trip < LONG_PATH or size < LARGE:
        return 1
    return min(math.ceil(WANTED_RATE * round_trip / CHANNEL_WINDOW), size // CHUNK)


class Stretch:
    """The bytes from `start` to `stop`, moved once. `digest` is fed with what is read; `follower` hears what is stored.

    The readers and writers are each one thread's at a time: ours with one of each, their own threads' otherwise.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        writers: Sequence[Writer],
        start: int,
        stop: int,
        follower: Follower | None = None,
        digest: Digest | None = None,
    ) -> None:
        self._readers = readers
        self._writers = writers
        self._start = start
        self._stop = stop
        self._follower = follower
        self._digest = digest

    @property
    def sha256(self) -> str | None:
        """The sha256 (hex) of what was read, if it was asked for."""
        return self._digest.hexdigest() if self._digest is not None else None

    def move(self, control: Control) -> int:
        """Move all bytes, put them on stable storage, and return where they end: before `stop` if the source did.

        Raises: what the transports raise; what `control` was told to stop with.
        """
        if len(self._readers) == len(self._writers) == 1:
            position = self._alone(control)
        else:
            position = ParallelStreams(self._readers, self._writers, self._start, self._stop).move(self._seen(control))
        for writer in self._writers:
            writer.settle()
        self._writers[0].flush()
        if self._follower is not None:
            self._follower.advance(position)
        return position

    def _alone(self, control: Control) -> int:
        position, writer = self._start, self._writers[0]
        seen = self._seen(control)
        for block in self._readers[0].blocks(position, self._stop - position):
            writer.write(position, block)
            position += len(block)
            unsettled = writer.unsettled
            seen(block, position if unsettled is None else unsettled)
        return position

    def _seen(self, control: Control) -> Seen:
        digest, follower = self._digest, self._follower

        def seen(block: memoryview, stored: int) -> None:
            if digest is not None:
                digest.update(block)
            if follower is not None:
                follower.advance(stored)
            control.advance(len(block))

        return seen
