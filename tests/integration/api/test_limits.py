"""Limits over HTTP: of a request, of a task that runs, of a machine; and what is refused."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from datamanager import errors
from datamanager.client import Client
from models.access.visibility import ALL
from models.tables import Transfer
from models.transfers.lookup import get_transfer
from tests.support.command import dm
from tests.support.live_api import LiveApi, Mover

MB = 10**6


def problem(answer: Any) -> tuple[int, str, set[str]]:
    """Return an error's status and code, and the fields that it names."""
    document = answer.json()
    return answer.status_code, document["code"], {wrong["field"] for wrong in document.get("errors", ())}


def row(api: LiveApi, task: str) -> Transfer:
    with api.database.read() as session:
        return get_transfer(session, UUID(task), ALL)


def machine(api: LiveApi, name: str) -> dict[str, Any]:
    """Return a machine as it is listed."""
    listed: list[dict[str, Any]] = api.ask("GET", "/DM/machines").json()
    return next(item for item in listed if item["name"] == name)


def start(api: LiveApi, **fields: Any) -> str:
    """Begin a copy; return its task."""
    source = api.register(str(uuid4()))
    answer = api.ask("POST", f"/DM/async/copy/{source}", json={"machine": "there", "dest": str(uuid4()), **fields})
    assert answer.status_code == 200, answer.text
    return answer.text


@pytest.mark.parametrize(
    ("given", "rate"),
    [("50MB/s", 50 * MB), (1234, 1234), ("1ki", 1024), (None, None), ("", None)],
)
def test_a_request_brings_its_limit(api: LiveApi, given: object, rate: int | None) -> None:
    place = {"machine": "there", "dest": "x/y", "bandwidth": given}
    url = {"machine": "there", "filename": "z", "url": "http://127.0.0.1/z", "bandwidth": given}
    orders = [
        ("POST", f"/DM/async/copy/{api.register('a')}", place),
        ("POST", f"/DM/async/move/{api.register('b')}", {**place, "dest": "m"}),
        ("PUT", "/DM/async/getexternal", url),
    ]
    for method, path, fields in orders:
        task = api.ask(method, path, json=fields).text
        assert api.status(task)["bandwidth"] == row(api, task).bandwidth == rate
    if given is not None:  # a form says the same
        source = api.register("c")
        task = api.ask("POST", f"/DM/async/copy/{source}", data={**place, "dest": "form"}).text
        assert api.status(task)["bandwidth"] == rate


def test_a_request_that_waits_brings_it_too(api: LiveApi) -> None:
    source = api.register("a")
    seen: list[int | None] = []

    def judge(transfer: Transfer) -> None:
        seen.append(transfer.bandwidth)

    with Mover(api, judge):
        for fields in ({"bandwidth": "7MB/s"}, {}):
            place = {"machine": "there", "dest": str(uuid4()), **fields}
            assert api.ask("POST", f"/DM/copy/{source}", data=place).status_code == 201
    assert seen == [7 * MB, None]


@pytest.mark.parametrize("given", ["fast", 0, -1, "0", True, 1.5, [1], 2**63, f"{'9' * 5000}GB/s", "0.4"])
def test_what_is_no_limit_is_refused_and_its_field_named(shared_api: LiveApi, given: object) -> None:
    refused = (422, "invalid_request", {"bandwidth"})
    place = {"machine": "there", "dest": "b", "bandwidth": given}
    assert problem(shared_api.ask("POST", f"/DM/async/copy/{shared_api.register(str(uuid4()))}", json=place)) == refused
    task = start(shared_api)
    assert problem(shared_api.ask("PATCH", f"/DM/async/status/{task}", json={"bandwidth": given})) == refused
    assert problem(shared_api.ask("PATCH", "/DM/machines/there", json={"bandwidth": given})) == refused
    assert (shared_api.status(task)["bandwidth"], machine(shared_api, "there")["bandwidth"]) == (None, None)


def test_a_tasks_limit_is_changed_while_it_runs(api: LiveApi) -> None:
    task = start(api, bandwidth=5)
    for fields, rate in (({"bandwidth": "50MB/s"}, 50 * MB), ({"bandwidth": None}, None), ({"bandwidth": 9}, 9)):
        answer = api.ask("PATCH", f"/DM/async/status/{task}", json=fields)
        assert answer.status_code == 200
        assert answer.json() == api.status(task)
        assert answer.json()["bandwidth"] == row(api, task).bandwidth == rate
    assert api.ask("PATCH", f"/DM/async/status/{task}", data={"bandwidth": ""}).json()["bandwidth"] is None
    path = f"/DM/async/status/{task}"
    assert problem(api.ask("PATCH", path, json={})) == (422, "invalid_request", {"bandwidth"})
    assert problem(api.ask("PATCH", path, data="{", headers={"Content-Type": "application/json"}))[0] == 400
    api.mover_online()
    api.finish(task)
    assert problem(api.ask("PATCH", path, json={"bandwidth": 1})) == (409, "task_ended", set())
    for unknown in (uuid4(), "nothing"):
        answer = api.ask("PATCH", f"/DM/async/status/{unknown}", json={"bandwidth": 1})
        assert problem(answer) == (404, "task_not_found", set())


def test_a_batch_has_a_limit_like_any_task(api: LiveApi) -> None:
    items = [{"uuid": api.register(name), "dest": f"many/{name}"} for name in "ab"]
    task = api.ask("POST", "/DM/async/copy", json={"machine": "there", "items": items}).text
    answer = api.ask("PATCH", f"/DM/async/status/{task}", json={"bandwidth": 77})
    assert answer.status_code == 200
    assert (answer.json()["bandwidth"], answer.json()["items"]["total"]) == (77, 2)


