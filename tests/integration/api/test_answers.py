"""Answers are true: unknown fields refused everywhere, methods told as they are, every status documented."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from datamanager.domain.requests import NAMED_MAX, OLD_EXTRAS
from datamanager.machines import Machine, TransportKind
from tests.support.live_api import LiveApi, Mover
from tests.support.sshd import PrivateSshd

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
DOWNLOAD = {"machine": "here", "filename": "f", "url": "https://127.0.0.1:1/f"}


def operations(api: LiveApi) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, address and description of what the document knows; the address is of nothing that exists."""
    for path, methods in api.app.openapi()["paths"].items():
        address = path.replace("{name}", "here")
        while "{" in address:
            address = address[: address.index("{")] + str(uuid4()) + address[address.index("}") + 1 :]
        for method, operation in methods.items():
            yield method.upper(), address, operation


def fields_of(answer: requests.Response) -> set[str]:
    return {fault["field"] for fault in answer.json().get("errors", ())}


def test_every_endpoint_refuses_unknown_fields_and_parameters(shared_api: LiveApi) -> None:
    tried = 0
    for method, path, operation in operations(shared_api):
        where = f"{method} {path}"
        documented = set(operation["responses"])
        if not path.startswith("/DM/health"):
            answer = shared_api.ask(method, path, params={"bandwith": "1"})
            assert (answer.status_code, fields_of(answer)) == (422, {"bandwith"}), where
            assert "422" in documented, where
        if method == "GET":
            continue
        tried += 1
        answer = shared_api.ask(method, path, json={"bandwith": 1})
        assert (answer.status_code, "bandwith" in fields_of(answer)) == (422, True), (where, answer.text)
        form = shared_api.ask(method, path, data={"bandwith": 1})
        assert form.status_code == 422, where
        answer = shared_api.ask(method, path, data="{", headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_body"), where
        answer = shared_api.ask(method, path, data=b"x" * (2**24 + 1), headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large"), where
        assert {"400", "413", "422"} <= documented, where
    assert tried >= 30


def test_old_clients_extras_are_ignored(api: LiveApi) -> None:
    extras: dict[str, Any] = dict.fromkeys(OLD_EXTRAS, "x")
    source = api.register("f", **extras)
    with Mover(api):
        copied = api.ask("POST", f"/DM/copy/{source}", data={"machine": "there", "dest": "c", **extras})
        assert copied.status_code == 201, copied.text
        assert api.ask("PUT", "/DM/getexternal", data={**DOWNLOAD, "filename": "g", **extras}).status_code == 201
        moved = api.ask("POST", f"/DM/move/{source}", data={"machine": "there", "dest": "m", **extras})
        assert (moved.status_code, moved.text) == (200, "Move successful")
        assert api.ask("DELETE", f"/DM/delete/{source}", data=extras).status_code == 200


def test_head_is_served_wherever_get_is_and_405_lists_every_method(shared_api: LiveApi) -> None:
    known: dict[str, set[str]] = {}
    for method, path, _ in operations(shared_api):
        known.setdefault(path, set()).add(method)
    for path in ("/", "/docs", "/openapi.json", "/DM/info/", "/DM/async/status/", "/docs/assets/swagger-ui.css"):
        known[path] = {"GET"}
    for path, methods in known.items():
        wanted = methods | ({"HEAD"} if "GET" in methods else set())
        for method in METHODS:
            if method in wanted:
                continue
            answer = shared_api.ask(method, path)
            assert answer.status_code == 405, (method, path)
            assert set(answer.headers["allow"].split(", ")) == wanted, (method, path)
        if "GET" in methods:
            got, head = (shared_api.ask(method, path, allow_redirects=False) for method in ("GET", "HEAD"))
            assert (got.status_code, head.content) == (head.status_code, b""), path
            same = ("content-type", "location", "link")
            assert [got.headers.get(name) for name in same] == [head.headers.get(name) for name in same], path


def test_head_of_the_whole_listing_reads_no_objects(api: LiveApi) -> None:
    api.register("f")
    head = api.ask("HEAD", "/DM/info")
    assert (head.status_code, head.content, head.headers["content-type"]) == (200, b"", "application/json")
    assert len(api.ask("GET", "/DM/info").json()) == 1


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"nonsense\r\n\r\n",
        b"GET /DM/info\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /DM/info HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /DM/info HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 2**18 + b"\r\n\r\n",
        b"PUT /DM/register HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n",
    ],
    ids=lambda sent: repr(sent[:30]),
)
def test_malformed_http_is_a_problem_too(shared_api: LiveApi, bytes_sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", shared_api.settings.port), timeout=60) as connection:
        connection.sendall(bytes_sent)
        response = http.client.HTTPResponse(connection)
        response.begin()
        document = json.loads(response.read())
    assert (response.status, document["status"], document["code"]) == (400, 400, "malformed_http")
    assert response.headers["content-type"] == "application/problem+json"
    assert document["request_id"] == response.headers["x-request-id"]
    assert shared_api.ask("GET", document["type"]).json()["status"] == [400]


def test_the_protocol_is_that_of_the_url_where_none_is_given(api: LiveApi) -> None:
    for number, given in enumerate(({}, {"protocol": ""})):
        for url in ("https://127.0.0.1:1/f", "ftp://127.0.0.1:1/f", "dav://127.0.0.1:1/f"):
            fields = {**DOWNLOAD, "url": url, "filename": f"{url[:3]}{number}", **given}
            answer = api.ask("PUT", "/DM/async/getexternal", data=fields)
            assert answer.status_code == 200, (url, answer.text)
    wrong = api.ask("PUT", "/DM/getexternal", data={**DOWNLOAD, "url": "ftp://127.0.0.1:1/f", "protocol": "http"})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "url_not_allowed")


