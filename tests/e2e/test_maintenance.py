"""Maintenance as people meet it: audits over HTTP and in Prefect, schedules, sweeps, and movers that die meanwhile."""

from __future__ import annotations

import json
import os
from threading import Event
from typing import Any
from uuid import UUID, uuid4

import pytest
import requests
from sqlalchemy import select

from datamanager.domain.location import temporary_name
from models.database import Database
from models.tables import OutboxMessage
from tests.e2e import test_worker
from tests.e2e.test_worker import fetch, moving, patch, running, terminate
from tests.support.prefect import PrefectApi
from tests.support.site import Site, eventually
from tests.support.web import OddServer

pytestmark = pytest.mark.slow  # each test starts movers of its own
OLD = 1_600_000_000

prefect = test_worker.prefect


def age(file: Any) -> None:
    os.utime(file, (OLD, OLD))


def start(site: Site, machine: str, **terms: Any) -> str:
    """Ask for an audit; return its identifier."""
    answer = site.ask("POST", "audits", json={"machine": machine, "second_look": 1, **terms})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["audit"])


def ended(site: Site, audit: str) -> dict[str, Any]:
    """Wait for an audit's end."""

    def look() -> dict[str, Any] | None:
        row: dict[str, Any] = site.ask("GET", f"audits/{audit}").json()
        return row if row["status"] in ("COMPLETE", "ERROR") else None

    found: dict[str, Any] = eventually(look, "the audit ended")
    return found


def begin_run(prefect: PrefectApi, deployment: str, **parameters: Any) -> str:
    """Begin a run in Prefect, as a person does; return its identifier."""
    found = prefect.get(f"deployments/name/{deployment}/data-manager")
    run = prefect.post(f"deployments/{found['id']}/create_flow_run", {"parameters": parameters})
    return str(run["id"])


def table(prefect: PrefectApi, run: str) -> dict[str, Any]:
    """Return the table artifact of a run."""
    artifacts = prefect.post("artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
    (found,) = [row for row in artifacts if row["type"] == "table"]
    return dict(found)


def test_an_audit_that_the_api_asked_for(bare_site: Site, prefect: PrefectApi) -> None:
    site = bare_site
    with moving(site):
        lost = site.register("archer2", "run/lost", b"12345")
        site.register("archer2", "run/kept", b"12345")
        (site.folders["archer2"] / "run/lost").unlink()
        age(site.write("archer2", "run/dark <b>", b"x"))
        row = ended(site, start(site, "archer2", scrub_share=1))
        assert (row["status"], row["error"]) == ("COMPLETE", None)
        assert {kind: row["counts"][kind] for kind in ("lost", "dark", "changed", "found")} == {
            "lost": 1,
            "dark": 1,
            "changed": 0,
            "found": 0,
        }
        assert site.info(lost)["status"] == "UNKNOWN"
        findings = site.ask("GET", f"audits/{row['audit']}/findings", params={"kind": "LOST"}).json()
        assert [(one["place"], one["object"], one["applied"]) for one in findings] == [("run/lost", lost, True)]
        run = prefect.wait(row["flow_run_id"])
        assert (run["state_type"], run["name"]) == ("COMPLETED", "audit archer2")
        shown = table(prefect, row["flow_run_id"])
        assert "1 lost" in shown["description"]
        assert {"LOST", "DARK"} == {line["kind"] for line in _lines(shown)}
        catalogue = Database(f"sqlite+pysqlite:///{site.service.home}/catalogue.db")
        with catalogue.read() as session:
            query = select(OutboxMessage).where(
                OutboxMessage.routing_key == "dm.audit.completed", OutboxMessage.subject == UUID(row["audit"])
            )
            (told,) = session.scalars(query)
        catalogue.close()
        assert (str(told.subject), told.body["data"]["counts"]["lost"]) == (row["audit"], 1)


def _lines(artifact: dict[str, Any]) -> list[dict[str, Any]]:
    data = artifact["data"]
    lines: list[dict[str, Any]] = json.loads(data) if isinstance(data, str) else data
    return lines


def test_schedules_are_given_once_and_are_a_persons_then(
    bare_site: Site,
    prefect: PrefectApi,
) -> None:
    site = bare_site
    site.service.deploy()
    audit, sweep, copy = (prefect.get(f"deployments/name/{name}/data-manager") for name in ("audit", "sweep", "copy"))
    assert [one["schedule"]["cron"] for one in audit["schedules"]] == ["30 3 * * 0"]
    assert [one["schedule"]["cron"] for one in sweep["schedules"]] == ["30 2 * * *"]
    assert copy["schedules"] == []
    patch(prefect, f"deployments/{audit['id']}/schedules/{audit['schedules'][0]['id']}", active=False)
    where = f"{prefect.url}/deployments/{sweep['id']}/schedules/{sweep['schedules'][0]['id']}"
    assert requests.delete(where, timeout=60).ok
    site.service.deploy()
    audit, sweep = (prefect.get(f"deployments/name/{name}/data-manager") for name in ("audit", "sweep"))
    assert [one["active"] for one in audit["schedules"]] == [False]
    assert sweep["schedules"] == []
    # a deployment that is gone is made anew, with its schedule
    assert requests.delete(f"{prefect.url}/deployments/{sweep['id']}", timeout=60).ok
    assert requests.delete(f"{prefect.url}/deployments/{audit['id']}", timeout=60).ok
    site.service.deploy()
    assert len(prefect.get("deployments/name/sweep/data-manager")["schedules"]) == 1


def test_an_audit_takes_no_slot_and_no_copy_waits_for_it(
    bare_site: Site,
    prefect: PrefectApi,
    gate: Event,
    slow_server: OddServer,
) -> None:
    site = bare_site
    with moving(site, DM_CONCURRENCY="1"):
        source = site.register("archer2", "slot/one", b"12345")
        audit = start(site, "archer2", second_look=3600)
        eventually(lambda: site.ask("GET", f"audits/{audit}").json()["begun"], "the audit began")
        task = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "slot/two"}).text
        assert site.wait(task)["status"] == "COMPLETE"
        assert site.ask("GET", f"audits/{audit}").json()["status"] == "RUNNING"
        # and the other way round: the only slot is taken, and a run begun in Prefect begins
        slow = fetch(site, slow_server, "slow", gate)
        eventually(lambda: running(site, slow), "the download runs")
        run = begin_run(prefect, "audit", machine="cirrus", second_look=0)
        assert prefect.wait(run)["state_type"] == "COMPLETED"
        assert site.status(slow)["status"] == "RUNNING"
        # what is cancelled in Prefect ends
        row = site.ask("GET", f"audits/{audit}").json()
        prefect.post(f"flow_runs/{row['flow_run_id']}/set_state", {"state": {"type": "CANCELLING"}, "force": True})
        assert ended(site, audit)["error"]["code"] == "cancelled"
        assert prefect.wait(row["flow_run_id"])["state_type"] == "CANCELLED"
        gate.set()
        assert site.wait(slow)["status"] == "COMPLETE"


