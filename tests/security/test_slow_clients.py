"""Clients that keep connections without using them, against the API as it is deployed: nobody else is kept waiting."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from deployments.client_connections import OUTPUT_MAX
from models.core.cursors import PAGE_BYTES
from tests.support.api_process import ApiProcess, closing_all, is_cut

OBJECTS, SIZE = 200, 60_000
CONNECTIONS = 40
PATIENCE = 60.0
"""Seconds until what must happen counts as not happening."""
INCOMPLETE = [
    b"GET /DM/info HTTP/1.1\r\nHost: 127.0.0.1\r\nX-",
    b"PUT /DM/register HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\nmachine=",
    b"PUT /DM/register HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999999\r\n\r\nmachine=",  # is too large
    b"GET /DM/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /DM",
    b"",
]

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("slow clients")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slow")


@pytest.fixture(scope="module")
def hasty(folder: Path) -> Iterator[ApiProcess]:
    """An API that waits two seconds for its clients, and sends two listings to each; its catalogue has 12 MB."""
    with ApiProcess(folder / "hasty", client_timeout=2, streams_per_client=2) as running:
        running.fill(OBJECTS, SIZE)
        yield running


@pytest.fixture(scope="module")
def narrow(folder: Path) -> Iterator[ApiProcess]:
    """An API that may open 400 files and have 40 connections; the same catalogue."""
    with ApiProcess(folder / "narrow", descriptors=400, connections=CONNECTIONS, streams_per_client=1000) as running:
        running.fill(OBJECTS, SIZE)
        yield running


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_listing_reaches_others_while_eight_clients_do_not_read_it(narrow: ApiProcess) -> None:
    with closing_all(*(narrow.get("/DM/info") for _ in range(8))) as clients:
        for client in clients:
            assert client.recv(20).startswith(b"HTTP/1.1 200")
        assert len(narrow.ask("GET", "/DM/info").json()) == OBJECTS


def test_listing_that_is_not_read_holds_no_snapshot(narrow: ApiProcess) -> None:
    with (
        closing_all(*(narrow.get("/DM/info") for _ in range(4))) as clients,
        closing(sqlite3.connect(narrow.catalogue)) as db,
    ):
        for client in clients:
            assert client.recv(20).startswith(b"HTTP/1.1 200")
        for size in range(20):
            db.execute("UPDATE objects SET size = ?", (size,))
            db.commit()
        busy, pages, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert (busy, pages) == (0, 0)
    assert narrow.catalogue.with_name("catalogue.db-wal").stat().st_size == 0


def test_answers_that_wait_for_clients_are_bounded(narrow: ApiProcess) -> None:
    address, count = "/DM/info?limit=10000", 36
    with ExitStack() as stack:
        for _ in range(count):  # 8 MiB each, of which the kernel takes 2 to 4
            client = stack.enter_context(closing(narrow.get(address)))
            assert client.recv(20).startswith(b"HTTP/1.1 200")
        assert narrow.connections <= OUTPUT_MAX // (PAGE_BYTES // 2) + 1 < count
        assert len(narrow.ask("GET", address).json()) > 100  # who reads is served


def test_clients_that_take_nothing_are_disconnected(hasty: ApiProcess) -> None:
    unread = [hasty.get(path) for path in ("/DM/info", "/DM/info?limit=1000", "/DM/info?limit=1000&machine=here")]
    with closing_all(*unread) as clients:
        for client in clients:
            assert client.recv(20).startswith(b"HTTP/1.1 200")
        until(lambda: hasty.connections == 0)
        assert [is_cut(client) for client in clients] == [True] * len(clients)


def test_client_that_reads_slowly_gets_everything(hasty: ApiProcess) -> None:
    received, begun = b"", time.monotonic()
    with closing(hasty.get("/DM/info?limit=1000", receive_buffer=2**16)) as client:
        while not received.endswith(b"}]"):
            received += client.recv(2**16)
            time.sleep(0.03)
    assert time.monotonic() - begun > 2  # longer than a client may take nothing
    assert received.count(b'"id":') > 100


@pytest.mark.attack(cwe=770, title="One client asks for the whole catalogue many times at once")
def test_streams_of_one_client_are_bounded(hasty: ApiProcess) -> None:
    with closing_all(*(hasty.get("/DM/info") for _ in range(2))) as clients:
        for client in clients:
            assert client.recv(20).startswith(b"HTTP/1.1 200")
        answer = hasty.ask("GET", "/DM/info")
        assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (
            429,
            "too_many_streams",
            True,
        )
        assert answer.headers["retry-after"]
        assert hasty.ask("GET", "/DM/info?limit=1").status_code == 200  # a page is none
        with closing(hasty.connect(b"", source="127.0.0.2")) as other:
            other.sendall(b"GET /DM/info HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            assert other.recv(20).startswith(b"HTTP/1.1 200")
    until(lambda: hasty.ask("GET", "/DM/info").status_code == 200)


@pytest.mark.attack(cwe=400, title="Requests are sent byte by byte and never completed")
def test_requests_that_are_not_completed_are_disconnected(hasty: ApiProcess) -> None:
    with closing_all(*(hasty.connect(sent) for sent in INCOMPLETE for _ in range(4))) as clients:
        dribbling, deadline = set(clients[::2]), time.monotonic() + PATIENCE
        while dribbling and time.monotonic() < deadline:
            for client in list(dribbling):
                try:
                    client.sendall(b"x")
                except OSError:  # it was disconnected
                    dribbling.discard(client)
            time.sleep(0.1)
        assert not dribbling
        assert [is_cut(client) for client in clients] == [True] * len(clients)


@pytest.mark.attack(cwe=410, title="Idle connections take all that there may be")
def test_idle_connections_beyond_the_limit_shut_nobody_out(narrow: ApiProcess) -> None:
    with ExitStack() as stack:
        for number in range(450):
            stack.enter_context(closing(narrow.connect(b"GET /DM/health/live HTTP/1.1\r\nHost:")))
            if number % 15 == 0:
                assert narrow.ask("GET", "/DM/health/live").status_code == 200
    assert not [line for line in narrow.log if "out of system resource" in line["event"]]
    assert len([line for line in narrow.log if line["event"] == "client_disconnected"]) <= 10
    assert narrow.process.log.stat().st_size < 50_000


def test_connections_beyond_the_limit_are_told_so(narrow: ApiProcess) -> None:
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            client = stack.enter_context(closing(narrow.get("/DM/info")))
            assert client.recv(12) == b"HTTP/1.1 200"
        answer = narrow.ask("GET", "/DM/health/live")
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (503, "server_busy", True)
    assert answer.headers["connection"] == "close"
    until(lambda: narrow.ask("GET", "/DM/health/live").status_code == 200)


def test_limit_of_connections_is_below_that_of_descriptors() -> None:
    descriptors = (16384, 1024, 256)  # the hard limit can only be lowered
    program = f"""
import resource
from deployments.client_connections import connections_allowed
for hard in {descriptors}:
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 512), hard))
    print(*connections_allowed(1000, 1))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [most for most, _ in found] == [1000, 432, 48]
    for limit, (most, backlog) in zip(descriptors, found, strict=True):
        assert most + 4 * backlog < limit


@pytest.mark.attack(cwe=779, title="Malformed requests fill the disk with lines of the log")
def test_malformed_requests_do_not_flood_the_log(narrow: ApiProcess) -> None:
    lines = len(narrow.log)
    for _ in range(300):
        with closing(narrow.connect(b"\x16\x03\x01 no HTTP\r\n\r\n")) as client:
            assert is_cut(client)
    assert len(narrow.log) - lines <= 10
