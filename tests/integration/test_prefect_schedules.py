"""A Prefect server of its own, begun as compose.yaml and the systemd unit do, makes the runs of schedules."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.postgres import Databases
from tests.support.prefect import PrefectApi, PrefectServer

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
COMMAND = ["deployments.prefect_schedules", "server", "start", "--host"]


@pytest.mark.slow
def test_a_server_of_its_own_makes_the_runs_of_schedules(postgres: Databases, tmp_path: Path) -> None:
    url = postgres.url().replace("postgresql+psycopg:", "postgresql+asyncpg:")
    with PrefectServer(tmp_path, database_url=url) as server:
        prefect = PrefectApi(server.api_url)
        flow: Any = prefect.post("flows/", {"name": "recurring"})
        every = {"schedule": {"interval": 3600.0, "timezone": "UTC"}, "active": True}
        made = {"name": "x", "flow_id": flow["id"], "schedules": [every]}
        deployment: Any = prefect.post("deployments/", made)
        wanted = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}}
        until = time.monotonic() + 60
        while not (runs := prefect.post("flow_runs/filter", wanted)) and time.monotonic() < until:
            time.sleep(0.5)
        assert len(runs) >= 3, server.process.tail()


def test_it_is_begun_so_everywhere() -> None:
    composed = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())["services"]["prefect"]["command"]
    unit = (DEPLOYMENTS / "systemd" / "dm-prefect.service").read_text()
    (begun,) = [shlex.split(line) for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert composed[2:6] == begun[2:6] == COMMAND
