"""Register, look up, list: over HTTP, with files that are really there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote
from uuid import UUID, uuid4

import pytest
import requests

from api.objects.register import Seen, look
from datamanager.domain.location import Place
from datamanager.domain.requests import RegisterRequest
from datamanager.engine.attempt import Endpoint
from datamanager.errors import MachineUnavailable
from models.objects.catalogue import Facts, NewRow, add_objects
from tests.support.catalogue import empty_catalogue
from tests.support.live_api import LiveApi

KEYS = [
    *("id", "machine", "filename", "path", "description", "size", "metadata", "date_registered", "date_modified"),
    *("status", "originator", "group", "checksum", "verified", "derived_from", "archived_in"),
    *("last_used", "expires_at", "hold", "created_by", "acted_as"),
]
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def register(api: LiveApi, **fields: Any) -> requests.Response:
    return api.ask("PUT", "/DM/register", data={"machine": "here", **fields})


def refused(answer: requests.Response, status: int, code: str) -> dict[str, Any]:
    document: dict[str, Any] = answer.json()
    assert (answer.status_code, document["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return document


def test_a_file_is_registered_and_shown(api: LiveApi) -> None:
    api.write("weather/june.nc", b"x" * 100)
    fields: dict[str, Any] = {
        "filename": "june.nc",
        "path": "weather",
        "machine": "here",
        "size": "100",
        "description": "Jüne",
        "originator": "http://a/b",
        "group": "fire",
        "metadata": '{"run": 7}',
        "storage_technology": "FILE",
    }
    answer = api.ask("PUT", "/DM/register", data=fields)
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["location"] == f"/DM/info/{answer.text}"
    assert UUID(answer.text).version == 4
    shown = api.ask("GET", f"/DM/info/{answer.text}").json()
    assert list(shown) == KEYS
    for name in ("filename", "path", "machine", "description", "originator", "group"):
        assert shown[name] == fields[name]
    assert (shown["size"], shown["metadata"], shown["status"], shown["verified"]) == (100, {"run": 7}, "ACTIVE", "size")
    assert (shown["checksum"], shown["derived_from"], shown["archived_in"]) == (None, None, None)
    assert RFC3339.fullmatch(shown["date_registered"])
    assert RFC3339.fullmatch(shown["date_modified"])
    assert api.posted == 1


@pytest.mark.parametrize("how", ["form", "multipart", "json"])
def test_every_kind_of_body(api: LiveApi, how: str) -> None:
    name = "blänk & +=%.nc"
    api.write(name)
    fields = {"machine": "here", "filename": name, "size": "10"}
    kinds: dict[str, dict[str, Any]] = {
        "form": {"data": fields},
        "multipart": {"files": {key: (None, value) for key, value in fields.items()}},
        "json": {"json": {**fields, "size": 10}},
    }
    answer = api.ask("PUT", "/DM/register", headers={"Accept": "application/json"}, **kinds[how])
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    assert api.ask("GET", f"/DM/info/{answer.json()['uuid']}").json()["filename"] == name


def test_size_is_taken_from_the_file_when_it_is_not_given(api: LiveApi) -> None:
    for size in ({}, {"size": ""}, {"size": "0"}):
        name = f"f{len(size)}{size.get('size', '')}"
        api.write(name)
        shown = api.ask("GET", f"/DM/info/{register(api, filename=name, **size).text}").json()
        assert (shown["size"], shown["verified"]) == (10, "size")


def test_what_register_verifies(api: LiveApi) -> None:
    api.write("f", b"the file")
    refused(register(api, filename="missing"), 409, "source_missing")
    refused(register(api, filename="f", size="9"), 422, "size_mismatch")
    (api.folders["here"] / "dir").mkdir()
    refused(register(api, filename="dir"), 409, "source_missing")
    answer = register(api, filename="f", size="8", verify="hash")
    shown = api.ask("GET", f"/DM/info/{answer.text}").json()
    assert shown["checksum"] == f"sha256:{hashlib.sha256(b'the file').hexdigest()}"
    assert shown["verified"] == "sha256"
    unseen = register(api, filename="missing", size="7", verify="none")
    shown = api.ask("GET", f"/DM/info/{unseen.text}").json()
    assert (shown["size"], shown["verified"]) == (7, "none")


@pytest.mark.dialect
def test_sizes_beyond_two_gigabytes(api: LiveApi) -> None:
    answer = register(api, filename="big", size=str(2**63 - 1), verify="none")
    assert api.ask("GET", f"/DM/info/{answer.text}").json()["size"] == 2**63 - 1
    with (api.folders["here"] / "sparse").open("wb") as file:
        file.truncate(5 * 2**30)
    assert register(api, filename="sparse", size=str(5 * 2**30)).status_code == 201


def test_a_machine_that_cannot_be_reached_is_no_obstacle(api: LiveApi) -> None:
    answer = api.ask("PUT", "/DM/register", data={"machine": "gone", "filename": "f", "size": "5"})
    assert answer.status_code == 201
    shown = api.ask("GET", f"/DM/info/{answer.text}").json()
    assert (shown["size"], shown["verified"]) == (5, "none")
    # it was really tried
    fields = RegisterRequest(machine="gone", filename="f")
    storage = api.storages.get("gone")
    with pytest.raises(MachineUnavailable), storage.session():
        pass
    end = Endpoint(Place("gone", "f"), api.machines["gone"], storage)
    assert look(fields, end) == Seen(Facts(None))


def test_places_outside_the_base_directory_are_refused(api: LiveApi) -> None:
    for path in ("..", "a/../..", "/etc", f"{api.folders['here']}/../there"):
        refused(register(api, filename="passwd", path=path), 422, "path_not_allowed")
    (api.folders["here"] / "out").symlink_to("/etc")
    refused(register(api, filename="passwd", path="out"), 422, "path_not_allowed")
    (api.folders["here"] / "link").symlink_to("/etc/passwd")
    refused(register(api, filename="link"), 422, "path_not_allowed")
    api.write("a/inside")
    assert register(api, filename="inside", path=str(api.folders["here"] / "a")).status_code == 201


def test_an_unknown_machine(api: LiveApi) -> None:
    document = refused(register(api, machine="daint", filename="f"), 422, "unknown_machine")
    assert "daint" in document["detail"]


def test_a_place_is_held_by_one_object(api: LiveApi) -> None:
    api.register("a/b")
    refused(register(api, filename="b", path="a"), 409, "destination_exists")
    refused(register(api, filename="b", path="./a//"), 409, "destination_exists")
    refused(register(api, filename="b", path=str(api.folders["here"] / "a")), 409, "destination_exists")


@pytest.mark.dialect
def test_two_hundred_registers_at_once_give_one_object(api: LiveApi) -> None:
    api.write("race")
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: register(api, filename="race").status_code, range(200)))
    assert sorted(answers) == [201] + [409] * 199
    assert len(api.ask("GET", "/DM/info").json()) == 1


@pytest.mark.parametrize(
    "text", ["", "no-uuid", "6ff89a46-7445-475d-8fd9-29db3edaca26", "1" * 32, "%00", "%ff", "a%2Fb", "x" * 20_000]
)
def test_an_object_that_is_not_there(shared_api: LiveApi, text: str) -> None:
    if text == "":
        listed = [shared_api.ask("GET", path).json() for path in ("/DM/info/", "/DM/info")]
        assert listed[0] == listed[1]
    else:
        document = shared_api.ask("GET", f"/DM/info/{text}").json()
        assert (document["status"], document["code"]) in {(404, "object_not_found"), (404, "not_found")}


in_one_worker = pytest.mark.xdist_group("many objects")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """An API with 2,000 objects in its catalogue, which nobody changes."""
    folder = tmp_path_factory.mktemp("many")
    with empty_catalogue(request, request.param, folder) as url, LiveApi(folder / "site", url) as api:
        register_many(api)
        yield api


def register_many(api: LiveApi) -> None:
    with api.database.write() as session:
        for number in range(2000):
            request = RegisterRequest(
                machine="here",
                filename=f"f{number:04d}.{'nc' if number % 2 else 'tif'}",
                path=f"d{number % 4}",
                group="fire" if number % 5 else "space weather",
                originator=f"o{number % 3}",
                metadata={"run": str(number % 10), "a key": "50%_"},
            )
            place = Place.of(api.machines["here"], request.path, request.filename)
            add_objects(session, [NewRow.of_request(uuid4(), place, Facts(number), request, None)], "registered")


def pages(api: LiveApi, query: str) -> list[list[dict[str, Any]]]:
    """Follow the Link headers; return every page."""
    found, target = [], f"/DM/info?{query}"
    while target:
        answer = api.ask("GET", target)
        assert answer.status_code == 200, answer.text
        found.append(answer.json())
        link = answer.headers.get("link")
        match = re.fullmatch(r'<([^>]+)>; rel="next"', link) if link else None
        assert (link is None) == (match is None)
        target = match[1] if match else ""
    return found


@in_one_worker
def test_the_whole_catalogue_is_streamed(many: LiveApi) -> None:
    with many.ask("GET", "/DM/info", stream=True) as answer:
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["transfer-encoding"] == "chunked"
        pieces = [json.loads(answer.content)]
    assert [row["size"] for row in pieces[0]] == list(range(2000))
    assert all(list(row) == KEYS for row in pieces[0])


@in_one_worker
def test_clients_that_leave_a_listing_hold_nothing(many: LiveApi) -> None:
    for _ in range(20):  # more than may read at once
        many.ask("GET", "/DM/info", stream=True).close()
    assert len(many.ask("GET", "/DM/info").json()) == 2000


@in_one_worker
def test_pages(many: LiveApi) -> None:
    found = pages(many, "limit=600")
    assert [len(page) for page in found] == [600, 600, 600, 200]
    assert [row["size"] for page in found for row in page] == list(range(2000))
    assert [len(page) for page in pages(many, "sort=-size")] == [1000, 1000]
    last = pages(many, "sort=-filename&group=fire&limit=900")
    assert [row["filename"] for page in last for row in page] == sorted(
        (row["filename"] for page in last for row in page), reverse=True
    )
    assert sum(map(len, last)) == 1600


@in_one_worker
def test_filters(many: LiveApi) -> None:
    wanted = {
        "group=space+weather": 400,
        "machine=here": 2000,
        "machine=left-us": 0,
        "status=ACTIVE": 2000,
        "status=DELETED": 0,
        "originator=o0": 667,
        "filename=*.nc": 1000,
        "filename=f000?.tif": 5,
        "filename=%25": 0,
        "path=d1": 500,
        "path=d": 0,
        "metadata.run=3": 200,
        "metadata.run=3&metadata.a+key=50%25_": 200,
        "metadata.none=3": 0,
        "since=2020-01-01T00:00:00Z": 2000,
        "until=2020-01-01T00:00:00%2B02:00": 0,
        "machine=here&group=fire&filename=*.nc&path=d1": 400,
    }
    assert {query: sum(map(len, pages(many, query))) for query in wanted} == wanted


def test_what_a_listing_refuses(api: LiveApi) -> None:
    wrong = "colour=red limit=0 limit=many sort=size;drop since=now cursor=x status=LOST group=%00 metadata.%22=x"
    for query in wrong.split():
        name = query.partition("=")[0]
        document = refused(api.ask("GET", f"/DM/info?{query}"), 422, "invalid_request")
        assert [fault["field"] for fault in document["errors"]] == [unquote(name)]
