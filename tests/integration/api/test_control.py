"""Cancel, pause, resume, deadlines and priorities over HTTP; the list of tasks; and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from datamanager.client import Client
from datamanager.domain.fields import Priority
from datamanager.domain.states import TransferStatus
from datamanager.errors import Cancelled, SourceMissing, TaskEnded
from models.access.visibility import ALL
from models.tables import Transfer
from models.transfers import queue
from models.transfers.lookup import get_transfer
from tests.support.command import dm
from tests.support.live_api import LEASE, MOVER, LiveApi

SOON = "2199-01-31T12:00:00+01:00"


def problem(answer: Any) -> tuple[int, str, set[str]]:
    """Return an error's status and code, and the fields that it names."""
    document = answer.json()
    return answer.status_code, document["code"], {wrong["field"] for wrong in document.get("errors", ())}


def row(api: LiveApi, task: str) -> Transfer:
    with api.database.read() as session:
        return get_transfer(session, UUID(task), ALL)


def start(api: LiveApi, **fields: Any) -> str:
    """Begin a copy; return its task."""
    source = api.register(str(uuid4()))
    answer = api.ask("POST", f"/DM/async/copy/{source}", json={"machine": "there", "dest": str(uuid4()), **fields})
    assert answer.status_code == 200, answer.text
    return answer.text


def run(api: LiveApi, task: str) -> queue.TransferLease:
    """Take a task and begin it, as a mover does."""
    with api.database.write() as session:
        (hold,) = queue.take(session, MOVER, LEASE, 1, only=UUID(task))
        queue.begin(session, hold, uuid4())
    return hold


# --- fields of requests ----------------------------------------------------------------------------------------------


def test_every_request_may_say_when_and_how_urgently(api: LiveApi) -> None:
    when = {"priority": "high", "deadline": SOON, "not_before": "PT2H"}
    place = {"machine": "there", "dest": "x/y", **when}
    one = {"uuid": api.register("d"), "dest": "many/d"}
    orders: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", f"/DM/async/copy/{api.register('a')}", {"json": place}),
        ("POST", f"/DM/async/move/{api.register('b')}", {"data": {**place, "dest": "m"}}),
        ("PUT", "/DM/async/getexternal", {"json": {**when, "machine": "there", "filename": "z", "url": api.url}}),
        ("POST", "/DM/async/copy", {"json": {**when, "machine": "there", "items": [one]}}),
        ("DELETE", f"/DM/delete/{api.register('c')}", {"json": when, "headers": {"Prefer": "respond-async"}}),
    ]
    api.mover_online()
    for method, path, body in orders:
        answer = api.ask(method, path, **body)
        assert answer.status_code in (200, 202), answer.text
        status = api.status(answer.text)
        assert status["priority"] == "high"
        assert datetime.fromisoformat(status["deadline"]) == datetime.fromisoformat(SOON)
        created = datetime.fromisoformat(status["created"])
        assert datetime.fromisoformat(status["not_before"]) == created + timedelta(hours=2)
    usual = api.status(start(api, priority="", deadline=None, not_before=""))
    assert (usual["priority"], usual["deadline"], usual["not_before"]) == ("normal", None, None)
    assert (usual["paused"], usual["bytes_per_second"], usual["eta"]) == (False, None, None)


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("priority", "urgent"),
        ("priority", 1),
        ("deadline", "2026-01-31T12:00:00"),  # no zone
        ("deadline", "2020-01-31T12:00:00Z"),  # long ago
        ("deadline", "tomorrow"),
        ("deadline", "PT0S"),
        ("deadline", "-PT1H"),
        ("deadline", "P99999D"),
        ("deadline", 1800000000),
        ("deadline", "2026-02-30T12:00:00Z"),
        ("not_before", "P"),
        ("not_before", [SOON]),
    ],
)
def test_what_is_no_time_and_no_priority_is_refused_and_its_field_named(
    shared_api: LiveApi, field: str, given: object
) -> None:
    place = {"machine": "there", "dest": "b", field: given}
    answer = shared_api.ask("POST", f"/DM/async/copy/{shared_api.register(str(uuid4()))}", json=place)
    assert problem(answer) == (422, "invalid_request", {field})


def test_a_start_after_the_deadline_is_refused(shared_api: LiveApi) -> None:
    place = {"machine": "there", "dest": "b", "deadline": "PT1H", "not_before": SOON}
    answer = shared_api.ask("POST", f"/DM/async/copy/{shared_api.register(str(uuid4()))}", json=place)
    assert problem(answer) == (422, "invalid_request", {"not_before"})


