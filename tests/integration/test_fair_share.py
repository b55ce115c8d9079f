"""Fair share: of one priority pairs of machines take turns, then their groups; whatever waits has its turn."""

from __future__ import annotations

import itertools
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, insert, select, update

from models.database import Database, now
from models.tables import Transfer, TransferTurn
from models.transfers import queue
from models.transfers.fair_share import PATIENCE
from tests.support.bookkeeping import LEASE

pytestmark = pytest.mark.dialect

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
_COUNT = itertools.count()


def enter(database: Database, *wanted: tuple[str, str, int], priority: str = "normal", **columns: Any) -> list[UUID]:
    """Queue transfers: so many from `alpha` to a machine, of a group, the first one the oldest. Return them in order.

    Their rows alone: thousands are requested in seconds.
    """
    rows = [
        {
            "id": uuid4(),
            "kind": "copy",
            "request": {},
            "source_machine": "alpha",
            "destination_machine": machine,
            "group": group,
            "priority": priority,
            "created": LONG_AGO + timedelta(milliseconds=next(_COUNT)),
            **columns,
        }
        for machine, group, count in wanted
        for _ in range(count)
    ]
    with database.write() as session:
        session.execute(insert(Transfer), rows)
    return [row["id"] for row in rows]


def take(database: Database, limit: int, **options: Any) -> list[UUID]:
    with database.write() as session:
        return [hold.transfer for hold in queue.take(session, "mover", LEASE, limit, **options)]


def end(database: Database, transfers: Iterable[UUID]) -> None:
    gone = list(transfers)
    with database.write() as session:
        ended = update(Transfer).where(Transfer.id.in_(gone))
        session.execute(ended.values(owner=None, lease_until=None, ended=now(session), status="COMPLETE"))


def groups(database: Database, transfers: list[UUID]) -> list[str]:
    """Return the group of each."""
    with database.read() as session:
        found = {row.id: row.group for row in session.execute(select(Transfer.id, Transfer.group))}
    return [found[one] for one in transfers]


def going_to(database: Database, machine: str, transfers: list[UUID]) -> list[UUID]:
    """Return those that go to a machine."""
    query = select(Transfer.id).where(Transfer.destination_machine == machine, Transfer.id.in_(transfers))
    with database.read() as session:
        return list(session.scalars(query))


def test_one_transfer_behind_1500_of_another_group_is_taken_next(database: Database) -> None:
    enter(database, ("beta", "many", 1500))
    running = take(database, 16)
    (single,) = enter(database, ("beta", "one", 1))
    end(database, running[:2])
    assert single in take(database, 2)


@pytest.mark.dialect("sqlite")
def test_two_machines_share_the_slots_whatever_waits_for_each(database: Database) -> None:
    enter(database, ("beta", "", 9000), ("gamma", "", 1000))
    for _ in range(5):
        running = take(database, 16)
        assert (len(going_to(database, "beta", running)), len(going_to(database, "gamma", running))) == (8, 8)
        end(database, running)


def test_pairs_count_first_then_their_groups(database: Database) -> None:
    enter(database, *((("beta", f"group-{n}", 50)) for n in range(10)), ("gamma", "group-0", 50))
    of_beta = going_to(database, "beta", take(database, 20))
    assert sorted(groups(database, of_beta)) == [f"group-{n}" for n in range(10)]


def test_one_group_of_a_pair_goes_in_the_order_of_its_requests(database: Database) -> None:
    first = enter(database, ("beta", "a", 5))
    second = enter(database, ("beta", "b", 3))
    third = enter(database, ("beta", "a", 2))
    taken = [one for _ in range(10) for one in take(database, 1)]
    assert [one for one in taken if one not in second] == [*first, *third]
    assert [one for one in taken if one in second] == second
    assert groups(database, taken) == ["a", "b", "a", "b", "a", "b", "a", "a", "a", "a"]


def test_a_pair_of_slow_machines_does_not_fill_the_slots(database: Database) -> None:
    slots = 16
    enter(database, ("slow", "", 50), ("fast", "", 300))
    held = take(database, slots)
    for _ in range(25):  # what goes to `slow` never ends
        fast = going_to(database, "fast", held)
        end(database, fast)
        held = [one for one in held if one not in fast]
        held += take(database, slots - len(held))
    assert len(going_to(database, "fast", held)) >= slots // 4


def test_who_holds_more_than_others_has_a_turn_too(database: Database) -> None:
    enter(database, ("slow", "", 3), ("fast", "", PATIENCE + 10))
    assert len(going_to(database, "slow", take(database, 2))) == 1
    turns = 0
    while not going_to(database, "slow", taken := take(database, 1)):
        end(database, taken)
        turns += 1
    assert turns <= PATIENCE + 1


def test_a_stream_of_new_groups_keeps_no_old_one_waiting(database: Database) -> None:
    (old,) = enter(database, ("beta", "a", 1), created=LONG_AGO)
    take(database, 0)
    enter(database, ("beta", "run-000", 1), created=LONG_AGO)
    with database.write() as session:  # the round is beyond `a` already
        began = LONG_AGO + timedelta(hours=1)
        turn = {"priority": "normal", "pair": "alpha>beta", "served": 1, "last_group": "b", "round_began": began}
        session.execute(insert(TransferTurn), turn)
    taken: list[UUID] = []
    for number in range(1, 5):
        with database.read() as session:
            time = now(session)
        enter(database, ("beta", f"run-{number:03}", 2), created=time)  # always one more ahead in the names' order
        taken += take(database, 1)
    assert old in taken[:2]


