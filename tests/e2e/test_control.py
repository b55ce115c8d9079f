"""Cancel, pause, resume, deadlines and priorities with a real mover, Prefect and SSH servers.

Stops are proved by what happened, not by how long it took: a machine's `stall_timeout` is longer than a test may take,
so a transfer that waits for a frozen machine ends only because it was stopped.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, update

from models.access.tokens import withdraw_person
from models.database import Database
from models.tables import OutboxMessage, Transfer
from tests.support.access import in_role
from tests.support.prefect import PrefectApi
from tests.support.process import signal_each
from tests.support.proxy import Proxy
from tests.support.site import Site, eventually, make_site, sha256, some_bytes
from tests.support.sshd import PrivateSshd

MB = 10**6
STALL = 600
"""Seconds: longer than anything here waits."""
SLOW = "1MB/s"
"""So that there is time to do something to a transfer before it has ended, also on a busy machine."""
RESTARTABLE = 96 * MB
"""Bytes of a file that is gone on with, and not begun anew."""

pytestmark = pytest.mark.xdist_group("control")  # a site of its own, whose SSH servers are frozen and cut off
one_way = pytest.mark.parametrize("site", ["openssh"], indirect=True)
"""What is tried does not depend on how a machine is reached."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PrivateSshd, PrivateSshd]]:
    """Two SSH servers of this module's own: they are frozen."""
    folder = tmp_path_factory.mktemp("sshd")
    with PrivateSshd(folder / "sshd1") as first, PrivateSshd(folder / "sshd2") as second:
        yield first, second


@pytest.fixture(scope="module")
def proxy(servers: tuple[PrivateSshd, PrivateSshd]) -> Iterator[Proxy]:
    """The way to cirrus, which counts the bytes that go there."""
    with Proxy(servers[1].port) as proxy:
        yield proxy


@pytest.fixture(scope="module", params=["openssh", pytest.param("paramiko", marks=pytest.mark.slow)])
def site(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    servers: tuple[PrivateSshd, PrivateSshd],
    proxy: Proxy,
    prefect_api_url: str,
) -> Iterator[Site]:
    """A running site with one mover; cirrus is behind the proxy."""
    env = {"DM_PREFECT_API_URL": prefect_api_url, "DM_HEARTBEAT": "1", "DM_CONCURRENCY": "2"}
    keys = {"stall_timeout": STALL, "connection": request.param}
    site = make_site(tmp_path_factory.mktemp("control"), env, servers, **keys)
    machines = Path(site.service.env["DM_MACHINES"])
    near, far = servers[1].port, proxy.port
    machines.write_text(machines.read_text().replace(f"port = {near}", f"port = {far}"))
    known = servers[1].known_hosts
    known.write_text(servers[1].known_host_line() + servers[1].known_host_line().replace(f":{near} ", f":{far} "))
    with site.service:
        yield site


@pytest.fixture
def source(site: Site) -> tuple[str, bytes]:
    """An object on archer2 that takes seconds at SLOW, and its bytes."""
    data = some_bytes(40 * MB)
    return site.register("archer2", f"{time.monotonic_ns()}.bin", data), data


def copy(site: Site, source: str, dest: str, **fields: str) -> str:
    answer = site.ask("POST", f"async/copy/{source}", json={"machine": "cirrus", "dest": dest, **fields})
    assert answer.status_code == 200, answer.text
    return answer.text


def moving(site: Site, task: str, least: int = 1) -> dict[str, Any]:
    """Wait until at least so many bytes have moved; return the status."""

    def look() -> dict[str, Any] | None:
        status = site.status(task)
        assert status["ended"] is None, status
        return status if status["status"] == "RUNNING" and status["bytes_done"] >= least else None

    found: dict[str, Any] = eventually(look, "bytes move")
    return found


def told(site: Site, task: str) -> list[str]:
    """Return the events of a task in the order of their sequence."""
    database = Database(f"sqlite+pysqlite:///{site.service.home / 'catalogue.db'}")
    try:
        with database.read() as session:
            rows = session.scalars(select(OutboxMessage).where(OutboxMessage.exchange == "dm.events"))
            mine = [row.body for row in rows if row.body["subject"] == task]
    finally:
        database.close()
    return [body["type"].rpartition(".")[2] for body in sorted(mine, key=lambda body: body["sequence"])]


def wait_clean(site: Site) -> None:
    eventually(lambda: not site.leftovers(), f"no partial file is left: {site.leftovers()}")


