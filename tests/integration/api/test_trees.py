"""POST /DM/register/tree: one object a file, none twice, nothing by halves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.support.live_api import LiveApi


def register_tree(api: LiveApi, headers: dict[str, str] | None = None, **fields: Any) -> requests.Response:
    return api.ask("POST", "/DM/register/tree", json={"machine": "here", **fields}, headers=headers)


def refused(answer: requests.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def infos(api: LiveApi) -> dict[str, dict[str, Any]]:
    return {f"{info['path']}/{info['filename']}": info for info in api.ask("GET", "/DM/info").json()}


@pytest.mark.dialect
def test_every_file_becomes_an_object(api: LiveApi) -> None:
    known = api.register("weather/june/known.nc", b"12345")
    api.write("weather/a.nc", b"1234")
    api.write("weather/june/b.nc", b"")
    api.write("elsewhere/c.nc")
    (api.folders["here"] / "weather" / "link").symlink_to("a.nc")
    answer = register_tree(api, path="weather/", group="fire", originator="o", description="d", metadata={"k": 1})
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert [found[key] for key in ("registered", "already", "skipped", "unnameable")] == [2, 1, 1, 0]
    assert sorted((each["path"], each["filename"], each["size"]) for each in found["objects"]) == [
        ("weather", "a.nc", 4),
        ("weather/june", "b.nc", 0),
    ]
    objects = infos(api)
    assert len(objects) == 3
    assert objects["weather/june/known.nc"]["id"] == known
    new = objects["weather/a.nc"]
    assert new["id"] in {each["uuid"] for each in found["objects"]}
    assert (new["group"], new["originator"], new["description"], new["metadata"]) == ("fire", "o", "d", {"k": 1})
    assert (new["status"], new["size"], new["verified"], new["checksum"]) == ("ACTIVE", 4, "size", None)
    again = register_tree(api, path="weather").json()
    assert [again[key] for key in ("registered", "already", "objects")] == [0, 3, []]


def test_paths_are_as_the_client_gave_them(api: LiveApi) -> None:
    api.write("a")
    api.write("sub/b")
    base = str(api.folders["here"])
    whole = register_tree(api, path=base, verify="none", max_files=2).json()
    assert sorted((each["path"], each["filename"]) for each in whole["objects"]) == [(base, "a"), (f"{base}/sub", "b")]
    assert {info["verified"] for info in infos(api).values()} == {"none"}
    api.write("c")
    assert [(each["path"], each["filename"]) for each in register_tree(api).json()["objects"]] == [("", "c")]
    api.write("sub/d")
    relative = register_tree(api).json()["objects"]
    assert [(each["path"], each["filename"]) for each in relative] == [("sub", "d")]


def test_one_file_has_one_object_whatever_links_lead_to_it(api: LiveApi) -> None:
    api.write("real/a")
    (api.folders["here"] / "link").symlink_to("real")
    assert register_tree(api, path="link").json()["registered"] == 1
    assert register_tree(api, path="real").json() == {
        "registered": 0,
        "already": 1,
        "skipped": 0,
        "unnameable": 0,
        "objects": [],
    }
    refused(
        api.ask("PUT", "/DM/register", json={"machine": "here", "path": "real", "filename": "a"}),
        409,
        "destination_exists",
    )


def test_what_is_refused_registers_nothing(api: LiveApi) -> None:
    api.write("few/a")
    api.write("few/b")
    (api.folders["here"] / "out").symlink_to("/")
    refused(register_tree(api, path="few", max_files=1), 413, "too_large")
    refused(register_tree(api, path="few/a"), 422, "invalid_request")
    refused(register_tree(api, path="nothing"), 409, "source_missing")
    refused(register_tree(api, path="../few"), 422, "path_not_allowed")
    refused(register_tree(api, path="/etc"), 422, "path_not_allowed")
    refused(register_tree(api, path="out"), 422, "path_not_allowed")
    refused(register_tree(api, machine="nowhere"), 422, "unknown_machine")
    refused(register_tree(api, machine="gone"), 503, "machine_unavailable")
    refused(register_tree(api, max_files=100_001), 422, "invalid_request")
    refused(register_tree(api, verify="hash"), 422, "invalid_request")
    assert infos(api) == {}


def test_a_key_repeats_the_answer(api: LiveApi) -> None:
    api.write("a")
    first = register_tree(api, {"Idempotency-Key": "tree"})
    again = register_tree(api, {"Idempotency-Key": "tree"})
    assert first.json()["registered"] == 1
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"


@pytest.mark.dialect
def test_of_trees_that_race_each_file_is_registered_once(api: LiveApi) -> None:
    for number in range(50):
        api.write(f"tree/{number}")
    with ThreadPoolExecutor(4) as pool:
        answers = [answer.json() for answer in pool.map(lambda _: register_tree(api, path="tree"), range(4))]
    assert sum(answer["registered"] for answer in answers) == 50
    assert all(answer["registered"] + answer["already"] == 50 for answer in answers)
    assert len(infos(api)) == 50