def test_what_cannot_be_taken_has_no_turn(database: Database) -> None:
    with database.read() as session:
        later = now(session) + timedelta(hours=1)
    enter(database, ("beta", "a", 3), not_before=later)
    enter(database, ("beta", "b", 3), paused=True)
    enter(database, ("gamma", "a", 3), retry_at=later)
    free = enter(database, ("beta", "c", 2), ("delta", "a", 1))
    assert set(take(database, 10)) == set(free)
    assert take(database, 10) == []


def test_long_group_names_and_missing_machines_have_turns_too(database: Database) -> None:
    wanted = enter(database, ("beta", "x" * 60_000, 1), ("beta", "ü" * 300, 1), ("beta", "", 1))
    wanted += enter(database, ("", "", 1), source_machine=None, destination_machine=None)
    assert set(take(database, 10)) == set(wanted)


@pytest.mark.dialect("sqlite")
def test_the_work_of_a_take_does_not_grow_with_the_queue(database: Database) -> None:
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    def counted(connection: Any, *_rest: object) -> None:
        cast(sqlite3.Connection, connection.connection.driver_connection).set_progress_handler(count, 100)

    def of_take() -> int:
        nonlocal steps
        event.listen(database.engine, "before_cursor_execute", counted)
        try:
            steps = 0
            with database.write() as session:
                assert len(queue.take(session, "mover", LEASE, 8, caps={"beta": 4})) == 8
                session.rollback()
        finally:
            event.remove(database.engine, "before_cursor_execute", counted)
        return steps

    enter(database, *(("beta" if n % 2 else "gamma", f"group-{n % 50}", 1) for n in range(500)))
    few = of_take()
    enter(database, *(("beta" if n % 2 else "gamma", f"group-{n % 2000}", 1) for n in range(20_000)))
    assert of_take() <= 2 * few


# --- a model ---------------------------------------------------------------------------------------------------------

PAIRS = ("beta", "gamma", "delta")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.sampled_from(PAIRS), st.sampled_from("abcd"), st.integers(1, 40)),
        st.tuples(st.just("take"), st.integers(1, 8)),
        st.tuples(st.just("end"), st.sets(st.sampled_from(PAIRS), min_size=1)),
        st.tuples(st.just("retry"), st.sampled_from(PAIRS)),
    ),
    min_size=10,
    max_size=60,
)


@pytest.mark.dialect("sqlite")
@given(steps=STEPS)
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
def test_nobody_starves(database: Database, steps: list[Any]) -> None:
    with database.write() as session:
        session.execute(delete(Transfer))
        session.execute(delete(TransferTurn))
    world = World(database)
    for what, *arguments in [("enter", "beta", "a", 5), *steps, *[("take", 8), ("end", set(PAIRS))] * 3]:
        getattr(world, what)(*arguments)


@dataclass
class World:
    """The queue, and what is known of who waits, and for how many turns."""

    database: Database
    waiting: dict[tuple[str, str], list[UUID]] = field(default_factory=lambda: defaultdict(list))
    held: list[tuple[str, str, UUID]] = field(default_factory=list)
    pair_waits: Counter[str] = field(default_factory=Counter)
    """Turns of others since the pair had its own, or began to wait."""
    group_waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Turns of the pair's other groups, since the group had its own, or began to wait."""
    most_held: dict[str, int] = field(default_factory=dict)
    """The most that movers held of a pair since it waits."""

    def enter(self, pair: str, group: str, count: int) -> None:
        self.waiting[pair, group] += enter(self.database, (pair, group, count))

    def end(self, pairs: set[str]) -> None:
        gone = [one for one in self.held if one[0] in pairs]
        end(self.database, [transfer for *_, transfer in gone])
        self.held = [one for one in self.held if one not in gone]

    def retry(self, pair: str) -> None:
        """What the pair holds goes back to where it was in the queue."""
        back = [one for one in self.held if one[0] == pair]
        self.held = [one for one in self.held if one not in back]
        with self.database.write() as session:
            again = update(Transfer).where(Transfer.id.in_([transfer for *_, transfer in back]))
            session.execute(again.values(owner=None, lease_until=None))
        for _, group, transfer in reversed(back):
            self.waiting[pair, group].insert(0, transfer)

    def take(self, limit: int) -> None:
        taken = take(self.database, limit)
        assert len(taken) == min(limit, sum(map(len, self.waiting.values())))
        for transfer in taken:
            self._turn(transfer)

    def _turn(self, transfer: UUID) -> None:
        (mine,) = [key for key, rows in self.waiting.items() if transfer in rows]
        assert transfer == self.waiting[mine][0], "of one pair and group the oldest goes first"
        waiting = [key for key, rows in self.waiting.items() if rows]
        held = Counter(pair for pair, *_ in self.held)
        for pair in {pair for pair, _ in waiting}:
            self.most_held[pair] = max(self.most_held.get(pair, 0), held[pair])
            self.pair_waits[pair] += 1
            assert self.pair_waits[pair] <= PATIENCE * self.most_held[pair] + len(PAIRS)
        self.pair_waits[mine[0]] = 0
        self.most_held[mine[0]] = 0
        self._group_turn(transfer)

    def _group_turn(self, transfer: UUID) -> None:
        (mine,) = [key for key, rows in self.waiting.items() if transfer in rows]
        assert transfer == self.waiting[mine][0], "of one pair and group the oldest goes first"
        for key in [key for key, rows in self.waiting.items() if rows]:
            if key[0] == mine[0]:
                self.group_waits[key] += 1
                assert self.group_waits[key] <= 2 * len({group for pair, group in self.waiting if pair == mine[0]})
        self.group_waits[mine] = 0
        self.waiting[mine].remove(transfer)
        self.held.append((*mine, transfer))
