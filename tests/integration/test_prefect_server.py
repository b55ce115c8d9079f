"""The Prefect server as our files start it: who may ask it, and its UI where the installation can't be written."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from datamanager.settings import Settings
from deployments.orchestrator.environment import server_environment
from tests.support.ports import free_port
from tests.support.prefect import SERVER, START_TIMEOUT, answers, seed
from tests.support.process import Process, clean_environment

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("prefect")]

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
UNWRITABLE = f"""
import pathlib, runpy, sys, prefect
prefect.__ui_static_subpath__ = pathlib.Path("/proc/prefect/ui")  # where Prefect copies its UI to by itself
prefect.__ui_v2_static_subpath__ = pathlib.Path("/proc/prefect/ui-v2")
runpy.run_module({SERVER!r}, run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose installation can't be written, known to its clients as `prefect.example`; its address."""
    home, port = tmp_path_factory.mktemp("prefect-server"), free_port()
    given = {"DM_HOME": str(home), "DM_PREFECT_API_URL": "http://prefect.example:4200/api"}
    settings = Settings(home=home, prefect_api_url=given["DM_PREFECT_API_URL"], prefect_port=port)
    # all that it needs is there, so it does not begin anew without what is prepared above
    environment = clean_environment(**given, **server_environment(settings))
    command = [sys.executable, "-c", UNWRITABLE, "--port", str(port)]
    seed(home)
    url = f"http://127.0.0.1:{port}"
    with Process(command, log=home / "prefect.log", env=environment, cwd=home) as process:
        process.wait_until(lambda: answers(f"{url}/api/health"), START_TIMEOUT)
        yield url


@pytest.mark.parametrize("path", ["/", "/runs"])
def test_ui_is_served_from_read_only_installation(server: str, path: str) -> None:
    page = requests.get(f"{server}{path}", headers={"Accept": "text/html"}, timeout=60)
    assert page.status_code == 200
    assert "<!doctype html>" in page.text.lower()
    script = page.text.partition('src="')[2].partition('"')[0]
    assert requests.get(f"{server}{script}", timeout=60).status_code == 200


def test_ui_asks_the_address_it_was_opened_by(server: str) -> None:
    found = [requests.get(f"{server}{base}/ui-settings", timeout=60) for base in ("", "/v1")]
    (settings,) = [answer.json() for answer in found if "api_url" in answer.text]
    assert settings["api_url"] == "/api"
    assert settings["available_uis"] == ["v1", "v2"]


@pytest.mark.parametrize("host", ["evil.example", "prefect.example.evil.example", "10.0.0.7:4200"])
def test_server_refuses_foreign_host(server: str, host: str) -> None:
    answer = requests.get(f"{server}/api/health", headers={"Host": host}, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed")


@pytest.mark.parametrize("host", ["localhost:4200", "127.0.0.1", "prefect.example:4200", "prefect.example"])
def test_server_answers_under_its_own_names(server: str, host: str) -> None:
    assert requests.get(f"{server}/api/health", headers={"Host": host}, timeout=60).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:3000"])
def test_server_refuses_pages_of_other_origins(server: str, origin: str) -> None:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    for answer in (
        requests.post(f"{server}/api/flows/", json={"name": "theirs"}, headers=asked, timeout=60),
        requests.options(f"{server}/api/flows/", headers=asked, timeout=60),
    ):
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    assert requests.get(f"{server}/api/flows/name/theirs", timeout=60).status_code == 404


def test_server_allows_no_origin_by_cors(server: str) -> None:
    answer = requests.get(f"{server}/api/health", headers={"Origin": server}, timeout=60)
    assert answer.status_code == 200
    assert answer.headers.get("access-control-allow-origin") != "*"


def test_server_starts_the_same_way_everywhere() -> None:
    service: Any = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())["services"]["prefect"]
    unit = (DEPLOYMENTS / "systemd" / "dm-prefect.service").read_text()
    (started,) = [shlex.split(line) for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert service["command"] == ["python", "-m", SERVER, "--host", "0.0.0.0", "--port", "4200"]
    assert started[1:] == ["-m", SERVER, "--host", "127.0.0.1", "--port", "4200"]
    assert f'"{SERVER}"' in (DEPLOYMENTS / "local" / "up.py").read_text()
