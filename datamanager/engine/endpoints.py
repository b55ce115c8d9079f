"""Both ends of a transfer at once: their sessions, and the look whether they are two places at all."""

from __future__ import annotations

import posixpath
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

from datamanager.domain.states import TransferKind
from datamanager.engine.attempt import Attempt, Found
from datamanager.errors import DestinationExists, PathMissing
from datamanager.transports.port import Session

T = TypeVar("T")


@contextmanager
def acquire_sessions(job: Attempt) -> Iterator[tuple[Session, Session]]:
    """Lend a session of each end. Pools are bounded, so they are asked in the order of the machines' names: two
    transfers in opposite directions can't wait for each other for ever. Two of one machine are lent together for the
    same reason.
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


@contextmanager
def concurrently(contexts: Sequence[AbstractContextManager[T]], *, after_first: bool = False) -> Iterator[list[T]]:
    """Enter all of the contexts, each in a thread of its own, and yield what they give, in their order: over a long
    path each one costs round trips.

    `after_first`: the others once the first one is entered, which makes what they need. Left in threads too, each told
    of the error that leads there. Raises: the first one's error, in that order; when one can't be entered, those that
    were are left first.
    """
    if len(contexts) < 2:
        with ExitStack() as stack:
            yield [stack.enter_context(one) for one in contexts]
        return
    with ThreadPoolExecutor(len(contexts)) as threads:
        entering = [threads.submit(contexts[0].__enter__)]
        if not after_first or entering[0].exception() is None:
            entering += [threads.submit(one.__enter__) for one in contexts[1:]]
        entered = [one for one, future in zip(contexts, entering, strict=False) if future.exception() is None]
        try:
            given = [future.result() for future in entering]
            yield given
        except BaseException:
            _results(_leave(threads, entered, sys.exc_info()), quietly=True)
            raise
        _results(_leave(threads, entered, (None, None, None)))


def _leave(
    threads: ThreadPoolExecutor, entered: Sequence[AbstractContextManager[Any]], error: Any
) -> list[Future[Any]]:
    return [threads.submit(one.__exit__, *error) for one in entered]


def _results(leaving: Sequence[Future[Any]], *, quietly: bool = False) -> None:
    """Wait for all; raise the first error, but not when another one is on its way."""
    errors = [error for future in leaving if (error := future.exception()) is not None]
    if errors and not quietly:
        raise errors[0]
