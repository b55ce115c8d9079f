"""Archives, end to end: objects become bundles on an SSH machine and come back, whatever happens meanwhile."""

from __future__ import annotations

import json
import random
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import BUNDLE_SIZE, KILLS
from tests.e2e.test_many import NAMES, items, register_tree, run
from tests.support.site import Site, eventually, sha256, some_bytes


def bundle_of(site: Site, uuid: str) -> Path:
    """Return the file of the bundle that an object is in."""
    machine, _, path = str(site.info(uuid)["archived_in"]).partition(":")
    return site.folders[machine] / path


def test_one_object_goes_into_an_archive_and_comes_back(site: Site) -> None:
    data = some_bytes(3_000_001)
    uuid = site.register("archer2", "one/june.nc", data)
    answer = site.ask("POST", f"archive/{uuid}")
    assert (answer.status_code, answer.text) == (200, "Archive successful"), answer.text
    row = site.info(uuid)
    assert (row["status"], row["machine"], row["path"], row["filename"]) == ("ARCHIVED", "archer2", "one", "june.nc")
    assert (row["checksum"], row["verified"], row["size"]) == (sha256(data), "sha256", len(data))
    assert not site.exists("archer2", "one/june.nc")
    bundle = bundle_of(site, uuid)
    with tarfile.open(bundle) as tar:
        (member,) = tar.getmembers()
        stored = tar.extractfile(member)
        assert stored is not None
        assert (member.name, stored.read()) == (f"{uuid}/june.nc", data)
    manifest = json.loads(next(bundle.parent.glob("*.manifest.json")).read_text())
    assert manifest
    for path in ("copy", "move"):
        refused = site.ask("POST", f"{path}/{uuid}", data={"machine": "cirrus", "dest": "one/june.nc"})
        assert (refused.status_code, refused.json()["code"]) == (409, "object_archived")
    again = site.ask("PUT", f"archive/{uuid}", data={"storage_technology": "tape"})
    assert (again.status_code, again.json()["code"]) == (409, "object_archived")
    answer = site.ask("PUT", f"activate/{uuid}")
    assert (answer.status_code, answer.text) == (200, "Activate successful"), answer.text
    row = site.info(uuid)
    assert (row["status"], row["archived_in"], row["verified"]) == ("ACTIVE", None, "sha256")
    assert site.read("archer2", "one/june.nc") == data
    assert site.ask("POST", f"activate/{uuid}").text == "Activate successful"  # it is where it is wanted
    elsewhere = site.ask("POST", f"activate/{uuid}", data={"machine": "cirrus", "dest": "one/june.nc"})
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (409, "object_active")
    rest = f"{bundle.name.partition('.')[0]}*"
    eventually(lambda: not bundle.exists() and not list(bundle.parent.glob(rest)), "bundle and manifest are gone")
    assert not site.leftovers()


def test_an_archived_object_leaves_its_place_and_comes_back_elsewhere(site: Site) -> None:
    first, second = some_bytes(1000), some_bytes(2000)
    uuid = site.register("archer2", "place/a", first)
    task = site.ask("PUT", f"async/archive/{uuid}", headers={"Prefer": "respond-async"})
    assert task.status_code == 202
    assert site.wait(task.text)["result"] == "Archive successful"
    other = site.register("archer2", "place/a", second)
    taken = site.ask("POST", f"activate/{uuid}")
    assert (taken.status_code, taken.json()["code"]) == (409, "destination_exists")
    assert site.info(uuid)["status"] == "ARCHIVED"
    answer = site.ask("POST", f"async/activate/{uuid}", json={"machine": "cirrus", "dest": "back/b"})
    assert site.wait(answer.text)["status"] == "COMPLETE"
    row = site.info(uuid)
    assert (row["machine"], row["path"], row["filename"], row["status"]) == ("cirrus", "back", "b", "ACTIVE")
    assert site.read("cirrus", "back/b") == first
    assert site.read("archer2", "place/a") == second
    assert site.info(other)["status"] == "ACTIVE"