def test_a_run_of_all_machines(bare_site: Site, prefect: PrefectApi) -> None:
    site = bare_site
    with moving(site):
        for machine in ("archer2", "cirrus"):
            site.register(machine, "all/one", b"12345")
        before = [row["audit"] for row in site.ask("GET", "audits").json()]
        folder, aside = site.folders["cirrus"], site.folders["cirrus"].with_name("not mounted")
        folder.rename(aside)
        folder.mkdir()  # as if its file system were not mounted
        try:
            run = begin_run(prefect, "audit", second_look=0)
            assert prefect.wait(run)["state_type"] == "FAILED"
        finally:
            folder.rmdir()
            aside.rename(folder)
        rows = [row for row in site.ask("GET", "audits").json() if row["audit"] not in before]
        assert {(row["machine"], row["status"]) for row in rows} == {
            ("archer2", "COMPLETE"),
            ("localhost", "COMPLETE"),
            ("cirrus", "ERROR"),
        }
        assert {row["flow_run_id"] for row in rows} == {run}


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_an_audit_whose_mover_goes_begins_anew(
    bare_site: Site,
    prefect: PrefectApi,
    how: str,
) -> None:
    site = bare_site
    with moving(site, DM_LEASE="4", DM_HEARTBEAT="1"):
        site.register("archer2", f"anew/{how}", b"12345")
        audit = start(site, "archer2", second_look=6)
        begun = eventually(lambda: site.ask("GET", f"audits/{audit}").json()["begun"], "the audit began")
        first = site.ask("GET", f"audits/{audit}").json()["flow_run_id"]
        if how == "killed":
            site.service.kill_mover()
        else:
            terminate(site.service.movers[0])
        site.service.start_movers()
        row = ended(site, audit)
        assert row["status"] == "COMPLETE"
        assert row["begun"] != begun
        assert row["flow_run_id"] != first
        assert prefect.wait(first)["state_type"] == "CRASHED"
        assert prefect.wait(row["flow_run_id"])["state_type"] == "COMPLETED"


def test_a_sweep_removes_orphans_and_spares_what_lives(
    bare_site: Site,
    prefect: PrefectApi,
    gate: Event,
    slow_server: OddServer,
) -> None:
    site = bare_site
    with moving(site):
        site.register("cirrus", "worker/kept", b"12345")
        task = fetch(site, slow_server, "slow", gate)
        eventually(lambda: running(site, task), "the download runs")
        (living,) = site.leftovers()
        orphan = site.write("cirrus", f"worker/{temporary_name('gone.nc', uuid4(), 3)}", b"x" * 1000)
        young = site.write("cirrus", f"worker/{temporary_name('new.nc', uuid4(), 1)}", b"x")
        strange = site.write("cirrus", "worker/mine.dmpart", b"x")
        same = site.write("cirrus", f"worker/.x.{task.replace('-', '')[:8]}.7.dmpart", b"x")
        for file in (orphan, strange, same):
            age(file)
        stays = {living, young, strange, same}
        first = begin_run(prefect, "sweep", dry_run=True)
        assert prefect.wait(first)["state_type"] == "COMPLETED"
        assert set(site.leftovers()) == {orphan, *stays}
        run = begin_run(prefect, "sweep")
        assert prefect.wait(run)["state_type"] == "COMPLETED"
        assert set(site.leftovers()) == stays
        shown = table(prefect, run)
        assert "cirrus: 1 partial files removed (1.0 kB), 4 spared" in shown["description"]
        words = {line["place"].rpartition("/")[2]: line["what"] for line in _lines(shown)}
        assert words[orphan.name] == "removed"
        assert words[living.name] == words[same.name] == "stays: its transfer has not ended"
        assert words[strange.name] == "stays: not the name of a partial file"
        gate.set()
        assert site.wait(task)["status"] == "COMPLETE"
        for file in (young, strange, same):
            file.unlink()
