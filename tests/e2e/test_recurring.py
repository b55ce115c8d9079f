"""What is fetched again and again, as real processes: Prefect shows it, movers fetch it, old versions go."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
import requests

from tests.support.prefect import PrefectApi
from tests.support.site import PATIENCE, Site, T
from tests.support.web import Web

pytestmark = pytest.mark.slow  # Prefect takes its time to hand out what is scheduled


def until(look: Callable[[], T], good: Callable[[T], bool]) -> T:
    """Look until it is good; fail with what was seen last."""
    deadline = time.monotonic() + PATIENCE
    while not good(seen := look()):
        assert time.monotonic() < deadline, seen
        time.sleep(0.2)
    return seen


def add(site: Site, url: str, **fields: Any) -> str:
    """Make a schedule in a folder of its own; return its identifier."""
    given = {
        "url": url,
        "machine": "cirrus",
        "path": f"recurring/{uuid4().hex}",
        "filename": "v-{date:%Y%m%d-%H%M%S}.nc",
        "interval": "6h",
        "group": "weather",
        **fields,
    }
    answer = site.ask("POST", "schedules", json=given)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def show(site: Site, schedule: str) -> dict[str, Any]:
    answer = site.ask("GET", f"schedules/{schedule}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def run(site: Site, schedule: str) -> dict[str, Any]:
    """Ask for a run now; return what came of its moment."""
    moment = site.ask("POST", f"schedules/{schedule}/run").json()["wanted_at"]

    def ended(view: dict[str, Any]) -> bool:
        return any(one["moment"] == moment and one["outcome"] != "pending" for one in view["runs"])

    view = until(lambda: show(site, schedule), ended)
    return dict(next(one for one in view["runs"] if one["moment"] == moment))


def in_prefect(prefect: PrefectApi, schedule: str) -> list[dict[str, Any]]:
    """Return what Prefect has of a schedule: one, or none."""
    deployment = prefect.get("deployments/name/recurring/data-manager")
    return [one for one in prefect.get(f"deployments/{deployment['id']}/schedules") if one["slug"] == schedule]


@pytest.mark.dialect
def test_versions_come_and_go(site: Site, web: Web) -> None:
    name = f"recurring/{uuid4().hex}"
    schedule = add(site, web.put(name, b"version 0"), keep=2)
    first = run(site, schedule)
    assert first["outcome"] == "fetched", first
    info = site.info(first["object"])
    assert (info["group"], info["status"]) == ("weather", "ACTIVE")
    assert site.read("cirrus", f"{info['path']}/{info['filename']}") == b"version 0"

    same = run(site, schedule)
    assert (same["outcome"], same["object"]) == ("unchanged", first["object"])
    status = site.status(same["task"])
    assert (status["status"], status["result"], status["unchanged"]) == ("COMPLETE", first["object"], True)

    fetched = []
    for number in (1, 2):
        web.put(name, f"version {number}".encode())
        fetched.append(run(site, schedule))
    assert [one["outcome"] for one in fetched] == ["fetched", "fetched"]
    until(lambda: site.info(first["object"])["status"], lambda status: status == "DELETED")
    assert not site.exists("cirrus", f"{info['path']}/{info['filename']}")
    assert {site.info(one["object"])["status"] for one in fetched} == {"ACTIVE"}
    outcomes = until(lambda: [one["outcome"] for one in show(site, schedule)["runs"]], lambda all_: "dropped" in all_)
    assert outcomes == ["fetched", "fetched", "unchanged", "dropped"]
    assert len(list((site.folders["cirrus"] / info["path"]).iterdir())) == 2


def test_a_repeated_run_fetches_nothing_again(site: Site, web: Web, prefect: PrefectApi) -> None:
    schedule = add(site, web.put(f"recurring/{uuid4().hex}", b"once"), skip_unchanged=False)
    first = run(site, schedule)
    deployment = prefect.get("deployments/name/recurring/data-manager")
    parameters = {"schedule": schedule, "moment": first["moment"]}
    again = prefect.post(f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    assert prefect.wait(again["id"])["state_type"] == "COMPLETED"
    assert show(site, schedule)["runs"] == [first]


def test_a_moment_that_is_named_is_made_up_for(site: Site, web: Web) -> None:
    name = uuid4().hex
    url = web.put(f"recurring/{name}-20260131", b"of that day").replace("20260131", "{date:%Y%m%d}")
    schedule = add(site, url)
    assert site.ask("POST", f"schedules/{schedule}/pause").ok
    assert site.ask("POST", f"schedules/{schedule}/run", json={"moment": "2026-01-31T06:00:00Z"}).status_code == 202
    (made,) = until(lambda: show(site, schedule)["runs"], lambda runs: runs[0]["outcome"] != "pending")
    assert made["outcome"] == "fetched", made
    info = site.info(made["object"])
    assert info["filename"] == "v-20260131-060000.nc"
    assert site.read("cirrus", f"{info['path']}/{info['filename']}") == b"of that day"


def test_a_failure_is_shown_here_and_in_prefect(site: Site, web: Web, prefect: PrefectApi) -> None:
    schedule = add(site, f"{web.url}/recurring/nothing-{uuid4().hex}")
    failed = run(site, schedule)
    assert failed["outcome"] == "failed"
    assert failed["code"] in ("download_failed", "source_missing")
    deployment = prefect.get("deployments/name/recurring/data-manager")["id"]
    filters = {"flow_runs": {"deployment_id": {"any_": [deployment]}}, "limit": 200}
    runs = [one for one in prefect.post("flow_runs/filter", filters) if one["parameters"].get("schedule") == schedule]
    (asked,) = [one for one in runs if one["parameters"].get("moment")]
    assert prefect.wait(asked["id"])["state_type"] == "FAILED"


def test_prefect_shows_the_schedules_and_gets_them_back(site: Site, web: Web, prefect: PrefectApi) -> None:
    url = web.put(f"recurring/{uuid4().hex}", b"x")
    every, cron = add(site, url), add(site, url, interval="", cron="0 */6 * * *")
    (one,) = until(lambda: in_prefect(prefect, every), bool)
    assert (one["active"], one["schedule"]["interval"], one["parameters"]) == (True, 21_600.0, {"schedule": every})
    (other,) = until(lambda: in_prefect(prefect, cron), bool)
    assert (other["schedule"]["cron"], other["schedule"]["timezone"]) == ("0 */6 * * *", "UTC")
    assert site.ask("POST", f"schedules/{every}/pause").json()["paused"]
    until(lambda: in_prefect(prefect, every)[0]["active"], lambda active: not active)
    assert site.ask("POST", f"schedules/{every}/resume").ok
    until(lambda: in_prefect(prefect, every)[0]["active"], bool)
    assert in_prefect(prefect, every)[0]["id"] == one["id"]  # changed, not made anew
    # the scheduled runs of Prefect carry the schedule, and the hours of the day
    deployment = prefect.get("deployments/name/recurring/data-manager")["id"]
    filters = {"flow_runs": {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": ["SCHEDULED"]}}}}

    def planned() -> list[str]:
        runs = prefect.post("flow_runs/filter", filters | {"limit": 200})
        return [run["expected_start_time"] for run in runs if run["parameters"] == {"schedule": cron}]

    assert {time[11:19] for time in until(planned, bool)} <= {"00:00:00", "06:00:00", "12:00:00", "18:00:00"}
    assert site.ask("DELETE", f"schedules/{every}").ok
    until(lambda: in_prefect(prefect, every), lambda found: not found)
    assert len(in_prefect(prefect, cron)) == 1


def test_prefect_begins_a_moment_by_itself(site: Site, web: Web) -> None:
    schedule = add(site, web.put(f"recurring/{uuid4().hex}", b"by the clock"), interval="1m")
    try:
        view = until(lambda: show(site, schedule), lambda view: any(r["outcome"] == "fetched" for r in view["runs"]))
    finally:
        site.ask("DELETE", f"schedules/{schedule}")
    (version,) = [run for run in view["runs"] if run["outcome"] == "fetched"]
    assert version["moment"][16:19] == ":00"  # what it was scheduled for, not when it was done
    name = site.info(version["object"])["filename"]
    assert name == f"v-{version['moment'][:19].replace('-', '').replace(':', '').replace('T', '-')}.nc"


def test_what_prefect_lost_it_gets_again(site: Site, web: Web, prefect: PrefectApi) -> None:
    schedule = add(site, web.put(f"recurring/{uuid4().hex}", b"x"))
    (lost,) = until(lambda: in_prefect(prefect, schedule), bool)
    deployment = prefect.get("deployments/name/recurring/data-manager")["id"]
    assert requests.delete(f"{prefect.url}/deployments/{deployment}/schedules/{lost['id']}", timeout=60).ok
    (again,) = until(lambda: in_prefect(prefect, schedule), bool)
    assert again["id"] != lost["id"]


def test_a_paused_deployment_goes_on(site: Site, web: Web, prefect: PrefectApi) -> None:
    """Else no schedule would run, and all of them would be called active."""
    schedule = add(site, web.put(f"recurring/{uuid4().hex}", b"x"))
    until(lambda: in_prefect(prefect, schedule), bool)
    deployment = prefect.get("deployments/name/recurring/data-manager")["id"]
    prefect.post(f"deployments/{deployment}/pause_deployment", {})
    assert prefect.get(f"deployments/{deployment}")["paused"]
    until(lambda: prefect.get(f"deployments/{deployment}")["paused"], lambda paused: not paused)
    assert [one["active"] for one in in_prefect(prefect, schedule)] == [True]


# --- if_newer_than, without a schedule -------------------------------------------------------------------------------


def fetch(site: Site, url: str, **options: Any) -> Any:
    body = {"machine": "archer2", "path": "newer", "filename": f"{uuid4().hex}.nc", "url": url, "options": options}
    return site.ask("PUT", "getexternal", json=body, headers={"Accept": "application/json"})


def test_what_is_not_newer_is_not_fetched(site: Site, web: Web) -> None:
    name = f"newer/{uuid4().hex}"
    url = web.put(name, b"first")
    first = fetch(site, url).json()["uuid"]
    same = fetch(site, url, if_newer_than=first)
    assert (same.status_code, same.json()["uuid"]) == (200, first)
    with_query = fetch(site, f"{url}?a=1").json()["uuid"]
    assert fetch(site, f"{url}?a=1", if_newer_than=with_query).json()["uuid"] == with_query
    assert fetch(site, f"{url}?a=2", if_newer_than=with_query).json()["uuid"] != with_query  # another URL
    web.put(name, b"second one")
    newer = fetch(site, url, if_newer_than=first)
    assert newer.status_code == 201
    assert newer.json()["uuid"] != first
    local = site.register("archer2", f"newer/{uuid4().hex}", b"was never fetched")
    assert fetch(site, url, if_newer_than=local).status_code == 201
    unknown = fetch(site, url, if_newer_than=str(uuid4()))
    assert (unknown.status_code, unknown.json()["code"]) == (404, "object_not_found")


def test_with_another_checksum_it_is_fetched_whatever_the_source_says(site: Site, web: Web) -> None:
    name = uuid4().hex
    url, digest = web.put(f"newer/{name}", b"first"), hashlib.sha256(b"first").hexdigest()
    sums = web.put(f"newer/{name}.sums", f"{digest}  {name}\n".encode())
    first = fetch(site, url).json()["uuid"]
    for right in (f"sha256:{digest}", sums, f"md5:{hashlib.md5(b'first').hexdigest()}"):
        same = fetch(site, url, if_newer_than=first, checksum=right)
        assert (same.status_code, same.json()["uuid"]) == (200, first)
    web.put(f"newer/{name}.sums", f"{'0' * 64}  {name}\n".encode())
    for other in (f"sha256:{'0' * 64}", sums):
        read = fetch(site, url, if_newer_than=first, checksum=other)
        assert read.json()["code"] == "checksum_mismatch", read.text  # so it was read


def test_an_unchanged_download_leaves_nothing_and_its_place_is_free(site: Site, web: Web) -> None:
    url = web.put(f"newer/{uuid4().hex}", b"first")
    first = fetch(site, url).json()["uuid"]
    name = f"{uuid4().hex}.nc"
    body = {"machine": "archer2", "path": "newer", "filename": name, "url": url}
    for _ in range(2):
        answer = site.ask("PUT", "getexternal", json=body | {"options": {"if_newer_than": first}})
        assert (answer.status_code, answer.text) == (200, first)
    assert not site.exists("archer2", f"newer/{name}")
    assert site.ask("PUT", "getexternal", json=body).status_code == 201
