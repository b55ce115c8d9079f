"""Work that is repeated: when it is done again, and what an error does to it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from datamanager.errors import CatalogueUnavailable, InternalError
from deployments.periodic import every

LONG = 3600.0


def run(steps: list[Any], seconds: float = LONG, notify: bool = False, **options: Any) -> list[float]:
    """Repeat work that takes its results (or raises its errors) from `steps`; return how long each pause was to be.

    Pauses take no time. With `notify` the work is notified while it runs.
    """
    pauses: list[float] = []
    notified = asyncio.Event()

    async def work() -> float | None:
        step = steps.pop(0)
        if notify:
            notified.set()
        if isinstance(step, Exception):
            raise step
        if not steps:
            raise StopAsyncIteration
        return None if step is None else float(step)

    async def main() -> None:
        real_sleep, loop = asyncio.sleep, asyncio.get_running_loop()

        async def sleep(wait: float) -> None:
            if asyncio.get_running_loop() is loop:
                pauses.append(wait)
            else:  # of a server that another thread of this process runs
                await real_sleep(wait)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "sleep", sleep)
            await every(seconds, "the work", work, notified=notified if notify else None, **options)

    with pytest.raises(StopAsyncIteration):
        asyncio.run(main())
    return pauses


def test_every_repeats_after_the_given_seconds() -> None:
    assert run([None, None, None]) == [LONG, LONG]


def test_every_waits_as_long_as_the_work_says() -> None:
    assert run([0, 7, None, None]) == [0, 7, LONG]


def test_every_goes_on_at_once_when_notified() -> None:
    assert run([None, None, None], notify=True) == []


def test_every_waits_as_usual_after_an_error() -> None:
    away = CatalogueUnavailable("away")
    assert run([away, away, None], seconds=5.0) == [5.0, 5.0]


def test_every_doubles_its_pauses_between_attempts_up_to_a_bound() -> None:
    away = CatalogueUnavailable("away")
    assert run([away] * 6 + [None, away, None], retry_after=0.1) == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, LONG, 0.1]


def test_every_logs_an_outage_once() -> None:
    with capture_logs() as lines:
        run([CatalogueUnavailable("away"), CatalogueUnavailable("still away"), None, InternalError("odd"), None, None])
    assert [(line["event"], line["work"], line.get("code")) for line in lines] == [
        ("work_failed", "the work", "catalogue_unavailable"),
        ("work_resumed", "the work", None),
        ("work_failed", "the work", "internal"),
        ("work_resumed", "the work", None),
    ]
    assert [line.get("exc_info") is not None for line in lines] == [False, False, True, False]


def test_every_raises_what_is_no_error_of_ours() -> None:
    async def broken() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        asyncio.run(every(LONG, "the work", broken))
