"""The audit trail and quotas over HTTP: each change has its row, refusals are told together, lists are filtered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select

from datamanager.client import AccessClient
from models.access.refusals import MINUTE, write_refusals
from models.access.trail_links import link
from models.tables import DataObject, IdempotencyKey, TrailEntry
from tests.support import command
from tests.support.live_api import LiveApi

QUOTAS = """
version = 1
[groups.fire]
objects = 2
bytes = 100
queued = 1
"""


def trail(api: LiveApi, **wanted: Any) -> list[dict[str, Any]]:
    """Return the rows, oldest first."""
    answer = api.ask("GET", "/DM/trail", params=wanted)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()
    return rows[::-1]


def told(api: LiveApi, **wanted: Any) -> list[tuple[str, str]]:
    return [(row["action"], row["outcome"]) for row in trail(api, **wanted)]


def write_what_was_refused(api: LiveApi, later: float = 0.0) -> None:
    with api.database.write() as session:
        write_refusals(session, api.context.refusals.take(time.monotonic() + later))


@pytest.fixture
def closed(tmp_path: Path, migrated_url: str) -> Iterator[LiveApi]:
    """An API that wants tokens, and accepts one request per second of somebody."""
    (tmp_path / "quotas.toml").write_text('version = 1\n[persons."token:eager"]\nrequests_per_second = 1')
    with LiveApi(tmp_path / "site", migrated_url, auth="required", quotas=tmp_path / "quotas.toml") as live:
        yield live


@pytest.fixture
def limited(tmp_path: Path, migrated_url: str) -> Iterator[LiveApi]:
    (tmp_path / "quotas.toml").write_text(QUOTAS)
    with LiveApi(tmp_path / "site", migrated_url, quotas=tmp_path / "quotas.toml") as live:
        yield live


def test_a_change_has_a_row_that_says_who_did_what_from_where(api: LiveApi) -> None:
    new = api.register("a")
    answer = api.ask("POST", "/DM/machines/here/drain", headers={"X-Request-ID": "drain-1"})
    assert answer.status_code == 200, answer.text
    registered, drained = trail(api)
    assert registered["action"] == "PUT /DM/register"
    assert (registered["object"], registered["subject"], registered["outcome"]) == (new, None, "done")
    assert (drained["action"], drained["subject"]) == ("POST /DM/machines/{name}/drain", "here")
    assert (drained["person"], drained["means"], drained["origin"]) == (None, "none", "127.0.0.1")
    assert (drained["request_id"], drained["number"], drained["hash"]) == ("drain-1", None, None)
    with api.database.write() as session:
        link(session)
    assert [row["number"] for row in trail(api)] == [1, 2]


def test_rows_name_the_person_and_their_token(closed: LiveApi) -> None:
    token = closed.tokens.make("mover", "admin", groups=["fire"], name="maria")
    closed.write("a")
    fields = {"machine": "here", "filename": "a", "group": "fire"}
    assert closed.ask("PUT", "/DM/register", data=fields, token=token).status_code == 201
    made = closed.ask(
        "POST", "/DM/tokens", json={"name": "other", "roles": ["reader"], "groups": ["fire"]}, token=token
    )
    assert made.status_code == 201, made.text
    rows = closed.ask("GET", "/DM/trail", token=token).json()[::-1]
    assert [row["action"] for row in rows] == ["PUT /DM/register", "POST /DM/tokens"]
    assert {(row["person"], row["means"], row["credential"]) for row in rows} == {("token:maria", "token", token[3:15])}
    assert rows[1]["subject"] == made.json()["id"]
    assert token not in str(rows)


def test_withdrawing_a_person_and_revoking_a_token_have_rows(closed: LiveApi) -> None:
    token = closed.tokens.make("admin", name="root")
    other = closed.tokens.make("reader", name="other")[3:15]
    for method, path, fields in (
        ("PUT", "/DM/withdrawn", {"person": "maria@example.org"}),
        ("DELETE", "/DM/withdrawn", {"person": "maria@example.org"}),
        ("DELETE", f"/DM/tokens/{other}", None),
    ):
        assert closed.ask(method, path, json=fields, token=token).status_code == 200
    rows = closed.ask("GET", "/DM/trail", token=token).json()[::-1]
    assert [(row["action"], row["subject"], row["outcome"], row["person"]) for row in rows] == [
        ("PUT /DM/withdrawn", "maria@example.org", "done", "token:root"),
        ("DELETE /DM/withdrawn", "maria@example.org", "done", "token:root"),
        ("DELETE /DM/tokens/{id}", other, "done", "token:root"),
    ]


def test_objects_and_tasks_say_who_made_them(closed: LiveApi) -> None:
    token = closed.tokens.make("mover", groups=["fire"], name="maria")
    closed.write("a")
    fields = {"machine": "here", "filename": "a", "group": "fire"}
    new = closed.ask("PUT", "/DM/register", data=fields, token=token).text
    task = closed.ask("POST", f"/DM/async/copy/{new}", json={"machine": "there", "dest": "b"}, token=token).text
    with closed.database.write() as session:
        session.get_one(DataObject, UUID(new)).acted_as = "shared"
    for path in (f"/DM/info/{new}", "/DM/info", "/DM/info?limit=1"):
        found = closed.ask("GET", path, token=token).json()
        for row in found if isinstance(found, list) else [found]:
            assert (row["created_by"], row["acted_as"]) == ("token:maria", "shared")
    for path in (f"/DM/async/status/{task}", "/DM/async/status"):
        found = closed.ask("GET", path, token=token).json()
        assert [row["created_by"] for row in (found if isinstance(found, list) else [found])] == ["token:maria"]
    with AccessClient(closed.url, token=token) as dm:
        assert (dm.info(new).created_by, dm.info(new).acted_as) == ("token:maria", "shared")
        assert dm.status(task).created_by == "token:maria"


def test_dm_whoami_shows_quotas(tmp_path: Path, migrated_url: str) -> None:
    quotas = tmp_path / "quotas.toml"
    quotas.write_text(QUOTAS + '[persons."token:first"]\nrequests_per_second = 50')
    with LiveApi(tmp_path / "site", migrated_url, auth="required", quotas=quotas) as api:
        token = api.tokens.make("mover", groups=["fire", "flood"], name="first")
        api.settings.token_file.parent.mkdir(exist_ok=True)
        api.settings.token_file.write_text(token)
        api.write("a", b"x" * 7)
        fields = {"machine": "here", "filename": "a", "group": "fire"}
        assert api.ask("PUT", "/DM/register", data=fields, token=token).status_code == 201
        lines = command.dm(api, "whoami").stdout.splitlines()
    assert lines[0].startswith("token:first (token ")
    assert lines[-2:] == [
        "quota of group 'fire': objects 1 of 2, bytes 7 of 100, queued 0 of 1",
        "quota of person 'token:first': 50 requests per second",
    ]


def test_who_may_not_is_told_of_and_may_not_read_it(closed: LiveApi) -> None:
    reader = closed.tokens.make("reader", groups=["fire"], name="reader")
    assert closed.ask("GET", "/DM/trail", token=reader).status_code == 403
    for token in (None, "dm_wrong", "e30.e30.e30"):
        assert closed.ask("GET", "/DM/info", token=token).status_code == 401
    assert closed.ask("GET", "/DM/quota", token=reader).json() == []
    write_what_was_refused(closed)
    with closed.database.read() as session:
        found = {(row.person, row.code, row.action) for row in session.scalars(select(TrailEntry))}
    assert found == {
        ("token:reader", "not_allowed", "GET /DM/trail"),
        (None, "not_authenticated", "GET /DM/info"),
    }


@pytest.mark.attack(cwe=799, title="A person sends more requests than they may")
def test_more_requests_than_a_person_may_send_are_refused(closed: LiveApi) -> None:
    eager, other = closed.tokens.make("reader", name="eager"), closed.tokens.make("reader", name="other")
    answers = [closed.ask("GET", "/DM/whoami", token=eager) for _ in range(30)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert refused[0].json()["code"] == "too_many_requests"
    assert refused[0].headers["Retry-After"] == "1"
    assert closed.ask("GET", "/DM/whoami", token=other).status_code == 200


def test_tasks_have_rows_of_their_requests_changes_and_ends(api: LiveApi) -> None:
    source = api.register("a")
    task = api.ask("POST", f"/DM/async/copy/{source}", json={"machine": "there", "dest": "b"}).text
    assert api.ask("POST", f"/DM/async/{task}/pause").status_code == 200
    assert api.ask("POST", f"/DM/async/{task}/resume").status_code == 200
    api.finish(task)
    assert told(api, task=task) == [
        ("copy", "allowed"),
        ("POST /DM/async/{task}/pause", "done"),
        ("POST /DM/async/{task}/resume", "done"),
        ("copy", "done"),
    ]
    assert [row["outcome"] for row in trail(api, object=source, action="copy")] == ["allowed", "done"]


def test_schedules_are_named_when_they_are_made_and_changed(api: LiveApi) -> None:
    request = {"url": "http://127.0.0.1/x", "machine": "here", "path": "in", "filename": "x{date:%H}", "interval": "1h"}
    made = api.ask("POST", "/DM/schedules", json=request, headers={"Idempotency-Key": "one"})
    assert made.status_code == 201, made.text
    schedule = made.json()["id"]
    assert api.ask("POST", "/DM/schedules", json=request, headers={"Idempotency-Key": "one"}).json() == made.json()
    api.ask("DELETE", f"/DM/schedules/{schedule}")
    rows = trail(api)
    assert [row["action"] for row in rows] == ["POST /DM/schedules", "DELETE /DM/schedules/{schedule}"]
    assert {row["subject"] for row in rows} == {schedule}


def test_what_a_request_before_this_one_has_made_has_one_row(api: LiveApi) -> None:
    request = {"machine": "here"}
    headers = {"Idempotency-Key": "one"}
    made = api.ask("POST", "/DM/audits", json=request, headers=headers)
    with api.database.write() as session:  # its process died before it had answered
        key = session.get_one(IdempotencyKey, "one")
        key.status, key.body, key.held_until = None, None, key.created
    again = api.ask("POST", "/DM/audits", json=request, headers=headers)
    assert again.json() == made.json()
    assert told(api) == [("POST /DM/audits", "done")]


def test_a_registered_tree_has_a_row_at_its_beginning_and_one_at_its_end(api: LiveApi) -> None:
    for number in range(3):
        api.write(f"tree/{number}")
    answer = api.ask("POST", "/DM/register/tree", json={"machine": "here", "path": "tree"})
    assert answer.status_code == 201, answer.text
    begun, ended = trail(api)
    assert (begun["subject"], begun["outcome"], begun["counts"]) == ("here:tree", "allowed", {"files": 3})
    assert (ended["outcome"], ended["counts"]["registered"]) == ("done", 3)


def test_refusals_are_told_together(api: LiveApi) -> None:
    for _ in range(3):
        assert api.ask("GET", f"/DM/info/{uuid4()}").status_code == 404
    # one that has a key is answered in another place
    copying = {"json": {"machine": "there", "dest": "b"}, "headers": {"Idempotency-Key": "k"}}
    assert api.ask("POST", f"/DM/async/copy/{uuid4()}", **copying).status_code == 404
    assert api.ask("GET", f"/DM/async/status/{uuid4()}").status_code == 404
    assert trail(api) == []
    write_what_was_refused(api)
    objects, task = trail(api)
    assert (objects["action"], objects["code"]) == ("GET /DM/info/{uuid}", "object_not_found")
    assert (objects["outcome"], objects["counts"]) == ("refused", None)
    assert objects["subject"].startswith("/DM/info/")
    assert task["code"] == "task_not_found"
    write_what_was_refused(api, MINUTE)
    (further,) = trail(api)[2:]
    assert (further["code"], further["counts"], further["subject"]) == ("object_not_found", {"refusals": 3}, None)


def test_other_errors_are_no_refusals(api: LiveApi) -> None:
    assert api.ask("PUT", "/DM/register", data={"machine": "here"}).status_code == 422
    assert api.ask("GET", "/DM/nothing").status_code == 404
    write_what_was_refused(api)
    assert trail(api) == []


def test_pages_lead_on(api: LiveApi) -> None:
    for number in range(5):
        api.register(f"{number}")
    found, where = [], "/DM/trail?limit=2&action=PUT+/DM/register"
    while where:
        answer = api.ask("GET", where)
        found += [row["object"] for row in answer.json()]
        where = answer.links["next"]["url"] if "next" in answer.links else ""
    assert len(set(found)) == len(found) == 5


@pytest.mark.parametrize(
    "query", ["object=x", "since=yesterday", "outcome=good", "limit=0", "cursor=x", "who=maria", "person=a&person=b"]
)
def test_a_wrong_query_is_refused(shared_api: LiveApi, query: str) -> None:
    answer = shared_api.ask("GET", f"/DM/trail?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_quotas_are_asked_by_each_way_of_adding(limited: LiveApi) -> None:
    source = limited.register("a", b"12345", group="fire")
    copying = {"json": {"machine": "there", "dest": "b"}}
    assert limited.ask("POST", f"/DM/async/copy/{source}", **copying).status_code == 200
    refused = limited.ask("POST", f"/DM/async/move/{source}", json={"machine": "there", "dest": "c"})
    assert (refused.status_code, refused.json()["code"]) in ((409, "object_busy"), (429, "quota_exceeded"))
    limited.write("d")
    refused = limited.ask("PUT", "/DM/register", data={"machine": "here", "filename": "d", "group": "fire"})
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
    assert int(refused.headers["Retry-After"]) == 3600
    assert refused.json()["retryable"] is True
    other = limited.ask("PUT", "/DM/register", data={"machine": "here", "filename": "d", "group": "flood"})
    assert other.status_code == 201
    (shown,) = limited.ask("GET", "/DM/quota").json()
    assert (shown["kind"], shown["name"]) == ("group", "fire")
    assert (shown["objects"], shown["bytes"]) == ({"used": 2, "limit": 2}, {"used": 10, "limit": 100})
    assert shown["queued"] == {"used": 1, "limit": 1}
    write_what_was_refused(limited)
    assert ("PUT /DM/register", "refused") in told(limited)


def test_a_tree_is_registered_up_to_the_quota(limited: LiveApi) -> None:
    for number in range(3):
        limited.write(f"tree/{number}")
    request = {"machine": "here", "path": "tree", "group": "fire"}
    refused = limited.ask("POST", "/DM/register/tree", json=request)
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
    assert limited.ask("GET", "/DM/info").json() == []
    with limited.database.read() as session:
        assert session.scalar(select(func.count()).select_from(TrailEntry)) == 0
    (limited.folders["here"] / "tree/0").unlink()
    assert limited.ask("POST", "/DM/register/tree", json=request).status_code == 201


def test_operations_leave_rows(api: LiveApi) -> None:
    new = api.register("held")
    for method, path, body in (
        ("PATCH", "/DM/machines/here", {"max_transfers": 3}),
        ("DELETE", "/DM/machines/here/limits", None),
        ("PUT", f"/DM/objects/{new}/hold", {"reason": "x", "by": "y"}),
        ("DELETE", f"/DM/objects/{new}/hold", None),
        ("PUT", f"/DM/objects/{new}/lifetime", {"lifetime": "90d"}),
        ("POST", "/DM/retention/run", {"dry_run": True}),
    ):
        answer = api.ask(method, path, json=body)
        assert answer.status_code < 300, (method, path, answer.text)
        assert trail(api)[-1]["action"].startswith(f"{method} /DM/"), path
    assert len(trail(api)) == 7
    assert len(trail(api, object=new)) == 4
