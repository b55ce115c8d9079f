"""Many rows by one statement, on both databases: what is stored is what a statement for each row would store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, text

from models.bulk_rows import among, insert_columns
from models.database import Database
from models.objects.catalogue import Facts, NewRow, add_objects
from models.tables import Claim, DataObject, OutboxMessage, TransferItem
from tests.support.bookkeeping import place, register

pytestmark = pytest.mark.dialect

BEYOND = 70_000
"""More than PostgreSQL (65,535) and SQLite (32,766) take parameters."""


def items(count: int, **given: Any) -> dict[str, list[Any]]:
    transfer = uuid4()
    return {
        "transfer_id": [transfer] * count,
        "number": list(range(count)),
        "object_id": [uuid4() for _ in range(count)],
        "destination_machine": ["beta"] * count,
        "dest": [f"out/{number}" for number in range(count)],
        **given,
    }


def test_insert_columns_stores_values_of_every_type(database: Database) -> None:
    notes = [{}, {"intent": {"size": 7, "text": 'ünï"\\'}}, {}]
    columns = items(3, notes=notes, size=[None, 2**40, 0], skipped=[True, False, True])
    time = datetime(2026, 11, 30, 12, 0, 0, 5, tzinfo=UTC)
    body = {"a": [1, None, {"b": "c"}]}
    with database.write() as session:
        assert insert_columns(session, TransferItem, columns) == 3
        sent: dict[str, list[Any]] = {"exchange": ["e"], "routing_key": ["r"], "body": [body], "created": [time]}
        assert insert_columns(session, OutboxMessage, sent) == 1
    with database.read() as session:
        rows = session.scalars(select(TransferItem).order_by(TransferItem.number)).all()
        message = session.scalars(select(OutboxMessage)).one()
    for name, values in columns.items():
        assert [getattr(row, name) for row in rows] == values
    assert {(row.status, row.error_code) for row in rows} == {("QUEUED", None)}  # what the table says
    assert (message.body, message.created, message.sent, message.subject) == (body, time, None, None)


def test_insert_columns_gives_defaults_to_every_row(database: Database) -> None:
    columns = items(2)
    with database.write() as session:
        assert insert_columns(session, TransferItem, columns) == 2
    with database.read() as session:
        rows = session.scalars(select(TransferItem)).all()
    assert [(row.notes, row.skipped, row.status) for row in rows] == [({}, False, "QUEUED")] * 2


def test_insert_columns_counts_what_was_free(database: Database) -> None:
    keys = ["a", "b", "a", "c"]
    columns: dict[str, list[Any]] = {"mode": ["place"] * 4, "place_key": keys, "object_id": [uuid4() for _ in keys]}
    with database.write() as session:
        assert insert_columns(session, Claim, columns, free_only=True) == 3
        assert insert_columns(session, Claim, columns, free_only=True) == 0
        found = set(session.execute(select(Claim.place_key, Claim.object_id)).all())
    assert found == {(keys[at], columns["object_id"][at]) for at in (0, 1, 3)}


def test_among_takes_any_number_of_values(database: Database) -> None:
    first = register(database, 'in/it\'s "ünï" 1')
    register(database, "in/b")
    ids = [*(uuid4() for _ in range(BEYOND)), first]
    names = [*map(str, range(BEYOND)), 'it\'s "ünï" 1']
    with database.read() as session:
        wanted: list[tuple[Any, list[Any]]] = [
            (DataObject.id, ids),
            (DataObject.filename, names),
            (DataObject.size, [*range(5)]),
        ]
        for column, values in wanted:
            found = session.scalars(select(DataObject.id).where(among(session, column, values))).all()
            assert found == ([] if column is DataObject.size else [first])
        assert session.scalars(select(DataObject.id).where(among(session, DataObject.id, []))).all() == []


def test_one_object_is_stored_as_each_of_many_is(database: Database) -> None:
    time = datetime(2027, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    facts = Facts(2**40, "sha256:" + "0" * 64, not_kept=("mode",))
    texts = 'ünï"\\', "o", "g", {"a": [1, None, {"b": 'c"'}]}

    def row() -> NewRow:
        return NewRow(uuid4(), place("d/f"), facts, "d", *texts, expires_at=time, provisional=True, created_by="jo")

    with database.write() as session:
        for rows in ([row()], [row(), row()]):
            add_objects(session, rows, "registered")
    with database.read() as session:
        stored = [dict(one) for one in session.execute(text("SELECT * FROM objects")).mappings()]
        told = session.scalars(select(OutboxMessage).order_by(OutboxMessage.id)).all()
    differing = "id", "date_registered", "date_modified"
    raw = [{name: value for name, value in one.items() if name not in differing} for one in stored]
    assert raw[0] == raw[1] == raw[2]
    assert {type(one[name]) for one in stored for name in differing[1:]} == {type(raw[0]["expires_at"])}
    assert {(one.exchange, one.routing_key) for one in told} == {("dm.events", "dm.object.registered")}
    bodies = [{key: one.body["data"][key] for key in one.body["data"] if key != "object"} for one in told]
    assert bodies[0] == bodies[1] == bodies[2]
    assert [str(one.subject) for one in told] == [one.body["data"]["object"] for one in told]
