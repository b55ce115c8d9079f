"""What this project relies on in Prefect without being promised it: each part by its name, and what one copy costs.

After an upgrade of Prefect this file says in seconds which part is gone or has another shape.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow_engine, results
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.workers.base import BaseWorker

from datamanager.settings import Settings
from deployments.mover.worker import MoverWorker
from deployments.orchestrator.environment import prefect_environment
from tests.support.prefect import PrefectApi
from tests.support.process import Process
from tests.support.service import DataManagerService
from tests.support.site import Site, some_bytes, write_machines

PRIVATE = [
    (flow_engine, "register_flow_run_suspension_request"),
    (AsyncFlowRunEngine, "_get_flow_run_suspension_request"),
    (AsyncFlowRunEngine, "setup_flow_run_suspension_request"),
    (BaseWorker, "_get_scheduled_flow_runs"),
    (BaseWorker, "_description"),
]
"""Names that begin with an underscore, or belong to modules that are not documented."""
OF_A_WORKER = ["_work_pool_name", "_work_queues", "_limit", "_last_polled_time", "_submitting_flow_run_ids"]
"""What a worker has once it is made."""
SHAPES = {
    AsyncFlowRunEngine.start: ["self"],
    AsyncFlowRunEngine.run_context: ["self"],
    AsyncFlowRunEngine.call_flow_fn: ["self"],
    AsyncFlowRunEngine.is_running: ["self"],
    AsyncFlowRunEngine.begin_run: ["self"],
    AsyncFlowRunEngine.create_flow_run: ["self", "client"],
    BaseWorker.sync_with_backend: ["self"],
    BaseWorker.get_and_submit_flow_runs: ["self"],
    BaseWorker.run: ["self", "flow_run", "configuration", "task_status"],
    BaseWorker.start: ["self", "run_once", "with_healthcheck", "printer"],
}
"""The parameters of what we call or override beyond Prefect's documentation."""
OF_THE_SERVER = {
    "prefect.server.database.configurations:AioSqliteConfiguration.begin_transaction": [
        *("self", "session", "with_for_update"),
    ],
    "prefect.server.database.dependencies:temporary_database_config": ["tmp_database_config"],
    "prefect.server.api.server:create_app": ["settings", "ephemeral", "webserver_only", "final", "ignore_cache"],
}
"""The same of Prefect's server, whose import takes seconds."""

UUID_TEXT = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
REQUESTS = {
    "POST /api/deployments/<id>/create_flow_run": 1,
    "GET /api/flow_runs/<id>": 1,  # by the engine, in `setup_run_context`
    "POST /api/flow_runs/<id>/set_state": 1,
    "POST /api/artifacts/": 1,
    "POST /api/logs/": 1,
}
"""What a mover asks of Prefect 3.9.1 for one copy of 1 KiB: four requests, and the run's log lines together."""
EVENTS = {
    "prefect.flow-run.Running": 1,
    "prefect.flow-run.Completed": 1,
    "prefect.task-run.Pending": 5,
    "prefect.task-run.Running": 5,
    "prefect.task-run.Completed": 5,
}
"""Events of that copy's run and of its tasks: 17. Heartbeats, each 30 s, are not counted."""

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


@pytest.mark.parametrize(("owner", "name"), PRIVATE, ids=lambda value: getattr(value, "__name__", value))
def test_private_name_is_there(owner: Any, name: str) -> None:
    assert hasattr(owner, name)


def test_worker_has_the_private_attributes() -> None:
    worker = MoverWorker()
    assert [name for name in OF_A_WORKER if not hasattr(worker, name)] == []


@pytest.mark.parametrize("function", SHAPES, ids=lambda function: function.__qualname__)
def test_function_has_the_expected_parameters(function: Any) -> None:
    assert list(inspect.signature(function).parameters) == SHAPES[function]


@pytest.mark.server
@pytest.mark.parametrize("name", OF_THE_SERVER)
def test_function_of_the_server_has_the_expected_parameters(name: str) -> None:
    assert list(inspect.signature(pkgutil.resolve_name(name)).parameters) == OF_THE_SERVER[name]


def test_results_ask_a_file_system_where_their_keys_are() -> None:
    assert 'getattr(self.result_storage, "_resolve_path", None)' in inspect.getsource(results)


@pytest.mark.server
def test_sqlite_transactions_take_their_begin_from_the_context() -> None:
    configurations = pkgutil.resolve_name("prefect.server.database.configurations")
    assert configurations.SQLITE_BEGIN_MODE.get() is None
    assert "SQLITE_BEGIN_MODE" in inspect.getsource(configurations.AioSqliteConfiguration.begin_sqlite_stmt)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory, prefect_api_url: str) -> Iterator[tuple[Site, Path]]:
    """A site on this host alone, and the file in which its mover notes what it asks of Prefect."""
    home = tmp_path_factory.mktemp("counted")
    folders = {"localhost": home / "data"}
    folders["localhost"].mkdir()
    write_machines(home / "machines.toml", folders, {})
    env = {"DM_PREFECT_API_URL": prefect_api_url, "DM_MACHINES": str(home / "machines.toml")}
    settings = Settings(home=home / "dm", prefect_api_url=prefect_api_url)
    # all that a mover needs is there, so it does not begin anew without the counting
    service = DataManagerService(home / "dm", env | prefect_environment(settings))
    command = [sys.executable, "-c", COUNTING_MOVER, str(home / "asked")]
    service.movers = [Process(command, log=home / "mover.log", env=service.env, cwd=home)]
    with service:
        yield Site(service, folders), home / "asked"


def test_copy_asks_prefect_as_little_as_before(counted: tuple[Site, Path], prefect_api_url: str) -> None:
    site, file = counted
    prefect = PrefectApi(prefect_api_url)
    for number in range(2):  # the first one also reads the deployment
        asked_before = len(file.read_text().splitlines())
        source = site.register("localhost", f"{number}.nc", some_bytes(1024))
        answer = site.ask("POST", f"async/copy/{source}", data={"machine": "localhost", "dest": f"copy-{number}.nc"})
        run = site.wait(answer.text)["flow_run_id"]
        prefect.wait(run)
    time.sleep(3)  # logs and events are sent in batches
    lines = [re.sub(UUID_TEXT, "<id>", line) for line in file.read_text().splitlines()[asked_before:]]
    assert Counter(line for line in lines if line not in LOOKS) == REQUESTS
    about = {"filter": {"any_resource": {"id": [f"prefect.flow-run.{run}"]}}, "limit": 50}
    events = [event["event"] for event in prefect.post("events/filter", about)["events"]]
    assert Counter(event for event in events if re.match(r"prefect\.(flow|task)-run\.[A-Z]", event)) == EVENTS
