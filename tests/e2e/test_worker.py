"""Movers as Prefect workers: started by its own command, limited by its work pool, stopped, killed, put right."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
import requests

from tests.support.prefect import PrefectApi, PrefectServer
from tests.support.process import Process
from tests.support.site import PATIENCE, Site, eventually
from tests.support.web import OddHandler, OddServer

PIECE, PIECES = 100_000, 300
"""Bytes that the slow server sends every half second, and how often it does."""
FOR_EVER = "3600"
"""Seconds that no test waits for."""

pytestmark = pytest.mark.slow  # each test starts movers of its own


@pytest.fixture
def prefect(private_prefect: PrefectServer) -> PrefectApi:
    """The API of the site's Prefect server."""
    return PrefectApi(private_prefect.api_url)


@contextmanager
def moving(site: Site, count: int = 1, **env: str) -> Iterator[None]:
    """Run so many movers with these settings meanwhile."""
    site.service.use_movers(count, **env)
    with site.service.moving():
        yield


def dripping(gate: Event) -> Callable[[OddHandler], None]:
    """Answer with a file whose pieces come each half a second, and all that are left once the gate is open."""

    def answer(request: OddHandler) -> None:
        request.begin(200, Content_Length=PIECES * PIECE)
        for _ in range(PIECES):
            request.wfile.write(b"x" * PIECE)
            gate.wait(0.5)

    return answer


def fetch(site: Site, slow_server: OddServer, name: str, gate: Event) -> str:
    """Ask for a slow download, to a name of its own; return the task."""
    name = f"{name}-{uuid4().hex}"
    url = slow_server.on(f"/{name}", dripping(gate))
    fields = {"filename": name, "path": "worker", "machine": "cirrus", "url": url}
    answer = site.ask("PUT", "async/getexternal", data=fields)
    assert answer.status_code == 200, answer.text
    return answer.text


def running(site: Site, task: str) -> dict[str, Any] | None:
    """Return the task's status while it moves bytes."""
    status = site.status(task)
    return status if status["status"] == "RUNNING" and status["bytes_done"] > 0 else None


def terminate(mover: Process, *, twice: bool = False) -> None:
    """Stop a mover with SIGTERM, and see that it ends well."""
    os.kill(mover.pid, signal.SIGTERM)
    if twice:
        time.sleep(0.5)
        os.kill(mover.pid, signal.SIGTERM)
    eventually(lambda: not mover.running, "the mover ended")
    assert mover.returncode == 0, mover.tail()


def patch(prefect: PrefectApi, path: str, **body: Any) -> None:
    """Change something in Prefect as its UI does."""
    answer = requests.patch(f"{prefect.url}/{path}", json=body, timeout=PATIENCE)
    assert answer.ok, answer.text


def force(prefect: PrefectApi, run: str, state: str) -> None:
    """Set a run's state as if something had gone wrong."""
    prefect.post(f"flow_runs/{run}/set_state", {"state": {"type": state}, "force": True})


def state_of(prefect: PrefectApi, run: str) -> str:
    """Return the type of a run's state."""
    return str(prefect.get(f"flow_runs/{run}")["state_type"])


# --- started by Prefect ----------------------------------------------------------------------------------------------


def prefect_command(site: Site, *arguments: str, **env: str) -> Process:
    """Return one of Prefect's own commands, as a person who uses Prefect runs it."""
    env = {**site.service.env, "PREFECT_API_URL": site.service.env["DM_PREFECT_API_URL"], **env}
    log = site.service.home / f"prefect-{arguments[0]}.log"
    return Process([sys.executable, "-m", "prefect", *arguments], log=log, env=env, cwd=site.service.home)


def test_prefect_worker_start_is_a_mover(bare_site: Site, prefect: PrefectApi) -> None:
    site = bare_site
    chosen = ("--type", "mover", "--pool", "data-manager", "--name", "by-hand")
    worker = prefect_command(site, "worker", "start", *chosen, DM_STOP_GRACE=FOR_EVER)
    site.service.movers = [worker]
    with site.service.moving():
        source = site.register("archer2", "worker/by-hand.nc", b"12345")
        task = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "worker/dm.nc"}).text
        assert site.wait(task)["status"] == "COMPLETE"
        workers = prefect.post("work_pools/data-manager/workers/filter", {})
        assert [row["status"] for row in workers if row["name"] == "by-hand"] == ["ONLINE"]
        given = ["-p", f"uuid={source}", "-p", "machine=cirrus", "-p", "dest=worker/cli.nc", "--watch"]
        command = prefect_command(site, "deployment", "run", "copy/data-manager", *given)
        command.start()
        eventually(lambda: not command.running, "prefect deployment run ended")
        assert command.returncode == 0, command.tail()
        assert site.read("cirrus", "worker/cli.nc") == b"12345"
        terminate(worker)  # nothing runs: there is no grace to wait for