def test_the_same_key_with_the_same_duration_is_the_same_request(shared_api: LiveApi) -> None:
    source, key = shared_api.register(str(uuid4())), {"Idempotency-Key": str(uuid4())}
    place = {"machine": "there", "dest": "b", "deadline": "PT1H"}
    answers = {shared_api.ask("POST", f"/DM/async/copy/{source}", json=place, headers=key).text for _ in range(3)}
    assert len(answers) == 1


# --- cancel, pause, resume -------------------------------------------------------------------------------------------


def test_cancelling_what_waits_ends_it(api: LiveApi) -> None:
    source = api.register("a")
    place = {"machine": "there", "dest": "b"}
    task = api.ask("POST", f"/DM/async/copy/{source}", json=place).text
    answer = api.ask("DELETE", f"/DM/async/status/{task}")
    assert answer.status_code == 200
    assert answer.json() == api.status(task)
    assert (answer.json()["status"], answer.json()["error"]["code"]) == ("ERROR", "cancelled")
    assert api.ask("POST", f"/DM/async/move/{source}", json=place).status_code == 200  # object and place are free
    for method, path in (("DELETE", "status/{}"), ("POST", "{}/pause"), ("POST", "{}/resume")):
        assert problem(api.ask(method, f"/DM/async/{path.format(task)}")) == (409, "task_ended", set())
        for unknown in (uuid4(), "nothing"):
            answer = api.ask(method, f"/DM/async/{path.format(unknown)}")
            assert problem(answer) == (404, "task_not_found", set())


def test_cancelling_what_runs_is_asked_for_and_may_be_repeated(api: LiveApi) -> None:
    task = start(api)
    run(api, task)
    for _ in range(2):
        answer = api.ask("DELETE", f"/DM/async/status/{task}")
        assert (answer.status_code, answer.json()["status"]) == (202, "RUNNING")
    assert row(api, task).stop_requested == "cancel"
    assert problem(api.ask("POST", f"/DM/async/{task}/pause")) == (409, "task_ended", set())


def test_who_waits_for_a_cancelled_transfer_hears_of_it(api: LiveApi) -> None:
    source = api.register("a")
    api.mover_online()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(api.ask, "POST", f"/DM/copy/{source}", json={"machine": "there", "dest": "b"})
        while not (listed := api.ask("GET", "/DM/async/status").json()):
            pass
        assert api.ask("DELETE", f"/DM/async/status/{listed[0]['task']}").status_code == 200
        assert problem(waiting.result(60))[:2] == (409, "cancelled")


def test_pause_and_resume(api: LiveApi) -> None:
    task = start(api)
    for _ in range(2):
        answer = api.ask("POST", f"/DM/async/{task}/pause")
        view = answer.json()
        assert (answer.status_code, view["status"], view["phase"], view["paused"]) == (200, "QUEUED", "paused", True)
    for _ in range(2):
        answer = api.ask("POST", f"/DM/async/{task}/resume")
        assert (answer.status_code, answer.json()["phase"], answer.json()["paused"]) == (200, "queued", False)
    hold = run(api, task)
    answer = api.ask("POST", f"/DM/async/{task}/pause")
    assert (answer.status_code, answer.json()["paused"]) == (202, False)
    with api.database.write() as session:
        queue.requeue(session, hold, spent=False)
    assert (api.status(task)["paused"], api.status(task)["waiting_for"]) == (True, "resume")


def test_a_key_makes_a_pause_one_pause(api: LiveApi) -> None:
    task, key = start(api), {"Idempotency-Key": str(uuid4())}
    first = api.ask("POST", f"/DM/async/{task}/pause", headers=key)
    api.ask("POST", f"/DM/async/{task}/resume")
    again = api.ask("POST", f"/DM/async/{task}/pause", headers=key)
    assert (again.json(), again.headers["Idempotency-Replayed"]) == (first.json(), "true")
    assert (api.status(task)["paused"], api.status(task)["waiting_for"]) == (False, None)


