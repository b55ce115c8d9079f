"""Notifications of movers on this host: however many requests ask for the same one, it is sent once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from anyio.to_thread import run_sync

from datamanager.messaging.notifications import notify


class Notifier:
    """Sends what is to be said in a thread, and what comes meanwhile afterwards. Belongs to one event loop."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._topics = dict[str, None]()
        self._sending: asyncio.Task[None] | None = None

    def notify(self, topic: str) -> None:
        """Have all movers notified of `topic` soon."""
        self._topics[topic] = None
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._topics:
                topics = list(self._topics)
                self._topics.clear()
                await run_sync(self._send_now, topics)
        finally:
            self._sending = None

    def _send_now(self, topics: list[str]) -> None:
        for topic in topics:
            notify(self._directory, "mover", topic)