def test_a_doubled_metadata_filter_is_refused(shared_api: LiveApi) -> None:
    answer = shared_api.ask("GET", "/DM/info?metadata.k=a&metadata.k=b")
    assert (answer.status_code, fields_of(answer)) == (422, {"metadata.k"})
    many = shared_api.ask("GET", "/DM/info?" + "&".join(f"n{number}" + "=" for number in range(2000)))
    assert len(fields_of(many)) == NAMED_MAX


def test_what_is_registered_twice_names_the_holder(api: LiveApi) -> None:
    source = api.register("f")
    again = api.ask("PUT", "/DM/register", data={"machine": "here", "filename": "f"})
    document = again.json()
    assert (again.status_code, document["code"], document["object"]) == (409, "destination_exists", source)
    assert source in document["detail"]
    assert "task" not in document
    task = api.ask("POST", f"/DM/async/copy/{source}", data={"machine": "there", "dest": "c"}).text
    for method, path, fields in (
        ("PUT", "/DM/register", {"machine": "there", "filename": "c", "verify": "none"}),
        ("POST", f"/DM/async/copy/{source}", {"machine": "there", "dest": "c"}),
        ("PUT", "/DM/async/getexternal", {**DOWNLOAD, "machine": "there", "filename": "c"}),
    ):
        document = api.ask(method, path, data=fields).json()
        assert (document["code"], document.get("task"), "object" in document) == ("destination_exists", task, False)


def test_machines_name_what_is_missing(tmp_path: Path, migrated_url: str, sshd_pair: tuple[PrivateSshd, ...]) -> None:
    absent = tmp_path / "absent"
    reached = sshd_pair[0].machine("no-base", str(absent))
    further = [
        reached,
        reached.model_copy(update={"name": "no-key", "identity_file": tmp_path / "secret-key"}),
        Machine(name="no-folder", transport=TransportKind.LOCAL, base_dir=str(absent)),
    ]
    with LiveApi(tmp_path / "site", migrated_url, further=further) as api:
        answer = api.ask("GET", "/DM/machines")
    found = {machine["name"]: machine["error"] for machine in answer.json()}
    assert found["here"] is None
    for name, key in (("no-base", "base_dir"), ("no-folder", "base_dir"), ("no-key", "identity_file")):
        assert f"machines.{name}.{key} does not exist" in found[name]["detail"]
    assert found["gone"]["code"] == "machine_unavailable"
    assert "machines.gone.identity_file does not exist" in found["gone"]["detail"]
    assert "secret-key" not in answer.text