# --- cancel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["copy", "move"])
def test_cancelled_while_bytes_move(site: Site, source: tuple[str, bytes], prefect: PrefectApi, kind: str) -> None:
    uuid, data = source
    place = {"machine": "cirrus", "dest": f"cancel/{kind}.bin", "bandwidth": SLOW}
    task = site.ask("POST", f"async/{kind}/{uuid}", json=place).text
    status = moving(site, task)
    assert site.leftovers()
    answer = site.ask("DELETE", f"async/status/{task}")
    assert (answer.status_code, answer.json()["status"]) == (202, "RUNNING")
    end = site.wait(task)
    assert (end["status"], end["error"]["code"], end["attempt"]) == ("ERROR", "cancelled", 1)
    assert end["bytes_done"] < len(data)
    assert not site.leftovers()
    info = site.info(uuid)
    assert (info["machine"], info["status"]) == ("archer2", "ACTIVE")
    assert site.read("archer2", info["filename"]) == data
    assert not site.exists("cirrus", f"cancel/{kind}.bin")
    assert told(site, task) == ["queued", "running", "error"]
    run = status["flow_run_id"]
    eventually(lambda: prefect.get(f"flow_runs/{run}")["state_type"] == "CANCELLED", "Prefect shows it")
    assert site.wait(copy(site, uuid, f"cancel/{kind}.bin"))["status"] == "COMPLETE"  # its place is free


@one_way
def test_withdrawn_person_while_bytes_move_and_while_they_wait(
    site: Site, source: tuple[str, bytes], prefect: PrefectApi
) -> None:
    """What runs is asked again with every sixth heartbeat, and what waits when it is taken."""
    uuid, data = source
    running = copy(site, uuid, "withdrawn/a.bin", bandwidth=SLOW)
    waiting = copy(site, uuid, "withdrawn/b.bin", not_before="PT1H")
    moving(site, running)
    assert site.ask("POST", f"async/{waiting}/pause").status_code == 200
    grant = in_role("mover", person="ann@example.org")
    database = Database(f"sqlite+pysqlite:///{site.service.home / 'catalogue.db'}")
    with database.write() as session:
        theirs = update(Transfer).where(Transfer.id.in_([UUID(running), UUID(waiting)]))
        session.execute(theirs.values(grant=grant.to_json(), created_by=grant.person, not_before=None))
        withdraw_person(session, grant.person, None)
    database.close()
    assert site.ask("POST", f"async/{waiting}/resume").status_code == 200
    ended = site.wait(waiting)
    assert (ended["status"], ended["error"]["code"], ended["started"]) == ("ERROR", "not_allowed", None)
    assert (ended["bytes_done"], ended["flow_run_id"]) == (0, None)
    ended = site.wait(running)
    assert (ended["status"], ended["error"]["code"], ended["attempt"]) == ("ERROR", "not_allowed", 1)
    assert ended["bytes_done"] < len(data)
    assert not site.leftovers()
    assert not site.exists("cirrus", "withdrawn/a.bin")
    assert site.info(uuid)["status"] == "ACTIVE"
    run = ended["flow_run_id"]
    eventually(lambda: prefect.get(f"flow_runs/{run}")["state_type"] == "FAILED", "Prefect shows it")
    assert site.wait(copy(site, uuid, "withdrawn/a.bin"))["status"] == "COMPLETE"  # its place is free


@pytest.mark.slow
@pytest.mark.parametrize("end", ["archer2", "cirrus"])
def test_cancelled_while_a_machine_is_frozen(
    site: Site, source: tuple[str, bytes], servers: tuple[PrivateSshd, PrivateSshd], end: str
) -> None:
    uuid, _ = source
    task = copy(site, uuid, f"frozen/{end}.bin", bandwidth=SLOW)
    moving(site, task)
    frozen = servers[0 if end == "archer2" else 1].descendants()
    signal_each(frozen, signal.SIGSTOP)
    try:
        done = -1
        while done != (done := site.status(task)["bytes_done"]):
            time.sleep(1.5)  # until what was under way has been used up
        assert site.ask("DELETE", f"async/status/{task}").status_code == 202
        status = site.wait(task)
    finally:
        signal_each(frozen, signal.SIGCONT)
    assert (status["status"], status["error"]["code"]) == ("ERROR", "cancelled")
    wait_clean(site)
    assert site.wait(copy(site, uuid, f"frozen/{end}.bin"))["status"] == "COMPLETE"


