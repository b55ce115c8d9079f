"""The Prefect server as the unit and compose.yaml start it: who may ask it, whom it asks, and its UI.

How `dm up` starts it: tests/e2e/test_up.py.
"""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests
import yaml
from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.webhook import Webhook
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from deployments.orchestrator.crash_automation import HEARTBEAT, RUN_LEFT, automation
from deployments.orchestrator.prefect_private import CALLS_ARE_OFF
from tests.support.browser import Browser
from tests.support.ports import free_port
from tests.support.prefect import START_TIMEOUT, TEMPLATE, PrefectApi, PrefectServer, answers, seed
from tests.support.process import Process, all_pids, clean_environment, command_line
from tests.support.site import eventually
from tests.support.sshd import PrivateSshd
from tests.support.web import OddServer, status

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("prefect")]

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments"
UNWRITABLE = """
import pathlib, prefect
prefect.__ui_static_subpath__ = pathlib.Path("/proc/prefect/ui")  # where Prefect copies its UI to by itself
prefect.__ui_v2_static_subpath__ = pathlib.Path("/proc/prefect/ui-v2")
"""
"""A sitecustomize module: the installation can't be written, as under ProtectSystem=strict and in a container."""
AUTH = ("dm", "s3cret-of-prefect")
FOREIGN_ORIGINS = ["http://evil.example", "null", "http://localhost:3000"]


@dataclass(frozen=True)
class Printed:
    """How one of our files starts Prefect: its command and environment, and the name that its clients use."""

    command: list[str]
    env: dict[str, str]
    name: str
    healthcheck: list[str]
    auth: tuple[str, str] | None = None
    """User and password that it asks for."""


def unit(home: Path) -> Printed:
    """Read the systemd unit; its environment file names a server that others reach as `prefect.example`."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    text = (DEPLOYMENTS / "systemd" / "dm-prefect.service").read_text()
    parser.read_string(text)
    words = [word for line in re.findall(r"^Environment=(.+)$", text, re.MULTILINE) for word in shlex.split(line)]
    env = dict(word.replace("/var/lib/dm-prefect", str(home)).split("=", 1) for word in words)
    env["DM_PREFECT_API_URL"] = "http://prefect.example:4200/api"
    command = shlex.split(parser["Service"]["ExecStart"])
    assert command[0] == "/opt/data-manager/.venv/bin/python"
    return Printed(command, env, "prefect.example", [])


def compose(home: Path) -> Printed:
    """Read the service of compose.yaml; its database is SQLite here, as the way that it is started does not differ."""
    service: Any = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())["services"]["prefect"]
    env = dict(service["environment"], DM_HOME=str(home))
    assert env["PREFECT_SERVER_DATABASE_CONNECTION_URL"].startswith("postgresql+asyncpg://")
    env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{home}/prefect.db"
    test: list[str] = service["healthcheck"]["test"]
    assert (service["command"][0], *test[:2]) == ("python", "CMD", "python")
    env["DM_PREFECT_AUTH"] = ":".join(AUTH)  # the file asks for the password
    return Printed(service["command"], env, "prefect", test[1:], AUTH)


def here(command: list[str], port: int) -> list[str]:
    """Return a printed command with this interpreter and another port."""
    return [sys.executable, *(word.replace("4200", str(port)) for word in command[1:])]


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    url: str
    port: int
    printed: Printed
    log: Path


@pytest.fixture(scope="module", params=[unit, compose], ids=["unit", "compose"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is started as printed, in an installation that can't be written."""
    home, port = tmp_path_factory.mktemp("prefect-server"), free_port()
    printed: Printed = request.param(home)
    if TEMPLATE.exists():
        shutil.copyfile(TEMPLATE, home / "prefect.db")
    (home / "sitecustomize.py").write_text(UNWRITABLE)
    env = clean_environment(**printed.env) | {"PYTHONPATH": str(home)}
    log = home / "prefect.log"
    url = f"http://127.0.0.1:{port}"
    with Process(here(printed.command, port), log=log, env=env, cwd=ROOT) as process:
        process.wait_until(lambda: answers(f"{url}/api/health"), START_TIMEOUT)
        yield Server(url, port, printed, log)