def test_a_kept_source_is_accepted_when_the_object_comes_back(site: Site) -> None:
    data = some_bytes(5000)
    uuid = site.register("localhost", "kept/a", data)
    answer = site.ask("POST", f"archive/{uuid}", data={"keep_source": "true", "compress": "zstd"})
    assert answer.status_code == 200, answer.text
    assert (site.info(uuid)["status"], site.read("localhost", "kept/a")) == ("ARCHIVED", data)
    assert bundle_of(site, uuid).name.endswith(".tar.zst")
    answer = site.ask("POST", f"activate/{uuid}")
    assert answer.status_code == 200, answer.text
    assert (site.info(uuid)["status"], site.read("localhost", "kept/a")) == ("ACTIVE", data)


@pytest.mark.slow
@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_many_objects_with_hostile_names_become_bundles(site: Site, compress: str) -> None:
    folder = f"many-{compress}"
    files = {f"d{i % 5}/f{i}.dat": some_bytes(i * 150) for i in range(190)}
    files |= {f"odd/{name}": some_bytes(100 + i) for i, name in enumerate(NAMES)}
    files |= {"empty": b"", "large.bin": some_bytes(BUNDLE_SIZE * 2)}
    for path, data in files.items():
        site.write("archer2", f"{folder}/{path}", data)
    objects = {
        f"{one['path']}/{one['filename']}": one["uuid"] for one in register_tree(site, "archer2", folder)["objects"]
    }
    body: dict[str, Any] = {"items": list(objects.values()), "compress": compress, "verify": "paranoid"}
    task, status = run(site, "archive", body)
    assert status["status"] == "COMPLETE", (status, items(site, task)[:3])
    assert status["items"] == {"total": len(files), "complete": len(files), "skipped": 0, "error": 0, "queued": 0}
    assert not [path for path in files if site.exists("archer2", f"{folder}/{path}")]
    used = {bundle_of(site, uuid) for uuid in objects.values()}
    assert len(used) > 3
    assert len({bundle_of(site, objects[f"{folder}/{name}"]) for name in ("large.bin", "empty")}) == 2
    _, again = run(site, "archive", body)
    assert (again["status"], again["items"]["skipped"]) == ("COMPLETE", len(files))
    # half of it to where it was, half of it elsewhere
    uuids = list(objects.values())
    wanted = [uuid if i % 2 else {"uuid": uuid, "machine": "cirrus"} for i, uuid in enumerate(uuids)]
    task, status = run(site, "activate", {"items": wanted})
    assert status["status"] == "COMPLETE", (status, items(site, task)[:3])
    for i, (place, uuid) in enumerate(objects.items()):
        assert site.read("archer2" if i % 2 else "cirrus", place) == files[place.removeprefix(f"{folder}/")]
        row = site.info(uuid)
        assert (row["status"], row["machine"]) == ("ACTIVE", "archer2" if i % 2 else "cirrus")
    eventually(lambda: not any(bundle.exists() for bundle in used), "no bundle is left")
    assert not site.leftovers()


def test_a_damaged_bundle_costs_the_damaged_members_alone(site: Site) -> None:
    data = {f"damaged/{i}": some_bytes(20_000) for i in range(5)}
    uuids = [site.register("archer2", path, content) for path, content in data.items()]
    _, status = run(site, "archive", {"items": uuids})
    assert status["status"] == "COMPLETE", status
    (bundle,) = {bundle_of(site, uuid) for uuid in uuids}
    raw = bytearray(bundle.read_bytes())
    raw[bytes(raw).index(data["damaged/2"]) + 10_000] ^= 1
    bundle.write_bytes(raw)
    task, status = run(site, "activate", {"items": uuids})
    assert (status["status"], status["error"]["code"]) == ("ERROR", "items_failed")
    assert [(one["error"] or {}).get("code") for one in items(site, task)] == [
        *(None, None, "checksum_mismatch", None, None)
    ]
    assert not site.exists("archer2", "damaged/2")
    for i in (0, 1, 3, 4):
        assert site.read("archer2", f"damaged/{i}") == data[f"damaged/{i}"]
    alone = site.ask("POST", f"activate/{uuids[2]}")
    assert (alone.status_code, alone.json()["code"]) == (502, "checksum_mismatch")
    assert site.info(uuids[2])["status"] == "ARCHIVED"
    assert bundle.exists()


