"""What one copy costs: what a mover asks of Prefect for it, and which events Prefect makes of it."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from datamanager.settings import Settings
from deployments.orchestrator.environment import prefect_environment
from tests.support.prefect import PrefectApi, PrefectServer
from tests.support.process import Process
from tests.support.site import Site, eventually, some_bytes

UUID_TEXT = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
REQUESTS = {
    "POST /api/deployments/<id>/create_flow_run": 1,
    "POST /api/flow_runs/<id>/set_state": 1,
}
"""What a mover asks of Prefect 3.9.1 for one copy of 1 KiB: two requests, beside its log lines."""
LOGS = "POST /api/logs/"
LOGS_EVERY = 2.0
"""Seconds of log lines that Prefect sends together (PREFECT_LOGGING_TO_API_BATCH_INTERVAL)."""
EVENTS = Counter(
    {
        "prefect.flow-run.Running": 1,
        "prefect.flow-run.Completed": 1,
        "prefect.task-run.Completed": 3,
    }
)
"""Events of that copy's run and of its tasks, as it ends before a heartbeat is due, and they before they are shown."""

LOOKS = {
    "GET /api/csrf-token",  # once a client
    "GET /api/health",
    "POST /api/flow_runs/filter",
    "POST /api/work_pools/data-manager/queues/filter",
    "POST /api/work_pools/data-manager/get_scheduled_flow_runs",
    "POST /api/work_pools/data-manager/workers/heartbeat",
    "GET /api/work_pools/data-manager",
    "GET /api/deployments/name/recurring/data-manager",
    "GET /api/deployments/<id>/schedules",
    "GET /api/deployments/<id>",
}
"""What a mover asks now and then, whatever it runs."""
COUNTING_MOVER = """
import runpy, sys, httpx
from deployments.orchestrator import prefect_private
from flows.runtime import monitor, progress
# a busy machine makes no long run of it
prefect_private.SHOWN_AFTER = progress.SHOW_AFTER = monitor.SHOW_AFTER = 3600.0
log = open(sys.argv.pop(1), "a", buffering=1)
def count(client, send):
    def counting(self, request, *args, **options):
        print(request.method, request.url.path, file=log)
        return send(self, request, *args, **options)
    client.send = counting
count(httpx.AsyncClient, httpx.AsyncClient.send)
count(httpx.Client, httpx.Client.send)
runpy.run_module("deployments.mover", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def asked(bare_site: Site, tmp_path: Path, private_prefect: PrefectServer) -> Path:
    """The file in which the site's mover notes what it asks of Prefect."""
    service = bare_site.service
    settings = Settings(home=service.home, prefect_api_url=private_prefect.api_url)
    # all that a mover needs is there, so it does not begin anew without the counting
    environment = service.env | prefect_environment(settings)
    command = [sys.executable, "-c", COUNTING_MOVER, str(tmp_path / "asked")]
    service.use_movers()
    service.movers = [Process(command, log=tmp_path / "mover.log", env=environment, cwd=tmp_path)]
    return tmp_path / "asked"


def events_of(prefect: PrefectApi, run: str) -> list[str]:
    """Return the names of a run's events and of its tasks', in their order."""
    about = {"filter": {"any_resource": {"id": [f"prefect.flow-run.{run}"]}}, "limit": 50}
    found = sorted(prefect.post("events/filter", about)["events"], key=lambda event: event["occurred"])
    names = [event["event"] for event in found]
    return [name for name in names if re.match(r"(prefect|data-manager)\.(flow|task)-run\.", name)]


def test_copy_asks_prefect_as_little_as_before(bare_site: Site, asked: Path, private_prefect: PrefectServer) -> None:
    site, prefect = bare_site, PrefectApi(private_prefect.api_url)
    with site.service.moving():
        for number in range(2):  # the first one also reads the deployment
            asked_before = len(asked.read_text().splitlines())
            source = site.register("localhost", f"cost/{number}.nc", some_bytes(1024))
            fields = {"machine": "localhost", "dest": f"cost/copy-{number}.nc"}
            begun = time.monotonic()
            run = site.wait(site.ask("POST", f"async/copy/{source}", data=fields).text)["flow_run_id"]
            prefect.wait(run)
            batches = 1 + (time.monotonic() - begun) // LOGS_EVERY
        eventually(lambda: len(events_of(prefect, run)) >= EVENTS.total(), "its events are stored")
        eventually(lambda: LOGS in asked.read_text().splitlines()[asked_before:], "its log lines are sent")
        time.sleep(3)  # whatever is sent beyond that, in batches
        lines = [re.sub(UUID_TEXT, "<id>", line) for line in asked.read_text().splitlines()[asked_before:]]
    requests = Counter(line for line in lines if line not in LOOKS)
    assert 1 <= requests.pop(LOGS, 0) <= batches
    assert requests == REQUESTS
    events = events_of(prefect, run)
    assert Counter(events) == EVENTS
    assert (events[0], events[-1]) == ("prefect.flow-run.Running", "prefect.flow-run.Completed")
