"""Audits over HTTP: asked for once, listed by pages, errors as everywhere. No mover works here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update

from datamanager.client import AuditClient, AuditInfo
from datamanager.domain.audit_rules import Finding, FindingKind
from datamanager.errors import AuditNotFound, InvalidRequest, UnknownMachine
from models.access.visibility import ALL
from models.audit import findings
from models.audit import runs as audit_runs
from models.tables import AuditFinding
from tests.support import command
from tests.support.live_api import LiveApi


@pytest.fixture
def api(tmp_path: Path, migrated_url: str) -> Iterator[LiveApi]:
    with LiveApi(tmp_path, migrated_url) as live:
        yield live


def with_findings(api: LiveApi, count: int) -> str:
    """Enter an audit that has ended, with findings: every third one LOST."""
    audit = api.ask("POST", "/DM/audits", json={"machine": "here"}).json()["audit"]
    with api.database.write() as session:
        (hold,) = audit_runs.take(session, 1)
    assert str(hold.audit) == audit
    found = [
        Finding(FindingKind.DARK if number % 3 else FindingKind.LOST, f"a/{number}", None if number % 3 else uuid4())
        for number in range(count)
    ]
    with api.database.write() as session:
        findings.add(session, hold, found)
        session.execute(update(AuditFinding).values(confirmed=True))
        audit_runs.end(session, hold)
    return str(audit)


def test_an_audit_is_entered_for_a_mover(api: LiveApi) -> None:
    answer = api.ask("POST", "/DM/audits", data={"machine": "here", "scrub_share": "0.5", "accept_losses": "true"})
    assert answer.status_code == 202
    view = answer.json()
    assert answer.headers["Location"] == f"/DM/audits/{view['audit']}"
    assert (view["machine"], view["status"], view["counts"], view["error"]) == ("here", "QUEUED", {}, None)
    assert view["options"] == {
        "scrub_share": 0.5,
        "scrub_bytes": 100 * 2**30,
        "second_look": 60.0,
        "most_lost": 0.1,
        "accept_losses": True,
    }
    assert api.ask("GET", answer.headers["Location"]).json() == view
    with api.database.read() as session:
        assert audit_runs.get_audit(session, UUID(view["audit"]), ALL).flow_run_id is None


def test_a_key_asks_once(api: LiveApi) -> None:
    key = {"Idempotency-Key": "weekly-7"}
    first = api.ask("POST", "/DM/audits", json={"machine": "here"}, headers=key)
    again = api.ask("POST", "/DM/audits", json={"machine": "here"}, headers=key)
    assert first.json()["audit"] == again.json()["audit"]
    other = api.ask("POST", "/DM/audits", json={"machine": "there"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert len(api.ask("GET", "/DM/audits").json()) == 1


@pytest.mark.parametrize(
    ("fields", "code", "named"),
    [
        ({}, "invalid_request", "machine"),
        ({"machine": "nowhere"}, "unknown_machine", "nowhere"),
        ({"machine": "here", "scrub_share": 1.5}, "invalid_request", "scrub_share"),
        ({"machine": "here", "second_look": -1}, "invalid_request", "second_look"),
        ({"machine": "here", "most_lost": "x"}, "invalid_request", "most_lost"),
    ],
)
def test_what_is_wrong_is_named(shared_api: LiveApi, fields: dict[str, object], code: str, named: str) -> None:
    before = shared_api.ask("GET", "/DM/audits").json()
    answer = shared_api.ask("POST", "/DM/audits", json=fields)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert named in answer.json()["detail"]
    assert shared_api.ask("GET", "/DM/audits").json() == before


@pytest.mark.dialect
def test_lists_go_by_pages(api: LiveApi) -> None:
    asked = [
        api.ask("POST", "/DM/audits", json={"machine": machine}).json()["audit"]
        for machine in ("here", "there", "here", "there", "here")
    ]
    with AuditClient(api.url) as dm:
        assert [str(one.audit) for one in dm.audits(limit=2)] == asked[::-1]
        assert [str(one.audit) for one in dm.audits("there", limit=1)] == [asked[3], asked[1]]


@pytest.mark.dialect
def test_findings_go_by_pages(api: LiveApi) -> None:
    audit = with_findings(api, 10)
    with AuditClient(api.url) as dm:
        assert [one.place for one in dm.audit_findings(audit)] == [f"a/{number}" for number in range(10)]
        assert [one.number for one in dm.audit_findings(audit, "lost")] == [0, 3, 6, 9]
    page = api.ask("GET", f"/DM/audits/{audit}/findings", params={"kind": "DARK", "limit": "4"})
    assert [one["number"] for one in page.json()] == [1, 2, 4, 5]
    following = api.ask("GET", page.links["next"]["url"])
    assert [one["number"] for one in following.json()] == [7, 8]
    assert "next" not in following.links


def test_candidates_are_nobodys_business(api: LiveApi) -> None:
    audit = with_findings(api, 3)
    with api.database.write() as session:
        session.execute(update(AuditFinding).values(confirmed=False))
    assert api.ask("GET", f"/DM/audits/{audit}/findings").json() == []


@pytest.mark.parametrize("path", ["", "/findings"])
def test_what_is_not_there(shared_api: LiveApi, path: str) -> None:
    for audit in (str(uuid4()), "no-identifier"):
        answer = shared_api.ask("GET", f"/DM/audits/{audit}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "audit_not_found")
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("cursor=x", "cursor"),
        ("kind=NONE", "kind"),
        ("colour=red", "colour"),
        ("limit=1&limit=2", "limit"),
    ],
)
def test_queries_are_strict(shared_api: LiveApi, query: str, named: str) -> None:
    audit = with_findings(shared_api, 1)
    for where in ("/DM/audits", f"/DM/audits/{audit}/findings"):
        answer = shared_api.ask("GET", f"{where}?{query}")
        assert answer.status_code == 422
        assert named in {one["field"] for one in answer.json()["errors"]}


def test_the_client_raises_what_the_service_refuses(api: LiveApi) -> None:
    with AuditClient(api.url) as dm:
        audit = dm.start_audit("here", scrub_share=0.1)
        assert isinstance(audit, AuditInfo)
        assert dm.audit(audit.audit) == audit
        with pytest.raises(UnknownMachine):
            dm.start_audit("nowhere")
        with pytest.raises(AuditNotFound):
            dm.audit(uuid4())
        with pytest.raises(InvalidRequest):
            list(dm.audit_findings(audit.audit, "NONE"))


def test_the_command_line(api: LiveApi) -> None:
    audit = with_findings(api, 4)

    def dm(*arguments: str) -> str:
        done = command.dm(api, "audit", *arguments)
        assert done.returncode == 0, done
        return done.stdout

    assert "QUEUED" in dm("run", "there", "--scrub", "0.5")
    rows = [line.split() for line in dm("list").splitlines()]
    assert {(row[1], row[2]) for row in rows if row[0] != "audit"} >= {("here", "COMPLETE"), ("there", "QUEUED")}
    assert dm("list", "--machine", "here", "--count", "5").count("COMPLETE") == 1
    shown = dm("show", audit)
    assert shown.count("DARK") == 2
    assert "'a/3'" in shown
    lines = [json.loads(line) for line in dm("show", audit, "--kind", "LOST", "--json").splitlines()]
    assert [line["place"] for line in lines] == ["a/0", "a/3"]