def test_an_archived_object_is_deleted_once(site: Site) -> None:
    uuids = [site.register("cirrus", f"deleted/{i}", some_bytes(100 + i)) for i in range(2)]
    _, status = run(site, "archive", {"items": uuids})
    assert status["status"] == "COMPLETE", status
    bundle = bundle_of(site, uuids[0])
    answer = site.ask("DELETE", f"delete/{uuids[0]}")
    assert (answer.status_code, answer.text) == (200, "cirrus:deleted/0 deleted"), answer.text
    assert site.ask("DELETE", f"delete/{uuids[0]}").status_code == 410
    assert site.ask("POST", f"activate/{uuids[0]}").status_code == 410
    assert bundle.exists()
    assert site.ask("DELETE", f"delete/{uuids[1]}").status_code == 200
    eventually(lambda: not bundle.exists(), "the bundle is gone")
    assert [site.info(uuid)["status"] for uuid in uuids] == ["DELETED", "DELETED"]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS))
def test_a_mover_killed_at_any_moment_loses_nothing(site: Site, seed: int) -> None:
    chance = random.Random(seed)
    data = {f"killed{seed}/{i}": some_bytes(300_000) for i in range(40)}
    uuids = [site.register("archer2", path, content) for path, content in data.items()]

    def killed_in(task: str, most: float) -> None:
        time.sleep(chance.uniform(0, most))
        site.service.kill_mover()
        for uuid, (path, content) in zip(uuids, data.items(), strict=True):
            if site.info(uuid)["status"] == "ACTIVE":
                assert site.read("archer2", path) == content
        site.service.start_movers()
        status = site.wait(task)
        assert status["status"] == "COMPLETE", status

    killed_in(site.ask("POST", "async/archive", json={"items": uuids}).text, 4.0)
    assert {site.info(uuid)["status"] for uuid in uuids} == {"ARCHIVED"}
    assert not any(site.exists("archer2", path) for path in data)
    killed_in(site.ask("POST", "async/activate", json={"items": uuids}).text, 3.0)
    assert {path: site.read("archer2", path) for path in data} == data
    eventually(lambda: not site.leftovers(), "no partial file is left")


def test_a_bundle_on_tape_is_asked_for_and_waited_for(site: Site) -> None:
    data = {"tape/a": some_bytes(4000), "tape/b": some_bytes(500)}
    asked, other = (site.register("archer2", path, content) for path, content in data.items())
    for uuid, archive in ((asked, "vault"), (other, "tape")):
        answer = site.ask("POST", f"archive/{uuid}", data={"archive_to": archive})
        assert answer.status_code == 200, answer.text
    bundle = bundle_of(site, asked)
    task = site.ask("POST", "async/activate", json={"items": [asked, other]}).text
    eventually(lambda: site.status(task)["phase"] == "staging", "it waits for the tape")
    status = site.status(task)
    assert status["faults"] == []
    assert Path(f"{bundle}.asked").exists()
    assert site.info(other)["status"] == "ACTIVE"  # it was not on tape
    assert site.info(asked)["status"] == "ARCHIVED"
    Path(f"{bundle}.online").touch()
    assert site.wait(task)["status"] == "COMPLETE"
    assert site.read("archer2", "tape/a") == data["tape/a"]


def test_who_waits_for_a_tape_can_be_stopped(site: Site) -> None:
    uuid = site.register("archer2", "tape/c", b"never mind")
    assert site.ask("POST", f"archive/{uuid}", data={"archive_to": "vault"}).status_code == 200
    task = site.ask("POST", f"async/activate/{uuid}").text
    eventually(lambda: site.status(task)["phase"] == "staging", "it waits for the tape")
    assert site.ask("DELETE", f"async/status/{task}").status_code in (200, 202)
    assert site.wait(task)["error"]["code"] == "cancelled"
    assert site.info(uuid)["status"] == "ARCHIVED"
