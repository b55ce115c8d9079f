"""The client's own part: errors rebuilt from problem documents, repeated requests, pages. A whole service is in e2e."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID, uuid4

import pytest
import requests

from api.http.problems import problem_of, status_of
from datamanager import errors
from datamanager.client import Client, problem_error
from datamanager.errors import DataManagerError, every_error

TASK = str(uuid4())
OBJECT = str(uuid4())


def response(status: int, document: object) -> requests.Response:
    """Return what requests makes of an answer."""
    answer = requests.Response()
    answer.status_code, answer.reason, answer.url = status, "reason", "http://service/DM"
    answer._content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return answer


def shared_codes() -> set[str]:
    codes = [cls.code for cls in every_error()]
    return {code for code in codes if codes.count(code) > 1}


@pytest.mark.parametrize("cls", [cls for cls in every_error() if status_of(cls) != 500], ids=lambda cls: cls.__name__)
def test_what_the_service_raises_is_raised_here(cls: type[DataManagerError]) -> None:
    error = cls("what happened")
    found = problem_error(response(status_of(error), problem_of(error, "id")))
    assert found.code == cls.code
    assert found.retryable == error.retryable
    assert found.detail == error.detail
    if cls.code not in shared_codes() or cls in (errors.SizeMismatch, errors.RegisteredSizeMismatch):
        assert type(found) is cls


def test_the_fields_of_an_invalid_request_are_named() -> None:
    error = errors.InvalidRequest("size: wrong", {"size": "wrong"})
    found = problem_error(response(422, problem_of(error, "id")))
    assert isinstance(found, errors.InvalidRequest)
    assert found.fields == {"size": "wrong"}


def test_retryable_is_as_the_service_says() -> None:
    error = errors.DownloadFailed("the server is busy", retryable=True)
    assert problem_error(response(502, problem_of(error, "id"))).retryable


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b"[]", b"{}"])
def test_an_answer_of_something_else_names_its_status(body: bytes) -> None:
    found = problem_error(response(502, body))
    assert isinstance(found, errors.InternalError)
    assert "502" in found.detail


Answer = Callable[[BaseHTTPRequestHandler], tuple[int, object] | None]


class Scripted(ThreadingHTTPServer):
    """Answers requests one after the other from a list; None closes the connection without an answer."""

    daemon_threads = True

    def __init__(self, *answers: tuple[int, object] | None) -> None:
        self.answers = list(answers)
        self.seen: list[tuple[str, str, dict[str, str], Any]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path, dict(self.headers), json.loads(body or b"null")))
        given = self.server.answers.pop(0)
        if given is None:
            self.close_connection = True
            return
        status, document = given
        sent = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(sent)))
        if "limit" in self.path and "cursor" not in self.path:
            self.send_header("Link", '</DM/info?limit=1&cursor=abc>; rel="next"')
        self.end_headers()
        self.wfile.write(sent)

    do_GET = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 - the base class wants these names

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Keep the terminal quiet."""


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    servers = []

    def make(*answers: tuple[int, object] | None) -> Scripted:
        server = Scripted(*answers)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def task(status: str, **more: object) -> dict[str, object]:
    return {
        "task": TASK,
        "kind": "copy",
        "status": status,
        "result": None,
        "phase": "transfer",
        "bytes_done": 1,
        "bytes_total": 2,
        "error": None,
        "flow_run_url": None,
        **more,
    }


def test_a_broken_writing_call_is_repeated_under_its_key(scripted: Callable[..., Scripted]) -> None:
    server = scripted(None, (201, {"uuid": OBJECT}))
    with Client(server.url) as client:
        assert client.register("archer2", "a.nc", "runs", size=3, group="fire") == UUID(OBJECT)
    keys = {headers["Idempotency-Key"] for _, _, headers, _ in server.seen}
    assert len(server.seen) == 2
    assert len(keys) == 1
    assert server.seen[1][3] == {"machine": "archer2", "filename": "a.nc", "path": "runs", "size": 3, "group": "fire"}


def test_two_calls_have_two_keys(scripted: Callable[..., Scripted]) -> None:
    server = scripted((200, {"message": "x deleted"}), (200, {"message": "x deleted"}))
    with Client(server.url) as client:
        client.delete(OBJECT)
        client.delete(OBJECT)
    assert len({headers["Idempotency-Key"] for _, _, headers, _ in server.seen}) == 2


def test_a_refusal_is_not_repeated(scripted: Callable[..., Scripted]) -> None:
    refused = errors.ObjectBusy("somebody reads it")
    server = scripted((409, problem_of(refused, "id")))
    with Client(server.url) as client, pytest.raises(errors.ObjectBusy, match="somebody reads it"):
        client.move(OBJECT, "cirrus", "x")
    assert len(server.seen) == 1


def test_a_long_copy_is_followed_as_a_task(scripted: Callable[..., Scripted]) -> None:
    done = task("COMPLETE", result=OBJECT)
    server = scripted((202, {"task": TASK, "status_url": "/"}), (200, task("RUNNING")), (200, done))
    with Client(server.url) as client:
        assert client.copy(OBJECT, "cirrus", "x") == UUID(OBJECT)
    assert server.seen[0][2]["Prefer"].startswith("wait=")
    assert [path for _, path, _, _ in server.seen[1:]] == [f"/DM/async/status/{TASK}"] * 2


def test_a_task_that_failed_raises_its_error(scripted: Callable[..., Scripted]) -> None:
    failed = {"code": "no_space", "detail": "cirrus is full", "retryable": False}
    server = scripted((200, task("ERROR", result="cirrus is full", error=failed)))
    with Client(server.url) as client, pytest.raises(errors.NoSpace, match="cirrus is full"):
        client.wait(TASK)


def test_waiting_has_an_end(scripted: Callable[..., Scripted]) -> None:
    server = scripted((200, task("QUEUED")))
    with Client(server.url) as client, pytest.raises(errors.TransportTimeout):
        client.wait(TASK, timeout=0)


def test_pages_are_followed(scripted: Callable[..., Scripted]) -> None:
    item: dict[str, object] = {
        "id": OBJECT, "machine": "a", "filename": "f", "path": "", "description": "", "size": None, "metadata": {},
        "date_registered": "2026-01-31T12:00:00Z", "date_modified": "2026-01-31T12:00:00Z", "status": "ACTIVE",
        "originator": "", "group": "", "checksum": None, "verified": "none", "derived_from": None, "later_key": 1,
    }  # fmt: skip
    server = scripted((200, [item]), (200, [item]))
    with Client(server.url) as client:
        found = list(client.objects(machine="a", limit=1))
    assert [one.id for one in found] == [UUID(OBJECT)] * 2
    assert found[0].date_registered.tzinfo is not None
    assert "cursor=abc" in server.seen[1][1]


def test_a_service_that_is_away_is_a_retryable_error() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(errors.ServiceError) as caught:
        client.health()
    assert caught.value.retryable


def test_many_objects_are_no_single_result() -> None:
    with pytest.raises(errors.InvalidRequest, match="start_getexternal"):
        Client("http://127.0.0.1:9").getexternal("http://x/a.tar", "m", "a.tar", options={"extract": "tar"})