@pytest.mark.dialect
def test_a_machines_limits_are_changed_and_set_back(api: LiveApi) -> None:
    assert (machine(api, "here")["bandwidth"], machine(api, "here")["max_transfers"]) == (None, None)
    answer = api.ask("PATCH", "/DM/machines/here", json={"bandwidth": "200MB/s"})
    assert answer.status_code == 200
    found = answer.json()
    assert found.pop("changed").endswith("+00:00")
    assert found == {"name": "here", "bandwidth": 200 * MB, "max_transfers": None}
    api.ask("PATCH", "/DM/machines/here", data={"max_transfers": "4"})
    assert (machine(api, "here")["bandwidth"], machine(api, "here")["max_transfers"]) == (200 * MB, 4)
    api.ask("PATCH", "/DM/machines/here", json={"bandwidth": None})
    assert (machine(api, "here")["bandwidth"], machine(api, "here")["max_transfers"]) == (None, 4)
    assert machine(api, "there")["max_transfers"] is None
    for _ in range(2):
        answer = api.ask("DELETE", "/DM/machines/here/limits")
        assert answer.status_code == 200
        assert answer.json() == {"name": "here", "bandwidth": None, "max_transfers": None, "changed": None}
    assert machine(api, "here")["max_transfers"] is None


def test_what_is_wrong_with_a_machines_limits(api: LiveApi) -> None:
    path = "/DM/machines/here"
    for wrong in (0, 1001, "many", 2.5, "0", [1]):
        answer = api.ask("PATCH", path, json={"max_transfers": wrong, "bandwidth": 5})
        assert problem(answer) == (422, "invalid_request", {"max_transfers"}), wrong
    assert problem(api.ask("PATCH", path, json={"bandwith": 1})) == (422, "invalid_request", {"bandwith"})
    assert problem(api.ask("PATCH", path, json={})) == (
        422,
        "invalid_request",
        {"bandwidth", "max_transfers"},
    )
    for method, unknown in (("PATCH", "/DM/machines/nowhere"), ("DELETE", "/DM/machines/nowhere/limits")):
        answer = api.ask(method, unknown, json={"bandwidth": 1})
        assert problem(answer) == (422, "unknown_machine", set())
    assert (machine(api, "here")["bandwidth"], machine(api, "here")["max_transfers"]) == (None, None)


def test_changes_take_an_idempotency_key(api: LiveApi) -> None:
    task = start(api)
    for method, path, fields in (
        ("PATCH", f"/DM/async/status/{task}", {"bandwidth": 5}),
        ("PATCH", "/DM/machines/here", {"bandwidth": 5}),
        ("DELETE", "/DM/machines/here/limits", {}),
    ):
        key = {"Idempotency-Key": str(uuid4())}
        first = api.ask(method, path, json=fields, headers=key)
        again = api.ask(method, path, json=fields, headers=key)
        assert (again.status_code, again.json()) == (first.status_code, first.json())
        assert again.headers["idempotency-replayed"] == "true"
        assert again.headers["content-type"] == "application/json"
    key = {"Idempotency-Key": "another"}
    api.ask("PATCH", "/DM/machines/here", json={"max_transfers": 1}, headers=key)
    lifted = api.ask("PATCH", "/DM/machines/here", json={"max_transfers": 1, "bandwidth": None}, headers=key)
    assert problem(lifted) == (422, "idempotency_mismatch", set())  # to lift a limit is not to say nothing of it


def test_the_client_changes_limits(api: LiveApi) -> None:
    task = start(api)
    with Client(api.url) as dm:
        assert dm.set_bandwidth(task, "3MB/s").bandwidth == 3 * MB
        assert dm.set_bandwidth(task, None).bandwidth is None
        assert dm.status(task).bandwidth is None
        assert dm.limit_machine("here", bandwidth="1kB/s", max_transfers=2).max_transfers == 2
        lifted = dm.limit_machine("here", max_transfers=None)
        assert (lifted.bandwidth, lifted.max_transfers) == (1000, None)
        reset = dm.reset_machine("here")
        assert (reset.bandwidth, reset.max_transfers, reset.changed) == (None, None, None)
        with pytest.raises(errors.UnknownMachine):
            dm.limit_machine("nowhere", max_transfers=1)
        with pytest.raises(errors.InvalidRequest):
            dm.limit_machine("here")
        api.mover_online()
        api.finish(task)
        with pytest.raises(errors.TaskEnded):
            dm.set_bandwidth(task, 5)


def test_the_command_line_changes_limits(api: LiveApi) -> None:
    def limit(*arguments: str) -> str:
        return dm(api, "machine", "limit", *arguments).stdout

    assert limit("here", "--bandwidth", "5MB/s", "--transfers", "3") == (
        "here: 5,000,000 bytes per second, 3 transfers at once\n"
    )
    assert limit("here", "--bandwidth", "none") == "here: any number of bytes per second, 3 transfers at once\n"
    assert machine(api, "here")["max_transfers"] == 3
    assert limit("here", "--reset") == "here: any number of bytes per second, any number of transfers at once\n"
    for wrong in (
        ["nowhere", "--reset"],
        ["here"],
        ["here", "--reset", "--transfers", "1"],
        ["here", "--transfers", "x"],
    ):
        refused = dm(api, "machine", "limit", *wrong)
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1), refused
    assert machine(api, "here")["max_transfers"] is None
