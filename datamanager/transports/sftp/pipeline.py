"""Work on many files over one SFTP conversation at once: while one file's replies are on their way, others go on.

Each file's work is a generator: it posts requests, yields their numbers and is sent the replies. Taken in the order in
which they were asked, so no work waits for another one's, and nobody polls.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from paramiko import sftp

from datamanager.errors import TransportError
from datamanager.transports.bulk_port import Results
from datamanager.transports.sftp.wire import Reply, Wire, string

T = TypeVar("T")

Work = Generator[list[int], list[Reply], T]
"""One file's work: yields the numbers of requests that it posted, is sent their replies in that order, returns its
result or raises its TransportError. Between two yields it never waits."""


@dataclass(slots=True)
class _Under(Generic[T]):
    """Work under way, and the requests whose replies it waits for."""

    index: int
    work: Work[T]
    numbers: list[int]


def pipelined(wire: Wire, works: Iterable[Work[T]], at_once: int) -> Results[T | TransportError]:
    """Do the work, `at_once` pieces at a time, and yield each one's place in `works` and its result or error.

    `works` is asked for the next piece only when there is room for it. What breaks the conversation is raised, as is
    what `works` raises; then, and when the iteration is left early, open files are closed and replies taken in, so that
    the conversation stays usable.
    """
    waiting: deque[_Under[T]] = deque()
    with wire.joined():
        try:
            for index, work in enumerate(works):
                waiting.append(_Under(index, work, next(work)))
                while len(waiting) >= at_once:
                    yield from _oldest(wire, waiting)
            while waiting:
                yield from _oldest(wire, waiting)
        finally:
            _drop(wire, waiting)


def _oldest(wire: Wire, waiting: deque[_Under[T]]) -> Iterator[tuple[int, T | TransportError]]:
    """Let the work go on whose replies come next; yield its end, if that is it."""
    under = waiting.popleft()
    replies = [wire.take(number) for number in under.numbers]
    try:
        under.numbers = under.work.send(replies)
    except StopIteration as end:
        yield under.index, end.value
    except TransportError as exc:
        if wire.broken:
            raise
        yield under.index, exc.with_traceback(None)  # whose frames would keep the file's bytes
    else:
        waiting.append(under)


def _drop(wire: Wire, waiting: deque[_Under[T]]) -> None:
    """End work in the middle: close what its last requests opened, and let it close what it had open."""
    with contextlib.suppress(TransportError):  # broken now, which the next request tells
        if not wire.broken:
            for under in waiting:
                for number in under.numbers:
                    close_opened(wire, wire.take(number))
    for under in waiting:
        under.work.close()


def close_opened(wire: Wire, reply: Reply) -> None:
    """Close the file that this reply opened, if it did; nobody waits for the answer."""
    if reply.kind == sftp.CMD_HANDLE and not wire.broken:
        close_handle(wire, reply.fields().get_string())


def close_handle(wire: Wire, handle: bytes) -> None:
    """Close an open file of which nothing can be lost; nobody waits for the answer."""
    if not wire.broken:
        wire.forget([wire.post(sftp.CMD_CLOSE, string(handle))])
