"""Batches over HTTP: accepted as one task, its items listed; and as the client of this project sees them."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
import requests
from sqlalchemy import func, select

from datamanager.client import Client
from datamanager.domain.states import TransferStatus
from datamanager.errors import InvalidRequest, ItemsFailed, NoSpace
from models.batches import results as batch_results
from models.objects.catalogue import Facts
from models.tables import Transfer
from models.transfers import queue
from tests.support.live_api import LEASE, MOVER, LiveApi


def start(
    api: LiveApi, what: str, *items: tuple[str, str], headers: dict[str, str] | None = None, **fields: Any
) -> requests.Response:
    body = {"machine": "there", **fields}
    if items:
        body["items"] = [{"uuid": uuid, "dest": dest} for uuid, dest in items]
    return api.ask("POST", f"/DM/async/{what}", json=body, headers=headers)


def refused(answer: requests.Response, status: int, code: str) -> set[str]:
    """Check the problem; return the fields that it names."""
    document = answer.json()
    assert (answer.status_code, document["code"]) == (status, code), answer.text
    return {each["field"] for each in document.get("errors", ())}


def items(api: LiveApi, task: str, query: str = "") -> list[dict[str, Any]]:
    answer = api.ask("GET", f"/DM/async/status/{task}/items{query}")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


def perform(api: LiveApi, task: str | UUID, *, fail: frozenset[int] = frozenset()) -> None:
    """Do a batch as a mover does with the catalogue; items in `fail` end in ERROR."""
    with api.database.write() as session:
        (hold,) = queue.take(session, MOVER, LEASE, 1, only=UUID(str(task)))
    with api.database.write() as session:
        row = queue.begin(session, hold, uuid4())
        numbers = [item.number for item in batch_results.items_to_do(session, hold, -1, 10_000)]
        good = [(number, Facts(10)) for number in numbers if number not in fail]
        batch_results.fail_items(session, hold, [(number, NoSpace("full")) for number in numbers if number in fail])
        if row.kind == "copy_many":
            batch_results.complete_copies(session, hold, good)
        else:
            batch_results.commit_moves(session, hold, good)
            batch_results.end_committed(session, hold, [number for number, _ in good])
        batch_results.finish_batch(session, hold)


def test_a_batch_is_a_task_with_items(api: LiveApi) -> None:
    first, second = api.register("in/a"), api.register("in/b")
    answer = start(api, "copy", (first, "out/a"), (str(uuid4()), "out/b"), (second, "out/c"))
    task = answer.text
    assert (answer.status_code, answer.headers["location"]) == (200, f"/DM/async/status/{task}")
    status = api.status(task)
    assert (status["status"], status["kind"], status["object"]) == ("QUEUED", "copy_many", None)
    assert status["items"] == {"total": 3, "complete": 0, "skipped": 0, "error": 1, "queued": 2}
    perform(api, task, fail=frozenset({2}))
    status = api.status(task)
    assert status["items"] == {"total": 3, "complete": 1, "skipped": 0, "error": 2, "queued": 0}
    assert (status["status"], status["error"]["code"]) == ("ERROR", "items_failed")
    done, missing, full = items(api, task)
    assert done == {
        "number": 0,
        "object": first,
        "machine": "there",
        "dest": "out/a",
        "status": "COMPLETE",
        "skipped": False,
        "result": done["result"],
        "size": 10,
        "error": None,
    }
    assert api.ask("GET", f"/DM/info/{done['result']}").json()["derived_from"] == first
    assert (missing["number"], missing["result"], missing["error"]["code"]) == (1, None, "object_not_found")
    assert full["error"] == {"code": "no_space", "detail": "full", "retryable": False}
    assert full["result"] is None
    again = start(api, "copy", (first, "out/a"), (second, "out/c"), headers={"Prefer": "respond-async"})
    assert again.status_code == 202
    assert api.status(again.text)["items"] == {"total": 2, "complete": 1, "skipped": 1, "error": 0, "queued": 1}
    skipped = items(api, again.text, "?status=complete")
    assert [(each["skipped"], each["result"]) for each in skipped] == [(True, done["result"])]


@pytest.mark.dialect
def test_items_come_in_pages(api: LiveApi) -> None:
    task = start(api, "move", *((str(uuid4()), str(number)) for number in range(5))).text
    seen, pages = [], 0
    where = f"/DM/async/status/{task}/items?status=ERROR&limit=2"
    while where:
        answer = api.ask("GET", where)
        seen += [each["number"] for each in answer.json()]
        where = answer.links.get("next", {}).get("url", "")
        pages += 1
    assert (seen, pages) == ([0, 1, 2, 3, 4], 3)
    assert items(api, task, "?status=QUEUED") == []
    for query, field in (
        ("status=RUNNING", "status"),
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("cursor=-1", "cursor"),
        ("cursor=abc", "cursor"),
        ("sort=size", "sort"),
    ):
        assert refused(api.ask("GET", f"/DM/async/status/{task}/items?{query}"), 422, "invalid_request") == {field}
    refused(api.ask("GET", f"/DM/async/status/{uuid4()}/items"), 404, "task_not_found")
    single = api.ask("POST", f"/DM/async/copy/{api.register('a')}", data={"machine": "there", "dest": "b"}).text
    assert items(api, single) == []
    assert "items" not in api.status(single)


def test_a_malformed_request_is_refused_as_a_whole(api: LiveApi) -> None:
    uuid = str(uuid4())
    good = {"uuid": uuid, "dest": "a"}

    def wrong(**body: Any) -> set[str]:
        return refused(api.ask("POST", "/DM/async/copy", json=body), 422, "invalid_request")

    assert wrong(items=[good] * 17 + [{"uuid": uuid}], machine="there") == {"items.17.dest"}
    assert wrong(items=[good, {"uuid": "x", "dest": "a", "machine": "m"}]) == {"items.0.machine", "items.1.uuid"}
    assert wrong(items=[], machine="there") == {"items"}
    assert wrong(items=[good] * 10_001, machine="there") == {"items"}
    assert wrong(items=[good], machine="there", verify="md5") == {"verify"}
    assert wrong(items=[{"dest": 1}] * 10_000, machine="there") <= {
        f"items.{n}.{f}" for n in range(100) for f in ("uuid", "dest")
    }
    assert wrong(machine="there") == {"directory"}
    assert wrong(items=[good], directory={"machine": "here"}, machine="there") == {"directory"}
    assert wrong(directory={"machine": "here", "path": "x"}, dest="y") == {"directory"}
    assert wrong(directory={"machine": "here", "path": "x"}, machine="there") == {"dest"}
    refused(start(api, "copy", directory={"machine": "here", "path": "x"}, dest=""), 404, "object_not_found")
    refused(start(api, "move", directory={"machine": "nowhere"}, dest=""), 422, "unknown_machine")
    for form in ({"data": {"items": "[]"}}, {"files": {"items": (None, "[]")}}):
        assert refused(api.ask("POST", "/DM/async/move", **form), 422, "invalid_request") == {"Content-Type"}
    with api.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Transfer)) == 0


def test_a_key_makes_one_batch(api: LiveApi) -> None:
    wanted = (api.register("a"), "b")
    answers = [start(api, "copy", wanted, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert answers[0].text == answers[1].text
    assert answers[1].headers["idempotency-replayed"] == "true"
    other = start(api, "copy", (wanted[0], "c"), headers={"Idempotency-Key": "k"})
    refused(other, 422, "idempotency_mismatch")


def test_ten_thousand_items_with_long_paths_fit(api: LiveApi) -> None:
    task = start(api, "copy", *((str(uuid4()), f"{number}/{'d' * 250}/{'e' * 250}") for number in range(10_000))).text
    assert api.status(task)["items"]["error"] == 10_000
    too_large = api.ask("POST", "/DM/async/copy", data=b" " * (2**24 + 1), headers={"Content-Type": "application/json"})
    refused(too_large, 413, "too_large")


def test_the_client_knows_batches(api: LiveApi) -> None:
    for name in ("run/a", "run/sub/b"):
        api.write(name)
    with Client(api.url) as dm:
        tree = dm.register_tree("here", "run", group="fire")
        assert (tree.registered, tree.already) == (2, 0)
        copied = dm.copy_many(directory={"machine": "here", "path": "run"}, machine="there", dest="to")
        perform(api, copied)
        done = dm.wait(copied)
        assert done.items is not None
        assert (done.result, done.items.complete) == ("2 items done", 2)
        assert [item.dest for item in dm.items(copied)] == ["to/a", "to/sub/b"]
        moved = dm.move_many(
            ({"uuid": UUID(each["uuid"]), "dest": each["filename"], "machine": "there"} for each in tree.objects),
            verify="size",
        )
        perform(api, moved, fail=frozenset({1}))
        with pytest.raises(ItemsFailed, match="1 of 2 items failed, first: no_space: full"):
            dm.wait(moved)
        (failed,) = dm.items(moved, TransferStatus.ERROR)
        assert failed.error is not None
        assert (failed.number, failed.error.code, failed.result) == (1, "no_space", None)
        with pytest.raises(InvalidRequest):
            dm.copy_many([])
