"""Schedules over HTTP: made, shown, paused, asked to run, removed; what is refused, and that no secret is kept."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from datamanager.client import Client
from datamanager.errors import DownloadFailed, InvalidRequest, ScheduleNotFound
from models.access.visibility import ALL
from models.transfers.lookup import get_transfer
from tests.support import command
from tests.support.live_api import LiveApi

FIELDS: dict[str, Any] = {
    "url": "http://127.0.0.1/{date:%Y%m%d}/x",
    "machine": "there",
    "path": "weather",
    "filename": "x-{date:%Y%m%d%H}.nc",
    "interval": "6h",
    "keep": 3,
    "group": "fire",
}


def add(api: LiveApi, **fields: Any) -> dict[str, Any]:
    answer = api.ask("POST", "/DM/schedules", json=FIELDS | fields)
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"] == f"/DM/schedules/{answer.json()['id']}"
    view: dict[str, Any] = answer.json()
    return view


def test_a_schedule_is_made_shown_and_removed(api: LiveApi) -> None:
    view = add(api)
    assert {name: view[name] for name in FIELDS} == FIELDS
    assert (view["paused"], view["wanted_at"], view["skip_unchanged"], view["runs"]) == (False, None, True, [])
    shown = api.ask("GET", f"/DM/schedules/{view['id']}").json()
    assert shown == view
    listed = api.ask("GET", "/DM/schedules").json()
    assert listed == [{name: value for name, value in view.items() if name != "runs"}]
    gone = api.ask("DELETE", f"/DM/schedules/{view['id']}")
    assert (gone.status_code, gone.json()) == (200, {"removed": view["id"]})
    assert api.ask("GET", "/DM/schedules").json() == []


def test_pause_resume_and_run(api: LiveApi) -> None:
    where = f"/DM/schedules/{add(api)['id']}"
    for _ in range(2):
        assert api.ask("POST", f"{where}/pause").json()["paused"] is True
    for _ in range(2):
        assert api.ask("POST", f"{where}/resume").json()["paused"] is False
    first, second = api.ask("POST", f"{where}/run"), api.ask("POST", f"{where}/run")
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["wanted_at"] == second.json()["wanted_at"] is not None


def test_a_moment_that_is_named_is_fetched_once(api: LiveApi) -> None:
    view = add(api, filename="x-{date-6h:%Y%m%d%H}.nc")
    where = f"/DM/schedules/{view['id']}"
    api.ask("POST", f"{where}/pause")
    given = {"moment": "2026-01-31T13:00:00.5+01:00"}
    first = api.ask("POST", f"{where}/run", json=given)
    assert (first.status_code, first.json()["wanted_at"]) == (202, None), first.text
    (begun,) = first.json()["runs"]
    assert (begun["moment"], begun["outcome"]) == ("2026-01-31T12:00:00+00:00", "pending")
    with api.database.read() as session:
        row = get_transfer(session, UUID(begun["task"]), ALL)
    assert (row.status, row.destination_place) == ("QUEUED", "weather/x-2026013106.nc")
    assert api.ask("POST", f"{where}/run", data=given).json()["runs"] == [begun]
    api.finish(begun["task"])
    assert api.ask("POST", f"{where}/run", json=given).json()["runs"][0]["outcome"] == "fetched"
    assert api.posted
    older = api.ask("POST", f"{where}/run", json={"moment": "1999-12-31T23:59:59Z"}).json()["runs"]
    assert [one["moment"] for one in older] == ["1999-12-31T23:59:59+00:00"]
    assert len(api.ask("GET", where).json()["runs"]) == 2


def test_a_named_moment_that_failed_is_tried_again(api: LiveApi) -> None:
    where = f"/DM/schedules/{add(api)['id']}/run"
    given = {"moment": "2026-01-31T06:00:00Z"}
    (first,) = api.ask("POST", where, json=given).json()["runs"]
    api.finish(first["task"], DownloadFailed("404"))
    (again,) = api.ask("POST", where, json=given).json()["runs"]
    assert again["outcome"] == "pending"
    assert again["task"] != first["task"]


def test_a_named_moment_that_is_refused_says_why(api: LiveApi) -> None:
    api.register("weather/x-2026013106.nc")
    where = f"/DM/schedules/{add(api, machine='here')['id']}/run"
    (refused,) = api.ask("POST", where, json={"moment": "2026-01-31T06:00:00Z"}).json()["runs"]
    assert (refused["outcome"], refused["code"], refused["task"]) == ("failed", "destination_exists", None)


@pytest.mark.parametrize(
    "moment", ["2026-01-31T06:00:00", "2026-01-31", "yesterday", 1769839200, "PT1H", "9999-01-01T00:00:00Z"]
)
def test_a_wrong_moment_is_named(shared_api: LiveApi, moment: object) -> None:
    where = f"/DM/schedules/{add(shared_api)['id']}"
    answer = shared_api.ask("POST", f"{where}/run", json={"moment": moment})
    assert (answer.status_code, [one["field"] for one in answer.json()["errors"]]) == (422, ["moment"])
    assert shared_api.ask("GET", where).json()["runs"] == []


@pytest.mark.parametrize("path", ["", "/pause", "/resume", "/run"])
@pytest.mark.parametrize("schedule", ["6ff89a46-7445-475d-8fd9-29db3edaca26", "nonsense"])
def test_an_unknown_schedule_is_not_found(shared_api: LiveApi, schedule: str, path: str) -> None:
    answer = shared_api.ask("POST" if path else "DELETE", f"/DM/schedules/{schedule}{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "schedule_not_found")
    assert shared_api.ask("GET", f"/DM/schedules/{schedule}").status_code == 404


def test_a_form_makes_one_and_a_key_makes_it_once(api: LiveApi) -> None:
    form = {name: str(value) for name, value in FIELDS.items()}
    headers = {"Idempotency-Key": "once"}
    answers = [api.ask("POST", "/DM/schedules", data=form, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert len(api.ask("GET", "/DM/schedules").json()) == 1


@pytest.mark.parametrize(
    ("change", "status", "code", "field"),
    [
        ({"options": {"password": "hunter2"}}, 422, "invalid_request", "options.password"),
        ({"options": {"headers": {"A": "hunter2"}}}, 422, "invalid_request", "options.headers"),
        ({"options": {"proxy": "http://u:hunter2@127.0.0.1"}}, 422, "invalid_request", "options.proxy"),
        ({"url": "http://127.0.0.1/x?{date:%Y}&api_key=hunter2"}, 422, "invalid_request", "url"),
        ({"options": {"timeout": -1}}, 422, "invalid_request", "options.timeout"),
        ({"options": {"extract": "tar"}}, 422, "invalid_request", "options"),
        ({"filename": "same"}, 422, "invalid_request", "filename"),
        ({"url": "http://10.0.0.1/x"}, 422, "url_not_allowed", None),
        ({"url": "file:///x"}, 422, "url_not_allowed", None),
        ({"url": "gopher://127.0.0.1/x", "protocol": "gopher"}, 501, "not_supported", None),
        ({"machine": "nowhere"}, 422, "unknown_machine", None),
        ({"path": "../x"}, 422, "path_not_allowed", None),
        ({"interval": "1s"}, 422, "invalid_request", "interval"),
    ],
)
def test_what_could_never_be_fetched_is_refused(
    shared_api: LiveApi, change: dict[str, Any], status: int, code: str, field: str | None
) -> None:
    before = shared_api.ask("GET", "/DM/schedules").json()
    answer = shared_api.ask("POST", "/DM/schedules", json=FIELDS | change)
    document = answer.json()
    assert (answer.status_code, document["code"]) == (status, code), answer.text
    assert "hunter2" not in answer.text
    if field is not None:
        assert field in {wrong["field"] for wrong in document["errors"]}
    assert shared_api.ask("GET", "/DM/schedules").json() == before


def test_a_credential_is_named(api: LiveApi) -> None:
    assert add(api, options={"credential": "weather"})["options"] == {"credential": "weather"}


def test_the_client_knows_them(api: LiveApi) -> None:
    with Client(api.url) as dm:
        made = dm.add_schedule(**FIELDS)
        assert dm.schedule(made["id"])["filename"] == FIELDS["filename"]
        assert dm.change_schedule(made["id"], "pause")["paused"] is True
        assert dm.change_schedule(made["id"], "run")["wanted_at"]
        moment = datetime(2026, 1, 31, 6, tzinfo=UTC)
        assert dm.run_schedule(made["id"], moment)["runs"][0]["moment"] == "2026-01-31T06:00:00+00:00"
        with pytest.raises(InvalidRequest, match="moment: must be RFC 3339 with a zone"):
            dm.run_schedule(made["id"], moment.replace(tzinfo=None))
        assert [one["id"] for one in dm.schedules()] == [made["id"]]
        dm.remove_schedule(made["id"])
        with pytest.raises(ScheduleNotFound):
            dm.schedule(made["id"])


def test_the_command_line_knows_them(api: LiveApi) -> None:
    def dm(*arguments: str) -> str:
        done = command.dm(api, "schedule", *arguments)
        return done.stdout if done.returncode == 0 else done.stderr

    fields = [
        "--path",
        "w/{date:%Y}",
        "--cron",
        "0 */6 * * *",
        "--keep",
        "2",
        "--credential",
        "c",
        "--option",
        "timeout=5",
    ]
    made = dm("add", FIELDS["url"], "there", FIELDS["filename"], *fields).strip()
    found = api.ask("GET", f"/DM/schedules/{made}").json()
    assert (found["cron"], found["interval"], found["keep"]) == ("0 */6 * * *", None, 2)
    assert found["options"] == {"timeout": 5, "credential": "c"}
    assert "active" in dm("show", made)
    assert "paused" in dm("pause", made)
    assert "active" in dm("resume", made)
    assert made in dm("run", made)
    assert "2026-01-31T06:00:00+00:00  pending" in dm("run", made, "--moment", "2026-01-31T06:00:00Z")
    assert dm("run", made, "--moment", "2026-01-31").startswith("dm: moment: must be RFC 3339 with a zone")
    assert made in dm("list")
    assert dm("remove", made) == f"{made} removed\n"
    assert made not in dm("list")
    assert dm("show", made) == f"dm: no schedule has the identifier {made}\n"
    assert "either interval or cron" in dm("add", FIELDS["url"], "there", FIELDS["filename"])
