"""What the Data Manager has in RabbitMQ: names and declarations. Written for 3.10 and later.

Everything is durable; queues are quorum queues (https://www.rabbitmq.com/docs/quorum-queues).
"""

from __future__ import annotations

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel

DEFAULT_EXCHANGE = ""
REQUESTS_QUEUE = "dm.requests"
EVENTS_EXCHANGE = "dm.events"
DEAD_EXCHANGE = "dm.dead"
DEAD_QUEUE = "dm.dead-letters"
OWN_PREFIX = "dm."
DELIVERY_LIMIT = 20
"""How often a message may come back unprocessed until it is a dead letter."""


async def declare(channel: AbstractChannel) -> None:
    """Declare exchanges, queues and the binding of the dead letters. Idempotent."""
    await channel.declare_exchange(EVENTS_EXCHANGE, ExchangeType.TOPIC, durable=True)
    dead = await channel.declare_exchange(DEAD_EXCHANGE, ExchangeType.FANOUT, durable=True)
    dead_letters = await channel.declare_queue(DEAD_QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
    await dead_letters.bind(dead, "")
    await channel.declare_queue(
        REQUESTS_QUEUE,
        durable=True,
        arguments={
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": DEAD_EXCHANGE,
            # a dead letter leaves this queue only when the other has it; that goes only with refusing when full
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    )
