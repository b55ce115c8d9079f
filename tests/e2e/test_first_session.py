"""The operations of the README's first session, on both databases: every answer as the contract says."""

from __future__ import annotations

import os
import re
from uuid import UUID

import pytest

from tests.e2e.conftest import LEAST
from tests.support.site import SEED_FIELDS, Site, sha256, some_bytes
from tests.support.web import Web

KEYS = {
    "id", "machine", "filename", "path", "description", "size", "metadata", "date_registered", "date_modified",
    "status", "originator", "group", "checksum", "verified", "derived_from", "archived_in",
}  # fmt: skip
pytestmark = pytest.mark.dialect
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def test_register_answers_a_bare_uuid(site: Site) -> None:
    data = some_bytes(1000)
    site.write("archer2", "runs/weather.nc", data)
    form = {"filename": "weather.nc", "path": "runs", "machine": "archer2", "size": "1000", **SEED_FIELDS}
    answer = site.ask("PUT", "register", data=form)
    assert answer.status_code == 201
    assert answer.headers["content-type"].startswith("text/plain")
    assert str(UUID(answer.text)) == answer.text
    assert UUID(answer.text).version == 4
    row = site.info(answer.text)
    assert set(row) >= KEYS
    assert (row["machine"], row["path"], row["filename"], row["size"]) == ("archer2", "runs", "weather.nc", 1000)
    assert (row["status"], row["group"], row["metadata"]) == ("ACTIVE", "fire", {})
    assert RFC3339.fullmatch(row["date_registered"])


def test_copy_between_machines_carries_the_bytes_and_the_lineage(site: Site) -> None:
    data = some_bytes(3_000_001)
    source = site.register("archer2", "copies/source.bin", data)
    answer = site.ask("POST", f"copy/{source}", data={"machine": "cirrus", "dest": "new/dirs/copy.bin"})
    assert answer.status_code == 201, answer.text
    assert site.read("cirrus", "new/dirs/copy.bin") == data
    row = site.info(answer.text)
    assert (row["machine"], row["path"], row["filename"]) == ("cirrus", "new/dirs", "copy.bin")
    assert (row["derived_from"], row["originator"], row["group"]) == (source, "tests", "fire")
    assert (row["checksum"], row["verified"], row["size"]) == (sha256(data), "sha256", len(data))
    assert site.info(source)["status"] == "ACTIVE"
    assert site.read("archer2", "copies/source.bin") == data
    assert not site.leftovers()


def test_copy_of_a_file_from_before_1970_says_that_its_time_is_not_kept(site: Site) -> None:
    source = site.register("localhost", "odd/moon.nc", b"bytes")
    os.utime(site.folders["localhost"] / "odd/moon.nc", (-14_182_940, -14_182_940))
    task = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "odd/moon.nc"})
    ended = site.wait(task.text)
    assert (ended["status"], ended.get("not_kept")) == ("COMPLETE", ["mtime"]), ended
    assert (site.folders["cirrus"] / "odd/moon.nc").stat().st_mtime == 0
    assert not site.leftovers()


def test_copy_on_one_machine_and_to_the_local_one(site: Site) -> None:
    data = some_bytes(70_000)
    source = site.register("cirrus", "same/a.bin", data)
    for machine in ("cirrus", "localhost"):
        answer = site.ask("POST", f"copy/{source}", data={"machine": machine, "dest": f"same/b-{machine}.bin"})
        assert answer.status_code == 201, answer.text
        assert site.read(machine, f"same/b-{machine}.bin") == data
        assert site.info(answer.text)["checksum"] == sha256(data)


def test_move_keeps_the_identifier(site: Site) -> None:
    data = some_bytes(50_000)
    moved = site.register("archer2", "moves/a.bin", data)
    answer = site.ask("POST", f"move/{moved}", data={"machine": "cirrus", "dest": "moved/a.bin"})
    assert (answer.status_code, answer.text) == (200, "Move successful")
    assert site.read("cirrus", "moved/a.bin") == data
    assert not site.exists("archer2", "moves/a.bin")
    row = site.info(moved)
    assert (row["id"], row["machine"], row["path"], row["filename"]) == (moved, "cirrus", "moved", "a.bin")
    answer = site.ask("POST", f"move/{moved}", data={"machine": "cirrus", "dest": "renamed/b.bin"})
    assert answer.status_code == 200, answer.text
    assert site.read("cirrus", "renamed/b.bin") == data
    assert site.info(moved)["checksum"] == sha256(data)
    # the places that were left are free
    site.register("archer2", "moves/a.bin", b"another")


def test_delete_keeps_the_row(site: Site) -> None:
    gone = site.register("cirrus", "deletes/a.bin", b"bytes")
    answer = site.ask("DELETE", f"delete/{gone}")
    assert (answer.status_code, answer.text) == (200, "cirrus:deletes/a.bin deleted")
    assert not site.exists("cirrus", "deletes/a.bin")
    assert site.info(gone)["status"] == "DELETED"
    assert site.ask("DELETE", f"delete/{gone}").status_code == 410
    assert site.info(gone)["status"] == "DELETED"
    assert site.ask("POST", f"copy/{gone}", data={"machine": "cirrus", "dest": "x"}).status_code == 410