@pytest.mark.parametrize(
    ("pool", "env", "named"),
    [
        ("other", {}, "data-manager"),
        ("data-manager", {"DM_PREFECT_API_URL": "http://127.0.0.1:1/api"}, "PREFECT_API_URL"),
    ],
)
def test_a_mover_refuses_another_pool_and_two_prefects(
    bare_site: Site, private_prefect: PrefectServer, pool: str, env: dict[str, str], named: str
) -> None:
    site = bare_site
    command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "mover", "--pool", pool]
    environment = {**site.service.env, "PREFECT_API_URL": private_prefect.api_url, **env}
    done = subprocess.run(
        command, env=environment, cwd=site.service.home, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode != 0
    assert named in " ".join((done.stdout + done.stderr).split())


def test_a_mover_takes_only_from_its_own_queues(bare_site: Site) -> None:
    site = bare_site
    command = [sys.executable, "-m", "datamanager.cli.main", "mover", "--work-queue", "high", "--work-queue", "low"]
    chosen = Process(command, log=site.service.home / "chosen.log", env=site.service.env, cwd=site.service.home)
    site.service.use_movers()
    usual, site.service.movers = site.service.movers[0], [chosen]
    with site.service.moving():
        source = site.register("archer2", "worker/queues.nc", b"12345")

        def ask(priority: str) -> str:
            place = {"machine": "cirrus", "dest": f"worker/{priority}.nc", "priority": priority}
            return site.ask("POST", f"async/copy/{source}", data=place).text

        tasks = {priority: ask(priority) for priority in ("normal", "low", "high")}
        assert site.wait(tasks["high"])["status"] == site.wait(tasks["low"])["status"] == "COMPLETE"
        assert site.status(tasks["normal"])["status"] == "QUEUED"
        site.service.movers.append(usual)
        usual.start()
        assert site.wait(tasks["normal"])["status"] == "COMPLETE"


def test_a_mover_refuses_queues_that_there_are_not(bare_site: Site) -> None:
    service = bare_site.service
    command = [sys.executable, "-m", "deployments.mover", "--work-queue", "urgent"]
    done = subprocess.run(command, env=service.env, cwd=service.home, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "high, normal, low, not urgent" in done.stderr


# --- limited by the work pool ----------------------------------------------------------------------------------------


def under_way(site: Site, tasks: list[str]) -> int:
    """Count the tasks that run."""
    return [site.status(task)["status"] for task in tasks].count("RUNNING")


@pytest.mark.parametrize("limited", ["work_pools/data-manager", "work_pools/data-manager/queues/normal"])
def test_limits_and_pauses_of_pool_and_queue_hold_over_all_movers(
    bare_site: Site, prefect: PrefectApi, slow_server: OddServer, gate: Event, limited: str
) -> None:
    site = bare_site
    patch(prefect, limited, concurrency_limit=2)  # known to the movers before they take anything
    try:
        with moving(site, 2):
            tasks = [fetch(site, slow_server, f"limited-{number}", gate) for number in range(5)]
            eventually(lambda: under_way(site, tasks) == 2, "as many run as may")
            time.sleep(2)  # so that the other mover, too, has looked
            assert under_way(site, tasks) == 2
            gate.set()
            while not all(site.status(task)["status"] == "COMPLETE" for task in tasks):
                assert under_way(site, tasks) <= 2
                time.sleep(0.1)
            patch(prefect, limited, concurrency_limit=None, is_paused=True)

            def waiting() -> str | None:
                task = fetch(site, slow_server, "paused", gate)
                time.sleep(2)
                return task if site.status(task)["status"] == "QUEUED" else None

            waits = eventually(waiting, "the pause is known to all movers")
            time.sleep(2)
            assert site.status(waits)["status"] == "QUEUED"
            patch(prefect, limited, is_paused=False)
            status = site.wait(waits)
            assert status["status"] == "COMPLETE"
            assert prefect.get(f"flow_runs/{status['flow_run_id']}")["work_queue_name"] == "normal"
    finally:
        patch(prefect, limited, concurrency_limit=None, is_paused=False)


def test_deploying_again_keeps_what_a_person_has_set(bare_site: Site, prefect: PrefectApi) -> None:
    site = bare_site
    site.service.deploy()
    deployment = prefect.get("deployments/name/copy/data-manager")
    schedule = {"schedule": {"cron": "0 4 * * *"}, "active": False}
    prefect.post(f"deployments/{deployment['id']}/schedules", [schedule])  # type: ignore[arg-type]
    patch(prefect, "work_pools/data-manager/queues/low", concurrency_limit=7)
    site.service.deploy()
    again = prefect.get("deployments/name/copy/data-manager")
    assert (again["id"], len(again["schedules"])) == (deployment["id"], 1)
    queues = prefect.post("work_pools/data-manager/queues/filter", {})
    assert {row["name"]: row["priority"] for row in queues}.items() >= {"high": 1, "normal": 2, "low": 3}.items()
    assert next(row["concurrency_limit"] for row in queues if row["name"] == "low") == 7
    named = [row for row in prefect.post("automations/filter", {}) if row["name"].startswith("data-manager")]
    assert len(named) == 1
    assert f"prefect.deployment.{again['id']}" in named[0]["trigger"]["match_related"]["prefect.resource.id"]


# --- stopped and killed ----------------------------------------------------------------------------------------------


def test_a_mover_that_is_stopped_lets_its_transfers_end(
    bare_site: Site, prefect: PrefectApi, slow_server: OddServer, gate: Event
) -> None:
    site = bare_site
    with moving(site, DM_STOP_GRACE=FOR_EVER):
        task = fetch(site, slow_server, "finishes", gate)
        eventually(lambda: running(site, task), "it runs")
        later = site.register("archer2", "worker/later.nc", b"x")
        mover = site.service.movers[0]
        os.kill(mover.pid, signal.SIGTERM)
        waits = site.ask("POST", f"async/copy/{later}", data={"machine": "cirrus", "dest": "worker/later.nc"}).text
        time.sleep(2)
        assert mover.running
        assert site.status(task)["status"] == "RUNNING"
        gate.set()
        eventually(lambda: not mover.running, "the mover ended")
        status = site.status(task)
        assert (status["status"], status["attempt"]) == ("COMPLETE", 1)
        assert state_of(prefect, status["flow_run_id"]) == "COMPLETED"
        assert site.status(waits)["status"] == "QUEUED"  # nothing new was taken
        site.service.start_movers()
        assert site.wait(waits)["status"] == "COMPLETE"


@pytest.mark.parametrize("grace", ["1", FOR_EVER])
def test_what_a_stopped_mover_hands_back_is_gone_on_with(
    bare_site: Site, prefect: PrefectApi, slow_server: OddServer, gate: Event, grace: str
) -> None:
    site = bare_site
    with moving(site, 2, DM_STOP_GRACE=grace):
        other = site.service.movers.pop()
        other.stop()
        task = fetch(site, slow_server, f"handed-back-{grace}", gate)
        before = eventually(lambda: running(site, task), "it runs")
        terminate(site.service.movers[0], twice=grace == FOR_EVER)
        status = site.status(task)
        assert (status["status"], status["attempt"], status["faults"]) == ("QUEUED", 0, [])
        assert site.leftovers()  # the partial file is the next one's to use
        waiting = prefect.get(f"flow_runs/{before['flow_run_id']}")
        assert waiting["state_name"] == "AwaitingRetry"
        gate.set()
        site.service.movers.append(other)
        other.start()
        status = site.wait(task)
        assert (status["status"], status["attempt"]) == ("COMPLETE", 1)
        assert status["flow_run_id"] == before["flow_run_id"]
        assert prefect.wait(status["flow_run_id"])["state_type"] == "COMPLETED"
        assert not site.leftovers()


def test_what_a_killed_mover_ran_is_resumed_as_the_same_run(
    bare_site: Site, prefect: PrefectApi, slow_server: OddServer, gate: Event
) -> None:
    site = bare_site
    with moving(site, 2, DM_LEASE="5", DM_HEARTBEAT="1"):
        tasks = [fetch(site, slow_server, f"killed-{number}", gate) for number in range(3)]
        runs = [eventually(lambda task=task: running(site, task), "it runs")["flow_run_id"] for task in tasks]  # type: ignore[misc]
        os.kill(site.service.movers[0].pid, signal.SIGKILL)
        gate.set()
        for task, run in zip(tasks, runs, strict=True):
            status = site.wait(task)
            assert (status["status"], status["flow_run_id"]) == ("COMPLETE", run)
            assert prefect.wait(run)["state_type"] == "COMPLETED"
        assert not site.leftovers()


def test_a_killed_movers_run_is_dead_in_prefect_too_when_no_mover_is_left(
    bare_site: Site, prefect: PrefectApi, slow_server: OddServer, gate: Event
) -> None:
    site = bare_site
    with moving(site):
        automation = next(
            row for row in prefect.post("automations/filter", {}) if row["name"].startswith("data-manager")
        )
        automation["trigger"]["within"] = 50  # as it is made: 90 s, three heartbeats
        changed = {name: automation[name] for name in ("name", "description", "enabled", "trigger", "actions")}
        answer = requests.put(f"{prefect.url}/automations/{automation['id']}", json=changed, timeout=PATIENCE)
        assert answer.ok, answer.text
        begun = time.monotonic()
        task = fetch(site, slow_server, "zombie", gate)
        run = eventually(lambda: running(site, task), "it runs")["flow_run_id"]
        while time.monotonic() - begun < 65:
            assert state_of(prefect, run) == "RUNNING"  # a heartbeat every 30 s keeps it alive
            time.sleep(1)
        site.service.kill_mover()
        assert prefect.wait(run, patience=300)["state_type"] == "CRASHED"
        assert "no heartbeat" in prefect.get(f"flow_runs/{run}")["state"]["message"]
    site.service.deploy()  # the automation is as it was


# --- put right -------------------------------------------------------------------------------------------------------


def test_what_prefect_says_wrongly_is_put_right(
    bare_site: Site, prefect: PrefectApi, slow_server: OddServer, gate: Event
) -> None:
    site = bare_site
    with moving(site):
        task = fetch(site, slow_server, "called-dead", gate)
        run = eventually(lambda: running(site, task), "it runs")["flow_run_id"]
        for wrong in ("CRASHED", "FAILED"):
            force(prefect, run, wrong)
            eventually(lambda: state_of(prefect, run) == "RUNNING", f"{wrong} is called running again")
        gate.set()
        status = site.wait(task)
        assert (status["status"], status["attempt"]) == ("COMPLETE", 1)
        assert prefect.wait(run)["state_type"] == "COMPLETED"


def test_a_waiting_transfers_run_waits_and_can_be_cancelled(
    bare_site: Site, prefect: PrefectApi, slow_server: OddServer, gate: Event
) -> None:
    site = bare_site
    with moving(site, DM_STOP_GRACE="0"):
        task = fetch(site, slow_server, "waits", gate)
        run = eventually(lambda: running(site, task), "it runs")["flow_run_id"]
        try:
            patch(prefect, "work_pools/data-manager", is_paused=True)
            terminate(site.service.movers[0])
            force(prefect, run, "RUNNING")  # as if its mover had been killed
            site.service.start_movers()
            eventually(lambda: state_of(prefect, run) == "SCHEDULED", "its run is called waiting again")
            assert site.status(task)["status"] == "QUEUED"
            prefect.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
            status = site.wait(task)
        finally:
            patch(prefect, "work_pools/data-manager", is_paused=False)
        assert (status["status"], status["error"]["code"]) == ("ERROR", "cancelled")
        assert prefect.wait(run)["state_type"] == "CANCELLED"


def test_transfers_go_on_when_prefects_database_is_lost(
    bare_site: Site, private_prefect: PrefectServer, prefect: PrefectApi, slow_server: OddServer, gate: Event
) -> None:
    site = bare_site
    with moving(site):
        task = fetch(site, slow_server, "survives", gate)
        eventually(lambda: running(site, task), "it runs")
        private_prefect.stop()
        source = site.register("archer2", "worker/after.nc", b"x")
        later = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "worker/after.nc"}).text
        for file in private_prefect.directory.rglob("prefect.db*"):
            file.unlink()
        shutil.rmtree(private_prefect.directory / "storage", ignore_errors=True)
        private_prefect.start()
        assert site.wait(later)["status"] == "COMPLETE"
        gate.set()
        assert site.wait(task)["status"] == "COMPLETE"
        names = {row["name"] for row in prefect.post("work_pools/data-manager/queues/filter", {})}
        assert {"high", "normal", "low"} <= names
        assert prefect.get("deployments/name/getexternal/data-manager")["work_pool_name"] == "data-manager"
