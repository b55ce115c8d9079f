"""Batches that arrive as messages are judged as strictly as over HTTP."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from datamanager.domain.requests import ITEMS_MAX
from datamanager.identity.grant import EVERYBODY
from datamanager.machines import Machine, Machines, TransportKind
from datamanager.messaging.consuming import DeadLetter
from deployments.amqp.submission import Call, enter, read_message
from models.database import Database
from models.tables import DataObject
from models.transfers.items import select_items
from tests.support.bookkeeping import MACHINES, get_transfer, register, snapshot


def call(kind: str, data: Any, name: str = "1") -> Call:
    event = {"specversion": "1.0", "id": name, "source": "/w", "type": f"dm.request.{kind}", "data": data}
    found = read_message(json.dumps(event).encode())
    assert isinstance(found, Call), found
    return found


@pytest.mark.dialect
def test_a_batch_is_entered_once(database: Database) -> None:
    source = register(database, "a")
    wanted = {
        "machine": "beta",
        "items": [{"uuid": str(source), "dest": "b"}, {"uuid": str(uuid4()), "dest": "c"}],
    }
    answer = enter(database, MACHINES, call("copy_many", wanted), EVERYBODY)
    assert answer["type"] == "dm.request.accepted"
    assert enter(database, MACHINES, call("copy_many", wanted), EVERYBODY) == answer
    task = UUID(answer["data"]["task"])
    assert get_transfer(database, task).kind == "copy_many"
    with database.read() as session:
        found = select_items(session, task, limit=10)
    assert [item.error_code or item.status for item in found] == ["QUEUED", "object_not_found"]


@pytest.mark.parametrize(
    ("data", "code", "fields"),
    [
        ({"items": [{"uuid": "x", "dest": "b"}]}, "invalid_request", {"items.0.uuid", "items.0.machine"}),
        ({"items": [], "machine": "beta"}, "invalid_request", {"items"}),
        ({"items": [{}] * (ITEMS_MAX + 1)}, "invalid_request", {"items"}),
        ({"machine": "beta"}, "invalid_request", {"directory"}),
        ({"directory": {"machine": "alpha"}, "machine": "beta"}, "invalid_request", {"dest"}),
        ({"directory": {"machine": "alpha", "path": "none"}, "machine": "beta", "dest": ""}, "object_not_found", set()),
        ({"directory": {"machine": "daint"}, "machine": "beta", "dest": ""}, "unknown_machine", set()),
    ],
)
@pytest.mark.parametrize("kind", ["copy_many", "move_many"])
def test_a_batch_that_cannot_be_is_refused(
    database: Database, kind: str, data: dict[str, Any], code: str, fields: set[str]
) -> None:
    before = snapshot(database)[:3]
    answer = enter(database, MACHINES, call(kind, data), EVERYBODY)
    assert (answer["type"], answer["data"]["code"]) == ("dm.request.refused", code)
    assert set(answer["data"].get("fields", {})) == fields
    assert snapshot(database)[:3] == before  # all but the answer itself


def test_archives_are_asked_for_in_messages_too(database: Database) -> None:
    tape = Machine(name="tape", transport=TransportKind.LOCAL, base_dir="/tape", archive=True)
    machines = Machines({**MACHINES, "tape": tape})
    first, second = (str(register(database, name)) for name in "ab")
    for number, (kind, data) in enumerate(
        {"archive": {"uuid": first, "compress": "zstd"}, "archive_many": {"items": [second]}}.items()
    ):
        answer = enter(database, machines, call(kind, data, str(number)), EVERYBODY)
        assert answer["type"] == "dm.request.accepted", answer
        row = get_transfer(database, UUID(answer["data"]["task"]))
        assert (row.kind, row.destination_machine) == (kind, "tape")
    for number, (data, code) in enumerate((({"uuid": first}, "object_archived"), ({}, "invalid_request"))):
        with database.write() as session:
            session.get_one(DataObject, UUID(first)).status = "ARCHIVED"
        answer = enter(database, machines, call("archive", data, f"refused {number}"), EVERYBODY)
        assert (answer["type"], answer["data"]["code"]) == ("dm.request.refused", code)


def test_a_message_takes_ten_thousand_items_but_not_everything() -> None:
    items = [
        {"uuid": str(uuid4()), "machine": "archer2", "dest": f"{'d' * 200}/{number}"} for number in range(ITEMS_MAX)
    ]
    call("copy_many", {"items": items})
    body = json.dumps({"specversion": "1.0", "data": {"items": items * 2}}).encode()
    found = read_message(body)
    assert isinstance(found, DeadLetter)
    assert found.reason == "too_large"
