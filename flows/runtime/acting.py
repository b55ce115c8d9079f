"""For whom a transfer works: on machines that act as the caller it has the storages of that person, and closes them.

A transfer that no person has requested but a rule (`Transfer.reason`) is the service's own work. One of which it is not
known who requested it can't use such machines.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace

from datamanager.domain.states import TransferKind
from datamanager.errors import DataManagerError
from datamanager.signing.certificate import Person
from datamanager.transports.factory import Storages
from datamanager.transports.port import Storage
from flows.runtime.services import Services
from models.access.permission import kept_of
from models.tables import Transfer
from models.transfers.queue import TransferLease

SHARED = "shared"
"""What an object says that was written with the service's own login."""
SHORT = 16 << 20
"""Bytes of a file up to which it matters more how soon it begins to move than how fast it does."""


def person_of(row: Transfer) -> Person:
    """Return the person for whom a transfer works. Raises: NotAllowed when its grant can't be read; InvalidRequest when
    the person's account can't be used for logins.
    """
    task = str(row.id)
    grant = kept_of(row.grant)
    if grant is not None:
        return Person.of(grant, task)
    return Person.service(task) if row.reason is not None else Person(None, task, "nobody")


def acted_as(storage: Storage) -> str:
    """Return with whose login files are written there, as objects say it."""
    return SHARED if storage.login is None else storage.login.account


def prepare(parts: Services, hold: TransferLease, row: Transfer) -> None:
    """Begin to log in for a transfer that was taken, while its flow run is made. What is wrong shows in the run."""
    ends = Counter(one for one in (row.source_machine, row.destination_machine) if one in parts.machines.of_callers)
    if not ends:
        return
    with suppress(DataManagerError):
        parts.acting[hold] = own = _storages(parts, row)
        for name, count in ends.items():
            own.get(name).expect(count)


async def give_up(parts: Services, hold: TransferLease) -> None:
    """Close what was prepared for a transfer whose run has not begun. Idempotent."""
    if (own := parts.acting.pop(hold, None)) is not None:
        await _closed(own)


@asynccontextmanager
async def acting_for(parts: Services, hold: TransferLease, row: Transfer) -> AsyncIterator[Services]:
    """Return the mover's parts with the storages of the person for whom a transfer works. Raises: as `person_of`."""
    own = parts.acting.pop(hold, None) or _storages(parts, row)
    try:
        yield replace(parts, storages=own)
    finally:
        await _closed(own)


def _storages(parts: Services, row: Transfer) -> Storages:
    few = row.bytes_total is not None and row.bytes_total <= SHORT and not TransferKind(row.kind).itemised
    return parts.storages.of(person_of(row), short=few)


async def _closed(own: Storages) -> None:
    await asyncio.shield(asyncio.to_thread(own.close))  # it waits for the ends of programs


@contextmanager
def clearing_up_for(parts: Services, row: Transfer | None) -> Iterator[Services]:
    """The same for threads, after the transfer; None: it is not known any more, which is the service's own work.

    Raises: as `person_of`.
    """
    person = Person.service("cleanup") if row is None else person_of(row)
    with parts.storages.acting_as(person) as own:
        yield replace(parts, storages=own)
