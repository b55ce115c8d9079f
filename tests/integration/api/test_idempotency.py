"""Idempotency keys: repeated, at once, joined in flight, taken over from a process that died."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
import requests
from sqlalchemy import func, select

from api.http import idempotency as keys
from api.http.idempotency import fingerprint_of
from api.http.problems import MEDIA_TYPE, problem_response
from datamanager import errors
from datamanager.domain.location import Place
from datamanager.domain.recurring import ScheduleRequest
from datamanager.domain.requests import RegisterRequest
from datamanager.domain.states import TransferKind
from datamanager.identity.grant import EVERYBODY
from deployments.amqp.submission import Call
from models.core import idempotency
from models.core.idempotency import StoredAnswer
from models.database import Database, now
from models.external.schedules import add_schedule
from models.objects.catalogue import Facts, register_object
from models.tables import IdempotencyKey, Transfer
from tests.support.live_api import LiveApi, Mover


def keyed(
    api: LiveApi, method: str, path: str, key: str, headers: dict[str, str] | None = None, **options: Any
) -> requests.Response:
    return api.ask(method, path, headers={"Idempotency-Key": key, **(headers or {})}, **options)


def objects(api: LiveApi) -> int:
    return len(api.ask("GET", "/DM/info").json())


class Commits:
    """Counts a database's commits; once told to, its connection breaks after a COMMIT that enters what was made."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.break_next = False
        self._dialect = database.engine.dialect
        self._commit = self._dialect.do_commit
        monkeypatch.setattr(self._dialect, "do_commit", self._do_commit)

    def _do_commit(self, connection: Any) -> None:
        attached = self.break_next and self._attached(connection)
        if attached:
            self.break_next = False  # before anybody else sees what was made, and commits something with it
        self._commit(connection)
        self.count += 1
        if attached:
            raise self._dialect.loaded_dbapi.OperationalError("the connection broke after COMMIT was sent")

    @staticmethod
    def _attached(connection: Any) -> bool:
        cursor = connection.cursor()
        cursor.execute("SELECT count(*) FROM idempotency_keys WHERE subject IS NOT NULL AND status IS NULL")
        return bool(cursor.fetchone()[0])


def test_the_same_key_gets_the_same_answer(api: LiveApi) -> None:
    api.write("f")
    fields = {"machine": "here", "filename": "f"}
    first = keyed(api, "PUT", "/DM/register", "k1", data=fields)
    again = keyed(api, "PUT", "/DM/register", "k1", json={**fields, "size": 0, "type": "ignored"})
    assert (first.status_code, first.text) == (again.status_code, again.text) == (201, first.text)
    assert first.headers["location"] == again.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert objects(api) == 1
    other = keyed(api, "PUT", "/DM/register", "k2", data=fields)
    assert other.status_code == 409
    repeated = keyed(api, "PUT", "/DM/register", "k2", data=fields)
    assert (repeated.status_code, repeated.json()) == (
        409,
        {**other.json(), "request_id": repeated.headers["x-request-id"]},
    )
    assert repeated.headers["content-type"] == "application/problem+json"


def test_another_request_under_the_key_is_refused(api: LiveApi) -> None:
    source = api.register("f")
    fields = {"machine": "there", "dest": "c"}
    assert keyed(api, "POST", f"/DM/async/copy/{source}", "k", data=fields).status_code == 200
    for path, other in (
        (f"/DM/async/copy/{source}", {**fields, "dest": "d"}),
        (f"/DM/async/move/{source}", fields),
        (f"/DM/async/copy/{uuid4()}", fields),
    ):
        answer = keyed(api, "POST", path, "k", data=other)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")