def test_cancelled_between_two_tries(site: Site, source: tuple[str, bytes], proxy: Proxy) -> None:
    uuid, _ = source
    task = copy(site, uuid, "tries/a.bin", bandwidth=SLOW)
    moving(site, task)
    proxy.cut()
    eventually(lambda: site.status(task)["faults"], "a try has failed")
    site.ask("DELETE", f"async/status/{task}")
    status = site.wait(task)
    assert (status["status"], status["error"]["code"]) == ("ERROR", "cancelled")
    wait_clean(site)


@one_way
def test_cancelled_in_prefect(site: Site, source: tuple[str, bytes], prefect: PrefectApi) -> None:
    uuid, _ = source
    task = copy(site, uuid, "ui/a.bin", bandwidth=SLOW)
    run = moving(site, task)["flow_run_id"]
    prefect.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    status = site.wait(task)
    assert (status["status"], status["error"]["code"]) == ("ERROR", "cancelled")
    eventually(lambda: prefect.get(f"flow_runs/{run}")["state_type"] == "CANCELLED", "Prefect shows it")
    assert not site.leftovers()


@one_way
def test_a_batch_is_cancelled_with_all_its_items(site: Site) -> None:
    names = [f"batch/{number}.bin" for number in range(6)]
    sources = [site.register("archer2", name, some_bytes(10 * MB)) for name in names]
    items = [{"uuid": one, "dest": f"to/{name}"} for one, name in zip(sources, names, strict=True)]
    task = site.ask("POST", "async/copy", json={"machine": "cirrus", "items": items, "bandwidth": SLOW}).text
    moving(site, task)
    assert site.ask("DELETE", f"async/status/{task}").status_code == 202
    status = site.wait(task)
    assert (status["status"], status["error"]["code"], status["items"]["queued"]) == ("ERROR", "cancelled", 0)
    wait_clean(site)
    there = [site.exists("cirrus", f"to/{name}") for name in names]
    listed = site.ask("GET", f"async/status/{task}/items").json()
    assert there == [item["status"] == "COMPLETE" for item in listed]


# --- pause -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_paused_and_resumed_where_it_was(site: Site, proxy: Proxy) -> None:
    pause_and_resume(site, proxy, killed=False)


@pytest.mark.slow
@one_way
def test_paused_and_resumed_by_another_mover(site: Site, proxy: Proxy) -> None:
    pause_and_resume(site, proxy, killed=True)


def pause_and_resume(site: Site, proxy: Proxy, *, killed: bool) -> None:
    data = some_bytes(2 * RESTARTABLE)
    uuid = site.register("archer2", f"pause/{killed}.bin", data)
    task = copy(site, uuid, f"paused/{killed}.bin", bandwidth="40MB/s")
    moving(site, task, RESTARTABLE)
    assert site.ask("POST", f"async/{task}/pause").status_code in (200, 202)
    status = eventually(lambda: (now := site.status(task))["paused"] and now, "it is paused")
    assert (status["status"], status["phase"], status["attempt"], status["faults"]) == ("QUEUED", "paused", 0, [])
    assert (status["bytes_per_second"], status["eta"]) == (None, None)
    assert len(site.leftovers()) == 1
    if killed:
        site.service.kill_mover()
        site.service.start_movers()
        site.service.wait_ready()
    other = site.register("archer2", f"pause/other-{killed}.bin", b"x")
    assert site.wait(copy(site, other, f"paused/other-{killed}.bin"))["status"] == "COMPLETE"  # movers take others
    assert site.status(task)["paused"]
    before = proxy.sent
    answer = site.ask("POST", f"async/{task}/resume")
    assert (answer.status_code, answer.json()["paused"]) == (200, False)
    end = site.wait(task)
    assert (end["status"], end["attempt"]) == ("COMPLETE", 1)
    assert site.read("cirrus", f"paused/{killed}.bin") == data
    assert site.info(end["result"])["checksum"] == sha256(data)
    assert proxy.sent - before < 0.9 * len(data)
    assert told(site, task) == ["queued", "running", "paused", "resumed", "running", "complete"]
    assert not site.leftovers()


