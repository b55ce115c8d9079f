"""Work that a process repeats as long as it runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from datamanager.errors import DataManagerError, ServiceError

RETRY_MAX = 2.0
"""Seconds between two attempts at most, where they begin closer together than the work is repeated."""

log = structlog.get_logger(__name__)


async def every(
    seconds: float,
    name: str,
    work: Callable[[], Awaitable[float | None]],
    *,
    notified: asyncio.Event | None = None,
    retry_after: float | None = None,
) -> None:
    """Await `work()` until cancelled: again after `seconds`, or the seconds that it returns, or when `notified` is set.

    An error of ours ends nothing: it is logged once, under `name`, until the work succeeds again. The next attempt
    is made after `seconds`, or after `retry_after`, doubled each time up to RETRY_MAX. Other errors are raised.
    """
    pause, failing = retry_after, False
    while True:
        if notified is not None:
            notified.clear()
        try:
            wait = await work()
        except DataManagerError as exc:
            if not failing:
                unexpected = None if isinstance(exc, ServiceError) else exc
                log.warning("work_failed", work=name, code=exc.code, error=exc.detail, exc_info=unexpected)
            failing = True
            await asyncio.sleep(seconds if pause is None else pause)
            pause = None if pause is None else min(pause * 2, RETRY_MAX)
            continue
        if failing:
            log.info("work_resumed", work=name)
        pause, failing = retry_after, False
        wait = seconds if wait is None else wait
        if notified is None:
            await asyncio.sleep(wait)
            continue
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await notified.wait()
