"""`extract`, end to end: an archive is fetched over HTTP, and each file in it becomes an object."""

from __future__ import annotations

import gzip
import random
import tarfile
import time
from typing import Any

import pytest

from tests.e2e.conftest import KILLS
from tests.support.packing import MTIME, link, tar_of, zip_of
from tests.support.site import Site, eventually, sha256, some_bytes
from tests.support.web import Web

FILES = {f"forecast/f{n:03}.grib": some_bytes(n * 997) for n in range(120)}
FILES |= {"readme": b"see forecast\n", "empty": b"", "large.nc": some_bytes(5_000_001)}


def extract(site: Site, url: str, path: str, kind: str = "tar", **more: Any) -> tuple[str, dict[str, Any]]:
    """Fetch an archive as a task; return the task and how it ended."""
    options = {"extract": kind, **more.pop("options", {})}
    fields = {"url": url, "machine": "cirrus", "path": path, "group": "fire", "description": "a forecast"}
    answer = site.ask("POST", "async/getexternal", json={**fields, **more, "options": options})
    assert answer.status_code == 200, answer.text
    return answer.text, site.wait(answer.text)


def items(site: Site, task: str) -> list[dict[str, Any]]:
    answer = site.ask("GET", f"async/status/{task}/items?limit=1000")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


def hidden(site: Site, path: str) -> list[str]:
    """Return what lies in a directory of `cirrus` under a name that nobody asked for."""
    return [one.name for one in (site.folders["cirrus"] / path).iterdir() if one.name.startswith(".")]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_the_files_of_an_archive_become_objects(site: Site, web: Web, kind: str) -> None:
    data = zip_of(FILES) if kind == "zip" else tar_of(FILES)
    data = gzip.compress(data, 1) if kind == "tar.gz" else data
    url = web.put(f"extract/all.{kind}", data)
    options = {"decompress": "gzip"} if kind == "tar.gz" else {}
    folder = f"extracted/{kind}"
    task, status = extract(
        site, f"{url}?token=hunter2", folder, kind.partition(".")[0], options={**options, "checksum": sha256(data)}
    )
    assert (status["status"], status["kind"], status["error"]) == ("COMPLETE", "getexternal_many", None), status
    assert status["items"] == {"total": len(FILES), "complete": len(FILES), "skipped": 0, "error": 0, "queued": 0}
    assert status["result"] == f"{len(FILES)} items done"
    assert {name: site.read("cirrus", f"{folder}/{name}") for name in FILES} == FILES
    for one in items(site, task):
        row, name = site.info(one["result"]), one["dest"].removeprefix(f"{folder}/")
        assert (row["size"], row["checksum"], row["verified"]) == (len(FILES[name]), sha256(FILES[name]), "sha256")
        assert (row["group"], row["description"], row["originator"]) == ("fire", "a forecast", f"{url}?…")
        assert f"{row['path']}/{row['filename']}" == one["dest"]
        assert (site.folders["cirrus"] / one["dest"]).stat().st_mtime == MTIME
    assert not hidden(site, folder)
    assert "hunter2" not in f"{status}{items(site, task)}"
    # what is there is there: nothing is written over it
    again, status = extract(site, url, folder, kind.partition(".")[0], options=options)
    assert (status["status"], status["error"]["code"]) == ("ERROR", "items_failed")
    assert {one["error"]["code"] for one in items(site, again)} == {"destination_exists"}
    assert {name: site.read("cirrus", f"{folder}/{name}") for name in FILES} == FILES
    assert not hidden(site, folder)


@pytest.mark.dialect
def test_a_client_may_wait_for_it(site: Site, web: Web) -> None:
    url = web.put("extract/two.zip", zip_of({"a": b"1", "b": b"2"}))
    fields = {"url": url, "machine": "archer2", "path": "waited", "options": {"extract": "zip"}}
    answer = site.ask("PUT", "getexternal", json=fields)
    assert (answer.status_code, answer.text) == (200, "2 items done")
    assert site.read("archer2", "waited/b") == b"2"


@pytest.mark.parametrize("fault", ["checksum", "no archive", "too large", "missing"])
def test_what_is_refused_leaves_nothing(site: Site, web: Web, fault: str) -> None:
    data = tar_of({"good": b"1" * 5000})
    options: dict[str, Any] = {}
    expected = "download_failed"
    match fault:
        case "checksum":
            options, expected = {"checksum": f"sha256:{'0' * 64}"}, "checksum_mismatch"
        case "no archive":
            data = b"<html>not found</html>" * 1000
        case "too large":
            options, expected = {"max_size": 4000}, "too_large"
    url = web.put(f"extract/{fault}.tar".replace(" ", "-"), data)
    if fault == "missing":
        url = f"{web.url}/extract/nowhere.tar"
    folder = f"refused/{fault}"
    task, status = extract(site, url, folder, options=options)
    assert (status["status"], status["error"]["code"]) == ("ERROR", expected), status
    assert not items(site, task)
    found = site.folders["cirrus"] / folder
    assert not found.exists() or not list(found.iterdir())
    # its place is free again
    good = web.put(f"extract/{fault}.tar".replace(" ", "-"), tar_of({"good": b"1"}))
    _, status = extract(site, good, folder)
    assert status["status"] == "COMPLETE", status


