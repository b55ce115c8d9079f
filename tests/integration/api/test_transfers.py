"""Copy, move, delete, getexternal: waited for and as tasks. The other side of the catalogue is played by a thread."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from datetime import timedelta
from http.client import HTTPConnection
from typing import Any
from uuid import UUID

import pytest
import requests
from sqlalchemy import select

from datamanager import errors
from datamanager.errors import DataManagerError
from models.access.visibility import ALL
from models.core.leases import MOVER_PREFIX, hold_lease
from models.objects.catalogue import get_object
from models.objects.claims import free_place_of_object
from models.tables import Transfer
from tests.support.live_api import LiveApi, Mover
from tests.support.site import eventually

AS_JSON = {"Accept": "application/json"}
DOWNLOAD = {"machine": "here", "filename": "down", "url": "http://127.0.0.1:1/x", "protocol": "http", "size": ""}


def refused(answer: requests.Response, status: int, code: str) -> dict[str, Any]:
    document: dict[str, Any] = answer.json()
    assert (answer.status_code, document["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(document) >= {"type", "title", "status", "detail", "code", "retryable", "request_id"}
    return document


def to(machine: str, dest: str, **fields: Any) -> dict[str, Any]:
    return {"machine": machine, "dest": dest, **fields}


def transfers(api: LiveApi) -> list[UUID]:
    with api.database.read() as session:
        return list(session.scalars(select(Transfer.id)))


def set_status(api: LiveApi, uuid: str, status: str) -> None:
    with api.database.write() as session:
        get_object(session, UUID(uuid), ALL).status = status
        free_place_of_object(session, UUID(uuid))  # only ACTIVE objects hold one


def test_what_the_waiting_endpoints_answer(api: LiveApi) -> None:
    source = api.register("a/b", group="fire", originator="here and there")
    with Mover(api):
        copied = api.ask("POST", f"/DM/copy/{source}", data=to("there", "x/y", type="raw"))
        assert (copied.status_code, copied.headers["location"]) == (201, f"/DM/info/{copied.text}")
        shown = api.ask("GET", f"/DM/info/{copied.text}").json()
        assert (shown["machine"], shown["path"], shown["filename"]) == ("there", "x", "y")
        assert (shown["group"], shown["originator"], shown["derived_from"]) == ("fire", "here and there", source)
        moved = api.ask("POST", f"/DM/move/{source}", json=to("there", "moved"))
        assert (moved.status_code, moved.text) == (200, "Move successful")
        assert api.ask("GET", f"/DM/info/{source}").json()["filename"] == "moved"
        deleted = api.ask("DELETE", f"/DM/delete/{source}")
        assert (deleted.status_code, deleted.text) == (200, "there:moved deleted")
        assert api.ask("GET", f"/DM/info/{source}").json()["status"] == "DELETED"
        fetched = api.ask("PUT", "/DM/getexternal", data=DOWNLOAD)
        assert fetched.status_code == 201
        assert api.ask("GET", f"/DM/info/{fetched.text}").json()["filename"] == "down"


def test_the_same_as_json(api: LiveApi) -> None:
    source = api.register("f")
    with Mover(api):
        copied = api.ask("POST", f"/DM/copy/{source}", json=to("there", "c"), headers=AS_JSON)
        assert list(copied.json()) == ["uuid"]
        moved = api.ask("POST", f"/DM/move/{source}", json=to("there", "m"), headers=AS_JSON)
        assert moved.json() == {"uuid": source, "message": "Move successful"}
        deleted = api.ask("DELETE", f"/DM/delete/{source}", headers=AS_JSON)
        assert deleted.json() == {"uuid": source, "message": "there:m deleted"}


@pytest.mark.dialect
def test_tasks(api: LiveApi) -> None:
    source = api.register("f")
    answer = api.ask("POST", f"/DM/async/copy/{source}", data=to("there", "c"))
    assert answer.status_code == 200
    assert answer.headers["location"] == f"/DM/async/status/{answer.text}"
    status = api.status(answer.text)
    assert list(status)[:2] == ["status", "result"]
    assert (status["status"], status["result"], status["error"], status["kind"]) == ("QUEUED", None, None, "copy")
    assert (status["task"], status["object"], status["flow_run_url"]) == (answer.text, source, None)
    api.finish(answer.text)
    status = api.status(answer.text)
    assert status["status"] == "COMPLETE"
    assert api.ask("GET", f"/DM/info/{status['result']}").json()["derived_from"] == source
    assert status["flow_run_url"].endswith(f"/runs/flow-run/{status['flow_run_id']}")
    assert (status["bytes_done"], status["bytes_total"], status["phase"]) == (10, 10, "done")
    assert status["created"] <= status["started"] <= status["ended"]


def test_a_task_that_failed(api: LiveApi) -> None:
    source = api.register("f")
    task = api.ask("POST", f"/DM/async/move/{source}", json=to("there", "m"), headers=AS_JSON).json()
    assert task["status_url"] == f"/DM/async/status/{task['task']}"
    api.finish(task["task"], errors.ChecksumMismatch("the ends differ"))
    status = api.status(task["task"])
    assert (status["status"], status["result"]) == ("ERROR", "the ends differ")
    assert status["error"] == {"code": "checksum_mismatch", "detail": "the ends differ", "retryable": True}
    assert [fault["code"] for fault in status["faults"]] == ["checksum_mismatch"]


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_async_getexternal_by_either_method_and_address(api: LiveApi, method: str, slash: str) -> None:
    answer = api.ask(method, f"/DM/async/getexternal{slash}", data=DOWNLOAD)
    assert answer.status_code == 200
    assert api.status(answer.text)["kind"] == "getexternal"


def test_prefer(api: LiveApi) -> None:
    source = api.register("f")
    later = {"Prefer": "respond-async"}
    for path in ("copy", "async/copy"):  # works with no mover: nobody waits
        answer = api.ask("POST", f"/DM/{path}/{source}", data=to("there", path), headers=later)
        assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")
        assert answer.headers["location"] == f"/DM/async/status/{answer.text}"
        assert api.status(answer.text)["status"] == "QUEUED"
    api.mover_online()
    begun = time.monotonic()
    answer = api.ask("POST", f"/DM/copy/{source}", data=to("there", "c"), headers={"Prefer": "wait=1"})
    assert time.monotonic() - begun > 0.9
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=1")
    api.finish(answer.text)
    with Mover(api):
        answer = api.ask("POST", f"/DM/copy/{source}", data=to("there", "d"), headers={"Prefer": "wait=50"})
        assert answer.status_code == 201


def test_a_status_waits_for_the_end(api: LiveApi) -> None:
    task = api.ask("POST", f"/DM/async/copy/{api.register('f')}", data=to("there", "c")).text

    def asked(prefer: str) -> tuple[str, str | None]:
        answer = api.ask("GET", f"/DM/async/status/{task}", headers={"Prefer": prefer})
        return answer.json()["status"], answer.headers.get("preference-applied")

    assert asked("wait=soon") == ("QUEUED", None)
    begun = time.monotonic()
    assert asked("wait=1") == ("QUEUED", "wait=1")
    assert time.monotonic() - begun > 0.9
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(asked, "wait=50")
        assert not wait([waiting], 0.2).done
        api.finish(task)
        assert waiting.result() == ("COMPLETE", "wait=50")
    assert asked("wait=50") == ("COMPLETE", "wait=50")  # at once


def test_without_a_mover_nothing_is_changed(api: LiveApi) -> None:
    source = api.register("f")
    for method, path in (("POST", f"copy/{source}"), ("POST", f"move/{source}"), ("DELETE", f"delete/{source}")):
        answer = api.ask(method, f"/DM/{path}", data={} if method == "DELETE" else to("there", "c"))
        refused(answer, 503, "orchestrator_unavailable")
        assert int(answer.headers["retry-after"]) > 0
    refused(api.ask("PUT", "/DM/getexternal", data=DOWNLOAD), 503, "orchestrator_unavailable")
    assert api.ask("POST", f"/DM/async/copy/{source}", data=to("there", "c")).status_code == 200


def test_without_a_mover_that_reaches_prefect_nothing_is_changed(api: LiveApi) -> None:
    def online(name: str, seconds: float, prefect: bool) -> None:
        with api.database.write() as session:
            hold_lease(session, MOVER_PREFIX + name, name, timedelta(seconds=seconds), {"prefect": prefect})

    source = api.register("f")
    online("cut-off", 60, prefect=False)
    online("dead", -1, prefect=True)
    for method, path in (("POST", f"copy/{source}"), ("POST", f"move/{source}"), ("DELETE", f"delete/{source}")):
        answer = api.ask(method, f"/DM/{path}", data={} if method == "DELETE" else to("there", "c"))
        document = refused(answer, 503, "orchestrator_unavailable")
        assert "no mover that can reach Prefect is online; nothing was changed" in document["detail"]
        assert int(answer.headers["retry-after"]) > 0
    refused(api.ask("PUT", "/DM/getexternal", data=DOWNLOAD), 503, "orchestrator_unavailable")
    with api.database.read() as session:
        assert session.scalars(select(Transfer)).all() == []
    # who does not wait is served: it will be done when Prefect is back
    assert api.ask("POST", f"/DM/async/copy/{source}", data=to("there", "a")).status_code == 200
    later = {"Prefer": "respond-async"}
    assert api.ask("POST", f"/DM/copy/{source}", data=to("there", "b"), headers=later).status_code == 202
    soon = {"Prefer": "wait=1"}
    refused(api.ask("POST", f"/DM/copy/{source}", data=to("there", "c"), headers=soon), 503, "orchestrator_unavailable")
    online("able", 60, prefect=True)  # one is enough
    assert api.ask("POST", f"/DM/copy/{source}", data=to("there", "c"), headers=soon).status_code == 202


# every code that a transfer can end with, and the contract's status for it
ENDS: dict[type[DataManagerError], int] = {
    errors.SourceMissing: 409,
    errors.SourceChanged: 409,
    errors.Cancelled: 409,
    errors.DestinationExists: 409,
    errors.TooLarge: 413,
    errors.NoSpace: 507,
    errors.NotSupported: 501,
    errors.UrlNotAllowed: 422,
    errors.PathNotAllowed: 422,
    errors.UnknownMachine: 422,
    errors.MachineUnavailable: 503,
    errors.TransportTimeout: 504,
    errors.DeadlineExceeded: 504,
    errors.SizeMismatch: 502,
    errors.ChecksumMismatch: 502,
    errors.ConnectionLost: 502,
    errors.HostKeyMismatch: 502,
    errors.AuthenticationFailed: 502,
    errors.LoginOutput: 502,
    errors.PermissionDenied: 502,
    errors.RemoteFailure: 502,
    errors.DownloadFailed: 502,
    errors.SourceNotRemoved: 502,
    errors.InternalError: 500,
}


def test_how_a_transfer_ended_is_how_its_request_is_answered(api: LiveApi) -> None:
    source = api.register("f")
    by_dest = {cls.__name__: cls for cls in ENDS}

    def judge(row: Transfer) -> DataManagerError:
        return by_dest[row.request["dest"]]("what the mover said")

    def ask(cls: type[DataManagerError]) -> requests.Response:
        return api.ask("POST", f"/DM/copy/{source}", data=to("there", cls.__name__))

    with Mover(api, judge), ThreadPoolExecutor(len(ENDS)) as pool:
        for (cls, status), answer in zip(ENDS.items(), pool.map(ask, ENDS), strict=True):
            document = refused(answer, status, cls.code)
            assert ("retry-after" in answer.headers) == (status == 503)
            assert ("what the mover said" in document["detail"]) == (status != 500)


def test_objects_that_cannot_be_used(api: LiveApi) -> None:
    api.mover_online()
    source = api.register("f")
    for status, answered, code in (
        ("ARCHIVED", 409, "object_archived"),
        ("UNKNOWN", 409, "object_unknown"),
        ("DELETED", 410, "object_deleted"),
    ):
        set_status(api, source, status)
        for prefix in ("/DM", "/DM/async"):
            refused(api.ask("POST", f"{prefix}/copy/{source}", data=to("there", "c")), answered, code)
            refused(api.ask("POST", f"{prefix}/move/{source}", data=to("there", "c")), answered, code)
    refused(api.ask("DELETE", f"/DM/delete/{source}"), 410, "object_deleted")
    set_status(api, source, "UNKNOWN")
    with Mover(api):
        assert api.ask("DELETE", f"/DM/delete/{source}").status_code == 200
        refused(api.ask("DELETE", f"/DM/delete/{source}"), 410, "object_deleted")
    assert api.ask("GET", f"/DM/info/{source}").json()["status"] == "DELETED"


@pytest.mark.dialect
def test_who_is_refused_while_another_works(api: LiveApi) -> None:
    api.mover_online()
    source, other = api.register("f"), api.register("g")
    first = api.ask("POST", f"/DM/async/copy/{source}", data=to("there", "c")).text
    assert api.ask("POST", f"/DM/async/copy/{source}", data=to("there", "d")).status_code == 200  # readers share
    refused(api.ask("POST", f"/DM/move/{source}", data=to("there", "e")), 409, "object_busy")
    refused(api.ask("DELETE", f"/DM/delete/{source}"), 409, "object_busy")
    refused(api.ask("POST", f"/DM/copy/{other}", data=to("there", "c")), 409, "destination_exists")
    refused(
        api.ask("PUT", "/DM/register", data={"machine": "there", "filename": "c", "verify": "none"}),
        409,
        "destination_exists",
    )
    api.finish(first)
    refused(api.ask("POST", f"/DM/copy/{other}", data=to("there", "c")), 409, "destination_exists")
    moving = api.ask("POST", f"/DM/async/move/{other}", data=to("there", "m"))
    assert moving.status_code == 200
    refused(api.ask("POST", f"/DM/copy/{other}", data=to("there", "n")), 409, "object_busy")


def test_what_a_transfer_refuses(api: LiveApi) -> None:
    api.mover_online()
    source = api.register("f")
    for path in (f"/DM/copy/{source}", f"/DM/async/move/{source}"):
        refused(api.ask("POST", path, data=to("daint", "c")), 422, "unknown_machine")
        refused(api.ask("POST", path, data=to("there", "../c")), 422, "path_not_allowed")
        refused(api.ask("POST", path, data=to("there", "/etc/passwd")), 422, "path_not_allowed")
        refused(api.ask("POST", path, data=to("here", "f")), 409, "destination_exists")
        document = refused(api.ask("POST", path, data={"machine": "there"}), 422, "invalid_request")
        assert [fault["field"] for fault in document["errors"]] == ["dest"]
    for path in ("/DM/getexternal", "/DM/async/getexternal"):
        for url in (
            "file:///etc/passwd",
            "ftp2:x",
            "http://10.0.0.1/",
            "http://[::1]/",
            "http://localhost.invalid/",
            "x",
        ):
            refused(api.ask("PUT", path, data={**DOWNLOAD, "url": url}), 422, "url_not_allowed")
        refused(api.ask("PUT", path, data={**DOWNLOAD, "protocol": "gopher"}), 501, "not_supported")
        refused(api.ask("PUT", path, data={**DOWNLOAD, "options": '{"user": "me"}'}), 422, "invalid_request")
        refused(api.ask("PUT", path, data={**DOWNLOAD, "options": '{"access_key": "k"}'}), 501, "not_supported")
        refused(api.ask("PUT", path, data={**DOWNLOAD, "options": "["}), 422, "invalid_request")
        refused(api.ask("PUT", path, data={**DOWNLOAD, "machine": "daint"}), 422, "unknown_machine")


@pytest.mark.parametrize("uuid", ["6ff89a46-7445-475d-8fd9-29db3edaca26", "not-a-uuid"])
def test_unknown_objects_and_tasks(api: LiveApi, uuid: str) -> None:
    api.mover_online()
    for path in ("copy", "move", "archive", "activate", "async/copy", "async/move", "async/archive", "async/activate"):
        fields = {} if path.endswith("archive") else to("there", "c")
        refused(api.ask("POST", f"/DM/{path}/{uuid}", data=fields), 404, "object_not_found")
    refused(api.ask("DELETE", f"/DM/delete/{uuid}"), 404, "object_not_found")
    refused(api.ask("GET", f"/DM/async/status/{uuid}"), 404, "task_not_found")


@pytest.mark.dialect
def test_many_wait_at_once_and_a_client_that_leaves_stops_nothing(api: LiveApi) -> None:
    source = api.register("f")
    api.mover_online()
    with closing(HTTPConnection("127.0.0.1", api.settings.port, timeout=60)) as leaves:
        leaves.request(
            "POST", f"/DM/copy/{source}", json.dumps(to("there", "left")), {"Content-Type": AS_JSON["Accept"]}
        )
        eventually(lambda: transfers(api), "the client that leaves waits")
    with ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(api.ask, "POST", f"/DM/copy/{source}", data=to("there", f"c{n}")) for n in range(60)]
        time.sleep(1)
        assert not any(future.done() for future in waiting)
        assert api.ask("GET", f"/DM/info/{source}").status_code == 200  # nobody is kept from anything
        with Mover(api) as mover:
            assert {future.result().status_code for future in waiting} == {201}
    assert mover.ended == 61
    assert len(api.ask("GET", "/DM/info").json()) == 62
