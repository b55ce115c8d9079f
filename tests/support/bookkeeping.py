"""Small words for tests of models/: objects, transfers, and what a mover does with them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.domain.requests import CopyRequest, DeleteRequest, GetExternalRequest, MoveRequest, RegisterRequest
from datamanager.domain.states import TransferKind, Verified
from datamanager.errors import DestinationExists, LeaseLost
from datamanager.machines import Machines, parse_machines
from models import submission
from models.access.visibility import ALL
from models.database import Database
from models.objects import catalogue
from models.objects.catalogue import Facts
from models.submission import SealedRequest
from models.tables import Claim, DataObject, OutboxMessage, Transfer
from models.transfers import lookup, queue
from models.transfers.queue import TransferLease

LEASE = timedelta(seconds=30)
SHA256 = "sha256:" + "ab" * 32

MACHINES: Machines = parse_machines(
    """
    [machines.alpha]
    transport = "local"
    base_dir = "/data/alpha"
    [machines.beta]
    transport = "sftp"
    host = "beta.example"
    base_dir = "/data/beta"
    """,
    "machines.toml",
)


def place(path: str, machine: str = "alpha") -> Place:
    """Return a place on one of MACHINES."""
    return Place.of(MACHINES[machine], path)


def register(database: Database, path: str, machine: str = "alpha", *, size: int | None = 5, **fields: Any) -> UUID:
    """Register an object in a transaction of its own."""
    directory, _, filename = path.rpartition("/")
    request = RegisterRequest(filename=filename, path=directory, machine=machine, size=size, **fields)
    with database.write() as session:
        facts = Facts(size, verified=Verified.SIZE)
        return catalogue.register_object(session, request, place(path, machine), facts, by=None)


def order(
    kind: str, object_id: UUID | None = None, dest: str = "", machine: str = "beta", **fields: Any
) -> SealedRequest:
    """Return an order of `kind`."""
    match TransferKind(kind):
        case TransferKind.COPY:
            return SealedRequest(
                TransferKind.COPY, CopyRequest(machine=machine, dest=dest, **fields), object_id, grant=None
            )
        case TransferKind.MOVE:
            return SealedRequest(
                TransferKind.MOVE, MoveRequest(machine=machine, dest=dest, **fields), object_id, grant=None
            )
        case TransferKind.DELETE:
            return SealedRequest(TransferKind.DELETE, DeleteRequest(), object_id, grant=None)
        case TransferKind.GETEXTERNAL:
            path, _, name = dest.rpartition("/")
            request = GetExternalRequest(
                machine=machine, filename=name, path=path, url="https://example.org/x", **fields
            )
            return SealedRequest(TransferKind.GETEXTERNAL, request, grant=None)
        case batch:
            raise ValueError(f"{batch} has items: see the tests of batches")


def submit(database: Database, wanted: SealedRequest) -> UUID:
    """Submit an order in a transaction of its own, a batch's items judged before, as the API does."""
    return submit_judged(database, judge(database, wanted))


def judge(database: Database, wanted: SealedRequest) -> SealedRequest:
    """Judge the items of a batch as they are now."""
    with database.read() as session:
        return submission.judged(session, MACHINES, wanted)


def submit_judged(database: Database, wanted: SealedRequest) -> UUID:
    """Submit an order as it was judged, or not."""
    with database.write() as session:
        return submission.submit(session, MACHINES, wanted).id


def take(
    database: Database, transfer: UUID | None = None, *, owner: str = "mover-1", limit: int = 1
) -> list[TransferLease]:
    """Take transfers as a mover does."""
    with database.write() as session:
        return queue.take(session, owner, LEASE, limit, only=transfer)


def begin(database: Database, transfer: UUID, *, owner: str = "mover-1") -> TransferLease:
    """Take a transfer and begin its run."""
    (hold,) = take(database, transfer, owner=owner)
    with database.write() as session:
        queue.begin(session, hold, uuid4())
    return hold


def get_transfer(database: Database, transfer: UUID) -> Transfer:
    """Return the transfer's row."""
    with database.read() as session:
        return lookup.get_transfer(session, transfer, ALL)


def get_object(database: Database, object_id: UUID) -> DataObject:
    """Return the object's row."""
    with database.read() as session:
        return catalogue.get_object(session, object_id, ALL)


def claims(database: Database) -> set[tuple[str, str | None, UUID | None, UUID | None]]:
    """Return every claim as (mode, machine:place, object, transfer)."""
    with database.read() as session:
        return {
            (row.mode, f"{row.machine}:{row.place}" if row.place else None, row.object_id, row.transfer_id)
            for row in session.scalars(select(Claim))
        }


def messages(database: Database, subject: UUID) -> list[OutboxMessage]:
    """Return the outbox's messages about an object or transfer, oldest first."""
    with database.read() as session:
        query = select(OutboxMessage).where(OutboxMessage.subject == subject).order_by(OutboxMessage.id)
        return list(session.scalars(query).all())


def told(database: Database, subject: UUID) -> list[str]:
    """Return the routing keys of the messages about an object or transfer."""
    return [message.routing_key for message in messages(database, subject)]


def snapshot(database: Database) -> list[list[tuple[Any, ...]]]:
    """Return all that the catalogue holds, to prove that nothing was changed."""
    with database.read() as session:
        tables = [model.__table__ for model in (DataObject, Transfer, Claim, OutboxMessage)]
        return [[tuple(row) for row in session.execute(select(table).order_by(table.c.id))] for table in tables]


def assert_lease_lost(
    database: Database, hold: TransferLease, write: Callable[[Session, TransferLease], object], name: str
) -> None:
    """Assert that a write with a lost hold is refused and changes nothing; `name` stands in the failure."""
    before = snapshot(database)
    try:
        with database.write() as session:
            write(session, hold)
    except LeaseLost:
        assert snapshot(database) == before, name
    else:
        raise AssertionError(f"{name} was not refused")


def race_to_register(url: str, path: str, times: int) -> int:
    """Register one path `times` times (in a process of its own); return how often it worked."""
    database, won = Database(url), 0
    for _ in range(times):
        try:
            register(database, path)
        except DestinationExists:
            continue
        won += 1
    database.close()
    return won