def test_no_file_starts_prefects_own_server() -> None:
    files = [ROOT / "Makefile", ROOT / "README.md", *DEPLOYMENTS.rglob("*")]
    for file in files:
        if file.is_file() and file.suffix != ".pyc":
            assert "prefect server start" not in file.read_text(encoding="utf-8"), file


# --- who may ask it --------------------------------------------------------------------------------------------------


@pytest.mark.attack(cwe=350, title="A foreign name leads to Prefect's server")
@pytest.mark.parametrize("host", ["evil.example", "prefect.example.evil.example", "10.0.0.7:4200"])
def test_server_refuses_foreign_host(server: Server, host: str) -> None:
    answer = requests.get(f"{server.url}/api/health", headers={"Host": host}, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed")


def test_server_answers_under_its_own_names(server: Server) -> None:
    for host in ("localhost:4200", "127.0.0.1", server.printed.name, f"{server.printed.name}:4200"):
        assert requests.get(f"{server.url}/api/health", headers={"Host": host}, timeout=60).status_code == 200


def test_healthcheck_as_printed_passes(server: Server) -> None:
    if server.printed.healthcheck:
        subprocess.run(here(server.printed.healthcheck, server.port), check=True, timeout=60)


@pytest.mark.attack(cwe=346, title="A page of another site asks Prefect's server")
@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_server_refuses_pages_of_other_origins(server: Server, origin: str) -> None:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    for answer in (
        requests.post(f"{server.url}/api/flows/", json={"name": "theirs"}, headers=asked, timeout=60),
        requests.options(f"{server.url}/api/flows/", headers=asked, timeout=60),
        requests.get(f"{server.url}/", headers=asked, timeout=60),
    ):
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    assert requests.get(f"{server.url}/api/flows/name/theirs", auth=server.printed.auth, timeout=60).status_code == 404


@pytest.mark.attack(cwe=1385, title="A page of another site opens a WebSocket of Prefect's server")
@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_server_refuses_websockets_of_other_origins(server: Server, origin: str) -> None:
    where = f"{server.url.replace('http', 'ws')}/api/events/in"
    with pytest.raises(InvalidStatus, match="403"), connect(where, origin=Origin(origin)):
        pass
    with connect(where, origin=Origin(server.url), subprotocols=[Subprotocol("prefect")]) as its_own:
        its_own.ping().wait(60)


@pytest.mark.attack(cwe=306, title="Prefect's server is asked from another host without its password")
@pytest.mark.parametrize("server", [compose], ids=["compose"], indirect=True)
def test_server_that_others_reach_asks_for_its_password(server: Server, tmp_path: Path) -> None:
    """CWE-306: nothing but its health is shown without; what our processes send is not on their command lines."""
    flows = f"{server.url}/api/flows/filter"
    assert requests.get(f"{server.url}/api/health", timeout=60).status_code == 200
    for auth in (None, ("dm", "wrong"), ("", ""), (AUTH[1], AUTH[0])):
        answer = requests.post(flows, json={}, auth=auth, timeout=60)
        assert (answer.status_code, "Server" in answer.headers) == (401, False)
    env = clean_environment(
        DM_HOME=str(tmp_path), DM_PREFECT_API_URL=f"{server.url}/api", DM_PREFECT_AUTH=":".join(AUTH)
    )
    deploy = Process([sys.executable, "-m", "deployments.orchestrator.deploy"], log=tmp_path / "log", env=env, cwd=ROOT)
    with deploy:
        eventually(lambda: not deploy.running, "dm deploy ends")
        assert deploy.returncode == 0, deploy.tail()
        assert AUTH[1] not in deploy.tail() + server.log.read_text()
    found = requests.post(f"{server.url}/api/deployments/filter", json={}, auth=AUTH, timeout=60).json()
    assert found
    assert all(AUTH[1] not in command_line(pid) for pid in all_pids())
    where = f"{server.url.replace('http', 'ws')}/api/events/in"
    with connect(where, subprotocols=[Subprotocol("prefect")]) as stranger:
        stranger.send('{"type": "auth", "token": "wrong"}')
        with pytest.raises(ConnectionClosed):
            stranger.recv(60)


def test_server_that_others_reach_does_not_start_without_a_password(tmp_path: Path) -> None:
    env = clean_environment(DM_HOME=str(tmp_path))
    command = [sys.executable, "-m", "deployments.orchestrator.server", "--host", "0.0.0.0"]
    ended = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("prefect server: DM_PREFECT_AUTH: 0.0.0.0 can be reached from other hosts")


def test_server_allows_no_origin_by_cors(server: Server) -> None:
    answer = requests.get(f"{server.url}/api/health", headers={"Origin": server.url}, timeout=60)
    assert answer.status_code == 200
    assert answer.headers.get("access-control-allow-origin") != "*"


# --- its UI ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/runs"])
def test_ui_is_served_from_read_only_installation(server: Server, path: str) -> None:
    page = requests.get(f"{server.url}{path}", headers={"Accept": "text/html"}, timeout=60)
    assert page.status_code == 200
    assert "<!doctype html>" in page.text.lower()
    script = page.text.partition('src="')[2].partition('"')[0]
    assert requests.get(f"{server.url}{script}", timeout=60).status_code == 200


def test_ui_asks_the_address_it_was_opened_by(server: Server) -> None:
    found = [requests.get(f"{server.url}{base}/ui-settings", timeout=60) for base in ("", "/v1")]
    (settings,) = [answer.json() for answer in found if "api_url" in answer.text]
    assert settings["api_url"] == "/api"
    assert settings["available_uis"] == ["v1", "v2"]


@pytest.mark.parametrize("server", [unit], ids=["unit"], indirect=True)
def test_ui_shows_runs_by_localhost_and_through_a_tunnel(server: Server, tmp_path: Path) -> None:
    prefect = PrefectApi(f"{server.url}/api")
    flow = prefect.post("flows/", {"name": "copy"})
    name = f"copy {uuid4().hex}.nc archer2 → cirrus"
    prefect.post("flow_runs/", {"flow_id": flow["id"], "name": name, "state": {"type": "COMPLETED"}})
    with PrivateSshd(tmp_path / "sshd") as sshd, tunnel(sshd, server.port, tmp_path) as port:
        with Browser(tmp_path / "browser") as browser:
            here, there = f"http://localhost:{server.port}", f"http://localhost:{port}"
            for page in (f"{here}/runs", f"{there}/runs", f"{there}/v2/runs"):  # Prefect has two UIs
                browser.open(page)
                eventually(lambda: name in browser.text(), f"{page} shows the run: {browser.refused}")
                browser.open("about:blank")
    assert [what for what in browser.refused if "/api/" in what] == []


@contextmanager
def tunnel(sshd: PrivateSshd, port: int, folder: Path) -> Iterator[int]:
    """Forward another port to a local one, as users do who run a browser elsewhere; return it."""
    other = free_port()
    command = ["ssh", "-N", "-F", "none", "-i", str(sshd.client_key), "-o", f"UserKnownHostsFile={sshd.known_hosts}"]
    command += ["-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{other}:127.0.0.1:{port}"]
    command += ["-p", str(sshd.port), sshd.host]
    with Process(command, log=folder / "ssh.log") as process:
        process.wait_until(lambda: answers(f"http://127.0.0.1:{other}/api/health"), START_TIMEOUT)
        yield other


# --- whom it asks ----------------------------------------------------------------------------------------------------


@pytest.mark.attack(cwe=918, title="An automation of Prefect's calls an address of the client's choice")
@pytest.mark.parametrize("kind", ["call-webhook", "send-notification"])
def test_automation_reaches_no_address_that_a_client_named(server: Server, odd_server: OddServer, kind: str) -> None:
    prefect, url = PrefectApi(f"{server.url}/api", server.printed.auth), odd_server.on("/inside", status(200))
    block: Block = Webhook(url=url, method="GET")
    if kind == "send-notification":
        block = CustomWebhookNotificationBlock(name="x", url=url, method="GET")
    secret = None if prefect.auth is None else ":".join(prefect.auth)
    with temporary_settings({PREFECT_API_URL: prefect.url, PREFECT_API_AUTH_STRING: secret}):
        document = block.save(f"inside-{uuid4().hex}")
    event = f"test.{uuid4().hex}"
    made = automate(prefect, event, {"type": kind, "block_document_id": str(document), "body": "x"})

    def failed() -> list[dict[str, Any]]:
        send(prefect, event, {"prefect.resource.id": "test"})  # again and again: the server may not know it yet
        return events_of(prefect, f"prefect.automation.{made['id']}", "action.failed")

    assert eventually(failed, "it failed")[0]["payload"]["reason"] == CALLS_ARE_OFF
    assert odd_server.requests == []


@pytest.mark.parametrize("server", [unit], ids=["unit"], indirect=True)
def test_automation_suspects_silent_runs_only(server: Server) -> None:
    prefect, deployment = PrefectApi(f"{server.url}/api"), uuid4()
    wanted = automation([deployment]).model_dump(mode="json")
    wanted["trigger"]["within"] = 10  # seconds, the fewest that Prefect allows
    made = prefect.post("automations/", wanted)
    related = [{"prefect.resource.id": f"prefect.deployment.{deployment}", "prefect.resource.role": "deployment"}]

    def begin() -> dict[str, str]:
        run = {"prefect.resource.id": f"prefect.flow-run.{uuid4()}"}
        send(prefect, HEARTBEAT, run, related=related)
        return run

    def suspected() -> list[str]:
        found = events_of(prefect, f"prefect.automation.{made['id']}", ".triggered")
        return [
            event["payload"]["triggering_labels"]["prefect.resource.id"]
            for event in found
            if "triggering_labels" in event["payload"]
        ]

    event = f"test.{uuid4().hex}"
    later = automate(prefect, event, {"type": "do-nothing"})

    def known() -> list[dict[str, Any]]:
        send(prefect, event, {"prefect.resource.id": "test"})
        return events_of(prefect, f"prefect.automation.{later['id']}", ".triggered")

    eventually(known, "the server knows the automations")
    # the event of its last state is older than its last heartbeat, or waits for one that the server has forgotten
    early, held = begin(), begin()
    send(prefect, "prefect.flow-run.Completed", early, related=related, ago=5)
    send(prefect, "prefect.flow-run.Completed", held, related=related, follows=str(uuid4()))
    for run in (early, held):
        send(prefect, RUN_LEFT, run, related=related)
    silent = begin()
    eventually(lambda: silent["prefect.resource.id"] in suspected(), "a silent run is suspected")
    assert set(suspected()) == {silent["prefect.resource.id"]}


def automate(prefect: PrefectApi, event: str, action: dict[str, str]) -> Any:
    """Make an automation that acts on each event of a name."""
    trigger = {"type": "event", "posture": "Reactive", "expect": [event], "threshold": 1, "within": 0}
    return prefect.post("automations/", {"name": event, "trigger": trigger, "actions": [action]})


def send(prefect: PrefectApi, event: str, resource: dict[str, str], *, ago: float = 0, **fields: Any) -> None:
    """Send an event to Prefect that occurred so many seconds ago."""
    occurred = (datetime.now(UTC) - timedelta(seconds=ago)).isoformat()
    body = [{"id": str(uuid4()), "occurred": occurred, "event": event, "resource": resource, **fields}]
    answer = requests.post(f"{prefect.url}/events", json=body, auth=prefect.auth, timeout=60)
    assert answer.ok, answer.text


def events_of(prefect: PrefectApi, resource: str, ending: str) -> list[dict[str, Any]]:
    """Return the events of a resource whose names end so."""
    found = prefect.post("events/filter", {"filter": {"resource": {"id": [resource]}}, "limit": 50})["events"]
    return [event for event in found if event["event"].endswith(ending)]


def test_server_ends_in_order_beyond_its_memory(tmp_path: Path) -> None:
    server = PrefectServer(tmp_path)
    server.process.env = {**server.env, "DM_PREFECT_MEMORY": "1"}
    seed(tmp_path)
    with server.process:
        eventually(lambda: not server.process.running, "the server ends by itself")
        assert server.process.returncode == 0
        assert "DM_PREFECT_MEMORY; it ends, to be started again" in server.process.tail()
