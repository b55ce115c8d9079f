"""A machine that keeps neither modes nor times: what it does not keep is told by the task, its items and the object."""

from __future__ import annotations

import os

from tests.e2e.test_many import items, run
from tests.support.site import Site, some_bytes

LONG_AGO = 1_600_000_000


def registered(site: Site, path: str, data: bytes) -> str:
    """Register a file whose time no copy has by chance."""
    uuid = site.register("localhost", path, data)
    os.utime(site.folders["localhost"] / path, (LONG_AGO, LONG_AGO))
    return uuid


def test_what_a_machine_does_not_keep_is_told_and_forgotten_elsewhere(open_site: Site) -> None:
    site, data = open_site, some_bytes(100_000)
    original = registered(site, "kept/june.nc", data)
    answer = site.ask("POST", f"async/copy/{original}", json={"machine": "box", "dest": "kept/june.nc"})
    assert answer.status_code == 200, answer.text
    status = site.wait(answer.text)
    assert (status["status"], status["not_kept"]) == ("COMPLETE", ["mode", "mtime"]), status
    copy = status["result"]
    assert site.read("box", "kept/june.nc") == data
    assert site.info(copy)["not_kept"] == ["mode", "mtime"]
    assert "not_kept" not in site.info(original)
    answer = site.ask("POST", f"async/move/{copy}", json={"machine": "localhost", "dest": "kept/back.nc"})
    assert "not_kept" not in site.wait(answer.text)
    assert "not_kept" not in site.info(copy)


def test_items_of_a_batch_tell_it_each(open_site: Site) -> None:
    site = open_site
    wanted = [registered(site, f"many/{number}", some_bytes(1000 + number)) for number in range(3)]
    body = {"items": [{"uuid": one, "machine": "box", "dest": f"many/{n}"} for n, one in enumerate(wanted)]}
    task, status = run(site, "copy", body)
    assert status["status"] == "COMPLETE", status
    found = items(site, task)
    assert [one["not_kept"] for one in found] == [["mode", "mtime"]] * 3
    assert [site.info(one["result"])["not_kept"] for one in found] == [["mode", "mtime"]] * 3
