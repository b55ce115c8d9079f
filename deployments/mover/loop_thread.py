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
from collections.abc import Callable, Coroutine
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def in_own_loop(work: Callable[[], Coroutine[Any, Any, None]], stop: Callable[[], None]) -> None:
    """Await `work()` in a new thread's event loop; return when it has ended. Raises: what it raised.

    Each SIGTERM and SIGINT calls `stop`, which must be safe from any thread, and so does being cancelled.
    """
    here = asyncio.get_running_loop()
    done: asyncio.Future[None] = here.create_future()
    context = contextvars.copy_context()

    def run() -> None:
        error: BaseException | None = None
        try:
            context.run(asyncio.run, work())
        except BaseException as exc:  # noqa: BLE001 - handed to whoever awaits
            error = exc
        here.call_soon_threadsafe(_settle, done, error)

    with _signals(here, stop):
        threading.Thread(target=run, name="mover", daemon=True).start()
        while not done.done():
            try:
                await asyncio.shield(done)
            except asyncio.CancelledError:
                stop()


def _settle(done: asyncio.Future[None], error: BaseException | None) -> None:
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Any:
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
