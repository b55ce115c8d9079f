"""Nothing that was accepted is lost while a part of the service is away, and nothing hangs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.prefect import PrefectServer
from tests.support.rabbitmq import RabbitMq
from tests.support.site import Site, eventually, make_site, some_bytes
from tests.support.sshd import PrivateSshd

own_site = pytest.mark.xdist_group("waiting")
"""Tests of one site, in their order."""


@pytest.fixture(scope="module")
def quiet_site(
    tmp_path_factory: pytest.TempPathFactory,
    private_sshd: tuple[PrivateSshd, PrivateSshd],
    prefect_api_url: str,
    rabbitmq: RabbitMq,
) -> Iterator[Site]:
    """A site with a broker whose mover does not run until a test starts it."""
    env = {"DM_PREFECT_API_URL": prefect_api_url, "DM_AMQP_URL": rabbitmq.fresh_vhost()}
    site = make_site(tmp_path_factory.mktemp("quiet"), env, private_sshd)
    service = site.service
    try:
        service.start_without_movers()
        yield site
    finally:
        service.stop()


@own_site
def test_tasks_sent_before_a_mover_ever_ran_are_done(quiet_site: Site) -> None:
    site = quiet_site
    assert not site.service.mover_pids(), "this test comes first"
    data = some_bytes(1000)
    source = site.register("archer2", "early/a.bin", data)
    tasks = [
        site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": f"early/{number}.bin"}).text
        for number in range(5)
    ]
    time.sleep(1)
    assert {site.status(task)["status"] for task in tasks} == {"QUEUED"}
    refused = site.ask("POST", f"copy/{source}", data={"machine": "cirrus", "dest": "early/sync.bin"})
    assert (refused.status_code, refused.json()["retryable"]) == (503, True)
    assert "retry-after" in refused.headers
    assert site.ask("GET", "health/ready").status_code == 503
    site.service.start_movers()
    assert {site.wait(task)["status"] for task in tasks} == {"COMPLETE"}
    assert site.read("cirrus", "early/4.bin") == data


@own_site
def test_with_the_broker_down_a_request_answers_at_once_and_runs(quiet_site: Site, rabbitmq: RabbitMq) -> None:
    site = quiet_site
    site.service.start_movers()
    site.service.wait_ready()
    source = site.register("archer2", "broker/a.bin", b"bytes")
    first = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "broker/0.bin"})
    assert site.wait(first.text)["status"] == "COMPLETE"  # warm
    rabbitmq.stop_app()
    try:
        began = time.monotonic()
        answer = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "broker/b.bin"})
        assert answer.status_code == 200
        assert time.monotonic() - began < 15  # the original hung for 20 s here
        assert site.wait(answer.text)["status"] == "COMPLETE"  # while the broker is away
        assert site.ask("GET", "health/ready").status_code == 200
    finally:
        rabbitmq.start_app()


@own_site
def test_a_machine_that_is_away_is_said_at_once_to_who_waits(
    quiet_site: Site, private_sshd: tuple[PrivateSshd, PrivateSshd]
) -> None:
    site = quiet_site
    site.service.start_movers()
    site.service.wait_ready()
    source = site.register("archer2", "away/a.bin", b"bytes")
    private_sshd[1].stop()
    try:
        answer = site.ask("POST", f"copy/{source}", data={"machine": "cirrus", "dest": "away/b.bin"})
        assert (answer.status_code, answer.json()["code"]) == (503, "machine_unavailable")
        assert "retry-after" in answer.headers
        task = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "away/c.bin"}).text
        eventually(lambda: site.status(task)["faults"], "it was tried")
    finally:
        private_sshd[1].start()
    assert site.wait(task)["status"] == "COMPLETE"  # it was tried again
    assert [fault["code"] for fault in site.status(task)["faults"]][:1] == ["machine_unavailable"]


@own_site
def test_a_delete_on_a_machine_that_is_away_is_refused_or_finishes_later(
    quiet_site: Site, private_sshd: tuple[PrivateSshd, PrivateSshd]
) -> None:
    site = quiet_site
    site.service.start_movers()
    site.service.wait_ready()
    doomed = site.register("cirrus", "away/d.bin", b"bytes")
    private_sshd[1].stop()
    try:
        refused = site.ask("DELETE", f"delete/{doomed}")
        assert (refused.status_code, refused.json()["code"]) == (503, "machine_unavailable")
        later = site.ask("DELETE", f"delete/{doomed}", headers={"Prefer": "respond-async"})
        assert later.status_code == 202
        assert site.info(doomed)["status"] == "ACTIVE"
    finally:
        private_sshd[1].start()
    assert site.wait(later.text)["status"] == "COMPLETE"
    assert site.info(doomed)["status"] == "DELETED"
    assert not site.exists("cirrus", "away/d.bin")


@pytest.mark.slow
def test_without_prefect_who_waits_hears_it_and_the_rest_waits(bare_site: Site, private_prefect: PrefectServer) -> None:
    site = bare_site
    site.service.use_movers()
    with site.service.moving():
        source = site.register("archer2", "away/p.bin", b"bytes")
        private_prefect.kill()
        try:
            eventually(
                lambda: site.ask("GET", "health/ready").json()["checks"]["movers"] == [], "the mover has noticed"
            )
            refused = site.ask("POST", f"copy/{source}", data={"machine": "cirrus", "dest": "away/q.bin"})
            assert (refused.status_code, refused.json()["code"]) == (503, "orchestrator_unavailable")
            assert "retry-after" in refused.headers
            task = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "away/q.bin"}).text
            time.sleep(3)
            assert site.status(task)["attempt"] == 0  # it waits, it is not taken and given back
        finally:
            private_prefect.start()
        assert site.wait(task)["status"] == "COMPLETE"
