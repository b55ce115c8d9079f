"""A mover's parts, put together: runs, leases, notifications, the broker's messages, the outbox relay, housekeeping."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self

import anyio
import structlog
from pydantic import SecretStr

from datamanager.identity.roles import RolesFile
from datamanager.messaging.broker import Broker
from datamanager.messaging.notifications import NotificationSocket, notify
from datamanager.sealing import Sealer
from datamanager.settings import load_credentials
from deployments.amqp.consumer import RequestConsumer
from deployments.amqp.relay import Relay
from deployments.composition import Runtime, run_directory
from deployments.mover.dispatcher import Dispatcher
from deployments.mover.machine_probes import MachineProbes
from deployments.mover.maintenance_runs import AT_ONCE, start_retention
from deployments.orchestrator.schedule_sync import ScheduleSync
from deployments.periodic import every
from flows.cleanup.leftovers import clear_up, reclaim
from flows.cleanup.second_looks import look_again
from flows.runtime.reachability import tell_missing_base_dirs
from flows.runtime.services import Services
from models.core.listen import Listener
from models.database import LET_OTHERS, write
from models.housekeeping import tidy
from models.objects import totals
from models.submission import source_check

THREADS_PER_RUN = 3  # one that moves bytes, one that notes progress, one to spare

ASK_AGAIN_EVERY, ASK_AGAIN_BEATS = 30.0, 6
"""Seconds, and heartbeats, of which the shorter lies between two looks whether what runs is permitted still: what is
not has stopped within 60 s.
"""

log = structlog.get_logger(__name__)


class MoverService:
    """An async context: inside, `work` runs the mover's loops, and `dispatcher` what the Prefect worker hands over."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        self._runtime = runtime
        self._settings = runtime.settings
        self._name = name
        self.dispatcher: Dispatcher

    async def __aenter__(self) -> Self:
        runtime, settings = self._runtime, self._settings
        loop = asyncio.get_running_loop()
        threads = settings.concurrency * THREADS_PER_RUN + 2 * AT_ONCE + 8
        loop.set_default_executor(ThreadPoolExecutor(threads, thread_name_prefix="mover"))
        services = Services(
            settings=settings,
            machines=runtime.machines,
            database=runtime.database,
            storages=runtime.storages,
            guard=runtime.guard,
            credentials=load_credentials(),
            owner=self._name,
            notify=self._ended,
            roles=RolesFile(settings.roles),
        )
        self._services = services
        self.dispatcher = Dispatcher(services)
        self._brokers: list[Broker] = []
        self._relay: Relay | None = None
        self._consumer: RequestConsumer | None = None
        if (amqp := settings.amqp_url) is not None:
            self._relay = Relay(runtime.database, self._broker(amqp, "relay"), self._name)
            self._consumer = RequestConsumer(
                runtime.database,
                runtime.machines,
                self._broker(amqp, "requests"),
                self.dispatcher.on_transfer,
                settings.reply_prefix,
                check=source_check(runtime.guard, settings),
                sealer=Sealer.of(settings),
                on_entered=self._relay.notify,
            )
        self._socket = NotificationSocket(run_directory(settings), "mover")
        self._socket.listen(self._on_notification)
        self._listener = Listener(runtime.database, self._on_notification)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._listener.close()

    async def work(self) -> None:
        """Run every loop of the mover until cancelled."""
        services, dispatcher = self._services, self.dispatcher
        gateway = dispatcher.gateway
        async with anyio.create_task_group() as loops:
            loops.start_soon(dispatcher.renew_forever)
            loops.start_soon(dispatcher.take_forever)
            # each is repeated after so many seconds
            loops.start_soon(every, 2.0, "monitor Prefect", dispatcher.monitor.look)
            again = min(ASK_AGAIN_EVERY, ASK_AGAIN_BEATS * self._settings.heartbeat.total_seconds())
            loops.start_soon(every, again, "ask grants again", dispatcher.ask_again)
            loops.start_soon(every, 1.0, "take audits", dispatcher.maintenance.take_audits)
            loops.start_soon(every, 1.0, "probe machines", MachineProbes(services, dispatcher.notify).look)
            loops.start_soon(every, 1.0, "start retention", partial(start_retention, services, gateway))
            loops.start_soon(every, 2.0, "sync schedules", ScheduleSync(services, gateway).look)
            loops.start_soon(every, 10.0, "clear up", self._clear_up)
            loops.start_soon(every, 600.0, "tidy", self._tidy)
            if self._runtime.database.is_postgresql:
                loops.start_soon(every, 30.0, "fold the totals of objects", self._fold)
            loops.start_soon(tell_missing_base_dirs, services)
            if self._relay is not None:
                loops.start_soon(self._relay.run)
            if self._consumer is not None:
                loops.start_soon(self._consumer.run)

    async def hand_back(self) -> None:
        """Return the running transfers to the queue; another mover resumes them."""
        await self.dispatcher.stop()
        if self._relay is not None:
            await self._relay.aclose()
        for broker in self._brokers:
            await broker.close()

    def _broker(self, url: SecretStr, purpose: str) -> Broker:
        """Return a connection of its own for each purpose: a blocked publisher must not stop the consumer."""
        broker = Broker(url.get_secret_value(), name=f"{self._name} {purpose}")
        self._brokers.append(broker)
        return broker

    def _on_notification(self, _message: str) -> None:
        self.dispatcher.notify()
        if self._relay is not None:
            self._relay.notify()

    def _ended(self, message: str) -> None:
        """Notify the API on this host that a transfer ended, and the relay that there are events."""
        notify(run_directory(self._settings), "api", message)
        if self._relay is not None:
            self._relay.notify()

    async def _clear_up(self) -> None:
        """Remove partial files that could not be removed when their transfers ended, and bundles that nobody needs.

        Look again for files that were not found.
        """
        await asyncio.to_thread(clear_up, self._services)
        await asyncio.to_thread(reclaim, self._services)
        await asyncio.to_thread(look_again, self._services)

    async def _tidy(self) -> float | None:
        """Forget a bounded batch of old rows, so that nobody waits for it; soon again while there are more."""
        settings = self._settings
        done = await write(self._runtime.database, tidy, settings, broker=settings.amqp_url is not None)
        return LET_OTHERS if done.more else None

    async def _fold(self) -> float | None:
        """Add what was noted of objects to their totals; soon again while there is more."""
        return LET_OTHERS if await write(self._runtime.database, totals.fold) >= totals.FOLDED_AT_ONCE else None
