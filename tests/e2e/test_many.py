"""Batches, end to end: a tree is registered, copied and moved as one task, over HTTP, on real machines."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from tests.e2e.conftest import KILLS
from tests.support.site import Site, eventually, some_bytes

NAMES = ["plain.txt", "two  blanks", "-dash", "quo'te\"", "$(id)", "new\nline", "ünïcödé", "n" * 255, "n" * 254 + "m"]


def write_tree(site: Site, machine: str, folder: str, count: int = 120) -> dict[str, bytes]:
    """Put small files, hostile names and one larger file below a folder; return path below it → bytes."""
    files = {f"d{i % 7}/f{i}.dat": some_bytes(i * 37) for i in range(count)}
    files |= {f"odd/{name}": some_bytes(100 + i) for i, name in enumerate(NAMES)}
    files |= {"empty": b"", "large.bin": some_bytes(3_000_001)}
    for path, data in files.items():
        site.write(machine, f"{folder}/{path}", data)
    return files


def register_tree(site: Site, machine: str, folder: str) -> dict[str, Any]:
    answer = site.ask("POST", "register/tree", json={"machine": machine, "path": folder, "group": "fire"})
    assert answer.status_code == 201, answer.text
    tree: dict[str, Any] = answer.json()
    return tree


def items(site: Site, task: str) -> list[dict[str, Any]]:
    answer = site.ask("GET", f"async/status/{task}/items?limit=1000")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


def run(site: Site, kind: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    answer = site.ask("POST", f"async/{kind}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.text, site.wait(answer.text)


@pytest.mark.parametrize(("source", "target"), [("archer2", "cirrus"), ("localhost", "archer2"), ("cirrus", "cirrus")])
def test_a_directory_is_copied_as_one_task(site: Site, source: str, target: str) -> None:
    folder = f"trees/{source}-{target}"
    files = write_tree(site, source, folder)
    assert register_tree(site, source, folder)["registered"] == len(files)
    body = {"directory": {"machine": source, "path": folder}, "machine": target, "dest": f"copies/{source}"}
    task, status = run(site, "copy", body)
    assert status["status"] == "COMPLETE", status
    assert status["items"] == {"total": len(files), "complete": len(files), "skipped": 0, "error": 0, "queued": 0}
    assert status["bytes_done"] == sum(map(len, files.values()))
    for path, data in files.items():
        assert site.read(target, f"copies/{source}/{path}") == data
    one = items(site, task)[0]
    row, origin = site.info(one["result"]), site.info(one["object"])
    assert (row["derived_from"], row["group"], row["machine"]) == (origin["id"], "fire", target)
    assert row["verified"] == "sha256"
    _, again = run(site, "copy", body)
    assert (again["status"], again["items"]["skipped"]) == ("COMPLETE", len(files))
    assert not site.leftovers()


@pytest.mark.parametrize(("source", "target"), [("archer2", "cirrus"), ("cirrus", "localhost"), ("archer2", "archer2")])
def test_a_directory_is_moved_as_one_task(site: Site, source: str, target: str) -> None:
    folder = f"moving/{source}-{target}"
    files = write_tree(site, source, folder, count=30)
    objects = {
        f"{one['path']}/{one['filename']}": one["uuid"] for one in register_tree(site, source, folder)["objects"]
    }
    body = {"directory": {"machine": source, "path": folder}, "machine": target, "dest": f"moved/{source}"}
    _, status = run(site, "move", body)
    assert status["status"] == "COMPLETE", status
    for path, data in files.items():
        assert site.read(target, f"moved/{source}/{path}") == data
        assert not site.exists(source, f"{folder}/{path}")
    row = site.info(objects[f"{folder}/large.bin"])
    assert (row["machine"], row["path"], row["filename"]) == (target, f"moved/{source}", "large.bin")
    assert not site.leftovers()


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS))
def test_a_mover_killed_at_any_moment_loses_nothing(site: Site, seed: int) -> None:
    chance = random.Random(seed)
    folder, dest = f"many-killed/{seed}", f"many-survived/{seed}"
    files = {f"d{n % 5}/{n}": some_bytes(300_000) for n in range(60)}
    for path, data in files.items():
        site.write("archer2", f"{folder}/{path}", data)
    register_tree(site, "archer2", folder)
    body = {"directory": {"machine": "archer2", "path": folder}, "machine": "cirrus", "dest": dest}
    task = site.ask("POST", "async/move", json={**body, "bandwidth": "8MB/s"}).text
    time.sleep(chance.uniform(0, 3.0))
    site.service.kill_mover()
    for path, data in files.items():
        here = ("archer2", folder) if site.exists("archer2", f"{folder}/{path}") else ("cirrus", dest)
        assert site.read(here[0], f"{here[1]}/{path}") == data
    site.service.start_movers()
    status = site.wait(task)
    assert (status["status"], status["items"]["complete"]) == ("COMPLETE", len(files)), status
    assert {path: site.read("cirrus", f"{dest}/{path}") for path in files} == files
    assert not [path for path in files if site.exists("archer2", f"{folder}/{path}")]
    eventually(lambda: not site.leftovers(), "no partial file is left")


@pytest.mark.dialect
def test_a_failing_item_fails_alone(site: Site) -> None:
    ids = [site.register("archer2", f"mixed/{i}", some_bytes(50 + i)) for i in range(6)]
    (site.folders["archer2"] / "mixed/1").unlink()
    site.write("cirrus", "mixed/2", b"somebody else's")
    wanted = [{"uuid": uuid, "dest": f"mixed/{i}"} for i, uuid in enumerate(ids)]
    wanted[3]["machine"] = "nowhere"
    task, status = run(site, "copy", {"items": wanted, "machine": "cirrus"})
    assert (status["status"], status["error"]["code"]) == ("ERROR", "items_failed")
    codes = [(one["error"] or {}).get("code") for one in items(site, task)]
    assert codes == [None, "source_missing", "destination_exists", "unknown_machine", None, None]
    assert site.read("cirrus", "mixed/5") == site.read("archer2", "mixed/5")
    assert site.read("cirrus", "mixed/2") == b"somebody else's"
    del wanted[3]["machine"]
    site.write("archer2", "mixed/1", some_bytes(51))
    _, status = run(site, "copy", {"items": wanted, "machine": "cirrus", "overwrite": True})
    assert status["status"] == "COMPLETE", status
    assert status["items"] == {"total": 6, "complete": 6, "skipped": 3, "error": 0, "queued": 0}
    assert site.read("cirrus", "mixed/2") == site.read("archer2", "mixed/2")
    assert not site.leftovers()
