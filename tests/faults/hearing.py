"""What a workflow system that listens to `dm.events` heard, as long as the matrix runs."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import aiormq

from tests.support.amqp import client, listener, rest

QUEUE = "fault-matrix"


@dataclass(frozen=True, slots=True)
class Heard:
    """One event of a transfer, in the order of arrival."""

    sequence: int
    type: str


class Ear:
    """A durable queue bound to all events; it outlives the broker's restarts and misses nothing."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._heard: defaultdict[str, list[Heard]] = defaultdict(list)
        asyncio.run(self._bind())

    def wait_for(self, task: str, sequence: int, patience: float) -> list[Heard]:
        """Return what was heard of a transfer, after its event of this number or `patience` seconds."""
        deadline = time.monotonic() + patience
        while True:
            asyncio.run(self._collect())
            heard = self._heard[task]
            if any(event.sequence >= sequence for event in heard) or time.monotonic() > deadline:
                return list(heard)
            time.sleep(0.2)

    async def _bind(self) -> None:
        async with client(self._url) as channel:
            await listener(channel, QUEUE)

    async def _collect(self) -> None:
        try:
            async with client(self._url) as channel:
                bodies = await rest(channel, QUEUE)
        except (ConnectionError, aiormq.AMQPError):
            return  # the broker is away; what it holds it will give later
        for body in bodies:
            event: dict[str, Any] = json.loads(body)
            if event["type"].startswith("dm.transfer."):
                self._heard[event["subject"]].append(Heard(int(event["sequence"]), event["type"]))
