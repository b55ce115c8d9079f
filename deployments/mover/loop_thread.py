"""Work in an event loop of a thread of its own, with signals passed on to it.

Prefect's flow engine installs a SIGTERM handler for each run when it is in the main thread, which many runs in one
process would fight over. In another thread it does not; the main thread's loop waits for signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def in_own_loop(work: Callable[[], Coroutine[Any, Any, None]], stop: Callable[[], None]) -> None:
    """Await `work()` in a new thread's event loop; return when it has ended. Raises: what it raised.

    Each SIGTERM and SIGINT calls `stop`, which must be safe from any thread, and so does being cancelled.
    """
    loop, context = asyncio.get_running_loop(), contextvars.copy_context()
    with _signals(loop, stop), ThreadPoolExecutor(1, thread_name_prefix="mover") as thread:
        done = loop.run_in_executor(thread, lambda: context.run(asyncio.run, work()))
        while not done.done():
            try:
                await asyncio.shield(done)
            except asyncio.CancelledError:
                if not done.done():
                    stop()
    done.result()


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    """Handle signals while inside; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
