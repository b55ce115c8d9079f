"""Archive and activate over HTTP: fields, answers, tasks and items; and as the client of this project sees them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import requests

from datamanager.client import Client
from datamanager.domain.states import ObjectStatus
from models.access.visibility import ALL
from models.transfers.lookup import get_transfer, request_of
from tests.support.archiving import perform
from tests.support.live_api import LiveApi


@pytest.fixture
def api(tmp_path: Path, migrated_url: str) -> Iterator[LiveApi]:
    """An API whose only archive is `tape`."""
    with LiveApi(tmp_path / "site", migrated_url, archives=("tape",)) as live:
        live.mover_online()
        yield live


def refused(answer: requests.Response, status: int, code: str) -> list[str]:
    """Check the problem; return the fields that it names."""
    document = answer.json()
    assert (answer.status_code, document["code"]) == (status, code), answer.text
    return [each["field"] for each in document.get("errors", ())]


def info(api: LiveApi, uuid: str) -> dict[str, Any]:
    found: dict[str, Any] = api.ask("GET", f"/DM/info/{uuid}").json()
    return found


def done(api: LiveApi, answer: requests.Response, status: int = 200) -> dict[str, Any]:
    """Do the task that was answered as a mover does; return its status."""
    assert answer.status_code == status, answer.text
    task = answer.text
    assert answer.headers["location"] == f"/DM/async/status/{task}"
    perform(api.database, UUID(task), api.machines["tape"])
    return api.status(task)


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(
    "body",
    [{}, {"data": {"type": "x", "storage_technology": "tape", "bandwidth": "", "priority": ""}}, {"json": {}}],
)
def test_old_clients_send_nothing_or_a_form(api: LiveApi, method: str, body: dict[str, Any]) -> None:
    uuid = api.register("in/a")
    waits = {"headers": {"Prefer": "wait=0"}}
    for path, status, changed in (
        (f"/DM/archive/{uuid}", 202, "ARCHIVED"),
        (f"/DM/activate/{uuid}", 202, "ACTIVE"),
        (f"/DM/async/archive/{uuid}", 200, "ARCHIVED"),
        (f"/DM/async/activate/{uuid}", 200, "ACTIVE"),
    ):
        ended = done(api, api.ask(method, path, **body, **(waits if status == 202 else {})), status)
        what = "Archive" if changed == "ARCHIVED" else "Activate"
        assert (ended["status"], ended["result"], ended["object"]) == ("COMPLETE", f"{what} successful", uuid)
        assert info(api, uuid)["status"] == changed
    assert "items" not in ended


def test_the_fields_are_kept(api: LiveApi) -> None:
    uuid = api.register("in/a")
    fields = {"archive_to": "tape", "verify": "paranoid", "keep_source": "true", "pack": "none", "compress": "zstd"}
    task = api.ask("POST", f"/DM/async/archive/{uuid}", data={**fields, "priority": "high", "bandwidth": "5MB/s"}).text
    with api.database.read() as session:
        row = get_transfer(session, UUID(task), ALL)
    kept = request_of(row).model_dump(mode="json")
    assert {name: kept[name] for name in fields} == fields | {"keep_source": True}
    assert (row.priority, row.bandwidth, row.destination_machine) == ("high", 5_000_000, "tape")


def test_a_wrong_field_is_named(api: LiveApi) -> None:
    uuid = api.register("in/a")
    for prefix in ("/DM", "/DM/async"):
        for field, value in (("verify", "perhaps"), ("pack", "zip"), ("compress", "gzip"), ("keep_source", "maybe")):
            named = refused(api.ask("POST", f"{prefix}/archive/{uuid}", data={field: value}), 422, "invalid_request")
            assert named == [field]
        wrong = api.ask("POST", f"{prefix}/archive/{uuid}", data={"archive_to": "here"})
        assert refused(wrong, 422, "invalid_request") == ["archive_to"]
        refused(api.ask("POST", f"{prefix}/archive/{uuid}", data={"archive_to": "x"}), 422, "unknown_machine")
        refused(api.ask("POST", f"{prefix}/archive/{uuid4()}"), 404, "object_not_found")
        refused(api.ask("POST", f"{prefix}/activate/{uuid}", data={"dest": "b"}), 409, "object_active")
    body: dict[str, Any]
    for body in ({}, {"items": []}, {"items": [uuid], "directory": {"machine": "here"}}, {"items": ["x"]}):
        for path in ("archive", "activate"):
            refused(api.ask("POST", f"/DM/async/{path}", json=body), 422, "invalid_request")
    refused(
        api.ask("POST", "/DM/async/archive", json={"directory": {"machine": "here", "path": "x"}}),
        404,
        "object_not_found",
    )


def test_without_an_archive_the_field_is_named(tmp_path: Path, migrated_url: str) -> None:
    with LiveApi(tmp_path / "other", migrated_url) as api:
        uuid = api.register("in/a")
        answer = api.ask("POST", f"/DM/async/archive/{uuid}")
        assert refused(answer, 422, "invalid_request") == ["archive_to"]


def test_what_an_archived_object_refuses(api: LiveApi) -> None:
    uuid = api.register("in/a")
    done(api, api.ask("POST", f"/DM/async/archive/{uuid}"))
    row = info(api, uuid)
    assert (row["status"], row["machine"], row["path"]) == ("ARCHIVED", "here", "in")
    assert row["archived_in"].startswith("tape:bundles/")
    bundle = row["archived_in"].partition(":")[2]
    for prefix in ("/DM", "/DM/async"):
        for what in ("copy", "move"):
            answer = api.ask("POST", f"{prefix}/{what}/{uuid}", data={"machine": "there", "dest": "c"})
            refused(answer, 409, "object_archived")
        refused(api.ask("POST", f"{prefix}/archive/{uuid}"), 409, "object_archived")
    directory, _, name = bundle.rpartition("/")
    mine = {"machine": "tape", "path": directory, "filename": name, "verify": "none"}
    refused(api.ask("PUT", "/DM/register", data=mine), 409, "destination_exists")  # or a delete could remove it
    task = api.ask("DELETE", f"/DM/delete/{uuid}", headers={"Prefer": "respond-async"}).text
    api.finish(task)
    assert api.status(task)["result"] == "here:in/a deleted"
    assert (info(api, uuid)["status"], info(api, uuid)["archived_in"]) == ("DELETED", None)
    refused(api.ask("DELETE", f"/DM/delete/{uuid}"), 410, "object_deleted")
    refused(api.ask("POST", f"/DM/activate/{uuid}"), 410, "object_deleted")


def test_batches_as_the_client_sees_them(api: LiveApi) -> None:
    objects = [api.register(f"in/{number}") for number in range(3)]
    with Client(api.url) as dm:
        task = dm.archive_many([*objects, uuid4()], verify="sizes")
        perform(api.database, task, api.machines["tape"])
        found = list(dm.items(task))
        assert [one.error.code if one.error else one.status for one in found] == ["COMPLETE"] * 3 + ["object_not_found"]
        assert [one.machine for one in found[:3]] == ["tape"] * 3
        assert {dm.info(uuid).status for uuid in objects} == {ObjectStatus.ARCHIVED}
        (bundle,) = {dm.info(uuid).archived_in for uuid in objects}
        assert bundle == f"tape:{found[0].dest}"
        again = dm.archive_many(objects)
        perform(api.database, again, api.machines["tape"])
        assert dm.wait(again).result == "3 items done (3 already present)"
        back = dm.activate_many([{"uuid": objects[0]}, {"uuid": objects[1], "machine": "there", "dest": "out/b"}])
        perform(api.database, back, api.machines["tape"])
        assert dm.wait(back).result == "2 items done"
        assert [(dm.info(uuid).machine, dm.info(uuid).path) for uuid in objects[:2]] == [
            ("here", "in"),
            ("there", "out"),
        ]
        alone = dm.start_activate(objects[2])
        perform(api.database, alone, api.machines["tape"])
        assert dm.wait(alone).result == "Activate successful"
