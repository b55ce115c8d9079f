"""Every protocol through the whole service: asked for over HTTP, moved by a mover, in the catalogue afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.site import Site, sha256, some_bytes
from tests.support.source_servers import SERVERS, SourceServer

SECRETS = frozenset({"password", "secret_key", "private_key", "token"})


@pytest.fixture
def site(open_site: Site) -> Site:
    return open_site


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SourceServer]:
    with SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as running:
        yield running


def test_getexternal_by_every_protocol(site: Site, server: SourceServer) -> None:
    data = some_bytes(1_500_000)
    url = server.put("forecast.grib", data, private=True)
    options: dict[str, Any] = {**server.options, **server.login, "checksum": sha256(data)}
    if server.ca_file is not None:
        options["ca"] = server.ca_file.read_text()
    fields = {"url": url, "machine": "archer2", "path": server.protocol, "filename": "forecast.grib"}
    answer = site.ask("PUT", "getexternal", json={**fields, "protocol": server.protocol, "options": options})
    assert answer.status_code == 201, answer.text
    assert site.read("archer2", f"{server.protocol}/forecast.grib") == data
    row = site.info(answer.text)
    assert (row["size"], row["checksum"], row["verified"]) == (len(data), sha256(data), "sha256")
    assert row["originator"] == url
    wrong = {**options, **server.wrong_login}
    body = {**fields, "protocol": server.protocol, "options": wrong, "filename": "wrong.grib"}
    refused = site.ask("PUT", "getexternal", json=body)
    assert refused.status_code in (409, 502), refused.text
    assert not site.exists("archer2", f"{server.protocol}/wrong.grib")
    assert not site.leftovers()
    told = f"{row}{refused.text}{site.ask('GET', 'info').text}"
    for name in SECRETS & wrong.keys():
        for secret in (options[name], wrong[name]):
            assert secret not in told
            assert not any(secret.encode() in log.read_bytes() for log in site.service.home.glob("*.log"))


def test_a_machine_fetches_itself(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = some_bytes(3_000_000)
    with SERVERS["https"](tmp_path_factory.mktemp("remote")) as server:
        url = server.put("forecast.grib", data, private=True)
        sums = server.put("SHA256SUMS", f"{sha256(data).removeprefix('sha256:')}  forecast.grib\n".encode())
        assert server.ca_file is not None
        options: dict[str, Any] = {
            **server.login,
            "fetch": "remote",
            "ca": server.ca_file.read_text(),
            "checksum": sums,
        }
        fields = {"url": url, "machine": "archer2", "path": "remote", "filename": "forecast.grib"}
        answer = site.ask("PUT", "getexternal", json={**fields, "options": options})
        assert answer.status_code == 201, answer.text
        assert site.read("archer2", "remote/forecast.grib") == data
        row = site.info(answer.text)
        assert (row["size"], row["checksum"], row["verified"]) == (len(data), sha256(data), "sha256")
        newer = {**options, "if_newer_than": answer.text}
        same = site.ask("PUT", "getexternal", json={**fields, "filename": "again.grib", "options": newer})
        assert (same.status_code, same.text) == (200, answer.text)
        wrong = {**options, "password": "wrong-s3cret"}
        refused = site.ask("PUT", "getexternal", json={**fields, "filename": "wrong.grib", "options": wrong})
        assert refused.status_code == 502, refused.text
        at_home = {**fields, "machine": "localhost", "filename": "home.grib"}
        home = site.ask("PUT", "getexternal", json={**at_home, "options": options})
        assert home.status_code == 201, home.text
        both = site.ask("PUT", "getexternal", json={**fields, "options": {**options, "decompress": "gzip"}})
        assert both.status_code == 422
        assert "options.decompress" in both.text
    assert not site.exists("archer2", "remote/again.grib")
    assert not site.exists("archer2", "remote/wrong.grib")
    assert not site.leftovers()
    told = f"{row}{refused.text}{site.ask('GET', 'info').text}"
    for secret in (options["password"], wrong["password"]):
        assert secret not in told
        assert not any(secret.encode() in log.read_bytes() for log in site.service.home.glob("*.log"))
