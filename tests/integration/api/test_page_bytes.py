"""Pages end before they are too large, whatever was asked for; and metadata is bounded where it comes in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from uuid import UUID, uuid4

import pytest
import requests
from sqlalchemy.orm import Session

from datamanager.client import Client
from datamanager.identity.grant import EVERYBODY
from deployments.amqp.submission import Call, enter, read_message
from models.core.cursors import PAGE_BYTES
from models.submission import source_check
from models.tables import Audit, AuditFinding, DataObject, RetentionRun, Schedule, Transfer, TransferItem
from tests.support.live_api import LiveApi

COUNT = 10
LARGE = "x" * 2**20
BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
ONE = UUID("6ff89a46-7445-475d-8fd9-29db3edaca26")

Make = Callable[[int], Any]


def a_transfer(number: int) -> Transfer:
    faults = [{"time": BEGUN.isoformat(), "code": "timeout", "detail": LARGE, "attempt": 1}]
    return Transfer(id=uuid4(), kind="copy", request={"options": LARGE}, faults=faults, created=at(number), result=None)


def at(number: int) -> datetime:
    return BEGUN + timedelta(seconds=number)


LISTINGS: dict[str, Make] = {
    "/DM/info?limit=1000": lambda number: DataObject(
        id=uuid4(),
        machine="here",
        path="",
        filename=f"{number}",
        place=f"{number}",
        size=number,
        date_registered=at(number),
        date_modified=BEGUN,
        status="ACTIVE",
        verified="none",
        description="",
        originator="",
        group="",
        meta={"large": LARGE},
    ),
    "/DM/async/status?limit=1000": a_transfer,
    f"/DM/async/status/{ONE}/items?limit=1000": lambda number: TransferItem(
        transfer_id=ONE,
        number=number,
        object_id=uuid4(),
        destination_machine="here",
        dest=LARGE,
    ),
    "/DM/audits?limit=1000": lambda number: Audit(
        id=uuid4(), machine="here", created=at(number), error_detail=LARGE, error_code="timeout"
    ),
    f"/DM/audits/{ONE}/findings?limit=1000": lambda number: AuditFinding(
        audit_id=ONE, number=number, kind="DARK", place=LARGE, confirmed=True
    ),
    "/DM/retention/runs?limit=1000": lambda number: RetentionRun(
        id=uuid4(), status="ERROR", created=at(number), error=LARGE, lines=[{"detail": LARGE}]
    ),
    "/DM/schedules": lambda number: Schedule(id=uuid4(), request={"metadata": {"large": LARGE}}, created=at(number)),
}


def owner_of(session: Session, address: str) -> None:
    """Enter the batch or audit whose rows are listed."""
    if "/items" in address:
        session.add(Transfer(id=ONE, kind="copy_many", request={}, created=BEGUN))
    elif "/findings" in address:
        session.add(Audit(id=ONE, machine="here", created=BEGUN))


def pages(api: LiveApi, address: str) -> Iterator[requests.Response]:
    url: str | None = api.url + address
    while url is not None:
        answer = requests.get(url, timeout=60)
        assert answer.status_code == 200, answer.text
        yield answer
        following = answer.links.get("next")
        url = None if following is None else urljoin(url, following["url"])


@pytest.mark.parametrize(
    "address", LISTINGS, ids=[address.partition("?")[0].replace(f"{ONE}", "ID") for address in LISTINGS]
)
def test_page_ends_by_its_bytes(api: LiveApi, address: str) -> None:
    with api.database.write() as session:
        owner_of(session, address)
        session.add_all([LISTINGS[address](number) for number in range(COUNT)])
    found = list(pages(api, address))
    assert [len(page.content) <= PAGE_BYTES + 1 for page in found] == [True] * len(found)
    rows = [row for page in found for row in page.json()]
    assert len({str(row) for row in rows}) == len(rows) == COUNT
    assert [len(page.json()) for page in found] == [7, 3]


@pytest.mark.dialect
def test_row_that_is_larger_than_a_page_is_a_page(api: LiveApi) -> None:
    with api.database.write() as session:
        for number in range(3):
            obj = LISTINGS["/DM/info?limit=1000"](number)
            obj.meta = {"large": LARGE * 9}
            session.add(obj)
    assert [[row["size"] for row in page.json()] for page in pages(api, "/DM/info?limit=10")] == [[0], [1], [2]]
    assert [row["size"] for row in api.ask("GET", "/DM/info").json()] == [0, 1, 2]


def test_client_follows_pages_of_schedules(api: LiveApi) -> None:
    with api.database.write() as session:
        session.add_all([LISTINGS["/DM/schedules"](number) for number in range(COUNT)])
    with Client(api.url) as client:
        assert len(client.schedules()) == COUNT


def large_metadata(size: int) -> dict[str, str]:
    """Return metadata of `size` bytes of JSON."""
    return {"k": "ü" + "x" * (size - len('{"k":"ü"}') - 1)}


@pytest.mark.parametrize(
    ("method", "address", "fields"),
    [
        ("PUT", "/DM/register", {"machine": "here", "filename": "f", "verify": "none"}),
        ("POST", "/DM/register/tree", {"machine": "here", "path": "tree"}),
        ("PUT", "/DM/getexternal", {"machine": "here", "filename": "f", "url": "http://127.0.0.1/f"}),
        ("POST", "/DM/async/getexternal", {"machine": "here", "filename": "f", "url": "http://127.0.0.1/f"}),
        (
            "POST",
            "/DM/schedules",
            {"machine": "here", "filename": "{date:%Y}", "url": "http://127.0.0.1/f", "interval": "6h"},
        ),
    ],
)
def test_metadata_that_is_too_large_is_refused(api: LiveApi, method: str, address: str, fields: dict[str, str]) -> None:
    api.write("tree/a")
    answer = api.ask(method, address, json={**fields, "metadata": large_metadata(65_537)}, headers={"Prefer": "wait=0"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
    (fault,) = answer.json()["errors"]
    assert fault["field"] == "metadata"
    assert "65537" in fault["detail"]
    assert "65536" in fault["detail"]
    answer = api.ask(method, address, json={**fields, "metadata": large_metadata(65_536)}, headers={"Prefer": "wait=0"})
    assert answer.ok, answer.text


def test_metadata_of_a_message_is_bounded(api: LiveApi) -> None:
    fields = {"machine": "here", "filename": "f", "url": "http://127.0.0.1/f", "metadata": large_metadata(65_537)}
    event = {"specversion": "1.0", "id": "1", "source": "/test", "type": "dm.request.getexternal", "data": fields}
    call = read_message(json.dumps(event).encode())
    assert isinstance(call, Call)
    answer = enter(api.database, api.machines, call, EVERYBODY, source_check(api.context.guard, api.settings))
    assert (answer["type"], list(answer["data"]["fields"])) == ("dm.request.refused", ["metadata"])


def test_limit_of_metadata_is_a_setting(tmp_path: Path, migrated_url: str) -> None:
    with LiveApi(tmp_path / "site", migrated_url, max_metadata=20) as api:
        answers = [
            api.ask(
                "PUT", "/DM/register", json={"machine": "here", "filename": "f", "verify": "none", "metadata": given}
            )
            for given in (large_metadata(21), large_metadata(20))
        ]
    assert [answer.status_code for answer in answers] == [422, 201]
