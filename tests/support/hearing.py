"""What a workflow system that listens to `dm.events` heard of transfers, and whether that was all of it, in order."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aio_pika.exceptions import AMQPError

from tests.support.amqp import client, listener, rest

QUEUE = "hearing"


@dataclass(frozen=True, slots=True)
class Heard:
    """One event of a transfer, in the order of arrival."""

    sequence: int
    type: str


def misheard(heard: Sequence[Heard], told: int) -> list[str]:
    """Return what is wrong with the events of a transfer that has told of so many: one is missing, or out of order.

    An event may arrive twice; its first arrival counts.
    """
    numbers = list(dict.fromkeys(event.sequence for event in heard))
    found = []
    if numbers != sorted(numbers):
        found.append(f"events arrived out of order: {numbers}")
    if set(numbers) != set(range(1, told + 1)):
        found.append(f"of {told} events arrived: {sorted(numbers)}")
    return found


class Ear:
    """A durable queue bound to all events; it outlives the broker's restarts and misses nothing."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._heard: defaultdict[str, list[Heard]] = defaultdict(list)
        asyncio.run(self._bind())

    def wait_for(self, task: str, sequence: int, patience: float) -> list[Heard]:
        """Return what was heard of a transfer, after its event of this number or `patience` seconds."""
        deadline = time.monotonic() + patience
        heard = self._heard[task]
        while not any(event.sequence >= sequence for event in heard) and time.monotonic() < deadline:
            asyncio.run(self._collect())
            time.sleep(0.1)
        return list(heard)

    async def _bind(self) -> None:
        async with client(self._url) as channel:
            await listener(channel, QUEUE)

    async def _collect(self) -> None:
        try:
            async with client(self._url) as channel:
                bodies = await rest(channel, QUEUE)
        except (ConnectionError, AMQPError):
            return  # the broker is away; what it holds it will give later
        for body in bodies:
            event: dict[str, Any] = json.loads(body)
            if event["type"].startswith("dm.transfer."):
                self._heard[event["subject"]].append(Heard(int(event["sequence"]), event["type"]))
