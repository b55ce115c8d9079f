"""The client's token: which one is sent, and to whom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from requests import Request

from datamanager.client import Client
from datamanager.client.bearer import BearerAuth, find_token
from datamanager.errors import NotAuthenticated, SettingsError
from tests.support.web import OddServer, status

HERE, AWAY = "http://127.0.0.1:5000", "https://dm.example"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DM_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DM_TOKEN", raising=False)
    (tmp_path / "admin-token").write_text("dm_of_the_file\n")
    return tmp_path


def found(url: str) -> str | None:
    token = find_token(url)
    return None if token is None else token.get_secret_value()


def test_file_of_the_home_is_for_this_host_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [found(url) for url in (HERE, "http://localhost:1", "http://[::1]:1")] == ["dm_of_the_file"] * 3
    assert [found(url) for url in (AWAY, "http://10.0.0.1", "http://127.0.0.1.example")] == [None] * 3
    (home / "admin-token").unlink()
    assert found(HERE) is None
    monkeypatch.delenv("DM_HOME")
    (home / ".dm").mkdir()
    (home / ".dm" / "admin-token").write_text("dm_of_the_default")
    assert found(HERE) == "dm_of_the_default"


def test_variable_goes_first_and_to_other_hosts_by_https_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DM_TOKEN", " dm_of_the_variable\n")
    assert [found(url) for url in (HERE, AWAY)] == ["dm_of_the_variable"] * 2
    with pytest.raises(SettingsError, match="https only") as refused:
        found("http://dm.example")
    assert "dm_of" not in refused.value.detail
    with pytest.raises(SettingsError, match="https only"):
        Client("http://dm.example", token="dm_given")


@pytest.fixture
def server() -> Iterator[OddServer]:
    with OddServer() as running:
        yield running


def test_token_is_sent_whatever_a_netrc_file_says(home: Path, server: OddServer) -> None:
    (home / ".netrc").write_text("machine 127.0.0.1 login me password netrc\n")
    server.on("/DM/health/ready", status(200, b"{}"))
    for token, sent in ((None, "dm_of_the_file"), ("dm_given", "dm_given")):
        with Client(server.url, token=token) as client:
            client.health()
        assert server.requests[-1][1]["Authorization"] == f"Bearer {sent}"


def test_who_has_no_token_is_told_where_one_is_looked_for(home: Path, server: OddServer) -> None:
    problem = {"code": "not_authenticated", "detail": "of the service"}
    server.on("/DM/health/ready", status(401, json.dumps(problem).encode()))
    with Client(server.url) as client, pytest.raises(NotAuthenticated, match=r"^of the service$"):
        client.health()
    (home / "admin-token").unlink()
    told = r"needs a token: set DM_TOKEN, or DM_HOME .* admin-token$"
    with Client(server.url) as client, pytest.raises(NotAuthenticated, match=told):
        client.health()


def test_token_is_not_shown() -> None:
    token = find_token(HERE)
    assert token is not None
    bearer = BearerAuth(token)
    assert "dm_of" not in repr(bearer) + repr(vars(bearer))
    assert bearer(Request("GET", HERE).prepare()).headers["Authorization"] == "Bearer dm_of_the_file"