@one_way
def test_paused_and_cancelled(site: Site, source: tuple[str, bytes]) -> None:
    uuid, _ = source
    task = copy(site, uuid, "pause/cancelled.bin", bandwidth=SLOW)
    moving(site, task)
    site.ask("POST", f"async/{task}/pause")
    eventually(lambda: site.status(task)["paused"], "it is paused")
    answer = site.ask("DELETE", f"async/status/{task}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (200, "cancelled")
    wait_clean(site)


# --- times and priorities --------------------------------------------------------------------------------------------


@one_way
def test_a_deadline_stops_what_runs(site: Site, source: tuple[str, bytes]) -> None:
    uuid, _ = source
    task = copy(site, uuid, "late/runs.bin", bandwidth=SLOW, deadline="PT12S")  # time to begin on a busy machine
    status = site.wait(task)
    assert (status["status"], status["error"]["code"], status["attempt"]) == ("ERROR", "deadline_exceeded", 1)
    assert 0 < status["bytes_done"] < 40 * MB
    assert datetime.fromisoformat(status["ended"]) >= datetime.fromisoformat(status["deadline"])
    wait_clean(site)
    assert site.info(uuid)["status"] == "ACTIVE"


@one_way
def test_a_deadline_ends_what_waits_without_moving_a_byte(site: Site, source: tuple[str, bytes], proxy: Proxy) -> None:
    uuid, _ = source
    paused = copy(site, uuid, "late/paused.bin", not_before="PT1H")
    waits = copy(site, uuid, "late/waits.bin", not_before="PT1H", deadline="PT1H1S")
    site.ask("POST", f"async/{paused}/pause")
    soon = (datetime.now(UTC) + timedelta(seconds=6)).isoformat()
    held = copy(site, uuid, "late/held.bin", deadline=soon, not_before="PT5S")
    site.ask("POST", f"async/{held}/pause")
    before = proxy.sent
    status = site.wait(held)
    assert (status["status"], status["error"]["code"]) == ("ERROR", "deadline_exceeded")
    assert (status["bytes_done"], status["attempt"], status["started"]) == (0, 0, None)
    assert proxy.sent - before < MB
    assert site.status(waits)["status"] == "QUEUED"
    for task in (paused, waits):
        assert site.ask("DELETE", f"async/status/{task}").status_code == 200


@one_way
def test_nothing_begins_before_its_time(site: Site, source: tuple[str, bytes]) -> None:
    uuid, _ = source
    task = copy(site, uuid, "early/a.bin", not_before="PT3S")
    status = site.wait(task)
    assert status["status"] == "COMPLETE"
    assert datetime.fromisoformat(status["started"]) >= datetime.fromisoformat(status["not_before"])


@one_way
def test_the_higher_priority_goes_first(site: Site, source: tuple[str, bytes]) -> None:
    uuid, _ = source
    full = [copy(site, uuid, f"priority/full-{number}.bin", bandwidth=SLOW) for number in range(2)]
    for task in full:
        moving(site, task)
    wanted = ["low", "normal", "high", "normal", "high", "low"]
    small = site.register("archer2", f"priority/{time.monotonic_ns()}.bin", b"small")
    tasks = {copy(site, small, f"priority/{n}.bin", priority=one): one for n, one in enumerate(wanted)}
    site.ask("DELETE", f"async/status/{full[0]}")  # one slot is free: they run one after the other
    ends = {task: site.wait(task) for task in tasks}
    assert {end["status"] for end in ends.values()} == {"COMPLETE"}
    order = sorted(tasks, key=lambda task: ends[task]["started"])
    assert [tasks[task] for task in order] == ["high", "high", "normal", "normal", "low", "low"]
    site.ask("DELETE", f"async/status/{full[1]}")
    site.wait(full[1])


@one_way
def test_a_status_says_how_fast_and_how_long(site: Site, source: tuple[str, bytes]) -> None:
    uuid, _ = source
    task = copy(site, uuid, "rate/a.bin", bandwidth="8MB/s", priority="low")
    moving(site, task)
    status = eventually(lambda: (now := site.status(task))["eta"] and now, "its end is in sight")
    assert 0 < status["bytes_per_second"] < 20 * MB
    assert datetime.fromisoformat(status["eta"]) > datetime.fromisoformat(status["started"])
    assert (status["priority"], status["bytes_total"]) == ("low", 40 * MB)
    end = site.wait(task)
    assert (end["status"], end["bytes_per_second"], end["eta"]) == ("COMPLETE", None, None)


@one_way
def test_a_cancel_at_any_moment_makes_one_end(site: Site) -> None:
    uuid = site.register("archer2", "races/a.bin", some_bytes(MB))
    for number in range(12):
        dest = f"races/{number}.bin"
        task = copy(site, uuid, dest)
        time.sleep(number * 0.05)
        site.ask("DELETE", f"async/status/{task}")
        status = site.wait(task)
        events = told(site, task)
        assert events.count("complete") + events.count("error") == 1
        assert site.exists("cirrus", dest) is (status["status"] == "COMPLETE")
        if status["status"] == "ERROR":
            assert status["error"]["code"] == "cancelled"
    wait_clean(site)
