"""The threads that blocking work of requests is done in (`api.capacity`)."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable

import pytest

from api.capacity import SHARE, Slots
from datamanager.errors import MachineUnavailable

PATIENCE = 30.0


def slots_of(most: int, patience: float = PATIENCE, share: float = 0.0) -> Slots:
    return Slots(most, patience, lambda: MachineUnavailable("it hangs"), share)


def test_short_work_on_this_host_is_done_in_order_by_few_threads() -> None:
    async def run() -> None:
        slots, order, threads = slots_of(8, share=60.0), list[int](), set[int]()

        def work(number: int) -> Callable[[], int]:
            def piece() -> int:
                order.append(number)
                threads.add(threading.get_ident())
                return number

            return piece

        assert await asyncio.gather(*(slots.run(work(number)) for number in range(200))) == list(range(200))
        assert order == list(range(200))
        assert len(threads) == 1

    asyncio.run(run())


@pytest.mark.parametrize("share", [0.0, SHARE])
def test_work_that_hangs_keeps_one_thread_and_no_other_work(share: float) -> None:
    async def run() -> None:
        slots, going_on = slots_of(2, share=share), threading.Event()
        hanging = asyncio.create_task(slots.run(going_on.wait))
        try:
            assert await asyncio.gather(*(slots.run(lambda: "done") for _ in range(20))) == ["done"] * 20
        finally:
            going_on.set()
        assert await hanging


def test_who_waits_is_refused_only_once_nothing_was_released_for_long() -> None:
    async def run() -> None:
        slots, going_on = slots_of(1, patience=0.1), threading.Event()
        hanging = asyncio.create_task(slots.run(going_on.wait))
        try:
            with pytest.raises(MachineUnavailable):
                await slots.run(lambda: "never")
        finally:
            going_on.set()
        assert await hanging, "what a thread has begun is never refused"
        assert await slots.run(lambda: "done") == "done"


def test_a_caller_that_goes_takes_back_what_no_thread_has_begun() -> None:
    async def run() -> None:
        slots, going_on, done = slots_of(1), threading.Event(), list[str]()
        hanging = asyncio.create_task(slots.run(going_on.wait))
        gone = asyncio.create_task(slots.run(lambda: done.append("gone")))
        after = asyncio.create_task(slots.run(lambda: done.append("after")))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        going_on.set()
        await asyncio.gather(hanging, after)
        assert gone.cancelled()
        assert done == ["after"]


def test_work_has_the_context_of_its_own_request_and_its_own_error() -> None:
    async def run() -> None:
        slots, request = slots_of(4, share=60.0), contextvars.ContextVar("request", default=0)

        async def ask(number: int) -> int:
            request.set(number)

            def piece() -> int:
                if number % 3 == 0:
                    raise ValueError(str(request.get()))
                return request.get()

            return await slots.run(piece)

        found = await asyncio.gather(*(ask(number) for number in range(9)), return_exceptions=True)
        assert [one if isinstance(one, int) else int(str(one)) for one in found] == list(range(9))
        assert [isinstance(one, ValueError) for one in found] == [number % 3 == 0 for number in range(9)]

    asyncio.run(run())