def test_delete_of_a_file_that_is_gone_already(site: Site) -> None:
    gone = site.register("archer2", "deletes/gone.bin", b"bytes")
    (site.folders["archer2"] / "deletes/gone.bin").unlink()
    assert site.ask("DELETE", f"delete/{gone}").status_code == 200
    assert site.info(gone)["status"] == "DELETED"


def test_delete_keeps_a_file_that_was_replaced_unless_it_is_forced(site: Site) -> None:
    first, second, paths = some_bytes(40), some_bytes(40), ["deletes/checked.bin", "deletes/longer.bin"]
    checked = site.register("cirrus", paths[0], first, verify="hash")
    longer = site.register("cirrus", paths[1], first)
    there = [second, first + second]
    for path, data in zip(paths, there, strict=True):
        site.write("cirrus", path, data)
    for uuid in (checked, longer):
        answer = site.ask("DELETE", f"delete/{uuid}")
        assert (answer.status_code, answer.json()["code"]) == (409, "source_changed"), answer.text
        task = site.ask("DELETE", f"delete/{uuid}", headers={"Prefer": "respond-async"})
        assert site.wait(task.text)["error"]["code"] == "source_changed"
        assert site.info(uuid)["status"] == "ACTIVE"
    assert [site.read("cirrus", path) for path in paths] == there
    for uuid in (checked, longer):
        assert site.ask("DELETE", f"delete/{uuid}", data={"force": "true"}).status_code == 200
    assert not any(site.exists("cirrus", path) for path in paths)
    assert not site.leftovers()


def test_getexternal(site: Site, web: Web) -> None:
    data = some_bytes(2_500_000)
    url = web.put("forecast.grib", data)
    form = {
        "filename": "forecast.grib", "path": "downloads", "machine": "archer2", "size": str(len(data)),
        "url": url, "protocol": "http", "options": "{}", **SEED_FIELDS,
    }  # fmt: skip
    answer = site.ask("PUT", "getexternal", data=form)
    assert answer.status_code == 201, answer.text
    assert site.read("archer2", "downloads/forecast.grib") == data
    row = site.info(answer.text)
    assert (row["size"], row["checksum"], row["verified"]) == (len(data), sha256(data), "sha256")
    wrong = site.ask("PUT", "getexternal", data=form | {"filename": "wrong.grib", "size": "12"})
    assert (wrong.status_code, wrong.json()["code"]) == (502, "size_mismatch")
    assert not site.exists("archer2", "downloads/wrong.grib")
    assert not site.leftovers()


def test_async_copy_polled_to_complete(site: Site, web: Web) -> None:
    data = some_bytes(1_000_000)
    source = site.register("localhost", "async/a.bin", data)
    answer = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "async/b.bin"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["location"] == f"/DM/async/status/{answer.text}"
    status = site.wait(answer.text)
    assert status["status"] == "COMPLETE", status
    assert site.info(status["result"])["checksum"] == sha256(data)
    assert site.read("cirrus", "async/b.bin") == data
    moved = site.ask("POST", f"async/move/{source}", data={"machine": "archer2", "dest": "async/c.bin"})
    assert site.wait(moved.text)["result"] == "Move successful"
    assert site.read("archer2", "async/c.bin") == data
    url = web.put("async.bin", data)
    fields = {"filename": "got.bin", "path": "async", "machine": "cirrus", "url": url, "protocol": "http"}
    got = site.ask("PUT", "async/getexternal", json={**SEED_FIELDS, **fields, "options": {}})
    status = site.wait(got.text)
    assert status["status"] == "COMPLETE", status
    assert site.read("cirrus", "async/got.bin") == data


def test_info_lists_deleted_ones_too(site: Site) -> None:
    kept = site.register("localhost", "list/a.bin", b"1")
    gone = site.register("localhost", "list/b.bin", b"2")
    assert site.ask("DELETE", f"delete/{gone}").status_code == 200
    rows = {row["id"]: row["status"] for row in site.ask("GET", "info").json()}
    assert (rows[kept], rows[gone]) == ("ACTIVE", "DELETED")


def test_machines_are_listed_with_a_live_probe(site: Site) -> None:
    machines = {row["name"]: row for row in site.ask("GET", "machines").json()}
    assert set(machines) == set(site.folders) >= {"localhost", "archer2", "cirrus"}
    for row in machines.values():
        assert row["reachable"] is True, row
        assert row["free_bytes"] > 0
        assert "identity_file" not in row


@pytest.mark.parametrize("backend", [LEAST], indirect=True)
def test_without_an_archive_machine_there_is_nothing_to_archive_to(site: Site) -> None:
    some = site.register("localhost", "archive/a.bin", b"1")
    for path in (f"archive/{some}", f"async/archive/{some}"):
        for method in ("PUT", "POST"):
            answer = site.ask(method, path)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
            assert answer.json()["errors"][0]["field"] == "archive_to"
