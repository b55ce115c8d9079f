"""Sharing a run: which transfers a mover takes together, that they count as one, and that nobody starves by it."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import delete, event, update

from models.database import Database, now
from models.tables import DataObject, Transfer, TransferTurn
from models.transfers import queue, shared_outcomes, sharing
from models.transfers.fair_share import GROUPS
from models.transfers.lookup import by_flow_run, held_by_priority, unheld_with_a_run
from tests.integration.test_fair_share import LONG_AGO, PAIRS, STEPS, World, end, enter, groups
from tests.support.bookkeeping import LEASE, get_transfer, order, register, submit

pytestmark = pytest.mark.dialect

SMALL = 1024


def waiting(database: Database, *wanted: tuple[str, str, int], **columns: Any) -> list[UUID]:
    """Queue small copies; see `enter`."""
    return enter(database, *wanted, bytes_total=SMALL, **columns)


def runs_of(database: Database, limit: int, **options: Any) -> list[list[UUID]]:
    """Take as a mover with `limit` free slots does, and return what has a run together."""
    with database.write() as session:
        holds = queue.take(session, "mover", LEASE, limit, together=True, **options)
        runs: dict[UUID, list[UUID]] = {}
        for hold in holds:
            row = session.get_one(Transfer, hold.transfer)
            runs.setdefault(row.shared_run or row.id, []).append(row.id)
    return list(runs.values())


def test_what_waits_beyond_the_slots_goes_together(database: Database) -> None:
    wanted = waiting(database, ("beta", "", sharing.MOST + 50))
    first, second = runs_of(database, 4), runs_of(database, 3)
    assert first == [wanted[: sharing.MOST]]
    assert second == [wanted[sharing.MOST :]]
    assert runs_of(database, 2) == []


def test_nothing_waits_for_company(database: Database) -> None:
    wanted = waiting(database, ("beta", "", 4))
    assert runs_of(database, 4) == [[one] for one in wanted]
    wanted = waiting(database, ("beta", "", 8), ("gamma", "", 8))  # the first run leaves slots enough for all others
    runs = runs_of(database, 12)
    assert sorted(map(len, runs)) == [1] * 8 + [8]
    assert sorted(one for run in runs for one in run) == sorted(wanted)
    (single,) = waiting(database, ("gamma", "", 1))
    assert runs_of(database, 1) == [[single]]


def test_a_full_machine_makes_its_transfers_go_together(database: Database) -> None:
    wanted = waiting(database, ("beta", "", 5), ("gamma", "", 2))
    runs = runs_of(database, 16, caps={"beta": 1})
    assert sorted(map(len, runs)) == [1, 1, 5]
    assert sorted(one for run in runs for one in run) == sorted(wanted)


@pytest.mark.parametrize(
    "columns",
    [
        {"bytes_total": None},
        {"bytes_total": 2**20},
        {"kind": "getexternal"},
        {"bandwidth": 10**6},
        {"attempts": 1},
        {"flow_run_id": "new"},
        {"kind": "move", "destination_machine": "alpha"},
    ],
    ids=str,
)
def test_what_has_to_go_alone(database: Database, columns: dict[str, Any]) -> None:
    if columns.get("flow_run_id"):
        columns = {"flow_run_id": uuid4()}
    small = waiting(database, ("beta", "", 3))
    with database.write() as session:
        session.execute(update(Transfer).where(Transfer.id == small[1]).values(**columns))
    runs = runs_of(database, 1) + runs_of(database, 1)
    assert sorted(runs, key=len) == [[small[1]], [small[0], small[2]]]


def test_only_what_is_alike_goes_together(database: Database) -> None:
    copies = waiting(database, ("beta", "", 3))
    moves = waiting(database, ("beta", "", 3), kind="move")
    other = waiting(database, ("gamma", "", 3))
    urgent = waiting(database, ("beta", "", 3), priority="high")
    runs = [run for _ in range(4) for run in runs_of(database, 1)]
    assert sorted(runs, key=str) == sorted([copies, moves, other, urgent], key=str)
    assert runs[0] == urgent


def test_so_many_bytes_that_the_run_is_soon_over(database: Database) -> None:
    large = 500 * 1024
    wanted = enter(database, ("beta", "", 100), bytes_total=large)
    assert runs_of(database, 1) == [wanted[: sharing.MOST_BYTES // large]]


@pytest.mark.parametrize("provisional", [False, True])
def test_provisional_objects_are_not_moved_together(database: Database, provisional: bool) -> None:
    objects = [register(database, f"in/{number}") for number in range(3)]
    moves = [submit(database, order("move", one, f"out/{one}")) for one in objects]
    with database.write() as session:
        session.execute(update(DataObject).values(provisional=provisional))
    (run,) = runs_of(database, 1)
    assert len(run) == (1 if provisional else len(moves))


def test_groups_take_turns_within_a_run_and_beyond_it(database: Database) -> None:
    waiting(database, ("beta", "a", 5), ("beta", "b", 2), ("beta", "c", 1))
    (run,) = runs_of(database, 1)
    assert groups(database, run) == ["a", "b", "c", "a", "b", "a", "a", "a"]
    later = waiting(database, *(("beta", name, 1) for name in "abcd"), *[("beta", "d", 1)] * 3)
    with database.write() as session:  # the round is at `b`
        session.execute(update(TransferTurn).values(last_group="b", round_began=now(session)))
    (run,) = runs_of(database, 1)
    assert groups(database, run) == ["c", "d", "a", "b", "d", "d", "d"]
    assert sorted(run) == sorted(later)


def test_with_very_many_groups_a_run_has_the_next_ones(database: Database) -> None:
    waiting(database, *((("beta", f"group-{number:03}", 2)) for number in range(100)))
    first, second = (groups(database, run) for _ in range(2) for run in runs_of(database, 1))
    assert first == [f"group-{number:03}" for number in range(GROUPS + 1)]
    assert second == [f"group-{number % 100:03}" for number in range(GROUPS + 1, 2 * GROUPS + 2)]


def test_large_files_before_it_keep_no_small_one_from_sharing_nor_lose_their_turn(database: Database) -> None:
    large = enter(database, ("beta", "", 2), bytes_total=2**30)
    small = waiting(database, ("beta", "", 5))
    assert runs_of(database, 1) == [[large[0]]]
    waiting(database, ("beta", "", 5))
    assert runs_of(database, 1) == [[large[1]]]
    assert runs_of(database, 1)[0][:5] == small


def test_a_shared_run_counts_as_one(database: Database) -> None:
    waiting(database, ("beta", "", 20))
    (run,) = runs_of(database, 1)
    (alone,) = waiting(database, ("beta", "", 1))
    assert runs_of(database, 16) == [[alone]]
    with database.write() as session:
        assert held_by_priority(session) == {"normal": 2}
        assert queue.held_by_pair(session) == Counter({"alpha>beta": 2})
        assert queue.held_by_machine(session, {"beta": 9}) == Counter(alpha=2, beta=2)
    waiting(database, ("beta", "", 1))
    assert runs_of(database, 16, caps={"beta": 2}) == []
    end(database, run[:-1])
    assert runs_of(database, 16, caps={"beta": 2}) == []  # one of it runs still
    end(database, run)
    assert len(runs_of(database, 16, caps={"beta": 2})) == 1


def test_a_shared_run_is_one_turn_of_its_pair(database: Database) -> None:
    waiting(database, ("beta", "", 900), ("gamma", "", 2))
    gamma = [run for run in runs_of(database, 4) + runs_of(database, 3) if _goes_to(database, run[0]) == "gamma"]
    assert len(gamma) == 1


def _goes_to(database: Database, transfer: UUID) -> str | None:
    return get_transfer(database, transfer).destination_machine


def test_what_leaves_a_shared_run_has_the_next_one_for_itself(database: Database) -> None:
    transfers = [submit(database, order("copy", register(database, f"in/{n}"), f"out/{n}")) for n in range(3)]
    flow_run = uuid4()
    with database.write() as session:
        holds = queue.take(session, "mover", LEASE, 1, together=True)
        assert shared_outcomes.begin(session, holds, flow_run) == set(holds)
    assert {get_transfer(database, one).flow_run_id for one in transfers} == {flow_run}
    with database.write() as session:
        queue.requeue(session, holds[0])
        session.execute(update(Transfer).where(Transfer.id == holds[1].transfer).values(lease_until=LONG_AGO))
    with database.write() as session:
        assert [row.id for row in queue.reap(session)] == [holds[1].transfer]
    for hold in holds[:2]:
        row = get_transfer(database, hold.transfer)
        assert (row.status, row.flow_run_id, row.shared_run, row.attempts) == ("QUEUED", None, None, 1)
    with database.read() as session:
        assert unheld_with_a_run(session, 10) == []
        assert by_flow_run(session, [flow_run]) == {}
        assert shared_outcomes.count_shared(session, [flow_run])[flow_run].held == 1
    assert sorted(map(len, runs_of(database, 1) + runs_of(database, 1))) == [1, 1]


@pytest.mark.dialect("sqlite")
def test_the_statements_of_a_take_do_not_grow_with_what_shares_a_run(database: Database) -> None:
    def statements() -> int:
        counted: list[str] = []

        def count(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            counted.append(statement)

        event.listen(database.engine, "before_cursor_execute", count)
        try:
            (run,) = runs_of(database, 1)
        finally:
            event.remove(database.engine, "before_cursor_execute", count)
        sizes.append(len(run))
        return len(counted)

    sizes: list[int] = []
    waiting(database, ("beta", "", 10))
    few = statements()
    waiting(database, ("beta", "", 1000))
    many = statements()
    assert sizes == [10, sharing.MOST]
    assert many <= few + 1


@pytest.mark.dialect("sqlite")
@given(steps=STEPS)
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
def test_nobody_starves_by_shared_runs(database: Database, steps: list[Any]) -> None:
    with database.write() as session:
        session.execute(delete(Transfer))
        session.execute(delete(TransferTurn))
    world = SharingWorld(database)
    for what, *arguments in [("enter", "beta", "a", 5), *steps, *[("take", 8), ("end", set(PAIRS))] * 3]:
        getattr(world, what)(*arguments)


class SharingWorld(World):
    """The same with shared runs: a run is one turn of its pair, and one turn of a group for each transfer of it."""

    def enter(self, pair: str, group: str, count: int) -> None:
        self.waiting[pair, group] += waiting(self.database, (pair, group, count))

    def take(self, limit: int) -> None:
        for _ in range(limit):
            left = sum(map(len, self.waiting.values()))
            taken = runs_of(self.database, 1)
            assert len(taken) == min(1, left)
            for run in taken:
                assert len(run) == 1 or left > 1
                first, *others = run
                self._turn(first)
                for transfer in others:
                    self._group_turn(transfer)
                self.held = self.held[: len(self.held) - len(others)]  # they count as one

    def retry(self, pair: str) -> None:
        """Nothing: what went together goes alone then."""
