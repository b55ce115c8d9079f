"""A Prefect server on PostgreSQL, started as compose.yaml and the systemd unit do, makes the runs of schedules."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.postgres import Databases
from tests.support.prefect import PrefectApi, PrefectServer

SCHEDULES = {
    "interval": {"interval": 3600.0, "timezone": "UTC"},
    "cron": {
        "cron": "30 3 * * 0",
        "timezone": "UTC",
    },  # with whenever < 0.11 Prefect 3.9.1 fails at it, in its log only
}


@pytest.mark.slow
def test_server_makes_the_runs_of_schedules(postgres: Databases, tmp_path: Path) -> None:
    url = postgres.url().replace("postgresql+psycopg:", "postgresql+asyncpg:")
    with PrefectServer(tmp_path, database_url=url) as server:
        prefect = PrefectApi(server.api_url)
        flow: Any = prefect.post("flows/", {"name": "recurring"})
        for name, schedule in SCHEDULES.items():
            given = [{"schedule": schedule, "active": True}]
            prefect.post("deployments/", {"name": name, "flow_id": flow["id"], "schedules": given})
        runs: dict[str, list[Any]] = {}
        until = time.monotonic() + 60
        while not all(runs.get(name) for name in SCHEDULES) and time.monotonic() < until:
            time.sleep(0.5)
            for name in SCHEDULES:
                runs[name] = prefect.post("flow_runs/filter", {"deployments": {"name": {"any_": [name]}}})
        assert {name: len(found) >= 3 for name, found in runs.items()} == dict.fromkeys(SCHEDULES, True), (
            server.process.tail()
        )
