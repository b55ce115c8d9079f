"""Contexts that are entered, and left, at the same time: over a long path each one costs round trips."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def concurrently(contexts: Sequence[AbstractContextManager[T]], *, after_first: bool = False) -> Iterator[list[T]]:
    """Enter all of the contexts, each in a thread of its own, and yield what they give, in their order.

    `after_first`: the others once the first one is entered, which makes what they need. Left in threads too, each told
    of the error that leads there. Raises: the first one's error, in that order; when one can't be entered, those that
    were are left first.
    """
    if len(contexts) < 2:
        with contextlib.ExitStack() as stack:
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
