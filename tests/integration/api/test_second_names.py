"""Register: one file has one object whatever it is called, and files of bundles have none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import requests

from models.access.visibility import ALL
from models.objects.catalogue import get_object
from tests.support.live_api import LiveApi


@pytest.fixture
def api(tmp_path: Path, migrated_url: str) -> Iterator[LiveApi]:
    """An API with the archive `tape`, whose base directory is above that of `here`."""
    with LiveApi(tmp_path / "site", migrated_url, archives=("tape",)) as live:
        yield live


def register(api: LiveApi, machine: str, place: str, **fields: str) -> requests.Response:
    directory, _, name = place.rpartition("/")
    return api.ask("PUT", "/DM/register", data={"machine": machine, "path": directory, "filename": name, **fields})


def refused(answer: requests.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def provisional(api: LiveApi, uuid: str) -> bool:
    with api.database.read() as session:
        return get_object(session, UUID(uuid), ALL).provisional


@pytest.mark.parametrize("verify", ["none", "stat", "hash"])
def test_register_follows_links_to_the_place_whatever_it_verifies(api: LiveApi, verify: str) -> None:
    first = api.register("proj/june.nc")
    (api.folders["here"] / "link").symlink_to("proj")
    refused(register(api, "here", "link/june.nc", verify=verify), 409, "destination_exists")
    (api.folders["here"] / "out").symlink_to("/etc")
    refused(register(api, "here", "out/passwd", verify=verify), 422, "path_not_allowed")
    assert not provisional(api, first)
    settled = register(api, "here", "link/july.nc", verify="none")
    assert settled.status_code == 201
    assert not provisional(api, settled.text)
    refused(register(api, "here", "proj/july.nc", verify="none"), 409, "destination_exists")


@pytest.mark.parametrize("verify", ["none", "stat"])
def test_register_on_a_machine_that_is_away_is_provisional(api: LiveApi, verify: str) -> None:
    answer = register(api, "gone", "proj/june.nc", verify=verify)
    assert answer.status_code == 201
    assert provisional(api, answer.text)


def test_nothing_below_the_archive_directory_gets_an_object(api: LiveApi) -> None:
    api.mover_online()
    uuid = api.register("in/a")
    base = api.folders["here"].parent
    (base / "store").mkdir()
    (base / "bundles").symlink_to("store")
    (base / "store/b.tar").write_bytes(b"a bundle")
    (base / "link").symlink_to("bundles")
    for place in ("bundles/b.tar", "link/b.tar", "store/b.tar", f"{base}/bundles/b.tar"):
        for verify in ("none", "stat"):
            refused(register(api, "tape", place, verify=verify), 422, "path_not_allowed")
    for dest in ("bundles/b.tar", "./bundles//new/c", f"{base}/bundles/c"):
        copied = api.ask("POST", f"/DM/copy/{uuid}", data={"machine": "tape", "dest": dest, "overwrite": "true"})
        refused(copied, 422, "path_not_allowed")
    refused(api.ask("POST", "/DM/register/tree", json={"machine": "tape", "path": "bundles"}), 422, "path_not_allowed")
    linked = api.ask("POST", "/DM/register/tree", json={"machine": "tape", "path": "link"}).json()
    assert (linked["registered"], linked["already"]) == (0, 1)
    assert register(api, "here", "bundles/c", verify="none").status_code == 201  # that machine keeps no bundles
