"""What HTTP itself demands: problems, limits, Host and Origin, request ids; hostile input, health, machines, pages."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import text

from tests.support.live_api import LiveApi


@pytest.fixture
def api(tmp_path: Path, migrated_url: str) -> Iterator[LiveApi]:
    with LiveApi(tmp_path / "site", migrated_url, download_allow=("127.0.0.1",), allowed_hosts=("dm.example",)) as live:
        yield live


def raw(api: LiveApi, head: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    """Send a request byte by byte as given; return status and problem."""
    with socket.create_connection(("127.0.0.1", api.settings.port), timeout=60) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read() or b"{}")


def test_unknown_addresses_and_methods_are_problems_too(api: LiveApi) -> None:
    for method, path, status, code in (
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/DM", 404, "not_found"),
        ("GET", "/problems/unheard-of", 404, "not_found"),
        ("GET", "/docs/assets/../../etc/passwd", 404, "not_found"),
        ("DELETE", "/DM/info", 405, "method_not_allowed"),
        ("GET", "/DM/register", 405, "method_not_allowed"),
    ):
        answer = api.ask(method, path)
        document = answer.json()
        assert (answer.status_code, document["code"]) == (status, code), path
        assert answer.headers["content-type"] == "application/problem+json"
        assert document["request_id"] == answer.headers["x-request-id"]
    assert "PUT" in api.ask("GET", "/DM/register").headers["allow"]


def test_a_problems_type_leads_to_its_description(api: LiveApi) -> None:
    document = api.ask("GET", "/DM/info/x").json()
    described = api.ask("GET", document["type"]).json()
    assert (described["code"], described["status"]) == ("object_not_found", [404])


def test_bodies_that_cannot_be_read(api: LiveApi) -> None:
    for body, kind, status, code in (
        (b"{", "application/json", 400, "malformed_body"),
        (b"[]", "application/json", 400, "malformed_body"),
        (b'{"a": "\xff"}', "application/json", 400, "malformed_body"),
        (b"{" + b'"a":{' * 50_000, "application/json", 400, "malformed_body"),
        (b'{"machine": "here"}', "application/x-www-form-urlencoded", 400, "malformed_body"),
        (b"machine=here", "text/csv", 400, "malformed_body"),
        (b"x" * (2**20 + 1), "application/json", 413, "too_large"),
        (b"", "application/json", 422, "invalid_request"),
    ):
        answer = api.ask("PUT", "/DM/register", data=body, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["code"]) == (status, code), body[:20]


def test_a_body_without_a_length_is_limited_too(api: LiveApi) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 2**16

    answer = api.ask("PUT", "/DM/register", data=endless())
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_each_missing_field_is_named(api: LiveApi) -> None:
    document = api.ask("PUT", "/DM/register", data={"size": "many"}).json()
    assert {fault["field"] for fault in document["errors"]} == {"filename", "machine", "size"}


HOSTILE: list[Any] = [
    "\0",
    "\ud800",
    "x" * 70_000,
    "../" * 50,
    "a" * 300,
    "-rf",
    "$(id)",
    "a\nb",
    "\u202e",
    "/" * 5000,
    ".",
    10**400,
    -1,
    1e308,
    True,
    None,
    [],
    {},
    [[]] * 10,
    json.loads("[" * 500 + "]" * 500),
]


@pytest.mark.parametrize("field", ["filename", "path", "machine", "size", "description", "group", "metadata", "verify"])
def test_hostile_fields_are_never_a_fault_of_ours(api: LiveApi, field: str) -> None:
    for number, value in enumerate(HOSTILE):
        fields = {"machine": "here", "filename": f"f{number}", "verify": "none", field: value}
        answer = api.ask("PUT", "/DM/register", data=json.dumps(fields), headers={"Content-Type": "application/json"})
        assert answer.status_code in (201, 400, 409, 422), (field, str(value)[:40], answer.text)
    assert api.ask("GET", "/DM/info").status_code == 200  # and nothing that was taken breaks the listing
    assert api.ask("GET", "/DM/info?metadata.a=b&sort=-size").status_code == 200


@pytest.mark.parametrize("field", ["machine", "dest", "overwrite", "verify"])
def test_hostile_transfers_are_never_a_fault_of_ours(api: LiveApi, field: str) -> None:
    source = api.register("f")
    for number, value in enumerate(HOSTILE):
        fields = {"machine": "there", "dest": f"d{number}", field: value}
        headers = {"Content-Type": "application/json"}
        answer = api.ask("POST", f"/DM/async/copy/{source}", data=json.dumps(fields), headers=headers)
        assert answer.status_code in (200, 400, 409, 422), (field, str(value)[:40], answer.text)


def test_host_and_origin(api: LiveApi) -> None:
    port = api.settings.port
    for headers, status in (
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "dm.example"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": f"evil.example:{port}"}, 403),
        ({"Host": "192.168.0.1"}, 403),
        ({"Origin": f"http://127.0.0.1:{port}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ):
        answer = api.ask("GET", "/DM/info", headers=headers)
        assert answer.status_code == status, headers
        if status == 403:
            assert answer.json()["code"] == "origin_not_allowed"
    assert raw(api, "GET /DM/info HTTP/1.0")[1]["code"] == "origin_not_allowed"
    api.write("f")
    attack = api.ask(
        "PUT", "/DM/register", data={"machine": "here", "filename": "f"}, headers={"Origin": "http://evil"}
    )
    assert attack.status_code == 403
    assert api.ask("GET", "/DM/info").json() == []


def test_request_ids(api: LiveApi) -> None:
    assert api.ask("GET", "/DM/info", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    odd = api.ask("GET", "/DM/nothing", headers={"X-Request-ID": 'a"b'})
    assert re.fullmatch(r"[0-9a-f-]{36}", odd.headers["x-request-id"])
    assert odd.json()["request_id"] == odd.headers["x-request-id"]


def test_one_line_a_request_and_no_bodies(api: LiveApi) -> None:
    with structlog.testing.capture_logs() as lines:
        api.ask("PUT", "/DM/register?secret=1", data={"description": "secret"}, headers={"Authorization": "secret"})
        deadline = time.monotonic() + 60
        while not any(line["event"] == "request" for line in lines) and time.monotonic() < deadline:
            time.sleep(0.01)  # the line is written once the answer is on its way
    (line,) = [line for line in lines if line["event"] == "request"]
    assert (line["method"], line["path"], line["status"]) == ("PUT", "/DM/register", 422)
    assert line["ms"] >= 0
    assert "secret" not in str(lines)


@pytest.mark.attack(cwe=209, title="A fault of the service is provoked, so that the answer shows its inside")
def test_a_fault_of_ours_is_logged_and_not_told(api: LiveApi) -> None:
    with api.database.write() as session:
        session.execute(text("ALTER TABLE objects RENAME COLUMN description TO was_description"))
    with structlog.testing.capture_logs() as lines:
        answer = api.ask("GET", "/DM/info/00000000-0000-4000-8000-000000000000")
    document = answer.json()
    assert answer.status_code in (500, 503)
    assert "SELECT" not in answer.text
    assert "description" not in answer.text
    assert document["request_id"] == answer.headers["x-request-id"]
    if answer.status_code == 500:
        assert any(line["event"] == "request_failed" for line in lines)


class Prefect(BaseHTTPRequestHandler):
    """Answers as Prefect's health endpoint does."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Be quiet."""


