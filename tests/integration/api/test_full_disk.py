"""A full disk under DM_HOME is called that: in the answer, in health and in the log, until there is space again."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import requests

from datamanager.settings import Settings
from models.database import Database
from tests.support.ports import free_port
from tests.support.process import Process, clean_environment
from tests.support.tokens import TokenMaker, as_person

LIMIT = 48 * 1024
"""Bytes of a file: less than SQLite's journal needs for much, more than the log's lines."""
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def test_a_full_disk_is_told_as_such(tmp_path: Path, migrated_url: str) -> None:
    """The disk is one on which no file can grow: for SQLite that is a failing write, as with a quota."""
    folder = tmp_path / "data"
    folder.mkdir()
    machines = tmp_path / "machines.toml"
    away = '[machines.away]\ntransport = "sftp"\nhost = "away.example"\nbase_dir = "/data"\nidentity_file = "/no/key"\n'
    machines.write_text(f'[machines.here]\ntransport = "local"\nbase_dir = "{folder}"\n{away}')
    port, prefect = free_port(), free_port()
    url = f"http://127.0.0.1:{port}/DM"
    env = clean_environment(
        DM_HOME=str(tmp_path / "home"),
        DM_DATABASE_URL=migrated_url,
        DM_MACHINES=str(machines),
        DM_PORT=str(port),
        DM_PREFECT_API_URL=f"http://127.0.0.1:{prefect}/api",
    )

    catalogue = Database(migrated_url)  # logins work on a full disk too
    who = {"token": TokenMaker(catalogue, Settings(home=tmp_path / "home")).make("admin")}
    catalogue.close()

    def live() -> bool:
        try:
            return requests.get(f"{url}/health/live", timeout=5).ok
        except requests.ConnectionError:
            return False

    def register(number: int) -> requests.Response:
        fields = {"machine": "here", "filename": f"f{number}", "verify": "none", "metadata": {"text": "x" * 30_000}}
        return requests.put(f"{url}/register", json=fields, timeout=60, **as_person({**who}))

    with Process([sys.executable, "-m", "deployments.api"], log=tmp_path / "api.log", env=env) as api:
        api.wait_until(live, 120)
        assert register(0).status_code == 201
        resource.prlimit(api.pid, resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
        answers = [register(number) for number in range(1, 5)]
        refused = answers[-1]
        assert (refused.status_code, refused.json()["code"], refused.json()["retryable"]) == (507, "no_space", True)
        assert "is full" in refused.json()["detail"]
        assert str(tmp_path) not in refused.text
        ready = requests.get(f"{url}/health/ready", timeout=60)
        assert (ready.status_code, ready.json()["code"]) == (507, "no_space")
        assert "is full" in ready.json()["checks"]["database"]
        assert requests.get(f"{url}/info", timeout=60, **as_person({**who})).ok, "what is there can be read"
        resource.prlimit(api.pid, resource.RLIMIT_FSIZE, UNLIMITED)
        assert register(9).status_code == 201
        assert requests.get(f"{url}/health/ready", timeout=60).json()["code"] == "orchestrator_unavailable"
        lines = api.tail()
    assert "machines.away.identity_file: /no/key does not exist" in lines, "said at the start"
    assert "catalogue_full" in lines
    assert "no_space" in lines
    assert lines.count("catalogue_full") == 1, "said when it begins, not with each request"
