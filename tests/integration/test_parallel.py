"""Several connections for one download: where they bring more, and never other bytes than those of one version."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamanager.engine.fetching import replica_fetch
from datamanager.errors import ConnectionLost, DataManagerError, SourceChanged
from datamanager.sources import parallel
from datamanager.sources.download_terms import DownloadSources
from datamanager.sources.parallel import ConnectionBudget, Parallel
from datamanager.sources.source_port import Source
from tests.support.downloads import LOOPBACK, open_download, open_source
from tests.support.fetcher import Fetcher
from tests.support.site import eventually
from tests.support.web import Web

KIB = 2**10
BODY = random.Random(1).randbytes(1024 * KIB + 17)
OTHER = random.Random(2).randbytes(len(BODY))
PIECE = 8 * KIB


class Slow(ThreadingHTTPServer):
    """Sends BODY, whole or in part, at `rate` bytes a second for each connection, or (`shared`) for all together."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.rate = 1_000_000.0
        self.shared = False
        self.body = BODY
        self.etag = '"one"'
        self.faults: dict[int, str] = {}
        """What is wrong with which answer for a part, counted from 0."""
        self.parts: list[str] = []
        self.requests = 0
        self.at_once = self.most_at_once = 0
        self.allowed = 100
        """Connections; those beyond are refused."""
        self.uses = 10_000
        """Requests that its link is good for; those beyond are refused."""
        self.refusal = 503
        self.hurries = False
        """Sends fast once it refused something, or did something wrong."""
        self.lock = threading.Lock()
        self.turn = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/x"


class _Answer(BaseHTTPRequestHandler):
    server: Slow

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        with server.lock:
            server.requests += 1
            fault = None
            if asked is not None:
                fault = server.faults.get(len(server.parts))
                server.parts.append(asked)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            self._answer(asked, fault)
        except OSError:
            pass  # the client has enough
        finally:
            with server.lock:
                server.at_once -= 1

    def _answer(self, asked: str | None, fault: str | None) -> None:
        server = self.server
        refused = fault == "refused" or server.at_once > server.allowed or server.requests > server.uses
        if server.hurries and (refused or fault is not None):
            server.rate = 20_000_000.0
        if refused:
            self.send_error(server.refusal)
            return
        if fault == "changed":
            server.body, server.etag = OTHER, '"two"'
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
        fresh = self.headers.get("If-Range") in (None, server.etag)
        first, last = 0, len(server.body) - 1
        if match and fresh and fault != "whole":
            first, last = int(match[1]), min(int(match[2] or last), last)
            self.send_response(206)
            shift = 1 if fault == "beside" else 0
            self.send_header("Content-Range", f"bytes {first + shift}-{last + shift}/{len(server.body)}")
        else:
            self.send_response(200)
        content = server.body[first : last + 1]
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", server.etag)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if fault == "cut":
            content = content[: len(content) // 2]
        for begin in range(0, len(content), PIECE):
            piece = content[begin : begin + PIECE]
            if server.shared:
                with server.turn:
                    time.sleep(len(piece) / server.rate)
            else:
                time.sleep(len(piece) / server.rate)
            self.wfile.write(piece)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Slow]:
    with Slow() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small bodies are tried, soon judged, and soon gone on with."""
    monkeypatch.setattr(parallel, "PARALLEL_FROM", 256 * KIB)
    monkeypatch.setattr(parallel, "PART", 64 * KIB)
    monkeypatch.setattr(parallel, "WATCH_FIRST", 0.1)
    monkeypatch.setattr(parallel, "WATCH_PARALLEL", 0.2)
    monkeypatch.setattr(parallel, "RETRY_PAUSES", (0.05, 0.1, 0.5, 1.0, 2.0, 4.0))


def nothing_left(server: Slow) -> bool:
    return not server.at_once and all(one.name != "download part" for one in threading.enumerate())


def single(url: str) -> Source:
    return open_source(url, "http", {}, LOOPBACK, max_size=2**30, read_timeout=5.0)


def read(server: Slow, budget: ConnectionBudget | None = None, start: int = 0) -> bytes:
    source = Parallel(single(server.url), budget or ConnectionBudget(16))
    version = f"etag:{server.etag}" if start else None
    with source.open(start, version=version) as download:
        return b"".join(bytes(block) for block in download.blocks())


def test_a_server_that_is_slow_on_each_connection(server: Slow) -> None:
    assert read(server) == BODY
    assert server.most_at_once >= parallel.WORKERS
    assert len(server.parts) > 4


def test_a_part_of_a_file_too(server: Slow) -> None:
    assert read(server, start=100_001) == BODY[100_001:]
    assert len(server.parts) > 4


def test_several_that_bring_no_more_are_given_up(server: Slow) -> None:
    server.shared = True
    assert read(server) == BODY
    open_ended = [one for one in server.parts if one.endswith("-")]
    assert len(open_ended) == 1  # alone to the end
    assert len(server.parts) < len(BODY) // parallel.PART  # and not in parts
    assert server.parts[-1] == open_ended[0]


def test_a_fast_server_is_asked_once(server: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "FAST", 1e5)
    server.rate = 4_000_000.0
    assert read(server) == BODY
    assert not server.parts


def test_where_many_connections_are_there_are_no_more(server: Slow) -> None:
    budget = ConnectionBudget(4)
    budget.acquire(1)
    server.rate = 4_000_000.0
    assert read(server, budget) == BODY
    assert not server.parts
    budget.release(1)
    server.rate = 1_000_000.0
    assert read(server, budget) == BODY
    assert server.parts
    assert budget.acquire(4)  # all were given back


@pytest.mark.parametrize("fault", ["refused", "cut", "whole", "beside"])
@pytest.mark.parametrize("number", [0, 3, 6])
def test_a_part_that_fails_is_fetched_alone(server: Slow, fault: str, number: int) -> None:
    server.faults[number], server.hurries = fault, True
    assert read(server) == BODY


@pytest.mark.parametrize("refusal", [503, 403])
@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_a_server_that_allows_few_connections(server: Slow, allowed: int, refusal: int) -> None:
    server.allowed, server.refusal, server.hurries = allowed, refusal, True
    assert read(server) == BODY
    assert server.most_at_once > allowed


def test_a_link_that_is_good_for_one_use_or_for_a_while(server: Slow) -> None:
    """As signed URLs are: what was begun in time is sent to its end, and not given up before there is another one."""
    server.uses, server.refusal, server.hurries = 1, 403, True
    assert read(server) == BODY
    assert server.requests == 2


def test_parts_that_are_promised_and_not_sent(server: Slow) -> None:
    """It says that it sends parts, and sends the whole: the first connection is gone on with."""
    server.faults, server.hurries = dict.fromkeys(range(60), "whole"), True
    assert read(server) == BODY
    assert server.requests == 2


def test_a_source_that_changes_is_noticed(server: Slow) -> None:
    server.faults[4] = "changed"
    with pytest.raises(SourceChanged):
        read(server)


def test_who_stops_taking_ends_all(server: Slow) -> None:
    budget = ConnectionBudget(16)
    source = Parallel(single(server.url), budget)
    with source.open() as download:
        for block in download.blocks():
            assert block
            if len(server.parts) >= 2:
                break
    assert budget.acquire(16)
    eventually(lambda: nothing_left(server), "all connections and threads have ended", patience=60)


def test_an_error_that_is_kept_keeps_no_connection(server: Slow) -> None:
    """Its traceback holds the reader, as a flow's record of a failed try does."""
    budget = ConnectionBudget(16)
    source = Parallel(single(server.url), budget)
    with pytest.raises(KeyError) as kept, source.open() as download:
        for _ in (blocks := download.blocks()):
            if len(server.parts) >= 4:
                raise KeyError
    assert kept.traceback
    assert blocks is not None
    assert budget.acquire(16)
    eventually(lambda: nothing_left(server), "all connections and threads have ended", patience=60)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.dictionaries(st.integers(0, 15), st.sampled_from(["refused", "cut", "whole", "beside", "changed"])))
