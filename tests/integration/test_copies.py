"""What the database makes of a batch's copies is what Python makes of one copy."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError

from datamanager.domain.location import Place
from datamanager.domain.requests import CopyManyRequest, validated
from datamanager.domain.states import TransferKind, Verified
from datamanager.errors import InternalError
from models.batches import results as batch_results
from models.core.outbox import cloud_event
from models.database import Database
from models.objects.catalogue import CARRIED, Facts, NewRow, add_objects
from models.submission import SealedRequest
from models.tables import Claim, DataObject, OutboxMessage, TransferItem
from models.transfers.items import select_items
from tests.support.access import in_role
from tests.support.bookkeeping import SHA256, begin, register, snapshot, submit

pytestmark = pytest.mark.dialect

DESTS = [
    "/data/beta/a",
    "b",
    "c/d",
    "e//f",
    "./g/h",
    'i/"quoted" \\ and é 文 \U0001f600\t',
    "j'/k;l",
    "/data//beta/m/n",
]
FACTS = [
    Facts(0),
    Facts(2**40, SHA256, Verified.SHA256),
    Facts(7, SHA256, Verified.SIZE, ("mode", "mtime"), acted_as="shared"),
    Facts(None),
]
META: dict[str, Any] = {"text": 'é "\\ \U0001f600', "nested": [{"a": None}, 1.5, 10**20], "": False}
COLUMNS = [one for one in DataObject.__table__.c if one.name not in ("id", "date_registered", "date_modified")]


def made(database: Database, objects: list[UUID]) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return the rows of objects but for their identifiers, and what was told of them in the order in which it was."""
    with database.read() as session:
        rows = [session.execute(select(*COLUMNS).where(DataObject.id == one)).one() for one in objects]
        query = select(OutboxMessage).where(OutboxMessage.subject.in_(objects)).order_by(OutboxMessage.id)
        found = session.scalars(query).all()
    assert [one.subject for one in found] == objects
    for one, identifier in zip(found, objects, strict=True):
        like = cloud_event("dm.object.copied", identifier, one.created, one.body["data"])
        assert one.body == like | {"id": one.body["id"]}
        assert (one.exchange, one.routing_key, one.sent) == ("dm.events", "dm.object.copied", None)
        assert UUID(one.body["id"]).version in (4, 7)
        assert one.body["data"].pop("object") == str(identifier)
    assert len({one.body["id"] for one in found}) == len(objects)
    return rows, [one.body["data"] for one in found]


def test_copies_of_a_batch_are_as_one_copy_is(database: Database) -> None:
    sources = [register(database, f"in/{n}", group="fire é", originator='o"', description="d\\") for n in range(3)]
    with database.write() as session:
        session.execute(update(DataObject).where(DataObject.id != sources[0]).values(meta=META))
    items = [{"uuid": str(sources[n % 3]), "dest": dest} for n, dest in enumerate(DESTS)]
    order = SealedRequest(
        TransferKind.COPY_MANY, validated({"machine": "beta", "items": items}, CopyManyRequest), grant=in_role("admin")
    )
    hold = begin(database, submit(database, order))
    results = [(n, FACTS[n % 4]) for n in range(len(DESTS))]
    with database.read() as session:
        items_of = select_items(session, hold.transfer, limit=100)
    copies = [item.result_object_id for item in items_of if item.result_object_id is not None]
    assert len(copies) == len(DESTS)
    with database.write() as session:
        batch_results.complete_copies(session, hold, results)
    again = [uuid4() for _ in copies]
    with database.write() as session:  # as a single copy does
        known = {row.id: row for row in session.execute(select(*CARRIED).where(DataObject.id.in_(sources)))}
        add_objects(
            session,
            [
                NewRow.of_copy(
                    new, Place("beta", item.destination_place or ""), facts, item.dest, known[item.object_id], "jo"
                )
                for new, item, (_, facts) in zip(again, items_of, results, strict=True)
            ],
            "copied",
        )
    assert made(database, copies) == made(database, again)
    with database.read() as session:
        used = set(session.scalars(select(DataObject.last_used).where(DataObject.id.in_(sources))))
        sizes = list(session.scalars(select(TransferItem.size).order_by(TransferItem.number)))
    assert len(used) == 1
    assert None not in used
    assert sizes == [facts.size for _, facts in results]


@pytest.mark.parametrize(("lacks", "error"), [("place", InternalError), ("source", IntegrityError)])
def test_an_item_that_lacks_something_takes_all_of_its_chunk_back(
    database: Database, lacks: str, error: type[Exception]
) -> None:
    source = register(database, "in/a")
    items = [{"uuid": str(source), "dest": dest} for dest in ("a", "b")]
    order = SealedRequest(
        TransferKind.COPY_MANY, validated({"machine": "beta", "items": items}, CopyManyRequest), grant=None
    )
    hold = begin(database, submit(database, order))
    with database.write() as session:
        if lacks == "place":
            session.execute(delete(Claim).where(Claim.place == "b"))
        else:
            session.execute(update(TransferItem).where(TransferItem.number == 1).values(object_id=uuid4()))
    before = snapshot(database)
    with pytest.raises(error), database.write() as session:
        batch_results.complete_copies(session, hold, [(0, FACTS[0]), (1, FACTS[0])])
    assert snapshot(database) == before
    if lacks == "source":  # an item alone, as a mover does then, is not held up by the other one
        with database.write() as session:
            batch_results.complete_copies(session, hold, [(0, FACTS[0])])
        with database.read() as session:
            items_of = select_items(session, hold.transfer, limit=2)
        assert [item.status for item in items_of] == ["COMPLETE", "QUEUED"]
