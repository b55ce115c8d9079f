"""Foreign names and pages of other sites are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.datastructures import Headers

from api.http.middleware import host_allowed, objection, same_origin
from datamanager.settings import Settings

LOCAL = Settings(home=Path("/nowhere"), allowed_hosts=("dm.example",))
OPEN = Settings(home=Path("/nowhere"), host="0.0.0.0", auth="required", trusted_proxy="10.0.0.0/8")


@pytest.mark.parametrize(
    ("host", "settings", "allowed"),
    [
        ("127.0.0.1:5000", LOCAL, True),
        ("127.9.9.9", LOCAL, True),
        ("localhost:5000", LOCAL, True),
        ("LOCALHOST.", LOCAL, True),
        ("[::1]:5000", LOCAL, True),
        ("dm.example", LOCAL, True),
        ("DM.example:443", LOCAL, True),
        ("evil.example", LOCAL, False),
        ("127.0.0.1.evil.example", LOCAL, False),
        ("localhost.evil.example", LOCAL, False),
        ("192.168.1.5:5000", LOCAL, False),
        ("192.168.1.5:5000", OPEN, True),
        ("[fe80::1]", OPEN, True),
        ("evil.example", OPEN, False),
        ("user@127.0.0.1", LOCAL, False),
        ("127.0.0.1:port", LOCAL, False),
        ("127.0.0.1/x", LOCAL, False),
        ("", LOCAL, False),
        ("[", LOCAL, False),
    ],
)
def test_host(host: str, settings: Settings, allowed: bool) -> None:
    assert host_allowed(host, settings) is allowed


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://127.0.0.1:5000", "127.0.0.1:5000", True),
        ("http://LOCALHOST:5000", "localhost:5000", True),
        ("https://dm.example", "dm.example", True),
        ("http://dm.example:80", "dm.example", True),
        ("http://127.0.0.1:5001", "127.0.0.1:5000", False),
        ("http://localhost:5000", "127.0.0.1:5000", False),
        ("https://dm.example:80", "dm.example", False),
        ("http://evil.example", "127.0.0.1:5000", False),
        ("null", "127.0.0.1:5000", False),
        ("file://", "127.0.0.1:5000", False),
        ("", "127.0.0.1:5000", False),
        ("http://127.0.0.1:5000@evil.example", "127.0.0.1:5000", False),
    ],
)
def test_origin(origin: str, host: str, same: bool) -> None:
    assert same_origin(origin, host) is same


def test_one_host_and_no_foreign_origin() -> None:
    assert objection(Headers({"host": "localhost"}), LOCAL) is None
    assert objection(Headers({}), LOCAL) is not None
    assert objection(Headers(raw=[(b"host", b"localhost"), (b"host", b"evil")]), LOCAL) is not None
    two = [(b"host", b"localhost"), (b"origin", b"http://localhost"), (b"origin", b"http://evil")]
    assert objection(Headers(raw=two), LOCAL) is not None
