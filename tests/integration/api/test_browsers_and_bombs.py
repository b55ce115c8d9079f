"""What every answer tells browsers, to whom pages of other origins may speak, and bodies that are bombs."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from api.http.request_parts import LIMIT
from tests.support.catalogue import empty_catalogue
from tests.support.live_api import LiveApi

ORIGIN = "https://portal.example"
UUID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[LiveApi]:
    folder = tmp_path_factory.mktemp("answers")
    with (
        empty_catalogue(request, "sqlite", folder) as url,
        LiveApi(folder / "site", url, cors_origins=(ORIGIN,)) as live,
    ):
        yield live


@pytest.mark.attack(cwe=1021, title="Our pages are shown in a frame of another site")
@pytest.mark.parametrize("path", ["/DM/info", "/DM/info/x", "/docs", "/openapi.json", "/problems/not_found", "/none"])
def test_every_answer_has_the_headers(api: LiveApi, path: str) -> None:
    headers = api.ask("GET", path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"
    assert "Server" not in headers
    assert "Strict-Transport-Security" not in headers  # http, and a loopback name


def test_no_page_needs_a_script_of_its_own_text(api: LiveApi) -> None:
    page = api.ask("GET", "/docs")
    assert "'unsafe-inline'" not in page.headers["Content-Security-Policy"].partition("script-src")[2].partition(";")[0]
    assert all(re.search(r"\ssrc=", tag) for tag in re.findall(r"<script\b[^>]*>", page.text))
    assert "Cache-Control" not in api.ask("GET", "/docs/assets/swagger-ui.css").headers


def test_what_is_no_http_gets_the_headers_too(api: LiveApi) -> None:
    with socket.create_connection(("127.0.0.1", api.settings.port), 60) as client:
        client.sendall(b"NONSENSE\r\n\r\n")
        answer = client.recv(65536).lower()
    assert b"nosniff" in answer
    assert b"server:" not in answer


@pytest.mark.attack(cwe=942, title="A page of another site reads our answers")
def test_other_origins_read_nothing_unless_they_are_named(api: LiveApi) -> None:
    ask = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}
    allowed = api.ask("OPTIONS", "/DM/register", headers={"Origin": ORIGIN, **ask})
    assert (allowed.status_code, allowed.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    assert "Access-Control-Allow-Credentials" not in allowed.headers  # no page of others has our cookie's rights
    assert api.ask("GET", "/DM/info", headers={"Origin": ORIGIN}).headers["Access-Control-Allow-Origin"] == ORIGIN
    for origin in ("https://evil.example", "null", f"{ORIGIN}.evil.example", "http://portal.example"):
        answer = api.ask("OPTIONS", "/DM/register", headers={"Origin": origin, **ask})
        assert answer.status_code == 403
        assert "Access-Control-Allow-Origin" not in answer.headers
    token = {**ask, "Access-Control-Request-Headers": "x-csrf-token"}
    assert api.ask("OPTIONS", "/DM/register", headers={"Origin": ORIGIN, **token}).status_code == 400


def test_no_other_origin_is_allowed_by_default(tmp_path: Path, migrated_url: str) -> None:
    with LiveApi(tmp_path, migrated_url) as live:
        assert live.ask("GET", "/DM/info", headers={"Origin": ORIGIN}).status_code == 403


def endpoints(api: LiveApi) -> list[tuple[str, str, list[str]]]:
    """Return method, path and fields of each endpoint that takes a body."""
    document: dict[str, Any] = api.ask("GET", "/openapi.json").json()
    found = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "requestBody" in operation:
                names = set(re.findall(r'"\$ref": ?"#/components/schemas/(\w+)"', json.dumps(operation["requestBody"])))
                inline = re.findall(r'"properties": ?\{"(\w+)"', json.dumps(operation["requestBody"]))
                fields = {field for name in names for field in document["components"]["schemas"][name]["properties"]}
                found.append((method.upper(), re.sub(r"\{\w+\}", UUID, path), sorted(fields.union(inline))))
    return found


@pytest.mark.attack(cwe=674, title="JSON is nested many thousand times, in every field of every endpoint")
@pytest.mark.parametrize("depth", [900, 100_000])
@pytest.mark.parametrize("shape", ["array", "object"])
def test_nested_bombs_are_refused_everywhere(api: LiveApi, depth: int, shape: str) -> None:
    """CWE-674: no endpoint, and none of its fields, answers a nested value with a fault of its own."""
    opening, closing = ("[", "]") if shape == "array" else ('{"a":', "}")
    bomb = opening * depth + "1" + closing * depth
    targets = endpoints(api)
    assert len(targets) > 10
    fields_of_each = 3 if depth == 100_000 else 30  # the parser refuses them, whatever the field
    asking = requests.Session()
    asking.trust_env = False
    for method, path, fields in targets:
        for body in [bomb, *(f'{{"{field}": {bomb}}}' for field in fields[:fields_of_each])]:
            answer = asking.request(method, api.url + path, data=body, headers={"Content-Type": "application/json"})
            assert 400 <= answer.status_code < 500, (method, path, body[:60], answer.text)
            if depth == 100_000 and "machines" not in path:  # there the machine is looked up first
                assert (answer.status_code, answer.json()["code"]) == (400, "malformed_body"), (method, path)


@pytest.mark.attack(cwe=770, title="Bodies, forms and fields are too large")
@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"x" * (LIMIT + 1), "application/json", 413),
        (b"a=1&" * 101, "application/x-www-form-urlencoded", 400),
        (b'{"size": ' + b"9" * 100_000 + b"}", "application/json", 400),
        (json.dumps({"description": "x" * 70_000}).encode(), "application/json", 422),
        (json.dumps({f"f{n}": n for n in range(50_000)}).encode(), "application/json", 422),
    ],
)
def test_bodies_have_limits(api: LiveApi, body: bytes, kind: str, status: int) -> None:
    answer = api.ask("PUT", "/DM/register", data=body, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text[:300]
    assert len(answer.content) < 50_000  # what was sent does not come back


def test_heads_have_a_limit(api: LiveApi) -> None:
    assert api.ask("GET", "/DM/info", headers={"X-Long": "x" * 70_000}).status_code == 400
    many = {f"X-{number}": "x" for number in range(20_000)}
    with socket.create_connection(("127.0.0.1", api.settings.port), 60) as client:
        head = "".join(f"{name}: {value}\r\n" for name, value in many.items())
        client.sendall(f"GET /DM/info HTTP/1.1\r\nHost: localhost\r\n{head}".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
