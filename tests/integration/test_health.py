"""Machines' health in the catalogue: circuits that open and close, one probe at a time, drained machines."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update

from datamanager.errors import MachineUnavailable
from models.database import Database, now
from models.machines import health, limits
from models.machines.health import FAILURES, PAUSE, PAUSE_MAX, Health, Probe
from models.tables import MachineHealth, Transfer
from models.transfers import outcomes, queue
from models.transfers.queue import TransferLease
from tests.support.bookkeeping import LEASE, MACHINES, begin, get_transfer, order, register, submit

pytestmark = pytest.mark.dialect


def fail(database: Database, machine: str = "beta", times: int = 1) -> None:
    for _ in range(times):
        with database.write() as session:
            health.failed(session, machine)


def look(database: Database, machine: str = "beta") -> Health:
    with database.read() as session:
        return health.current(session).get(machine, health.WELL)


def take_probes(database: Database) -> list[Probe]:
    with database.write() as session:
        return health.take_probes(session, MACHINES)


def note(database: Database, probe: Probe, *, answered: bool) -> bool:
    with database.write() as session:
        return health.probed(session, probe, answered=answered)


def pass_time(database: Database) -> None:
    """Let every pause be over."""
    with database.write() as session:
        session.execute(update(MachineHealth).values(probe_at=now(session) - timedelta(seconds=1)))


def take(database: Database) -> list[TransferLease]:
    with database.write() as session:
        return queue.take(session, "mover-1", LEASE, 100, caps=limits.caps(session, MACHINES))


def taken(database: Database) -> list[UUID]:
    return [hold.transfer for hold in take(database)]


def seconds_to_probe(database: Database) -> float:
    with database.read() as session:
        row = session.get_one(MachineHealth, "beta")
        assert row.probe_at is not None
        return (row.probe_at - now(session)).total_seconds()


def test_failures_in_a_row_open_the_circuit_and_an_answer_closes_it(database: Database) -> None:
    assert look(database) == health.WELL
    fail(database, times=FAILURES - 1)
    assert look(database) == health.WELL
    fail(database)
    circuit = look(database).circuit
    assert circuit is not None
    assert circuit.failures == FAILURES
    assert circuit.opened <= circuit.until
    assert look(database, "alpha") == health.WELL
    pass_time(database)
    (probe,) = take_probes(database)
    assert note(database, probe, answered=True)
    assert look(database) == health.WELL
    fail(database, times=FAILURES - 1)
    assert look(database) == health.WELL  # they are counted from the start again


def test_a_machine_that_failed_once_is_probed_too_and_what_the_probe_finds_counts(database: Database) -> None:
    fail(database)
    assert take_probes(database) == []  # not yet
    for left in range(FAILURES - 1, 0, -1):
        assert look(database) == health.WELL, left
        pass_time(database)
        (probe,) = take_probes(database)
        assert note(database, probe, answered=False)
    assert look(database).circuit is not None


def test_pauses_double_up_to_a_limit(database: Database) -> None:
    fail(database, times=FAILURES)
    wanted = PAUSE
    for _ in range(9):
        assert 0.7 * wanted.total_seconds() < seconds_to_probe(database) < 1.3 * wanted.total_seconds()
        pass_time(database)
        (probe,) = take_probes(database)
        note(database, probe, answered=False)
        wanted = min(wanted * 2, PAUSE_MAX)
    opened = look(database).circuit
    fail(database, times=5)
    assert look(database).circuit == opened  # what was begun before it opened makes no pause longer


def test_one_mover_probes_at_a_time(database: Database) -> None:
    fail(database, times=FAILURES)
    pass_time(database)
    start = Barrier(4)

    def mover(_: int) -> list[Probe]:
        start.wait()
        return take_probes(database)

    with ThreadPoolExecutor(4) as pool:
        found = [probe for probes in pool.map(mover, range(4)) for probe in probes]
    assert [probe.machine for probe in found] == ["beta"]


def test_who_came_too_late_with_a_finding_changes_nothing(database: Database) -> None:
    fail(database, times=FAILURES)
    pass_time(database)
    (silent,) = take_probes(database)
    pass_time(database)
    (second,) = take_probes(database)
    before = look(database)
    for answered in (True, False):
        assert not note(database, silent, answered=answered)
        assert look(database) == before
    assert note(database, second, answered=True)
    assert look(database) == health.WELL


def test_a_machine_that_is_not_configured_any_more_is_not_probed(database: Database) -> None:
    fail(database, "gone", FAILURES)
    pass_time(database)
    assert take_probes(database) == []
    with database.read() as session:
        assert not health.probe_is_due(session, MACHINES)
        assert health.probe_is_due(session, ["gone"])


def test_transfers_of_a_machine_that_is_away_wait_untouched_and_hinder_no_other(database: Database) -> None:
    out = [submit(database, order("getexternal", dest=f"f{number}")) for number in range(5)]
    there = submit(database, order("copy", register(database, "a"), "a2", "alpha"))
    fail(database, times=FAILURES)
    assert taken(database) == [there]
    with database.read() as session:
        assert not queue.waiting(session, limits.caps(session, MACHINES))
    for transfer in out:
        row = get_transfer(database, transfer)
        assert (row.status, row.attempts, row.epoch, row.owner, row.faults) == ("QUEUED", 0, 0, None, [])
    pass_time(database)
    (probe,) = take_probes(database)
    note(database, probe, answered=True)
    assert taken(database) == out


def test_a_drained_machine_lets_what_runs_end_and_takes_nothing_new(database: Database) -> None:
    first = submit(database, order("getexternal", dest="first"))
    hold = begin(database, first)
    second = submit(database, order("getexternal", dest="second"))
    with database.write() as session:
        drained = health.drain(session, "beta").drained
    assert drained is not None
    with database.write() as session:
        assert health.drain(session, "beta").drained == drained  # since the first time
    assert taken(database) == []
    with database.write() as session:
        assert queue.renew(session, [hold], LEASE) == []
        outcomes.fail(session, hold, MachineUnavailable("away"))
    fail(database, times=FAILURES)
    with database.write() as session:
        assert health.undrain(session, "beta").drained is None
    assert taken(database) == []  # its circuit is open still
    pass_time(database)
    (probe,) = take_probes(database)
    note(database, probe, answered=True)
    assert taken(database) == [second]


def test_a_limit_that_is_set_does_not_open_a_drained_machine(database: Database) -> None:
    submit(database, order("getexternal", dest="f"))
    with database.write() as session:
        health.drain(session, "beta")
        limits.change(session, MACHINES["beta"], bandwidth=None, max_transfers=7)
    assert taken(database) == []


@pytest.mark.parametrize("why", ["drained", "away"])
def test_who_waits_for_an_answer_gets_it(database: Database, why: str) -> None:
    waited = submit(database, order("getexternal", dest="waited"))
    begun = submit(database, order("getexternal", dest="begun"))
    task = submit(database, order("getexternal", dest="task"))
    with database.write() as session:
        session.execute(update(Transfer).where(Transfer.id.in_([waited, begun])).values(fail_fast=True))
        (hold,) = queue.take(session, "mover-1", LEASE, 1, only=begun)
        queue.begin(session, hold, uuid4())
        queue.requeue(session, hold)  # its file may have its name already: the next attempt must look
    assert refuse(database) == []
    if why == "drained":
        with database.write() as session:
            health.drain(session, "beta")
    else:
        fail(database, times=FAILURES)
    assert refuse(database) == [waited]
    row = get_transfer(database, waited)
    assert (row.status, row.error_code) == ("ERROR", "machine_unavailable")
    assert row.error_detail is not None
    assert row.error_detail.startswith("beta: ")
    assert {get_transfer(database, other).status for other in (begun, task)} == {"QUEUED"}
    assert refuse(database) == []


def refuse(database: Database) -> list[UUID]:
    """Do it, and return whom it met; whether there is anything to do must agree."""
    with database.read() as session:
        expected = health.somebody_waits(session)
    with database.write() as session:
        found = [row.id for row in health.refuse_waiting(session, "mover-1", LEASE)]
    assert bool(found) == expected
    return found


def test_nothing_new_is_accepted_from_who_waits(database: Database) -> None:
    with database.read() as session:
        health.require_open(session, {"alpha", "beta"})
    fail(database, times=FAILURES)
    with database.read() as session:
        health.require_open(session, {"alpha"})
        with pytest.raises(MachineUnavailable, match="beta: "):
            health.require_open(session, {"alpha", "beta"})
