"""Retention over HTTP: plans, runs, holds, lifetimes, and what is taken back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update

from datamanager.client import Client, RetentionClient
from datamanager.domain.retention_rules import load_rules
from datamanager.errors import NotMarked, ObjectHeld, RetentionRunNotFound
from models.database import now
from models.retention import marks
from models.retention import runs as retention_runs
from models.retention.report import make_decider
from models.retention.runs import RetentionTerms
from models.retention.survey import Survey
from models.tables import DataObject, RetentionMark
from tests.support.live_api import LiveApi, Mover

RULES = """
[[rule]]
name = "scratch copies"
action = "delete-copies"
path = "scratch/**"
grace = "7d"
"""


def rules(api: LiveApi, text: str = RULES) -> None:
    api.settings.home.mkdir(exist_ok=True)
    api.settings.retention_file.write_text(text, encoding="utf-8")


def verified(api: LiveApi, name: str, **fields: Any) -> str:
    return api.register(name, verify="hash", **fields)


def mark(api: LiveApi) -> None:
    """Mark what is new, as a run does."""
    with api.database.read() as session:
        decider = make_decider(session, load_rules(api.settings.retention_file), api.machines, RetentionTerms())
    found = list(Survey(api.database, decider, None).decisions())
    with api.database.write() as session:
        marks.mark(session, uuid4(), [one for one in found if one.verdict.value == "mark"], decider.now)


def test_a_plan_says_what_would_happen_and_why(api: LiveApi) -> None:
    assert api.ask("GET", "/DM/retention/plan").json()["rules"] == []
    rules(api)
    kept, copy, alone = (
        verified(api, "a.bin"),
        verified(api, "scratch/a.bin"),
        api.register("scratch/other.bin", b"other"),
    )
    plan = api.ask("GET", "/DM/retention/plan").json()
    assert plan["rules"][0].startswith("scratch copies: deletes copies")
    lines = {line["object"]: line for line in plan["lines"]}
    assert (lines[copy]["verdict"], lines[copy]["survivor"], lines[copy]["bytes"]) == ("mark", kept, 10)
    due = datetime.fromisoformat(lines[copy]["due"])
    assert timedelta(days=6) < due - datetime.now(UTC) <= timedelta(days=7)
    assert lines[alone]["reason"] == "last_verified_copy"
    assert {(one["verdict"], one["objects"]) for one in plan["counts"]} == {("mark", 1), ("spare", 1)}
    assert api.ask("GET", "/DM/retention/plan?max_objects=0").json()["counts"][0]["reason"] is not None
    with api.database.read() as session:
        assert session.query(RetentionMark).count() == 0


@pytest.mark.parametrize(
    ("query", "field"),
    [("rule=none", "rule"), ("max_objects=-1", "max_objects"), ("rules=x", "rules"), ("rule=a&rule=b", "rule")],
)
def test_a_wrong_query_is_named(shared_api: LiveApi, query: str, field: str) -> None:
    answer = shared_api.ask("GET", f"/DM/retention/plan?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


def test_wrong_rules_are_told_and_nothing_is_run(api: LiveApi) -> None:
    rules(api, RULES.replace("grace", "grease"))
    for method, path in (("GET", "/DM/retention/plan"), ("POST", "/DM/retention/run")):
        answer = api.ask(method, path)
        assert (answer.status_code, answer.json()["code"]) == (409, "invalid_rules")
        assert "rule 1 ('scratch copies'): grease: unknown key" in answer.json()["detail"]
        assert str(api.settings.home) not in answer.text
    assert api.ask("GET", "/DM/retention/runs").json() == []


def test_a_run_is_entered_once_for_its_key(api: LiveApi) -> None:
    rules(api)
    headers = {"Idempotency-Key": "one"}
    answers = [
        api.ask("POST", "/DM/retention/run", json={"dry_run": True, "max_bytes": "1MiB"}, headers=headers)
        for _ in range(2)
    ]
    assert {answer.status_code for answer in answers} == {202}
    run = answers[0].json()["run"]
    assert answers[1].json()["run"] == run
    assert answers[0].headers["Location"] == f"/DM/retention/runs/{run}"
    shown = api.ask("GET", f"/DM/retention/runs/{run}").json()
    assert (shown["status"], shown["dry_run"], shown["max_bytes"], shown["lines"]) == ("QUEUED", True, 2**20, [])
    assert api.ask("POST", "/DM/retention/run", data={"rule": "nothing"}).status_code == 422
    with api.database.read() as session:
        assert retention_runs.asked_for(session) == [UUID(run)]


@pytest.mark.dialect
def test_runs_come_in_pages(api: LiveApi) -> None:
    rules(api)
    with RetentionClient(api.url) as dm:
        wanted = [dm.start_retention(dry_run=True).run for _ in range(3)]
        assert [one.run for one in dm.retention_runs()] == wanted[::-1]
        with pytest.raises(RetentionRunNotFound):
            dm.retention_run(uuid4())
    page = api.ask("GET", "/DM/retention/runs?limit=2")
    assert len(page.json()) == 2
    assert len(api.ask("GET", page.links["next"]["url"]).json()) == 1
    assert api.ask("GET", "/DM/retention/runs?limit=0").status_code == 422
    assert api.ask("GET", "/DM/retention/runs?cursor=x").status_code == 422
    assert api.ask("GET", "/DM/retention/runs/x").json()["code"] == "retention_run_not_found"


def test_a_held_object_is_not_deleted(api: LiveApi) -> None:
    uuid = api.register("a.bin")
    held = api.ask("PUT", f"/DM/objects/{uuid}/hold", data={"reason": "a paper", "by": "maria"}).json()
    assert (held["hold"]["reason"], held["hold"]["by"]) == ("a paper", "maria")
    with Mover(api):
        refused = api.ask("DELETE", f"/DM/delete/{uuid}")
        assert (refused.status_code, refused.json()["code"]) == (409, "object_held")
        with Client(api.url) as dm, pytest.raises(ObjectHeld):
            dm.delete(uuid)
        for _ in range(2):
            assert api.ask("DELETE", f"/DM/objects/{uuid}/hold").json()["hold"] is None
        assert api.ask("DELETE", f"/DM/delete/{uuid}").status_code == 200
    assert api.ask("PUT", f"/DM/objects/{uuid}/hold", data={"reason": "late"}).status_code == 410
    assert api.ask("PUT", f"/DM/objects/{uuid4()}/hold", data={"reason": "x"}).status_code == 404
    assert api.ask("PUT", f"/DM/objects/{uuid}/hold", data={}).json()["errors"][0]["field"] == "reason"


@pytest.mark.dialect
def test_lifetimes(api: LiveApi) -> None:
    uuid = api.register("a.bin", lifetime="30d")
    expires = datetime.fromisoformat(api.ask("GET", f"/DM/info/{uuid}").json()["expires_at"])
    assert timedelta(days=29) < expires - datetime.now(UTC) <= timedelta(days=30)
    fixed = api.register("b.bin", expires_at="2030-01-01T00:00:00+01:00")
    assert api.ask("GET", f"/DM/info/{fixed}").json()["expires_at"] == "2029-12-31T23:00:00+00:00"
    assert api.ask("GET", f"/DM/info/{api.register('c.bin')}").json()["expires_at"] is None
    with RetentionClient(api.url) as dm:
        assert dm.set_lifetime(uuid, None).expires_at is None
        assert dm.set_lifetime(uuid, datetime(2031, 1, 1, tzinfo=UTC)).expires_at == datetime(2031, 1, 1, tzinfo=UTC)
        assert dm.set_lifetime(uuid, timedelta(days=1)).expires_at is not None
    where = f"/DM/objects/{uuid}/lifetime"
    for wrong in ({}, {"lifetime": "soon"}, {"expires_at": "tomorrow"}, {"lifetime": "1d", "expires_at": None}):
        assert api.ask("PUT", where, json=wrong).status_code == 422, wrong
    assert api.ask("PUT", where, json={"lifetime": None}).json()["expires_at"] is None
    both = {"machine": "here", "filename": "x", "lifetime": "1d", "expires_at": "2030-01-01T00:00:00Z"}
    assert api.ask("PUT", "/DM/register", data=both).json()["errors"][0]["field"] == "expires_at"


def test_a_marked_object_is_taken_back(api: LiveApi) -> None:
    rules(api)
    verified(api, "a.bin")
    uuid = verified(api, "scratch/a.bin")
    with RetentionClient(api.url) as dm:
        with pytest.raises(NotMarked):
            dm.restore(uuid)
        mark(api)
        assert dm.plan().lines[0]["reason"] == "in_grace"
        assert dm.restore(uuid, "1d") is None
        assert dm.plan().lines[0]["reason"] == "restored"
        mark(api)
        with pytest.raises(NotMarked):
            dm.restore(uuid)
    with api.database.write() as session:
        session.execute(update(RetentionMark).values(spared_until=now(session)))
    assert api.ask("GET", "/DM/retention/plan").json()["lines"][0]["verdict"] == "mark"


def test_a_copy_and_a_move_are_uses(api: LiveApi) -> None:
    uuid, other = api.register("a.bin"), api.register("b.bin")
    assert api.ask("GET", f"/DM/info/{uuid}").json()["last_used"] is None
    with Mover(api):
        assert api.ask("POST", f"/DM/copy/{uuid}", data={"machine": "there", "dest": "a.bin"}).status_code == 201
        assert api.ask("POST", f"/DM/move/{other}", data={"machine": "there", "dest": "b.bin"}).status_code == 200
    for one in (uuid, other):
        assert api.ask("GET", f"/DM/info/{one}").json()["last_used"] is not None
    with api.database.read() as session:
        assert session.get_one(DataObject, UUID(uuid)).last_used is not None
