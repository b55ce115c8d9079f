"""Files of an archive that was fetched from outside, as the mover that extracts them tells the catalogue
(see `models.batches.results`).

What is in it is known only when it is there: `enter` makes the items then, once. `batches.record_intents` → file has
its name → `complete`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from datamanager.domain.location import Place, split_dest
from datamanager.domain.requests import GetExternalRequest
from datamanager.domain.states import TransferKind
from datamanager.errors import DataManagerError, SourceChanged
from models.batches.item_admission import JudgedItem, claim_destinations, insert_items
from models.batches.results import destination, enter_results, open_items, update_items
from models.core.identifiers import new_id
from models.objects.catalogue import Facts, NewRow
from models.transfers import outcomes
from models.transfers.lookup import request_as
from models.transfers.queue import TransferLease, held

ARCHIVE = "archive"
"""The note that says which archive the items are of."""
LOOKED_FOR = "looked_for"
"""An item's note: the intent that an attempt before recorded, when its file had no name yet at the next one."""


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """A file in the archive: its name below the request's directory, its size in bytes, its place, and what a mover
    must know to extract it."""

    name: str
    size: int
    place: Place
    member: dict[str, Any]


def enter(
    session: Session,
    hold: TransferLease,
    identity: str,
    files: Sequence[ArchivedFile],
    refused: Sequence[tuple[str, DataManagerError]] = (),
) -> None:
    """Make the files the transfer's items; `identity` tells the archive from another one. One transaction, idempotent.

    A file whose place is taken becomes an item that failed, as do the members that can't be had (`refused`: by their
    names, and why). Raises: LeaseLost; SourceChanged when the items are those
    of another archive.
    """
    row = held(session, hold, lock=True)
    known = row.notes.get(ARCHIVE)
    if known is not None:
        require_same(known, identity)
        return
    request, archive = request_as(row, GetExternalRequest, "download"), outcomes.destination(row)
    items = []
    for file in files:
        dest = f"{request.path.rstrip('/')}/{file.name}" if request.path else file.name
        origin = Place(archive.machine, f"{archive.path}/{file.name}")
        item = JudgedItem(new_id(), file.place.machine, dest, file, origin, file.place, notes={"member": file.member})
        item.result = item.object_id
        items.append(item)
    for name, error in refused:
        dest = f"{request.path.rstrip('/')}/{name}" if request.path else name
        items.append(JudgedItem(new_id(), archive.machine, dest, error=error))
    claim_destinations(session, row.id, items)
    for item in items:
        item.result = None if item.error else item.object_id
    insert_items(session, row.id, items)
    row.notes = {**row.notes, ARCHIVE: identity}


def require_same(known: str, identity: str) -> None:
    """Check that an archive is the one whose files are the items. Raises: SourceChanged."""
    if known != identity:
        raise SourceChanged("the archive differs from the one whose extraction began")


def lay_aside(session: Session, hold: TransferLease, numbers: Sequence[int]) -> None:
    """Note that these files were looked at, and had not got their names. What they would be is kept (LOOKED_FOR): a
    mover that lost the transfer may name one yet. Raises: LeaseLost.
    """
    row, items = open_items(session, hold, numbers)
    changes = []
    for item in items:
        notes = dict(item.notes)
        notes[LOOKED_FOR] = notes.pop("intent")
        changes.append({"number": item.number, "notes": notes})
    update_items(session, row, changes)


def complete(session: Session, hold: TransferLease, results: Sequence[tuple[int, Facts]], originator: str) -> None:
    """End items whose files have their names: for each a new object. Raises: LeaseLost."""
    facts = dict(results)
    row, items = open_items(session, hold, facts, TransferKind.GETEXTERNAL_MANY)
    request = request_as(row, GetExternalRequest, "download")
    rows = [
        NewRow.of_request(
            item.object_id,
            destination(item),
            facts[item.number],
            request,
            row.created_by,
            path=split_dest(item.dest)[0],
            originator=originator,
        )
        for item in items
    ]
    enter_results(session, row, items, rows, "registered")
