"""A source that says when it is to be asked again is asked then; until then the task waits in the queue."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pyftpdlib.handlers import FTPHandler

from tests.support.ftp import FtpServer
from tests.support.site import PATIENCE, Site, eventually
from tests.support.web import Answer, OddHandler, OddServer, status

BODY = b"at last"


def busy(server: OddServer, refusals: int, code: int, wait: int) -> str:
    """Have a new path refuse so many requests; return its URL."""
    path = f"/busy/{uuid4().hex}"
    refuse: Answer = status(code, Retry_After=wait)

    def answer(request: OddHandler) -> None:
        asked = sum(one == path for one, _ in server.requests)
        (refuse if asked <= refusals else status(200, BODY))(request)

    return server.on(path, answer)


def fetch(site: Site, url: str, **more: Any) -> str:
    """Begin a download; return its task."""
    fields = {"url": url, "machine": "cirrus", "path": "patience", "filename": uuid4().hex, **more}
    answer = site.ask("POST", "async/getexternal", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.text


def requests_of(server: OddServer, url: str) -> int:
    return sum(url.endswith(path) for path, _ in server.requests)


@pytest.mark.dialect
def test_retry_after_is_obeyed_in_the_queue_within_the_timeout(site: Site, slow_server: OddServer) -> None:
    url = busy(slow_server, 2, 429, wait=3600)
    task = fetch(site, url, options={"timeout": 3})
    seen, deadline = set[tuple[str, int]](), time.monotonic() + PATIENCE
    while (view := site.status(task))["status"] in ("QUEUED", "RUNNING"):
        seen.add((view["status"], requests_of(slow_server, url)))
        assert time.monotonic() < deadline, view
        time.sleep(0.05)
    assert view["status"] == "COMPLETE", view
    assert site.read("cirrus", f"patience/{site.info(view['result'])['filename']}") == BODY
    assert requests_of(slow_server, url) == 3
    assert {("QUEUED", 1), ("QUEUED", 2)} <= seen


def test_a_source_that_stays_busy_is_asked_as_often_as_retries_say(site: Site, slow_server: OddServer) -> None:
    url = busy(slow_server, 99, 503, wait=1)
    view = site.wait(fetch(site, url, options={"retries": 1}))
    assert (view["status"], view["error"]["code"]) == ("ERROR", "download_failed"), view
    assert "503" in view["error"]["detail"]
    assert requests_of(slow_server, url) == 2


def test_a_wait_ends_with_the_deadline(site: Site, slow_server: OddServer) -> None:
    url = busy(slow_server, 99, 503, wait=3600)
    view = site.wait(fetch(site, url, options={"timeout": 3600}, deadline="PT12S"))
    assert (view["status"], view["error"]["code"]) == ("ERROR", "deadline_exceeded"), view
    assert requests_of(slow_server, url) == 1
    eventually(lambda: not site.leftovers(), "it ended in the queue, and the mover removed its partial file afterwards")


@pytest.mark.slow
def test_downloads_from_one_server_keep_to_its_connections(open_site: Site, tmp_path: Path) -> None:
    refusals: list[object] = []

    def refuse(self: Any) -> None:
        refusals.append(self)
        FTPHandler.handle_max_cons_per_ip(self)

    with FtpServer(tmp_path / "ftp", handle_max_cons_per_ip=refuse) as server:
        server.allow(1)
        (server.root / "file").write_bytes(bytes(8_000_000))
        fields = {
            "url": f"ftp://127.0.0.1:{server.port}/file",
            "machine": "localhost",
            "path": "ftp",
            "protocol": "ftp",
        }
        bodies = [{**fields, "filename": str(number), "bandwidth": "1MB/s"} for number in range(4)]
        tasks = [open_site.ask("POST", "async/getexternal", json=body).text for body in bodies]
        assert {open_site.wait(task)["status"] for task in tasks} == {"COMPLETE"}
    # each may have been refused before the limit was known, and none again
    assert 0 < len(refusals) <= 3
