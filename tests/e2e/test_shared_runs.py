"""Transfers that wait go together in one flow run; each has its own state, error and end, as if it had gone alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.test_prefect import retried
from tests.faults.disk import SmallDisk
from tests.support.prefect import PrefectApi, PrefectServer
from tests.support.site import Site, eventually, some_bytes

COUNT = 20
"""Transfers that wait at once: more than a mover has slots."""
SLOW = 20_000
"""Bytes per second of a machine whose run is to be met under way."""
SIZE = 20_000
"""Bytes of a file of such a run."""


@contextmanager
def drained(site: Site, machine: str) -> Iterator[None]:
    """Let requests for a machine queue meanwhile."""
    assert site.ask("POST", f"machines/{machine}/drain").ok
    try:
        yield
    finally:
        assert site.ask("POST", f"machines/{machine}/undrain").ok


@contextmanager
def slowed(site: Site, machine: str) -> Iterator[None]:
    """Limit a machine's bandwidth meanwhile."""
    assert site.ask("PATCH", f"machines/{machine}", json={"bandwidth": SLOW}).ok
    try:
        yield
    finally:
        assert site.ask("DELETE", f"machines/{machine}/limits").ok


def ask_together(
    site: Site, kind: str, name: str, size: int = 1000, dests: Sequence[str] = ()
) -> tuple[list[str], dict[str, bytes]]:
    """Ask for transfers from archer2 to cirrus that wait for each other; return the tasks, and what is to arrive."""
    wanted = {dest: some_bytes(size) for dest in dests or [f"{name}/{number}.nc" for number in range(COUNT)]}
    sources = [
        site.register("archer2", f"{name}/in-{number}.nc", data, group=f"{name}-{number % 2}")
        for number, data in enumerate(wanted.values())
    ]
    with drained(site, "cirrus"):
        tasks = []
        for dest, source in zip(wanted, sources, strict=True):
            answer = site.ask("POST", f"async/{kind}/{source}", data={"machine": "cirrus", "dest": dest})
            assert answer.status_code == 200, answer.text
            tasks.append(answer.text)
    return tasks, wanted


def run_of(site: Site, tasks: Sequence[str]) -> str:
    """Return the flow run that the tasks share, as soon as they do."""

    def shared() -> str | None:
        runs = {site.status(task)["flow_run_id"] for task in tasks}
        return runs.pop() if len(runs) == 1 else None

    return eventually(shared, "they share a run")