@pytest.mark.dialect
def test_members_that_can_not_be_had_are_told_and_the_others_arrive(site: Site, web: Web) -> None:
    links = (link("sub/latest", "../good"), link("out", "/etc/passwd"), link("good/below", "x", b"1"))
    bad = {"../elsewhere": b"2", "sub/a\x1bb": b"3", "sub/\udcff": b"4"}
    url = web.put("extract/odd.tar", tar_of({"good": b"1", **bad, "sub/fine": b"5"}, tarfile.GNU_FORMAT, *links))
    task, status = extract(site, url, "odd")
    assert (status["status"], status["error"]["code"]) == ("ERROR", "items_failed"), status
    assert (status["items"]["complete"], status["items"]["error"]) == (2, 6)
    why = {one["dest"]: one["error"]["detail"] for one in items(site, task) if one["error"]}
    assert why.keys() == {
        *("odd/sub/latest", "odd/out", "odd/good/below"),
        *("odd/../elsewhere", "odd/sub/a\\x1bb", "odd/sub/\\udcff"),
    }
    assert "symbolic link" in why["odd/out"]
    assert "leads out" in why["odd/../elsewhere"]
    top = site.folders["cirrus"] / "odd"
    assert {str(file.relative_to(top)) for file in top.rglob("*") if not file.is_dir()} == {"good", "sub/fine"}
    assert not site.exists("cirrus", "elsewhere")


@pytest.mark.dialect
def test_one_file_that_is_there_fails_alone(site: Site, web: Web) -> None:
    mine = site.register("cirrus", "alone/b", b"mine")
    site.write("cirrus", "alone/c", b"nobody's")
    url = web.put("extract/alone.tar", tar_of({"a": b"1", "b": b"2", "c": b"3", "d": some_bytes(2_000_000)}))
    task, status = extract(site, url, "alone")
    assert (status["status"], status["error"]["code"]) == ("ERROR", "items_failed")
    ends = {one["dest"]: (one["error"] or {}).get("code") for one in items(site, task)}
    assert ends == {
        "alone/a": None,
        "alone/b": "destination_exists",
        "alone/c": "destination_exists",
        "alone/d": None,
    }
    assert [site.read("cirrus", f"alone/{name}") for name in "abc"] == [b"1", b"mine", b"nobody's"]
    assert site.info(mine)["status"] == "ACTIVE"
    _, status = extract(site, url, "alone", overwrite=True)
    assert site.read("cirrus", "alone/c") == b"3"  # it was not registered
    assert site.read("cirrus", "alone/b") == b"mine"
    assert not hidden(site, "alone")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"extract": "rar"}, "options.extract"),
        ({"extract": "tar", "if_newer_than": "5f0b2b0e-0f5c-4f43-9d5e-3f0d1c0b7d11"}, "options.if_newer_than"),
    ],
)
def test_wrong_options_are_named(site: Site, web: Web, options: dict[str, Any], field: str) -> None:
    fields = {"url": f"{web.url}/x.tar", "machine": "cirrus", "path": "x", "options": options}
    answer = site.ask("POST", "async/getexternal", json=fields)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [wrong["field"] for wrong in answer.json()["errors"]] == [field]


def test_it_can_be_cancelled_while_it_is_fetched(site: Site, web: Web) -> None:
    url = web.put("slow/large.tar", tar_of({"large": bytes(100_000_000)}))
    fields = {"url": url, "machine": "cirrus", "path": "cancelled", "options": {"extract": "tar"}}
    task = site.ask("POST", "async/getexternal", json=fields).text
    while not site.status(task)["bytes_done"]:
        assert site.status(task)["status"] in ("QUEUED", "RUNNING")
        time.sleep(0.05)
    assert site.ask("DELETE", f"async/status/{task}").status_code in (200, 202)
    assert site.wait(task)["error"]["code"] == "cancelled"
    eventually(lambda: not hidden(site, "cancelled"), "no partial file is left", 60)


def test_it_can_be_cancelled_while_it_is_extracted(site: Site, web: Web) -> None:
    data = tar_of({"large": some_bytes(40_000_000)})
    fields = {"url": web.put("extract/large.tar", data), "machine": "cirrus", "path": "stopped", "bandwidth": "10MB/s"}
    task = site.ask("POST", "async/getexternal", json={**fields, "options": {"extract": "tar"}}).text
    while (status := site.status(task))["bytes_done"] < len(data) + 4_000_000:
        assert status["status"] in ("QUEUED", "RUNNING")
        time.sleep(0.05)
    assert site.ask("DELETE", f"async/status/{task}").status_code in (200, 202)
    assert site.wait(task)["error"]["code"] == "cancelled"
    assert [one["error"]["code"] for one in items(site, task)] == ["cancelled"]
    eventually(lambda: not hidden(site, "stopped"), "no partial file is left", 60)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS))
def test_a_mover_killed_at_any_moment_loses_nothing(site: Site, web: Web, seed: int) -> None:
    chance = random.Random(seed)
    files = {f"{n}": some_bytes(200_000 + n) for n in range(150)}
    url = web.put(f"slow/killed{seed}.zip", zip_of(files))
    folder = f"killed/{seed}"
    fields = {"url": url, "machine": "cirrus", "path": folder, "options": {"extract": "zip"}}
    task = site.ask("POST", "async/getexternal", json=fields).text
    time.sleep(chance.uniform(0, 8.0))
    site.service.kill_mover()
    for row in site.ask("GET", "info").json():
        if row["path"] == folder and row["status"] == "ACTIVE":
            assert site.read("cirrus", f"{folder}/{row['filename']}") == files[row["filename"]]
    site.service.start_movers()
    status = site.wait(task)
    assert (status["status"], status["items"]["complete"]) == ("COMPLETE", len(files)), status
    assert {name: site.read("cirrus", f"{folder}/{name}") for name in files} == files
    eventually(lambda: not hidden(site, folder), "no partial file is left", 60)
