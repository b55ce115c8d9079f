"""deployments/nginx/data-manager.conf as it is printed: API and Prefect UI behind one name, certificate and login."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from datamanager.settings import Settings
from tests.support.api_process import ApiProcess
from tests.support.authority import Authority
from tests.support.browser import Browser
from tests.support.ports import free_port
from tests.support.prefect import PrefectApi, PrefectServer
from tests.support.process import Process
from tests.support.programs import find_program, listens
from tests.support.site import eventually
from tests.support.tokens import TokenMaker

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.xdist_group("prefect")]

EXAMPLE = Path(__file__).parents[2] / "deployments/nginx/data-manager.conf"
SETTINGS = dict(re.findall(r"^#   DM_(\w+)=(.+)$", EXAMPLE.read_text(), re.MULTILINE))
"""Of the API and the Prefect server, as the example says."""


@dataclass
class Front:
    """The site as its people reach it."""

    url: str
    api: ApiProcess
    prefect: PrefectApi
    tokens: TokenMaker
    ca_file: Path

    def person(self, *roles: str, groups: tuple[str, ...] = ()) -> requests.Session:
        """Return the browser of somebody who has logged in with a token."""
        session = requests.Session()
        session.trust_env = False
        session.verify = str(self.ca_file)
        form = {"token": self.tokens.make(*roles, groups=groups), "next": "/prefect/"}
        answer = session.post(f"{self.url}/login", data=form, allow_redirects=False, timeout=60)
        assert (answer.status_code, answer.headers["Location"]) == (303, "/prefect/"), answer.text
        return session


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    home, port = tmp_path_factory.mktemp("front"), free_port()
    authority = Authority(home)
    certificate, key = authority.pair("front", "localhost", "127.0.0.1")
    url = f"https://localhost:{port}"
    own: dict[str, Any] = {name.lower(): value.replace("https://data.example", url) for name, value in SETTINGS.items()}
    assert set(own) == {"auth", "trusted_proxy", "url", "prefect_ui_url"}
    prefect = PrefectServer(home / "prefect")
    prefect.process.env = prefect.env | {"DM_PREFECT_UI_URL": own["prefect_ui_url"]}
    api = ApiProcess(home / "api", prefect_api_url=prefect.api_url, **own)
    text = EXAMPLE.read_text()
    for printed, here in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("server_name data.example", "server_name localhost"),
        ("/etc/dm/tls/fullchain.pem", str(certificate)),
        ("/etc/dm/tls/privkey.pem", str(key)),
        ("127.0.0.1:5000", f"127.0.0.1:{api.port}"),
        ("127.0.0.1:4200", f"127.0.0.1:{prefect.port}"),
    ):
        assert printed in text
        text = text.replace(printed, here)
    folders = "".join(
        f"{kind}_temp_path {home}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (home / "nginx.conf").write_text(
        f"{'user root;' if os.geteuid() == 0 else ''} daemon off; worker_processes 1; pid {home}/pid;\n"
        f"error_log stderr; events {{}}\n"
        f"http {{ access_log off; {folders}\n{text}\n}}\n"
    )
    nginx = Process(
        [find_program("nginx"), "-e", "stderr", "-p", str(home), "-c", str(home / "nginx.conf")], log=home / "nginx.log"
    )
    with prefect, api, nginx:
        nginx.wait_until(lambda: listens(port), 60)
        tokens = TokenMaker(api.database, Settings(home=home / "api"))
        yield Front(url, api, PrefectApi(prefect.api_url), tokens, authority.ca_file)


def test_api_is_reached_and_knows_the_client(front: Front) -> None:
    bearer = {"Authorization": f"Bearer {front.tokens.make('reader', groups=['fire'])}"}
    for claim in ({}, {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http"}):
        answer = requests.get(f"{front.url}/DM/info", headers=bearer | claim, verify=str(front.ca_file), timeout=60)
        assert answer.status_code == 200, answer.text
        assert "max-age" in answer.headers["Strict-Transport-Security"]  # it knows that the client came by https
        assert answer.headers["Server"] == "nginx"  # without its version
    cookies = front.person("operator").cookies
    assert [(cookie.name, cookie.secure) for cookie in cookies] == [("__Host-dm_session", True)]  # CWE-614


def test_nobody_sees_prefect_without_a_login(front: Front) -> None:
    """CWE-306, CWE-862."""
    for path in ("/prefect/", "/prefect/runs", "/prefect/ui-settings"):
        answer = requests.get(f"{front.url}{path}", verify=str(front.ca_file), timeout=60, allow_redirects=False)
        assert (answer.status_code, answer.headers["Location"]) == (303, f"{front.url}/login?next=/prefect/")
    api = f"{front.url}/prefect/api"
    assert requests.post(f"{api}/flows/filter", json={}, verify=str(front.ca_file), timeout=60).status_code == 401
    mover = front.person("mover", groups=("fire",))  # who sees their own groups only
    assert mover.get(f"{front.url}/prefect/", timeout=60).status_code == 403
    assert mover.post(f"{api}/flows/filter", json={}, timeout=60).status_code == 403
    with pytest.raises(InvalidStatus, match="401"):
        connect(
            f"{api.replace('https', 'wss')}/events/out",
            ssl=ssl.create_default_context(cafile=front.ca_file),
            proxy=None,
        )
    hidden = requests.get(f"{front.url}/prefect-permission", verify=str(front.ca_file), timeout=60)
    assert hidden.status_code == 404


@pytest.mark.attack(cwe=352, title="A page of another site uses Prefect with a person's session")
def test_page_of_another_site_reaches_nothing_with_a_persons_session(front: Front) -> None:
    """CWE-352: also where the browser would send the cookie, as from a site below the same domain."""
    operator = front.person("operator")
    origin = {"Origin": "https://evil.example"}
    name = uuid4().hex
    answer = operator.post(f"{front.url}/prefect/api/flows/", json={"name": name}, headers=origin, timeout=60)
    assert answer.status_code == 403
    assert operator.get(f"{front.url}/prefect/api/flows/name/{name}", timeout=60).status_code == 404


def test_person_logs_in_once_for_documentation_and_prefect(front: Front, tmp_path: Path) -> None:
    name = f"copy {uuid4().hex}.nc"
    flow = front.prefect.post("flows/", {"name": "copy"})
    front.prefect.post("flow_runs/", {"flow_id": flow["id"], "name": name, "state": {"type": "COMPLETED"}})
    token = front.tokens.make("operator")
    with Browser(tmp_path / "browser", "--ignore-certificate-errors") as browser:
        browser.open(f"{front.url}/prefect/runs")
        eventually(lambda: "Service token" in browser.text(), "the login")
        browser.run(f"document.querySelector('#token').value = '{token}'")
        browser.run("document.querySelector('form button').click()")
        eventually(lambda: browser.run("location.pathname").startswith("/prefect/"), "Prefect's UI")
        browser.open(f"{front.url}/prefect/runs")
        eventually(lambda: name in browser.text(), f"the run is shown: {browser.refused}")
        browser.open(f"{front.url}/docs")
        eventually(lambda: "Log out" in browser.text(), "the same person")
        assert browser.run("document.cookie") == ""