def test_the_rate_says_when_it_will_be_done(api: LiveApi) -> None:
    task = start(api)
    hold = run(api, task)
    with api.database.write() as session:
        queue.note(session, hold, phase="transfer", bytes_done=1000, bytes_total=601_000, bytes_per_second=1000)
    begun = datetime.now(UTC)
    status = api.status(task)
    assert status["bytes_per_second"] == 1000
    eta = datetime.fromisoformat(status["eta"])
    assert begun + timedelta(seconds=599) <= eta <= datetime.now(UTC) + timedelta(seconds=600)
    api.mover_online()
    with api.database.write() as session:
        queue.requeue(session, hold)
    status = api.status(task)
    assert (status["bytes_per_second"], status["eta"]) == (None, None)


# --- the list --------------------------------------------------------------------------------------------------------


@pytest.mark.dialect
def test_the_list_has_filters_and_pages(api: LiveApi) -> None:
    tasks = [start(api, priority=one) for one in ("low", "normal", "normal", "high", "normal")]
    api.ask("DELETE", f"/DM/async/status/{tasks[1]}")
    api.ask("POST", f"/DM/async/{tasks[2]}/pause")

    def listed(query: str = "") -> list[str]:
        answer = api.ask("GET", f"/DM/async/status{query}")
        assert answer.status_code == 200, answer.text
        return [task["task"] for task in answer.json()]

    assert listed() == tasks[::-1]
    assert listed("?sort=created") == tasks
    assert listed("?status=ERROR") == [tasks[1]]
    assert listed("?status=queued&priority=normal") == [tasks[4], tasks[2]]
    assert listed("?phase=paused") == [tasks[2]]
    assert listed("?machine=nowhere") == listed("?kind=move") == listed("?group=none") == []
    assert listed("?machine=there&kind=copy") == tasks[::-1]
    source = api.status(tasks[3])["object"]
    assert listed(f"?object={source}") == [tasks[3]]
    since = api.status(tasks[3])["created"].replace("+", "%2B")
    assert listed(f"?since={since}") == tasks[:2:-1]
    assert listed(f"?until={since}") == tasks[2::-1]
    found, path = [], "/DM/async/status?limit=2&sort=-created"
    while path:
        answer = api.ask("GET", path)
        found += answer.json()
        path = answer.links.get("next", {}).get("url", "")
    assert found == api.ask("GET", "/DM/async/status").json()
    assert found[0] == api.status(tasks[-1])


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("status=ENDED", {"status"}),
        ("limit=0&since=yesterday", {"limit", "since"}),
        ("limit=1001", {"limit"}),
        ("kind=copies&phase=x&priority=urgent&object=a&sort=size", {"kind", "phase", "priority", "object", "sort"}),
        ("state=QUEUED", {"state"}),
        ("status=QUEUED&status=ERROR", {"status"}),
        ("cursor=nonsense", {"cursor"}),
        ("group=%00", {"group"}),
    ],
)
def test_a_query_that_is_wrong_is_refused_and_every_name_in_it_told(
    shared_api: LiveApi, query: str, named: set[str]
) -> None:
    assert problem(shared_api.ask("GET", f"/DM/async/status?{query}")) == (422, "invalid_request", named)


def test_the_client_does_all_that(api: LiveApi) -> None:
    with Client(api.url) as dm:
        source = UUID(api.register("a"))
        late = timedelta(hours=1)
        task = dm.start_copy(
            source, "there", "b", priority="high", deadline=datetime.now(UTC) + late, not_before=late / 2
        )
        found = dm.status(task)
        assert found.priority is Priority.HIGH
        assert found.created is not None
        assert found.not_before == found.created + late / 2
        assert dm.pause(task).waiting_for == "resume"
        assert not dm.resume(task).paused
        assert [one.task for one in dm.tasks(status="QUEUED")] == [task]
        assert dm.cancel(task).status is TransferStatus.ERROR
        with pytest.raises(TaskEnded):
            dm.cancel(task)
        with pytest.raises(Cancelled):
            dm.wait(task)


def test_task_status_of_a_failed_task_exits_6(api: LiveApi) -> None:
    source = api.register("f")
    well, failed = (
        api.ask("POST", f"/DM/async/copy/{source}", data={"machine": "there", "dest": dest}).text for dest in "ab"
    )
    assert dm(api, "task", "status", failed).returncode == 0  # QUEUED
    api.finish(well)
    api.finish(failed, SourceMissing("no such file"))
    assert dm(api, "task", "status", well).returncode == 0
    done = dm(api, "task", "status", failed)
    assert (done.returncode, "source_missing" in done.stdout, done.stderr) == (6, True, "")
    assert dm(api, "task", "list").returncode == 0
    assert dm(api, "task", "status", str(uuid4())).returncode == 1, "the command's own failure"
