"""Batches in the catalogue: their orders, their items, and what a flow does with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from datamanager.domain.requests import (
    ITEMS_MAX,
    CopyManyRequest,
    MoveManyRequest,
    TreeRequest,
    validated,
)
from datamanager.domain.states import ObjectStatus, TransferKind, Verified
from datamanager.errors import (
    ItemsFailed,
)
from models.batches import results as batch_results
from models.database import Database
from models.objects.catalogue import Facts, FoundFile, register_files
from models.submission import SealedRequest
from models.tables import DataObject, TransferItem
from models.transfers.items import select_items
from models.transfers.queue import TransferLease
from tests.support.bookkeeping import (
    SHA256,
    begin,
    get_transfer,
    place,
)

FACTS = Facts(7, SHA256, Verified.SHA256)
INTENT = {"size": 7, "sha256": None, "mtime": 1}


def batch(kind: str, *items: tuple[UUID, str], **fields: Any) -> SealedRequest:
    """Return a batch's order; its items go to beta unless `machine` says otherwise."""
    request = {"machine": "beta", "items": [{"uuid": str(uuid), "dest": dest} for uuid, dest in items], **fields}
    if kind == "copy":
        return SealedRequest(TransferKind.COPY_MANY, validated(request, CopyManyRequest), grant=None)
    return SealedRequest(TransferKind.MOVE_MANY, validated(request, MoveManyRequest), grant=None)


def below(kind: str, path: str, dest: str, machine: str = "beta") -> SealedRequest:
    """Return the order of all that lies below a directory of alpha."""
    request = {"directory": {"machine": "alpha", "path": path}, "machine": machine, "dest": dest}
    model, of = (
        (CopyManyRequest, TransferKind.COPY_MANY) if kind == "copy" else (MoveManyRequest, TransferKind.MOVE_MANY)
    )
    return SealedRequest(of, validated(request, model), grant=None)


def items_of(database: Database, transfer: UUID) -> list[TransferItem]:
    with database.read() as session:
        return select_items(session, transfer, limit=ITEMS_MAX)


def ends(database: Database, transfer: UUID) -> list[str]:
    """Return each item's error code, or its status, with a star when it was skipped."""
    return [(item.error_code or item.status) + "*" * item.skipped for item in items_of(database, transfer)]


def do(database: Database, act: Callable[..., Any], hold: TransferLease, *args: Any) -> Any:
    with database.write() as session:
        return act(session, hold, *args)


def results(*numbers: int) -> list[tuple[int, Facts]]:
    return [(number, FACTS) for number in numbers]


def perform(database: Database, transfer: UUID) -> str | ItemsFailed:
    """Do all of a batch that can be done, as the flow does."""
    hold = begin(database, transfer)
    kind = TransferKind(get_transfer(database, transfer).kind)
    with database.read() as session:
        numbers = [item.number for item in batch_results.items_to_do(session, hold, -1, ITEMS_MAX)]
    if kind is TransferKind.COPY_MANY:
        do(database, batch_results.complete_copies, hold, results(*numbers))
    else:
        do(database, batch_results.commit_moves, hold, results(*numbers))
        do(database, batch_results.end_committed, hold, numbers)
    found: str | ItemsFailed = do(database, batch_results.finish_batch, hold)
    return found


def set_status(database: Database, object_id: UUID, status: ObjectStatus) -> None:
    with database.write() as session:
        session.get_one(DataObject, object_id).status = status.value


def register_many(database: Database, count: int, directory: str = "many", *, size: int = 5) -> list[UUID]:
    files = [
        FoundFile(found, directory, Facts(size), found)
        for found in (place(f"{directory}/{number:05}") for number in range(count))
    ]
    with database.write() as session:
        rows = register_files(session, files, TreeRequest(machine="a", group="g"), None)
        return [row.id for row in rows]
