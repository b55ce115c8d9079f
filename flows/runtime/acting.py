"""For whom a transfer works: on machines that act as the caller it has the storages of that person, and closes them.

A transfer that no person has requested but a rule (`Transfer.reason`) is the service's own work. One of which it is not
known who requested it can't use such machines.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from datamanager.identity.grant import Grant
from datamanager.signing.certificate import Person
from datamanager.transports.port import Storage
from flows.runtime.services import Services
from models.tables import Transfer

SHARED = "shared"
"""What an object says that was written with the service's own login."""


def person_of(row: Transfer) -> Person:
    """Return the person for whom a transfer works. Raises: NotAllowed when its grant can't be read; InvalidRequest when
    the person's account can't be used for logins.
    """
    task = str(row.id)
    if row.grant is not None:
        return Person.of(Grant.from_json(row.grant), task)
    return Person.service(task) if row.reason is not None else Person(None, task, "nobody")


def acted_as(storage: Storage) -> str:
    """Return with whose login files are written there, as objects say it."""
    return SHARED if storage.login is None else storage.login.account


@asynccontextmanager
async def acting_for(parts: Services, row: Transfer) -> AsyncIterator[Services]:
    """Return the mover's parts with the storages of the person for whom a transfer works. Raises: as `person_of`."""
    own = parts.storages.of(person_of(row))
    try:
        yield replace(parts, storages=own)
    finally:
        await asyncio.shield(asyncio.to_thread(own.close))  # it waits for the ends of programs


@contextmanager
def clearing_up_for(parts: Services, row: Transfer | None) -> Iterator[Services]:
    """The same for threads, after the transfer; None: it is not known any more, which is the service's own work.

    Raises: as `person_of`.
    """
    person = Person.service("cleanup") if row is None else person_of(row)
    with parts.storages.acting_as(person) as own:
        yield replace(parts, storages=own)
