"""Foreign errors of the AMQP libraries, translated in this one place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aio_pika.exceptions import AMQPError
from pamqp.exceptions import PAMQPException

from datamanager.errors import BrokerUnavailable


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Turn whatever the libraries raise into BrokerUnavailable, with its cause. `address`: host:port, for the message.

    To be put around their calls only. A cancellation of the caller's task passes.
    """
    try:
        yield
    except (AMQPError, PAMQPException, OSError, TimeoutError, RuntimeError, ValueError, ArithmeticError) as exc:
        # the last two: a frame that can't be decoded ends every call that waits on the connection
        raise BrokerUnavailable(f"RabbitMQ at {address}: {str(exc) or type(exc).__name__}") from exc
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # nobody cancelled us: the libraries end waiting calls in this way when their connection goes
        raise BrokerUnavailable(f"RabbitMQ at {address}: the connection was lost") from exc