def table_of(prefect: PrefectApi, run: str) -> list[dict[str, Any]]:
    found = prefect.post("artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
    (table,) = [row for row in found if row["type"] == "table"]
    rows: list[dict[str, Any]] = json.loads(table["data"])
    return rows


@pytest.mark.dialect
def test_copies_that_wait_share_a_run_and_one_that_fails_fails_alone(site: Site, prefect: PrefectApi) -> None:
    name = "shared-copies"
    gone = site.folders["archer2"] / name / "in-3.nc"
    with drained(site, "archer2"):
        tasks, wanted = ask_together(site, "copy", name)
        gone.unlink()
    ends = [site.wait(task) for task in tasks]
    assert [end["status"] for end in ends] == ["ERROR" if number == 3 else "COMPLETE" for number in range(COUNT)]
    assert ends[3]["error"]["code"] == "source_missing"
    for number, (dest, data) in enumerate(wanted.items()):
        if number != 3:
            assert site.read("cirrus", dest) == data
            info = site.info(ends[number]["result"])
            assert (info["machine"], info["group"], info["verified"]) == ("cirrus", f"{name}-{number % 2}", "sha256")
    assert {(end["attempt"], end["flow_run_id"]) for end in ends} == {(1, ends[0]["flow_run_id"])}
    assert ends[0]["flow_run_url"].endswith(ends[0]["flow_run_id"])
    run = prefect.wait(ends[0]["flow_run_id"])
    assert run["name"] == f"copy ×{COUNT} archer2 → cirrus"
    assert {"copy", "archer2", "cirrus", f"{name}-0", f"{name}-1"} <= set(run["tags"])
    assert (run["parameters"], run["state_type"]) == ({"members": COUNT}, "FAILED")
    assert "1 failed" in run["state"]["message"]
    table = {row["transfer"]: row for row in table_of(prefect, run["id"])}
    assert {task: row["status"] for task, row in table.items()} == {end["task"]: end["status"] for end in ends}
    assert "source_missing" in table[tasks[3]]["result"].replace("\\", "")
    again = retried(prefect, run["id"], force=True)
    assert again["state_type"] == "FAILED"
    assert "nothing was done again" in again["state"]["message"]
    assert [site.status(task) for task in tasks] == ends
    assert not site.leftovers()


def test_moves_that_wait_share_a_run(site: Site, prefect: PrefectApi) -> None:
    tasks, wanted = ask_together(site, "move", "shared-moves")
    ends = [site.wait(task) for task in tasks]
    assert {(end["status"], end["result"], end["attempt"]) for end in ends} == {("COMPLETE", "Move successful", 1)}
    assert len({end["flow_run_id"] for end in ends}) == 1
    assert {dest: site.read("cirrus", dest) for dest in wanted} == wanted
    assert {site.info(end["object"])["machine"] for end in ends} == {"cirrus"}
    assert list((site.folders["archer2"] / "shared-moves").iterdir()) == []
    run = prefect.wait(ends[0]["flow_run_id"])
    assert (run["name"], run["state_type"]) == (f"move ×{COUNT} archer2 → cirrus", "COMPLETED")


def test_one_that_is_cancelled_leaves_and_the_others_go_on(site: Site, prefect: PrefectApi) -> None:
    with slowed(site, "cirrus"):
        tasks, wanted = ask_together(site, "copy", "shared-cancelled", SIZE)
        run = run_of(site, tasks)
        assert site.ask("DELETE", f"async/status/{tasks[5]}").ok
        assert site.ask("POST", f"async/{tasks[6]}/pause").ok
        assert site.wait(tasks[5])["error"]["code"] == "cancelled"
        eventually(lambda: site.status(tasks[6])["paused"], "it is paused")
        assert {site.status(task)["status"] for task in tasks[:5] + tasks[7:]} == {"RUNNING"}  # they wait for no other
    ends = [site.wait(task) for task in tasks if task != tasks[6]]
    assert [end["task"] for end in ends if end["status"] != "COMPLETE"] == [tasks[5]]
    assert site.status(tasks[5])["error"]["code"] == "cancelled"
    assert prefect.wait(run)["state_type"] == "COMPLETED"
    paused = site.status(tasks[6])
    assert (paused["status"], paused["paused"], paused["flow_run_id"]) == ("QUEUED", True, None)
    assert site.ask("POST", f"async/{tasks[6]}/resume").ok
    assert site.wait(tasks[6])["status"] == "COMPLETE"
    del wanted["shared-cancelled/5.nc"]
    assert {dest: site.read("cirrus", dest) for dest in wanted} == wanted
    assert not site.exists("cirrus", "shared-cancelled/5.nc")
    assert not site.leftovers()


@pytest.mark.slow
def test_cancel_in_the_ui_cancels_all_that_share_the_run(site: Site, prefect: PrefectApi) -> None:
    with slowed(site, "cirrus"):
        tasks, wanted = ask_together(site, "copy", "shared-stopped", SIZE)
        run = run_of(site, tasks)
        prefect.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
        ends = [site.wait(task) for task in tasks]
    assert {end["error"]["code"] for end in ends} == {"cancelled"}
    eventually(lambda: prefect.wait(run)["state_type"] == "CANCELLED", "the run is cancelled")
    assert not any(site.exists("cirrus", dest) for dest in wanted)
    assert not site.leftovers()


@pytest.mark.slow
def test_a_full_disk_for_some_destinations_concerns_no_other(site: Site) -> None:
    with SmallDisk(site.folders["cirrus"] / "small", 2**20) as disk:
        disk.fill()
        dests = [f"small/{n}.nc" if n < 3 else f"shared-full/{n}.nc" for n in range(COUNT)]
        tasks, wanted = ask_together(site, "copy", "shared-full", 5000, dests)
        ends = [site.wait(task) for task in tasks]
        disk.free()
    assert [end["error"] and end["error"]["code"] for end in ends] == ["no_space"] * 3 + [None] * (COUNT - 3)
    assert all(site.read("cirrus", dest) == wanted[dest] for dest in dests[3:])


def test_a_person_who_begins_a_shared_run_is_told_what_to_do(site: Site, prefect: PrefectApi) -> None:
    deployment = prefect.get("deployments/name/shared/data-manager")
    body = {"parameters": {"members": 3}, "state": {"type": "SCHEDULED"}}
    run = prefect.wait(prefect.post(f"deployments/{deployment['id']}/create_flow_run", body)["id"])
    assert run["state_type"] == "FAILED"
    assert "request copies and moves" in run["state"]["message"]


@pytest.mark.slow
def test_what_a_killed_mover_had_together_ends_once(bare_site: Site, private_prefect: PrefectServer) -> None:
    site, prefect, name = bare_site, PrefectApi(private_prefect.api_url), "shared-killed"
    site.service.use_movers(DM_LEASE="3", DM_HEARTBEAT="1")
    site.service.start_movers()
    site.service.wait_movers()
    with slowed(site, "cirrus"):
        tasks, wanted = ask_together(site, "move", name, SIZE)
        run = run_of(site, tasks)
        eventually(lambda: list((site.folders["cirrus"] / name).glob(".*.dmpart")), "bytes have come")
        mover = site.service.movers[0]
        os.kill(mover.pid, signal.SIGKILL)
        eventually(lambda: not mover.running, "it is gone")
    with site.service.moving():
        ends = [site.wait(task) for task in tasks]
        assert {(end["status"], end["attempt"]) for end in ends} == {("COMPLETE", 2)}
        assert len({end["flow_run_id"] for end in ends} | {run}) == COUNT + 1
        assert {dest: site.read("cirrus", dest) for dest in wanted} == wanted
        rows = site.ask("GET", "info", params={"machine": "cirrus", "path": name, "limit": 100}).json()
        assert len(rows) == COUNT
        assert list((site.folders["archer2"] / name).iterdir()) == []
        eventually(lambda: not site.leftovers(), "no partial file is left")
        assert prefect.wait(run)["state_type"] == "CANCELLED"