def test_never_anything_else_than_one_version(faults: dict[int, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Through the engine: whatever parts do, the file is one version, whole, or there is none."""
    with Slow() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        server.faults, server.rate = faults, 2_000_000.0
        try:
            fetcher = Fetcher(tmp_path_factory.mktemp("fetched"))
            try:
                found = fetcher.until_done(opened(server))
            except DataManagerError:
                assert not (fetcher.folder / "file").exists()
            else:
                assert found in (BODY, OTHER)
        finally:
            server.shutdown()
            thread.join()


def opened(server: Slow) -> DownloadSources:
    return open_download(server.url, "http", None, LOOPBACK, max_size=2**30)


def test_a_download_is_gone_on_with_in_parts(server: Slow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_fetch, "CHECKPOINT_EVERY", 0.05)
    monkeypatch.setattr(replica_fetch, "RECONNECT_FROM", 2**30)  # no second connection at once
    fetcher = Fetcher(tmp_path)
    server.faults = dict.fromkeys(range(4, 9), "cut")
    assert fetcher.until_done(opened(server)) == BODY
    assert server.most_at_once >= parallel.WORKERS


@pytest.mark.slow
def test_nginx_with_a_rate_for_each_connection(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is without this module's small numbers."""
    monkeypatch.undo()
    body = random.Random(3).randbytes(96 * 2**20)
    source = Parallel(single(web.put("slow/large", body)), ConnectionBudget(16))
    before = web.access_log.read_text().count(" 206 ")
    with source.open() as download:
        assert b"".join(bytes(block) for block in download.blocks()) == body
    assert web.access_log.read_text().count(" 206 ") - before > 10


def test_a_lost_connection_is_told_as_one(server: Slow) -> None:
    """Alone, after the parts were refused: what then happens is the caller's to hear."""
    server.faults, server.hurries = dict.fromkeys(range(60), "cut"), True
    with pytest.raises(ConnectionLost):
        read(server)
