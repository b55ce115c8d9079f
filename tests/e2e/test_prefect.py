"""What people see and do in Prefect: names, tags, artifacts, runs begun there; and what a mover refuses to run."""

from __future__ import annotations

import time
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
import requests

from tests.support.prefect import PrefectApi
from tests.support.service import DataManagerService
from tests.support.site import PATIENCE, Site, eventually, sha256, some_bytes
from tests.support.web import OddHandler, OddServer

DRIP = 300_000  # bytes a second


def test_a_run_says_what_it_does(site: Site, prefect: PrefectApi) -> None:
    data = some_bytes(300_000)
    source = site.register("archer2", "ui/weather.nc", data)
    task = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "ui/copy.nc"}).text
    status = site.wait(task)
    run = prefect.wait(status["flow_run_id"])
    assert run["name"] == "copy weather.nc archer2 → cirrus"
    assert {"copy", "archer2", "cirrus", "fire"} <= set(run["tags"])
    assert run["parameters"] == {"transfer": task}  # nothing else is stored for all to see
    assert run["state_type"] == "COMPLETED"
    filters = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    names: set[str] = set()
    deadline = time.monotonic() + PATIENCE
    while len(names) < 3 and time.monotonic() < deadline:  # task runs reach Prefect as events
        time.sleep(0.2)
        names = {row["name"].rpartition("-")[0] for row in prefect.post("task_runs/filter", filters)}
    assert names == {"probe", "transfer", "publish"}  # a small file is verified by its transfer

    def summary() -> str:
        lines = prefect.post("logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
        return next((line["message"] for line in lines if "Size: " in line["message"]), "")

    told = eventually(summary, "its log has a summary")  # a longer run has an artifact
    assert "300,000 bytes" in told
    assert sha256(data) in told


@pytest.mark.slow
def test_the_progress_bar_moves_while_bytes_move(site: Site, prefect: PrefectApi, slow_server: OddServer) -> None:
    enough = Event()

    def drip(request: OddHandler) -> None:
        request.begin(200, Content_Length=100 * DRIP)
        for _ in range(100):
            request.wfile.write(b"x" * DRIP)
            enough.wait(1)

    fields = {"filename": "slow.bin", "path": "ui", "machine": "cirrus", "url": slow_server.on("/slow", drip)}
    task = site.ask("PUT", "async/getexternal", data=fields).text
    seen: set[float] = set()
    noted: set[int] = set()
    while (status := site.status(task))["status"] in ("QUEUED", "RUNNING"):
        noted.add(status["bytes_done"])
        if status["flow_run_id"]:
            filters = {"flow_runs": {"id": {"any_": [status["flow_run_id"]]}}}
            bars = [row for row in prefect.post("artifacts/filter", filters) if row["type"] == "progress"]
            seen |= {float(row["data"]) for row in bars}
        if len(noted) >= 4 and len(seen) >= 2:  # the catalogue is told about once a second; the bar comes after 5 s
            enough.set()
        time.sleep(0.3)
    assert status["status"] == "COMPLETE", status
    assert enough.is_set(), (noted, seen)
    assert all(0 <= percent <= 100 for percent in seen)


def test_a_failed_transfer_is_a_failed_run(site: Site, prefect: PrefectApi) -> None:
    source = site.register("archer2", "ui/gone.nc", b"x")
    (site.folders["archer2"] / "ui/gone.nc").unlink()
    task = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "ui/never.nc"}).text
    status = site.wait(task)
    assert (status["status"], status["error"]["code"]) == ("ERROR", "source_missing")
    run = prefect.wait(status["flow_run_id"])
    assert run["state_type"] == "FAILED"
    assert "no such file" in run["state"]["message"]


def test_a_run_begun_in_the_ui_is_a_transfer_like_any_other(site: Site, prefect: PrefectApi) -> None:
    data = some_bytes(10_000)
    source = site.register("archer2", "ui/quick.nc", data)
    deployment = prefect.get("deployments/name/copy/data-manager")
    body = {"parameters": {"uuid": source, "machine": "cirrus", "dest": "ui/quick.nc"}, "state": {"type": "SCHEDULED"}}
    created = prefect.post(f"deployments/{deployment['id']}/create_flow_run", body)
    run = prefect.wait(created["id"])
    assert run["state_type"] == "COMPLETED", run["state"]
    assert run["name"] == "copy quick.nc archer2 → cirrus"
    assert site.read("cirrus", "ui/quick.nc") == data
    rows = site.ask("GET", "info", params={"machine": "cirrus", "filename": "quick.nc"}).json()
    assert [row["derived_from"] for row in rows] == [source]


