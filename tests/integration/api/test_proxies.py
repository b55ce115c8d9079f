"""What a proxy says of its client counts only where the proxy is a declared one (CWE-290, CWE-348), and a request that
others could read is refused (CWE-319)."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.http.forwarded import as_sent
from tests.support.live_api import LiveApi

PROXIES = tuple(map(ipaddress.ip_network, ["10.0.0.0/8", "2001:db8::/32"]))
PROXY, STRANGER = "10.1.2.3", "192.0.2.66"


def sent(peer: str, *headers: tuple[str, str]) -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "scheme": "http", "client": (peer, 4711), "headers": [*raw, (b"host", b"dm.example")]}
    return dict(as_sent(scope, PROXIES))


@pytest.mark.parametrize(
    ("chain", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("127.0.0.1, 203.0.113.7", "203.0.113.7"),  # the client wrote the first one itself
        ("203.0.113.7, 10.9.9.9", "203.0.113.7"),  # two proxies of ours
        ("203.0.113.7:5123, 10.9.9.9:80", "203.0.113.7"),
        ("[2001:db9::1]:443", "2001:db9::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("10.8.8.8, 10.9.9.9", "10.8.8.8"),  # asked from within
        ("127.0.0.1, unknown, 10.9.9.9", "10.9.9.9"),  # nobody can say more
        ("<script>", PROXY),
        ("", PROXY),
    ],
)
def test_client_is_the_last_address_that_is_no_proxy(chain: str, client: str) -> None:
    scope = sent(PROXY, ("x-forwarded-for", chain), ("x-forwarded-proto", "https"))
    assert (scope["client"][0], scope["scheme"]) == (client, "https")
    assert [name for name, _ in scope["headers"]] == [b"host"]


def test_headers_of_several_lines_are_one_list() -> None:
    scope = sent(PROXY, ("x-forwarded-for", "127.0.0.1"), ("x-forwarded-for", "203.0.113.7"))
    assert scope["client"][0] == "203.0.113.7"


@pytest.mark.parametrize(
    ("proto", "scheme"), [("https", "https"), ("https, http", "http"), ("ftp", "http"), ("", "http")]
)
def test_scheme_is_what_the_nearest_proxy_says(proto: str, scheme: str) -> None:
    assert sent(PROXY, ("x-forwarded-proto", proto))["scheme"] == scheme


@pytest.mark.parametrize("peer", [STRANGER, "127.0.0.1", "2001:db9::1", "not an address"])
def test_nothing_counts_from_elsewhere(peer: str) -> None:
    scope = sent(peer, ("x-forwarded-for", "127.0.0.1"), ("x-forwarded-proto", "https"), ("forwarded", "for=1.2.3.4"))
    assert (scope["client"], scope["scheme"]) == ((peer, 4711), "http")
    assert [name for name, _ in scope["headers"]] == [b"host"]


@pytest.mark.parametrize(
    ("peer", "headers", "status"),
    [
        (STRANGER, {}, 403),
        (STRANGER, {"X-Forwarded-Proto": "https"}, 403),
        (STRANGER, {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "https"}, 403),
        (PROXY, {"X-Forwarded-For": STRANGER}, 403),
        (PROXY, {"X-Forwarded-For": STRANGER, "X-Forwarded-Proto": "http"}, 403),
        (PROXY, {"X-Forwarded-For": f"127.0.0.1, {STRANGER}", "X-Forwarded-Proto": "http"}, 403),
        (PROXY, {"X-Forwarded-For": STRANGER, "X-Forwarded-Proto": "https"}, 200),
        ("127.0.0.1", {}, 200),  # this host's own monitor
    ],
)
def test_request_that_others_can_read_is_refused(
    tmp_path: Path, migrated_url: str, peer: str, headers: dict[str, str], status: int
) -> None:
    live = LiveApi(tmp_path, migrated_url, host="0.0.0.0", auth="required", trusted_proxy=PROXIES[:1])

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(live.app, client=(peer, 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/DM/health/live", headers=headers)

    answer = asyncio.run(ask())
    assert answer.status_code == status, answer.text
    assert ("strict-transport-security" in answer.headers) is (
        headers.get("X-Forwarded-Proto") == "https" and peer == PROXY
    )
    if status == 403:
        assert answer.json()["code"] == "connection_not_secure"
    live.database.close()
    live.storages.close()
