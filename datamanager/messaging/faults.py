"""Foreign errors of the AMQP libraries, translated in this one place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from datamanager.errors import BrokerUnavailable


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Turn whatever the libraries raise into BrokerUnavailable, with its cause. `address`: host:port, for the message.

    To be put around their calls only. A cancellation of the caller's task always comes out as one: the libraries
    sometimes lose it (asyncio.wait_for does until Python 3.12) or make another error of it, and sometimes end a waiting
    call in this way though nobody cancelled it.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0

    def cancelled() -> bool:
        return task is not None and task.cancelling() > before

    try:
        yield
    except asyncio.CancelledError as exc:
        if cancelled():
            raise
        raise BrokerUnavailable(f"RabbitMQ at {address}: the connection was lost") from exc
    except (*CONNECTION_EXCEPTIONS, ValueError, ArithmeticError) as exc:
        # the last two: a frame that can't be decoded ends every call that waits on the connection
        if cancelled():
            raise asyncio.CancelledError from exc
        raise BrokerUnavailable(f"RabbitMQ at {address}: {str(exc) or type(exc).__name__}") from exc
    if cancelled():
        raise asyncio.CancelledError