def test_a_run_performs_only_transfers_of_its_own_kind(site: Site, prefect: PrefectApi, slow_server: OddServer) -> None:
    source = site.register("archer2", "ui/kind.bin", b"precious")
    task = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "ui/kind.bin"}).text
    deployment = prefect.get("deployments/name/delete/data-manager")
    body = {"parameters": {"transfer": task}, "state": {"type": "SCHEDULED"}}
    created = prefect.post(f"deployments/{deployment['id']}/create_flow_run", body)
    assert prefect.wait(created["id"])["state_type"] == "FAILED"
    assert site.wait(task)["status"] == "COMPLETE"
    assert site.read("archer2", "ui/kind.bin") == b"precious"


def test_cancel_in_the_ui_stops_the_bytes(site: Site, prefect: PrefectApi, slow_server: OddServer) -> None:
    def drip(request: OddHandler) -> None:
        request.begin(200, Content_Length=300 * DRIP)
        while not request.server.ended.wait(0.5):
            request.wfile.write(b"x" * (DRIP // 2))

    fields = {"filename": "endless.bin", "path": "ui", "machine": "cirrus", "url": slow_server.on("/endless", drip)}
    task = site.ask("PUT", "async/getexternal", data=fields).text
    deadline = time.monotonic() + PATIENCE
    while not (status := site.status(task))["bytes_done"] and time.monotonic() < deadline:
        time.sleep(0.1)
    prefect.post(f"flow_runs/{status['flow_run_id']}/set_state", {"state": {"type": "CANCELLING"}})
    status = site.wait(task)
    assert (status["status"], status["error"]["code"]) == ("ERROR", "cancelled")
    assert prefect.wait(status["flow_run_id"])["state_type"] == "CANCELLED"
    assert not site.exists("cirrus", "ui/endless.bin")
    assert not site.leftovers()


@pytest.mark.attack(cwe=94, title="A run in Prefect names other code than our flows")
@pytest.mark.parametrize("entrypoint", ["os:system", "/tmp/evil.py:flow", "flows.steps.single:probe", None])
def test_a_mover_refuses_to_run_anything_else(site: Site, prefect: PrefectApi, entrypoint: str | None) -> None:
    flow = prefect.post("flows/", {"name": f"foreign-{uuid4().hex[:8]}"})
    deployment = prefect.post(
        "deployments/",
        {
            "name": f"foreign-{uuid4().hex[:8]}",
            "flow_id": flow["id"],
            "entrypoint": entrypoint,
            "work_pool_name": "data-manager",
            "pull_steps": [
                {"prefect.deployments.steps.run_shell_script": {"script": f"touch {site.service.home}/pwned"}}
            ],
        },
    )
    created = prefect.post(f"deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})
    run = prefect.wait(created["id"])
    assert run["state_type"] == "CRASHED"
    assert "is not a flow of this project" in run["state"]["message"]
    assert not (site.service.home / "pwned").exists()
    requests.delete(f"{prefect.url}/deployments/{deployment['id']}", timeout=PATIENCE)


def test_suspend_in_the_ui_holds_nothing_up(site: Site, prefect: PrefectApi, slow_server: OddServer) -> None:
    enough, body = Event(), some_bytes(20 * DRIP)

    def drip(request: OddHandler) -> None:
        request.begin(200, Content_Length=len(body))
        sent = 0
        while not enough.wait(0.2) and sent + DRIP < len(body):
            request.wfile.write(body[sent : sent + DRIP // 60])
            sent += DRIP // 60
        request.wfile.write(body[sent:])

    fields = {"filename": "held.bin", "path": "ui", "machine": "cirrus", "url": slow_server.on("/held", drip)}
    task = site.ask("PUT", "async/getexternal", data=fields).text
    deadline = time.monotonic() + PATIENCE
    while not (status := site.status(task))["bytes_done"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert status["bytes_done"]
    run = status["flow_run_id"]
    suspended = {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}}
    prefect.post(f"flow_runs/{run}/set_state", {"state": suspended, "force": True})
    assert prefect.get(f"flow_runs/{run}")["state_name"] == "Suspended"
    deadline = time.monotonic() + PATIENCE
    while prefect.get(f"flow_runs/{run}")["state_type"] != "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert prefect.get(f"flow_runs/{run}")["state_type"] == "RUNNING"
    assert site.status(task)["status"] == "RUNNING"
    assert site.status(task)["attempt"] == 1
    enough.set()
    assert site.wait(task)["status"] == "COMPLETE"
    assert prefect.wait(run)["state_type"] == "COMPLETED"
    assert site.read("cirrus", "ui/held.bin") == body


@pytest.mark.slow
def test_a_run_that_outlived_its_transfer_is_ended(site: Site, prefect: PrefectApi) -> None:
    source = site.register("archer2", "ui/outlived.nc", b"x")
    task = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "ui/outlived.nc"}).text
    run = prefect.wait(site.wait(task)["flow_run_id"])["id"]
    # as if the mover had died between telling the catalogue and telling Prefect
    prefect.post(f"flow_runs/{run}/set_state", {"state": {"type": "RUNNING"}, "force": True})
    assert prefect.get(f"flow_runs/{run}")["state_type"] == "RUNNING"
    assert prefect.wait(run, patience=300)["state_type"] == "COMPLETED"


def retried(prefect: PrefectApi, run: str, *, force: bool) -> dict[str, Any]:
    """Retry a run as Prefect's UIs do, the new one by force; return it when it has ended again."""
    state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
    answer = prefect.post(f"flow_runs/{run}/set_state", {"state": state, "force": force})
    assert answer["status"] == "ACCEPT", answer
    return prefect.wait(run)


@pytest.mark.parametrize("force", [False, True])
def test_retry_in_the_ui_leaves_a_run_as_its_transfer_ended(site: Site, prefect: PrefectApi, force: bool) -> None:
    names = [f"retry-{force}.nc", f"retry-{force}-gone.nc"]
    sources = [site.register("archer2", f"ui/{name}", b"x") for name in names]
    (site.folders["archer2"] / "ui" / names[1]).unlink()
    tasks = []
    for name, source in zip(names, sources, strict=True):
        fields = {"machine": "cirrus", "dest": f"ui/{name}"}
        tasks.append(site.wait(site.ask("POST", f"async/copy/{source}", data=fields).text))
    assert [task["status"] for task in tasks] == ["COMPLETE", "ERROR"]
    for task, state in zip(tasks, ["COMPLETED", "FAILED"], strict=True):
        before = prefect.wait(task["flow_run_id"])
        again = retried(prefect, task["flow_run_id"], force=force)
        assert (before["state_type"], again["state_type"]) == (state, state)
        assert "nothing was done again" in again["state"]["message"]
        assert site.status(task["task"]) == task
    rows = site.ask("GET", "info", params={"machine": "cirrus", "filename": names[0]}).json()
    assert len(rows) == 1


@pytest.mark.parametrize(
    ("path", "name", "body"),
    [("audits", "audit", {"machine": "localhost", "second_look": 0}), ("retention/run", "run", {"dry_run": True})],
    ids=["audit", "retention"],
)
def test_retry_in_the_ui_leaves_maintenance_as_it_ended(
    site: Site, prefect: PrefectApi, path: str, name: str, body: dict[str, Any]
) -> None:
    answer = site.ask("POST", path, json=body)
    where = answer.headers["Location"].removeprefix("/DM/")
    row = eventually(lambda: ended(site, where), f"{answer.json()[name]} ends")
    assert row["status"] == "COMPLETE"
    assert prefect.wait(row["flow_run_id"])["state_type"] == "COMPLETED"
    again = retried(prefect, row["flow_run_id"], force=False)
    assert again["state_type"] == "COMPLETED"
    assert "nothing was done again" in again["state"]["message"]


def ended(site: Site, path: str) -> dict[str, Any] | None:
    """Return what has ended at a path below `/DM`."""
    found: dict[str, Any] = site.ask("GET", path).json()
    return found if found["ended"] else None


def test_movers_show_as_online_workers(site: Site, prefect: PrefectApi) -> None:
    workers = prefect.post("work_pools/data-manager/workers/filter", {})
    assert any(row["status"] == "ONLINE" for row in workers)
    assert prefect.get("work_pools/data-manager")["type"] == "mover"


def test_the_movers_name_themselves(site: Site) -> None:
    service: DataManagerService = site.service
    assert service.mover_pids()


def test_run_under_a_former_entry_point_runs(site: Site, prefect: PrefectApi) -> None:
    """An upgrade moves flows; what waits in Prefect then names them by their places of before."""
    deployment = prefect.get("deployments/name/audit/data-manager")
    where = f"{prefect.url}/deployments/{deployment['id']}"
    former = {"entrypoint": "flows.audit_machine:audit"}
    assert requests.patch(where, json=former, timeout=PATIENCE).ok
    parameters = {"machine": "localhost", "second_look": 0}
    created = prefect.post(f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    assert prefect.wait(created["id"])["state_type"] == "COMPLETED"
    site.service.run("orchestrator.deploy")
    again = prefect.get("deployments/name/audit/data-manager")
    assert (again["id"], again["entrypoint"]) == (deployment["id"], deployment["entrypoint"])
