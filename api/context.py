"""What the endpoints work with: made once at the composition root, handed to each request, no globals.

The catalogue is blocking, so its work runs in threads; each kind of work has its own limit (`api.capacity`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar
from uuid import uuid4

from anyio.to_thread import run_sync
from fastapi import Depends
from sqlalchemy.orm import Session
from starlette.requests import Request

from api.capacity import ClientStreams, ThreadLimits
from api.notifier import Notifier
from api.request_rates import RequestRates
from api.write_queue import WriteQueue
from datamanager.identity.quotas import NO_QUOTAS, Quotas, load_quotas
from datamanager.machines import Machines
from datamanager.settings import Settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from models.access.refusals import Refusals
from models.core.idempotency import StoredAnswer
from models.database import Database

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Context:
    """The dependencies of one API process."""

    name: str
    """Of this process, among the holders of idempotency keys."""
    settings: Settings
    machines: Machines
    database: Database
    storages: Storages
    guard: EgressGuard
    """Which addresses may be downloaded from."""
    limits: ThreadLimits
    streams: ClientStreams
    notify_relay: Callable[[], None]
    """Called, from the event loop, after something was put into the outbox."""
    write_queue: WriteQueue
    notifier: Notifier
    refusals: Refusals = field(default_factory=Refusals)
    """Refusals that the audit trail does not have yet."""
    quotas: Quotas = NO_QUOTAS
    rates: RequestRates = field(default_factory=lambda: RequestRates(NO_QUOTAS))
    keys: dict[str, asyncio.Future[StoredAnswer | None]] = field(default_factory=dict)
    """Idempotency keys that a request of this process works under, and its answer once it has finished (None: the key
    is to be looked at again)."""

    @property
    def run_directory(self) -> Path:
        """Where the processes of this host notify each other."""
        return self.settings.home / "run"

    async def reading(self, work: Callable[[Session], T]) -> T:
        """Run `work` in a thread with a session for reading, whose queries end after `settings.query_timeout`. Raises:
        CatalogueUnavailable, QueryTooSlow and what `work` raises.
        """
        session_of = partial(self.database.read, self.settings.query_timeout)
        return await run_sync(_in_session, session_of, work, limiter=self.limits.readers)

    async def judging(self, work: Callable[[Session], T]) -> T:
        """Run `work` in a thread with a session for reading, however long its queries take: it is a part of a request
        to change something. Raises: CatalogueUnavailable and what `work` raises.
        """
        return await run_sync(_in_session, self.database.read, work, limiter=self.limits.readers)

    async def writing(self, work: Callable[[Session], T]) -> T:
        """Run `work` in a thread, committed or undone as one. On SQLite it may share its transaction with others
        (`models.core.group_commit`). Raises: CatalogueUnavailable and what `work` raises.
        """
        if self.database.is_postgresql:
            return await run_sync(_in_session, self.database.write, work, limiter=self.limits.writers)
        return await self.write_queue.run(work)

    def notify_movers(self, topic: str) -> None:
        """Have the movers of this host look soon at the queue, or at what `topic` names."""
        self.notifier.notify(topic)

    async def on_machine(self, name: str, work: Callable[[], T], *, long: bool = False) -> T:
        """Run `work`, which talks to a machine, in a thread; `long`: it takes as long as files are large or many.

        Raises: MachineUnavailable when so much waits for the machine already, and none of it ends; what `work` raises.
        """
        slots = self.limits.machines[name]
        return await (slots.work if long else slots.looks).run(work)

    async def resolving(self, work: Callable[[], T]) -> T:
        """Run `work`, which resolves names of hosts, in a thread. Raises: ServerBusy when none of those under way ends;
        what `work` raises.
        """
        return await self.limits.names.run(work)


def _in_session(session_of: Callable[[], AbstractContextManager[Session]], work: Callable[[Session], T]) -> T:
    with session_of() as session:
        return work(session)


def make_context(
    settings: Settings,
    machines: Machines,
    database: Database,
    storages: Storages,
    notify_relay: Callable[[], None] = lambda: None,
) -> Context:
    """Put the dependencies together; nothing is connected yet. `notify_relay`: see Context. Raises: SettingsError when
    quotas.toml is wrong.
    """
    quotas = load_quotas(settings.quotas_file)
    return Context(
        name=f"api-{uuid4().hex[:12]}",
        settings=settings,
        machines=machines,
        database=database,
        storages=storages,
        guard=EgressGuard(settings.download_allow, settings.download_deny),
        limits=ThreadLimits.of(machines),
        streams=ClientStreams(settings.streams_per_client),
        notify_relay=notify_relay,
        quotas=quotas,
        rates=RequestRates(quotas),
        write_queue=WriteQueue(database),
        notifier=Notifier(settings.home / "run"),
    )


async def context_of(request: Request) -> Context:
    """Return the context of the app that serves the request. Asynchronous, or FastAPI would take a thread for it."""
    context: Context = request.app.state.context
    return context


In = Annotated[Context, Depends(context_of)]
