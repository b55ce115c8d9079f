"""What a machine's curl is told, line by line, and what its exit status means."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

import pytest

from datamanager.errors import ConnectionLost, DataManagerError, DownloadFailed, InternalError, NotSupported
from datamanager.errors import TransportTimeout as Timeout
from datamanager.sources.http.curl_config import curl_config, curl_error
from datamanager.sources.terms.urls import Target, parse_target
from datamanager.transports.local.beneath import Beneath
from datamanager.transports.local.processes import LocalProcesses
from datamanager.transports.local.storage import LocalSession
from datamanager.transports.remote.running import InstalledPrograms
from tests.support.odd_http import OddServer, ok

NONE: dict[str, str] = {}


def config(
    target: Target, address: str = "192.0.2.1", headers: Mapping[str, str] = NONE, *, verify: bool = True
) -> list[str]:
    told = curl_config(
        target, ip_address(address), headers, verify=verify, connect_timeout=0.2, read_timeout=59.5, rate=None
    )
    return told.decode("ascii").splitlines()


def test_each_value_is_one_quoted_line() -> None:
    lines = config(parse_target("https://data.example:8443/a b?c=d"), headers={"X-A": 'say "\\n"', "X-Empty": ""})
    assert lines == [
        "ipv4",
        "silent",
        "include",
        "no-buffer",
        "globoff",
        'url = "https://data.example:8443/a%20b?c=d"',
        'proto = "=https"',
        'noproxy = "*"',
        'resolve = "data.example:8443:192.0.2.1"',
        'header = "X-A: say \\"\\\\n\\""',
        'header = "X-Empty;"',
        'connect-timeout = "1"',
        'speed-limit = "100"',
        'speed-time = "60"',
        'output = "/dev/fd/7"',
        'write-out = "%{size_download} %{time_connect} "',
    ]
    assert "insecure" in config(parse_target("https://data.example/"), verify=False)


def test_an_address_needs_no_resolving() -> None:
    for url, address in (("http://192.0.2.1/", "192.0.2.1"), ("http://[2001:DB8::0:1]:81/", "2001:db8::1")):
        assert not [line for line in config(parse_target(url), address) if line.startswith("resolve")]
    six = config(parse_target("http://h.example/"), "2001:db8::1")
    assert {'resolve = "h.example:80:2001:db8::1"', "ipv6"} <= set(six)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "a\nurl = file:///etc/passwd"},
        {"X-A": "a\0"},
        {"X-A": "ü"},
        {"@/etc/passwd": ""},
        {"X A": "b"},
        {"": "b"},
    ],
)
def test_what_can_not_stand_there_is_not_written(headers: dict[str, str]) -> None:
    with pytest.raises(InternalError):
        config(parse_target("https://data.example/"), headers=headers)


def test_curl_reads_what_was_meant(tmp_path: Path) -> None:
    """The real one: what it sends is what was quoted."""
    odd = 'a "b" \\c\\" \\n \\t %7B {x} [1-9] #'
    with OddServer() as server:
        target = parse_target(server.url("/?a={x}[1-9]"))
        server.answers[target.url.removeprefix(server.url(""))] = [ok(b"abc")]
        told = "\n".join(config(target, "127.0.0.1", {"X-Odd": odd})).replace("/dev/fd/7", str(tmp_path / "out"))
        subprocess.run(["curl", "-q", "--config", "-"], input=told.encode(), check=True, capture_output=True)
        assert (tmp_path / "out").read_bytes().endswith(b"\r\n\r\nabc")
        assert f"X-Odd: {odd}\r\n" in server.heads[0]


@pytest.mark.parametrize(
    ("status", "error", "retryable"),
    [
        (1, DownloadFailed, False),
        (7, ConnectionLost, True),
        (18, ConnectionLost, True),
        (28, Timeout, True),
        (35, ConnectionLost, True),
        (52, ConnectionLost, True),
        (56, ConnectionLost, True),
        (60, DownloadFailed, False),
        (137, ConnectionLost, True),
        (99, DownloadFailed, False),
    ],
)
def test_what_its_status_means(status: int, error: type[DataManagerError], retryable: bool) -> None:
    meant = curl_error(status, "https://data.example/a?…")
    assert (type(meant), meant.retryable) == (error, retryable)
    assert "https://data.example/a?…" in meant.detail


def test_the_movers_host_runs_none() -> None:
    with pytest.raises(NotSupported):
        LocalSession(Beneath("/"), LocalProcesses(60.0), InstalledPrograms()).programs.curl(b"")