def test_health(tmp_path: Path, migrated_url: str) -> None:
    server = HTTPServer(("127.0.0.1", 0), Prefect)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/api"
    try:
        with LiveApi(tmp_path / "site", migrated_url, prefect_api_url=address) as api:
            assert api.ask("GET", "/DM/health/live").json() == {"status": "live"}
            lonely = api.ask("GET", "/DM/health/ready")
            assert (lonely.status_code, lonely.json()["code"]) == (503, "orchestrator_unavailable")
            assert lonely.json()["checks"] == {"database": "ok", "prefect": "ok", "movers": []}
            assert "retry-after" in lonely.headers
            api.mover_online()
            ready = api.ask("GET", "/DM/health/ready")
            assert (ready.status_code, ready.json()["status"]) == (200, "ready")  # although `gone` can't be reached
            server.shutdown()
            server.server_close()
            away = api.ask("GET", "/DM/health/ready").json()
            assert (away["status"], away["checks"]["database"]) == (503, "ok")
            assert "does not answer" in away["checks"]["prefect"]
            assert api.ask("GET", "/DM/health/live").status_code == 200
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_machines(api: LiveApi) -> None:
    registered = {"machine": "there", "filename": "f", "size": 7, "verify": "none"}
    assert api.ask("PUT", "/DM/register", data=registered).status_code == 201
    answer = api.ask("GET", "/DM/machines")
    found = {machine["name"]: machine for machine in answer.json()}
    assert list(found) == ["gone", "here", "there"]
    here, gone = found["here"], found["gone"]
    assert (here["reachable"], here["error"]) == (True, None)
    assert here["free_bytes"] > 0
    assert here["latency_ms"] >= 0
    assert [(found[name]["objects"], found[name]["object_bytes"]) for name in ("here", "there")] == [(0, 0), (1, 7)]
    assert (gone["reachable"], gone["error"]["code"], gone["free_bytes"]) == (False, "machine_unavailable", None)
    assert "secret-key" not in answer.text
    assert "username" not in answer.text


def test_the_documentation_needs_no_internet(api: LiveApi) -> None:
    assert api.ask("GET", "/").url.endswith("/docs")
    page = api.ask("GET", "/docs").text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(addresses) >= 2
    for address in addresses:
        assert address.startswith("/")
        assert api.ask("GET", address).status_code == 200
    assert "//cdn" not in page
    assert api.ask("GET", "/openapi.json").json()["info"]["title"] == "Data Manager"
