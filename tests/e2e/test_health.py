"""Machines that go away under a running service: their transfers wait, cost no attempt, and hinder nobody."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support.site import Site, eventually, some_bytes
from tests.support.sshd import PrivateSshd


def machine(site: Site, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = site.ask("GET", "machines").json()
    return next(item for item in found if item["name"] == name)


def start(site: Site, source: str, dest: str, to: str = "cirrus") -> str:
    answer = site.ask("POST", f"async/copy/{source}", data={"machine": to, "dest": dest})
    assert answer.status_code == 200, answer.text
    return answer.text


@pytest.mark.slow
def test_transfers_wait_for_a_machine_that_is_away(
    bare_site: Site, private_sshd: tuple[PrivateSshd, PrivateSshd]
) -> None:
    site = bare_site
    site.service.use_movers(2)
    with site.service.moving():
        data = some_bytes(1000)
        source = site.register("archer2", "health/a.bin", data)
        batch_sources = [site.register("archer2", f"health/many/{number}.bin", data) for number in range(3)]
        private_sshd[1].stop()
        try:
            tasks = [start(site, source, f"health/{number}.bin") for number in range(6)]
            items = [{"uuid": one, "dest": f"health/batch/{number}"} for number, one in enumerate(batch_sources)]
            batch = site.ask("POST", "async/copy", json={"machine": "cirrus", "items": items}).text
            eventually(lambda: machine(site, "cirrus")["circuit"], "the circuit opened")
            assert machine(site, "archer2")["circuit"] is None
            eventually(lambda: {site.status(task)["status"] for task in [*tasks, batch]} == {"QUEUED"}, "they wait")
            late = start(site, source, "health/late.bin")
            refused = site.ask("POST", f"copy/{source}", data={"machine": "cirrus", "dest": "health/sync.bin"})
            assert (refused.status_code, refused.json()["code"]) == (503, "machine_unavailable")
            assert site.wait(start(site, source, "health/b.bin", "localhost"))["status"] == "COMPLETE"
            assert (site.status(late)["attempt"], site.status(late)["faults"]) == (0, [])
            assert {site.status(task)["attempt"] for task in tasks} == {0}  # those that were tried did not count
            for mover in site.service.movers:
                mover.kill()
            site.service.start_movers()  # what is known of machines outlives them
            assert machine(site, "cirrus")["circuit"] is not None
        finally:
            private_sshd[1].start()
        for task in [*tasks, late, batch]:
            status = site.wait(task)
            assert (status["status"], status["attempt"]) == ("COMPLETE", 1), status
        assert site.status(batch)["items"]["complete"] == 3
        assert {fault["code"] for task in tasks for fault in site.status(task)["faults"]} == {"machine_unavailable"}
        assert machine(site, "cirrus")["circuit"] is None
        assert site.read("cirrus", "health/late.bin") == site.read("cirrus", "health/batch/2") == data


def test_a_drained_machine_gets_nothing_new(site: Site) -> None:
    source = site.register("archer2", "drain/a.bin", b"bytes")
    assert site.ask("POST", "machines/cirrus/drain").status_code == 200
    try:
        task = start(site, source, "drain/b.bin")
        assert site.ask("POST", f"copy/{source}", data={"machine": "cirrus", "dest": "drain/c.bin"}).status_code == 503
        assert site.wait(start(site, source, "drain/d.bin", "localhost"))["status"] == "COMPLETE"
        time.sleep(3)
        assert (site.status(task)["status"], site.status(task)["attempt"]) == ("QUEUED", 0)
    finally:
        assert site.ask("POST", "machines/cirrus/undrain").status_code == 200
    assert site.wait(task)["status"] == "COMPLETE"