@pytest.mark.dialect
def test_twenty_at_once_make_one_object(api: LiveApi) -> None:
    api.write("f")
    with ThreadPoolExecutor(20) as pool:
        ask = lambda _: keyed(api, "PUT", "/DM/register", "k", data={"machine": "here", "filename": "f"})  # noqa: E731
        answers = list(pool.map(ask, range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 19
    assert objects(api) == 1


@pytest.mark.dialect
def test_a_request_in_flight_is_joined(api: LiveApi) -> None:
    source = api.register("f")
    api.mover_online()
    path, fields = f"/DM/copy/{source}", {"machine": "there", "dest": "c"}
    with ThreadPoolExecutor(10) as pool:
        waiting = [pool.submit(keyed, api, "POST", path, "k", data=fields) for _ in range(10)]
        time.sleep(1)
        assert not any(future.done() for future in waiting)
        with Mover(api) as mover:
            answers = [future.result() for future in waiting]
    assert {(answer.status_code, answer.text) for answer in answers} == {(201, answers[0].text)}
    assert mover.ended == 1
    assert objects(api) == 2


def test_every_writing_endpoint_takes_a_key(api: LiveApi) -> None:
    source, other = api.register("f"), api.register("g")
    fetch = {"machine": "here", "filename": "down", "url": "http://127.0.0.1:1/x"}
    with Mover(api) as mover:
        for number, (method, path, fields) in enumerate(
            (
                ("POST", f"/DM/copy/{source}", {"machine": "there", "dest": "c"}),
                ("POST", f"/DM/move/{source}", {"machine": "there", "dest": "m"}),
                ("DELETE", f"/DM/delete/{source}", {}),
                ("PUT", "/DM/getexternal", fetch),
                ("POST", f"/DM/async/copy/{other}", {"machine": "there", "dest": "d"}),
                ("POST", "/DM/async/getexternal", {**fetch, "filename": "down2"}),
            ),
            start=1,
        ):
            first = keyed(api, method, path, f"k{number}", data=fields)
            again = keyed(api, method, path, f"k{number}", data=fields)
            assert first.status_code in (200, 201), first.text
            assert (first.status_code, first.text) == (again.status_code, again.text)
            assert again.headers["idempotency-replayed"] == "true"
        time.sleep(0.5)
    assert mover.ended == 6


def test_a_failure_of_the_service_is_not_kept(api: LiveApi) -> None:
    source = api.register("f")
    fields = {"machine": "there", "dest": "c"}
    assert keyed(api, "POST", f"/DM/copy/{source}", "k", data=fields).status_code == 503  # no mover
    ends: list[tuple[errors.DataManagerError, int]] = [
        (errors.ChecksumMismatch("differs"), 502),
        (errors.CatalogueUnavailable("was away from the mover"), 503),  # how it ended, and no doubt of ours
    ]
    for error, status in ends:
        with Mover(api, partial(lambda error, _: error, error)):
            assert keyed(api, "POST", f"/DM/copy/{source}", "k", data=fields).status_code == status
    with Mover(api):
        answer = keyed(api, "POST", f"/DM/copy/{source}", "k", data=fields)
    assert (answer.status_code, answer.headers.get("idempotency-replayed")) == (201, None)


@pytest.mark.dialect
@pytest.mark.parametrize(
    ("error", "status"),
    [(errors.ChecksumMismatch("differs"), 502), (errors.CatalogueUnavailable("was away"), 503), (None, 500)],
    ids=["502", "503", "500"],
)
def test_joined_requests_get_the_same_5xx_and_later_ones_do_not(
    api: LiveApi, monkeypatch: pytest.MonkeyPatch, error: errors.DataManagerError | None, status: int
) -> None:
    source = api.register("f")
    api.mover_online()
    path, fields = f"/DM/copy/{source}", {"machine": "there", "dest": "c"}
    if error is None:
        monkeypatch.setattr("api.transfers.submit._outcome", lambda *_: 1 / 0)  # a fault of ours
    begun, begin = list[Any](), idempotency.begin

    def counted(*arguments: Any) -> Any:
        begun.append(begin(*arguments))
        return begun[-1]

    monkeypatch.setattr(idempotency, "begin", counted)

    def submitted() -> UUID | None:
        with api.database.read() as session:
            return session.scalar(select(Transfer.id))

    with ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(keyed, api, "POST", path, "k", data=fields) for _ in range(5)]
        deadline = time.monotonic() + 60
        while len(begun) < 5 or not submitted():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        api.finish(str(submitted()), error)
        answers = [future.result() for future in waiting]
    assert {answer.status_code for answer in answers} == {status}
    documents = [answer.json() for answer in answers]
    own = [document.pop("request_id") for document in documents]
    assert own == [answer.headers["x-request-id"] for answer in answers]
    assert len(set(own)) == 5
    assert all(document == documents[0] for document in documents)
    assert len({answer.headers.get("retry-after") for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 4
    monkeypatch.undo()
    with Mover(api):
        again = keyed(api, "POST", path, "k", data=fields)
    assert (again.status_code, "idempotency-replayed" in again.headers) == (201, False)


def test_what_a_dead_process_made_is_found_not_made_again(api: LiveApi) -> None:
    request = RegisterRequest(machine="here", filename="f", verify="none")
    fingerprint = fingerprint_of("PUT", "/DM/register", request)
    with api.database.write() as session:
        begun = idempotency.begin(session, "k", fingerprint, "the-dead", timedelta(seconds=1), timedelta(hours=1))
        assert begun.mine
        made = register_object(session, request, Place("here", "f"), Facts(None), by=None)
        idempotency.attach(session, "k", "the-dead", made)
    answer = keyed(api, "PUT", "/DM/register", "k", data={"machine": "here", "filename": "f", "verify": "none"})
    assert (answer.status_code, UUID(answer.text)) == (201, made)


def test_a_key_of_a_deleted_schedule_is_answered_as_documented(api: LiveApi) -> None:
    given = {"url": "http://127.0.0.1/x", "machine": "here", "filename": "f-{date:%Y%m%d}", "interval": "1d"}
    request = ScheduleRequest.model_validate(given)
    with api.database.write() as session:
        fingerprint = fingerprint_of("POST", "/DM/schedules", request)
        idempotency.begin(session, "k", fingerprint, "the-dead", timedelta(seconds=1), timedelta(hours=1))
        made = add_schedule(session, request, EVERYBODY).id
        idempotency.attach(session, "k", "the-dead", made)
    assert api.ask("DELETE", f"/DM/schedules/{made}").status_code == 200
    answer = keyed(api, "POST", "/DM/schedules", "k", json=given)
    assert (answer.status_code, answer.json()["code"]) == (404, "schedule_not_found")
    assert "404" in api.app.openapi()["paths"]["/DM/schedules"]["post"]["responses"]


@pytest.mark.dialect
def test_what_was_made_is_found_though_its_commit_was_not_answered(
    api: LiveApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits(api.database, monkeypatch)

    def ask_twice(method: str, path: str, key: str, fields: dict[str, str]) -> requests.Response:
        commits.break_next = True
        first = keyed(api, method, path, key, data=fields)
        assert (first.status_code, first.json()["code"]) == (503, "catalogue_unavailable")
        assert int(first.headers["retry-after"]) > 0
        with api.database.read() as session:
            assert idempotency.holder_of(session, key) is None, "the key was not released"
        return keyed(api, method, path, key, data=fields)

    registered = ask_twice("PUT", "/DM/register", "k1", {"machine": "here", "filename": "f", "verify": "none"})
    assert registered.status_code == 201, registered.text
    assert (objects(api), api.ask("GET", f"/DM/info/{registered.text}").status_code) == (1, 200)
    path, fields = f"async/copy/{registered.text}", {"machine": "there", "dest": "c"}
    task = ask_twice("POST", f"/DM/{path}", "k2", fields)
    assert task.status_code == 200, task.text
    assert api.status(task.text)["status"] == "QUEUED"
    with Mover(api):
        copied = ask_twice("POST", f"/DM/copy/{registered.text}", "k3", {"machine": "there", "dest": "d"})
    assert copied.status_code == 201, copied.text
    with api.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Transfer)) == 2


@pytest.mark.dialect
@pytest.mark.parametrize("end", ["store", "drop", "release", "lapse", "fail"])
def test_joining_another_process_keeps_no_writer_from_work(
    api: LiveApi, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(keys, "JOIN_POLL", 0.05)
    fields = {"machine": "here", "filename": "f", "verify": "none"}
    fingerprint = fingerprint_of("PUT", "/DM/register", RegisterRequest.model_validate(fields))
    with api.database.write() as session:
        assert idempotency.begin(session, "k", fingerprint, "other", timedelta(hours=1), timedelta(hours=1)).mine
    commits = Commits(api.database, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(keyed, api, "PUT", "/DM/register", "k", data=fields)
        deadline = time.monotonic() + 60
        while not commits.count and time.monotonic() < deadline:
            time.sleep(0.02)  # until the request has come, however busy this machine is
        time.sleep(6 * 0.05)
        assert not joined.done()
        assert commits.count == 1  # when it came, and not at each look
        with api.database.write() as session:
            match end:
                case "store":
                    idempotency.store(session, "k", "other", StoredAnswer(201, {}, "of the other"))
                case "drop":
                    idempotency.drop(session, "k", "other")
                case "release":
                    idempotency.release(session, "k", "other")
                case "fail":
                    problem = problem_response(errors.NoSpace("full"), "the other's")
                    headers = {"content-type": MEDIA_TYPE}
                    idempotency.drop(session, "k", "other")
                    idempotency.keep_failure(session, "other", StoredAnswer(507, headers, bytes(problem.body).decode()))
                case "lapse":
                    session.get_one(IdempotencyKey, "k").held_until = now(session)
        answer = joined.result(timeout=60)
    if end == "fail":
        assert (answer.status_code, answer.json()["code"]) == (507, "no_space")
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
    else:
        assert answer.status_code == 201
        assert (answer.text == "of the other") == (end == "store")
    assert objects(api) == (end not in ("store", "fail"))


def test_no_http_key_is_that_of_a_message(api: LiveApi) -> None:
    call = Call("/workflow/7", "once", TransferKind.DELETE, {}, "fingerprint")
    with api.database.write() as session:
        begun = idempotency.begin(
            session, call.key(EVERYBODY), call.fingerprint, "mover", timedelta(hours=1), timedelta(hours=1)
        )
        assert begun.mine
        idempotency.store(session, call.key(EVERYBODY), "mover", StoredAnswer(202, {}, "a message's answer"))
    where = {"machine": "there", "filename": "a", "path": "spaces/a", "verify": "none"}
    first = keyed(api, "PUT", "/DM/register", call.key(EVERYBODY), data=where)
    assert first.status_code == 201
    assert keyed(api, "PUT", "/DM/register", call.key(EVERYBODY), data=where).text == first.text
    with api.database.read() as session:
        stored = set(session.scalars(select(IdempotencyKey.key)))
    # nor can an HTTP key stand for the stored form of another one
    (other,) = (key for key in stored if key.startswith("http:"))
    assert keyed(api, "PUT", "/DM/register", other, data=where | {"path": "spaces/b"}).status_code == 201


def test_keys_that_are_none(api: LiveApi) -> None:
    for key in ("", "x" * 256, "é".encode().decode("latin-1"), "a\tb"):
        answer = keyed(api, "PUT", "/DM/register", key, data={"machine": "here", "filename": "f"})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "Idempotency-Key")
    api.write("f")
    assert keyed(api, "PUT", "/DM/register", "x" * 255, data={"machine": "here", "filename": "f"}).status_code == 201
