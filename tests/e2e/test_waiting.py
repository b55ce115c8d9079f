"""Nothing that was accepted is lost while a part of the service is away, and nothing hangs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import make_site
from tests.support.prefect import PrefectServer, answers
from tests.support.rabbitmq import RabbitMq
from tests.support.site import PATIENCE, Site, some_bytes
from tests.support.sshd import PrivateSshd


def until(true: Callable[[], object], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def quiet_site(
    tmp_path_factory: pytest.TempPathFactory,
    sshd_pair: tuple[PrivateSshd, PrivateSshd],
    prefect_api_url: str,
    rabbitmq: RabbitMq,
) -> Iterator[Site]:
    """A site with a broker whose mover does not run until a test starts it."""
    env = {"DM_PREFECT_API_URL": prefect_api_url, "DM_AMQP_URL": rabbitmq.fresh_vhost()}
    site = make_site(tmp_path_factory.mktemp("quiet"), env, sshd_pair)
    service = site.service
    service.run("db", "upgrade")
    service.run("orchestrator.deploy")
    service.api.start()
    service.api.wait_until(lambda: answers(site.url("health/live")), PATIENCE)
    yield site
    service.stop()


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


def test_a_machine_that_is_away_is_said_at_once_to_who_waits(
    quiet_site: Site, sshd_pair: tuple[PrivateSshd, PrivateSshd]
) -> None:
    site = quiet_site
    site.service.start_movers()
    site.service.wait_ready()
    source = site.register("archer2", "away/a.bin", b"bytes")
    sshd_pair[1].stop()
    try:
        answer = site.ask("POST", f"copy/{source}", data={"machine": "cirrus", "dest": "away/b.bin"})
        assert (answer.status_code, answer.json()["code"]) == (503, "machine_unavailable")
        assert "retry-after" in answer.headers
        task = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "away/c.bin"}).text
        until(lambda: site.status(task)["faults"], "it was tried")
    finally:
        sshd_pair[1].start()
    assert site.wait(task)["status"] == "COMPLETE"  # it was tried again
    assert [fault["code"] for fault in site.status(task)["faults"]][:1] == ["machine_unavailable"]


def test_a_delete_on_a_machine_that_is_away_is_refused_or_finishes_later(
    quiet_site: Site, sshd_pair: tuple[PrivateSshd, PrivateSshd]
) -> None:
    site = quiet_site
    site.service.start_movers()
    site.service.wait_ready()
    doomed = site.register("cirrus", "away/d.bin", b"bytes")
    sshd_pair[1].stop()
    try:
        refused = site.ask("DELETE", f"delete/{doomed}")
        assert (refused.status_code, refused.json()["code"]) == (503, "machine_unavailable")
        later = site.ask("DELETE", f"delete/{doomed}", headers={"Prefer": "respond-async"})
        assert later.status_code == 202
        assert site.info(doomed)["status"] == "ACTIVE"
    finally:
        sshd_pair[1].start()
    assert site.wait(later.text)["status"] == "COMPLETE"
    assert site.info(doomed)["status"] == "DELETED"
    assert not site.exists("cirrus", "away/d.bin")


@pytest.mark.slow
def test_without_prefect_who_waits_hears_it_and_the_rest_waits(
    tmp_path: Path, sshd_pair: tuple[PrivateSshd, PrivateSshd]
) -> None:
    with PrefectServer(tmp_path / "prefect") as prefect:
        site = make_site(tmp_path, {"DM_PREFECT_API_URL": prefect.api_url}, sshd_pair)
        with site.service:
            source = site.register("archer2", "away/p.bin", b"bytes")
            prefect.kill()
            until(lambda: site.ask("GET", "health/ready").json()["checks"]["movers"] == [], "the mover has noticed")
            refused = site.ask("POST", f"copy/{source}", data={"machine": "cirrus", "dest": "away/q.bin"})
            assert (refused.status_code, refused.json()["code"]) == (503, "orchestrator_unavailable")
            assert "retry-after" in refused.headers
            task = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "away/q.bin"}).text
            time.sleep(3)
            assert site.status(task)["attempt"] == 0  # it waits, it is not taken and given back
            prefect.start()
            assert site.wait(task)["status"] == "COMPLETE"
