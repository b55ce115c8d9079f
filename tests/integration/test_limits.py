"""Limits of machines: how many transfers movers hold at once, what stands above machines.toml, and bytes that wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Barrier
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, select, update

from datamanager.domain.limits import NO_LIMIT, Limits
from datamanager.domain.states import TransferStatus
from datamanager.engine.control import Control
from datamanager.engine.single import transfer as stream
from datamanager.engine.single.probe import probe
from datamanager.engine.throttle import BURST, Throttles
from datamanager.errors import NoSpace, TaskEnded, TaskNotFound
from datamanager.machines import Machine, Machines, TransportKind, parse_machines
from models.access.visibility import ALL
from models.core import leases
from models.core.listen import RESUMED, Listener
from models.database import Database
from models.machines import limits
from models.tables import Transfer
from models.transfers import outcomes, queue
from models.transfers.queue import TransferLease
from tests.support.bookkeeping import LEASE, begin, get_transfer, order, register, submit
from tests.support.ends import Ends

pytestmark = pytest.mark.dialect

MB = 10**6
CONFIGURED: Machines = parse_machines(
    """
    [machines.alpha]
    transport = "local"
    base_dir = "/data/alpha"
    [machines.beta]
    transport = "local"
    base_dir = "/data/beta"
    bandwidth = "90MB/s"
    max_transfers = 3
    """,
    "machines.toml",
)


def take(database: Database, limit: int = 100, *, owner: str = "mover-1", **caps: int) -> list[TransferLease]:
    with database.write() as session:
        return queue.take(session, owner, LEASE, limit, caps=caps)


def waiting(database: Database, **caps: int) -> bool:
    with database.read() as session:
        return queue.waiting(session, caps)


def fetch(database: Database, name: str, machine: str = "beta") -> UUID:
    """Submit a download to a machine."""
    return submit(database, order("getexternal", dest=name, machine=machine))


def end(database: Database, hold: TransferLease) -> None:
    with database.write() as session:
        queue.begin(session, hold, uuid4())
        outcomes.fail(session, hold, NoSpace("full"))


def taken(holds: list[TransferLease]) -> list[UUID]:
    return [hold.transfer for hold in holds]


def test_what_finds_its_machine_full_waits_untouched_and_hinders_no_other(database: Database) -> None:
    full = [fetch(database, f"full/{i}") for i in range(5)]
    free = [fetch(database, f"free/{i}", "alpha") for i in range(3)]
    holds = take(database, 4, beta=2)
    assert sorted(taken(holds)) == sorted([*full[:2], *free[:2]])  # each machine's oldest, past those of the full one
    assert taken(take(database, beta=2)) == free[2:]
    assert take(database, beta=2) == []
    assert not waiting(database, beta=2)
    for transfer in full[2:]:
        row = get_transfer(database, transfer)
        assert (row.status, row.attempts, row.epoch, row.owner, row.faults) == ("QUEUED", 0, 0, None, [])
    end(database, next(hold for hold in holds if hold.transfer == full[0]))
    assert waiting(database, beta=2)
    assert taken(take(database, beta=2)) == [full[2]]
    assert not waiting(database, beta=2)
    assert taken(take(database, beta=3)) == [full[3]]
    assert waiting(database)
    assert taken(take(database)) == [full[4]]
    assert not waiting(database)


def test_a_transfer_counts_at_both_of_its_ends_and_once_within_a_machine(database: Database) -> None:
    within = submit(database, order("copy", register(database, "a"), "copy-of-a", "alpha"))
    between = submit(database, order("copy", register(database, "b"), "b"))
    into = fetch(database, "c")
    away = submit(database, order("delete", register(database, "d")))
    assert taken(take(database, alpha=0, beta=1)) == [into]
    assert not waiting(database, alpha=0, beta=1)
    assert taken(take(database, alpha=1, beta=1)) == [away]
    assert taken(take(database, alpha=2, beta=1)) == [within]
    assert not waiting(database, alpha=3, beta=1)
    assert not waiting(database, alpha=2, beta=2)
    assert taken(take(database, alpha=3, beta=2)) == [between]
    assert not waiting(database)


@pytest.mark.parametrize("given_back", ["requeued", "reaped", "begun"])
def test_who_counts(database: Database, given_back: str) -> None:
    first, second = fetch(database, "first"), fetch(database, "second")
    (hold,) = take(database, 1, beta=1)
    with database.write() as session:
        if given_back == "requeued":
            queue.requeue(session, hold)
        elif given_back == "reaped":
            queue.renew(session, [hold], -LEASE)
            queue.reap(session)
        else:
            queue.begin(session, hold, uuid4())
    assert taken(take(database, beta=1)) == ([] if given_back == "begun" else [first])
    assert get_transfer(database, second).owner is None


def test_one_named_transfer_waits_for_its_machine_too(database: Database) -> None:
    first, second = fetch(database, "first"), fetch(database, "second")
    (hold,) = take(database, 1, beta=1)
    assert hold.transfer == first

    def named() -> list[TransferLease]:
        with database.write() as session:
            return queue.take(session, "mover-1", LEASE, 1, only=second, caps={"beta": 1})

    assert named() == []
    end(database, hold)
    assert taken(named()) == [second]


def test_movers_that_take_at_once_never_exceed_a_limit(database: Database) -> None:
    wanted = {fetch(database, f"in/{i}") for i in range(40)} | {fetch(database, f"in/{i}", "alpha") for i in range(20)}
    start = Barrier(6)
    ended: list[UUID] = []
    most: Counter[str | None] = Counter()

    def held() -> Counter[str | None]:
        with database.read() as session:
            return Counter(session.scalars(select(Transfer.destination_machine).where(Transfer.owner.is_not(None))))

    def mover(name: str) -> None:
        start.wait()
        while len(ended) < len(wanted):
            holds = take(database, 4, owner=name, beta=3, alpha=2)
            most.update({machine: max(0, count - most[machine]) for machine, count in held().items()})
            for hold in holds:
                end(database, hold)
                ended.append(hold.transfer)

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(mover, f"mover-{i}") for i in range(6)]:
            done.result(60)
    assert sorted(ended) == sorted(wanted)  # each once, and none left behind
    assert set(most) == {"alpha", "beta"}
    assert most["beta"] <= 3
    assert most["alpha"] <= 2


def test_two_movers_at_one_free_place(database: Database) -> None:
    for i in range(10):
        fetch(database, f"in/{i}")
    holds: list[TransferLease] = []
    for turn in range(5):
        start = Barrier(4)

        def taker(name: str, turn: int = turn, start: Barrier = start) -> list[TransferLease]:
            start.wait()
            return take(database, owner=name, beta=turn + 1)

        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(taker, "abcd"):
                holds += found
        assert len(holds) == turn + 1


def test_thousands_that_wait_for_a_full_machine_cost_no_statement(database: Database) -> None:
    fetch(database, "first")
    (held,) = take(database, beta=1)
    with database.write() as session:
        template = session.get_one(Transfer, held.transfer)
        attributes = [one for one in Transfer.__mapper__.column_attrs if one.columns[0].computed is None]
        columns = {attribute.key: getattr(template, attribute.key) for attribute in attributes}
        rest = {"owner": None, "lease_until": None, "epoch": 0, "attempts": 0}
        session.bulk_insert_mappings(Transfer.__mapper__, [{**columns, **rest, "id": uuid4()} for _ in range(3000)])
    other = fetch(database, "other", "alpha")
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        statements.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    assert taken(take(database, 10, beta=1)) == [other]
    event.remove(database.engine, "before_cursor_execute", note)
    # what is held, which pairs of machines wait, two looks at the pair of the other, and its row: however many wait
    assert len([text for text in statements if "FROM transfers" in text]) == 5


def test_other_movers_hear_of_an_end_and_of_a_change(database: Database) -> None:
    said: Queue[str] = Queue()

    def until(message: str) -> None:
        while said.get(timeout=60) != message:
            pass

    ears = Listener(database, said.put)
    try:
        if database.is_postgresql:
            until(RESUMED)
        transfer = fetch(database, "f")
        end(database, take(database, beta=1)[0])
        change(database, "beta", max_transfers=2)
        if database.is_postgresql:
            until(f"ended:{transfer}")
            until(limits.CHANGED)
        else:
            assert said.empty()  # those of one host look each second
    finally:
        ears.close()


def in_force(database: Database) -> dict[str, tuple[int | None, int | None]]:
    with database.read() as session:
        found = limits.current(session, CONFIGURED)
    return {name: (limit.bandwidth, limit.max_transfers) for name, limit in found.items()}


def change(database: Database, name: str, bandwidth: int | None = None, max_transfers: int | None = None) -> Limits:
    with database.write() as session:
        return limits.change(session, CONFIGURED[name], bandwidth=bandwidth, max_transfers=max_transfers)


def test_what_is_changed_stands_above_the_configuration_until_it_is_set_back(database: Database) -> None:
    assert in_force(database) == {"alpha": (None, None), "beta": (90 * MB, 3)}
    changed = change(database, "beta", bandwidth=5 * MB)
    assert (changed.bandwidth, changed.max_transfers) == (5 * MB, 3)
    assert changed.changed is not None
    change(database, "alpha", max_transfers=7)
    assert in_force(database) == {"alpha": (None, 7), "beta": (5 * MB, 3)}
    again = change(database, "beta", max_transfers=NO_LIMIT)
    assert again.changed is not None
    assert again.changed >= changed.changed
    assert in_force(database)["beta"] == (5 * MB, None)
    with database.read() as session:
        assert limits.caps(session, CONFIGURED) == {"alpha": 7}
    for _ in range(2):
        with database.write() as session:
            assert limits.reset(session, CONFIGURED["beta"]) == Limits(90 * MB, 3)
    assert in_force(database) == {"alpha": (None, 7), "beta": (90 * MB, 3)}


def test_changes_at_once_are_all_there(database: Database) -> None:
    start = Barrier(2)

    def at_once(act: Callable[[], object]) -> None:
        start.wait()
        act()

    with ThreadPoolExecutor(2) as pool:
        acts = [lambda: change(database, "beta", bandwidth=7), lambda: change(database, "beta", max_transfers=9)]
        list(pool.map(at_once, acts))
    assert in_force(database)["beta"] == (7, 9)


def test_movers_share_a_machines_bandwidth(database: Database) -> None:
    transfer = submit(database, order("copy", register(database, "a"), "b", bandwidth="2MB/s"))

    def pace() -> limits.TransferPace:
        with database.read() as session:
            row = session.get_one(Transfer, transfer)
            return limits.pace(session, CONFIGURED, transfer, limits.ends(row))

    assert pace() == limits.TransferPace(
        {"alpha": None, "beta": 90 * MB}, 2 * MB
    )  # nobody has said yet that he is there
    for i in range(3):
        with database.write() as session:
            leases.hold_lease(session, f"{leases.MOVER_PREFIX}{i}", str(i), LEASE)
        assert pace().machines == {"alpha": None, "beta": 90 * MB // (i + 1)}
    change(database, "beta", bandwidth=2)
    assert pace().machines["beta"] == 1  # never nothing
    with database.read() as session, pytest.raises(TaskNotFound):
        limits.pace(session, CONFIGURED, uuid4(), ["alpha"])


def test_a_transfers_own_limit_is_changed_until_it_ends(database: Database) -> None:
    transfer = submit(database, order("copy", register(database, "a"), "b", bandwidth=3 * MB))
    assert get_transfer(database, transfer).bandwidth == 3 * MB
    assert get_transfer(database, fetch(database, "c")).bandwidth is None
    hold = begin(database, transfer)
    for rate in (5, None):
        with database.write() as session:
            assert limits.change_transfer(session, transfer, rate, ALL).status == TransferStatus.RUNNING
        assert get_transfer(database, transfer).bandwidth == rate
    with database.write() as session:
        outcomes.fail(session, hold, NoSpace("full"))
    with pytest.raises(TaskEnded, match="ended in ERROR"), database.write() as session:
        limits.change_transfer(session, transfer, 7, ALL)
    assert get_transfer(database, transfer).bandwidth is None
    with pytest.raises(TaskNotFound), database.write() as session:
        limits.change_transfer(session, uuid4(), 7, ALL)


def test_the_longest_rate_can_be_stored(database: Database) -> None:
    transfer = fetch(database, "a")
    with database.write() as session:
        limits.change_transfer(session, transfer, 2**63 - 1, ALL)
        session.execute(update(Transfer).values(bytes_done=1))
    assert get_transfer(database, transfer).bandwidth == 2**63 - 1
    assert change(database, "beta", bandwidth=2**63 - 1).bandwidth == 2**63 - 1


@pytest.mark.parametrize(("destination", "own"), [("b:out", None), ("b:out", 2**18), ("a:out", None)])
def test_the_engine_moves_no_byte_past_the_limits(tmp_path: Path, destination: str, own: int | None) -> None:
    configured = {
        name: Machine(name=name, transport=TransportKind.LOCAL, base_dir=str(tmp_path / name)) for name in "ab"
    }
    for name in configured:
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "in").write_bytes(b"x" * (5 * BURST + 1))
    ends = Ends(configured, tmp_path / "run")
    now = 100.0
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        naps.append(seconds)

    throttles = Throttles(lambda: now, sleep)
    throttles.set("a", 2**20)
    job = ends.job("a:in", destination)
    control = Control(throttles.of(["a", job.target.machine.name], own))
    stream.send(job, probe(job), control)
    assert control.bytes_done == 5 * BURST + 1
    # a request's bucket is full at first, one that begins to be limited is empty; within a machine nothing is sent
    expected = 0 if destination == "a:out" else (5 * BURST + 1) / 2**20 if own is None else (4 * BURST + 1) / own
    assert sum(naps) == pytest.approx(expected)
    ends.storages.close()
