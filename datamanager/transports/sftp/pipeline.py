"""Work on many files over one SFTP conversation at once: while one file's replies are on their way, others continue.

Each file's work is a generator: it posts requests, yields their numbers and is sent the replies. Replies are taken in
the order of the requests, so no work waits for another one's, and nothing polls.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

from paramiko import sftp

from datamanager.errors import TransportError
from datamanager.transports.bulk_port import Results
from datamanager.transports.sftp.wire import Reply, Wire, string

T = TypeVar("T")

Work = Generator[list[int], list[Reply], T]
"""One file's work: yields the numbers of requests that it posted, is sent their replies in that order, returns its
result or raises its TransportError. Between two yields it never waits."""

Waiting = deque[tuple[int, Work[T], list[int]]]
"""Work under way: its index, and the requests whose replies it waits for."""


def pipelined(wire: Wire, works: Iterable[Work[T]], at_once: int) -> Results[T | TransportError]:
    """Do the work, `at_once` pieces at a time, and yield each one's place in `works` and its result or error.

    `works` is iterated only as far as there is room. What breaks the conversation is raised, as is what `works` raises;
    then, and when the iteration is left early, open files are closed and replies taken in, so that the conversation
    stays usable.
    """
    waiting: Waiting[T] = deque()
    with wire.joined():
        try:
            for index, work in enumerate(works):
                waiting.append((index, work, next(work)))
                while len(waiting) >= at_once:
                    yield from _oldest(wire, waiting)
            while waiting:
                yield from _oldest(wire, waiting)
        finally:
            _drop(wire, waiting)


def _oldest(wire: Wire, waiting: Waiting[T]) -> Iterator[tuple[int, T | TransportError]]:
    """Resume the work whose replies come next; yield its result, if that was its end."""
    index, work, numbers = waiting.popleft()
    replies = [wire.take(number) for number in numbers]
    try:
        waiting.append((index, work, work.send(replies)))
    except StopIteration as end:
        yield index, end.value
    except TransportError as exc:
        if wire.broken:
            raise
        yield index, exc.with_traceback(None)  # whose frames would keep the file's bytes


def _drop(wire: Wire, waiting: Waiting[T]) -> None:
    """End work in the middle: close what its last requests opened, and let it close what it had open."""
    with contextlib.suppress(TransportError):  # broken now: the next request raises
        if not wire.broken:
            for _, _, numbers in waiting:
                for reply in map(wire.take, numbers):
                    if reply.kind == sftp.CMD_HANDLE:
                        close_handle(wire, reply.fields().get_string())
    for _, work, _ in waiting:
        work.close()


def close_handle(wire: Wire, handle: bytes) -> None:
    """Close an open file of which nothing can be lost; nobody waits for the answer."""
    if not wire.broken:
        wire.forget([wire.post(sftp.CMD_CLOSE, string(handle))])
