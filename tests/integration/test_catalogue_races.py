"""Many at once: the claims' unique indexes decide, and nobody waits for ever."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from threading import Barrier
from uuid import UUID

import pytest
from sqlalchemy import func, select

from datamanager.domain.states import ObjectStatus
from datamanager.errors import DestinationExists, ObjectBusy
from models.database import Database
from models.tables import Claim, DataObject, Transfer
from models.transfers.queue import TransferLease
from tests.support.bookkeeping import (
    claims,
    get_object,
    order,
    race_to_register,
    register,
    submit,
    take,
)

pytestmark = pytest.mark.dialect


def at_once(*acts: Callable[[], object]) -> Counter[str]:
    """Run all acts at the same moment; count how they ended by their error's name, "ok" for none."""
    start = Barrier(len(acts))

    def run(act: Callable[[], object]) -> str:
        start.wait()
        try:
            act()
        except (DestinationExists, ObjectBusy) as refused:
            return type(refused).__name__
        return "ok"

    with ThreadPoolExecutor(len(acts)) as pool:
        return Counter(pool.map(run, acts))


def count(database: Database, model: type[DataObject] | type[Claim] | type[Transfer]) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(model)) or 0


def test_one_of_200_identical_registers_wins(database: Database) -> None:
    ends = at_once(*[lambda: register(database, "storm/a.nc")] * 200)
    assert ends == {"ok": 1, "DestinationExists": 199}
    assert count(database, DataObject) == count(database, Claim) == 1


def test_one_of_200_identical_registers_of_four_processes_wins(database: Database) -> None:
    rivals = multiprocessing.get_context("forkserver")
    rivals.set_forkserver_preload([race_to_register.__module__])  # imported once for all four
    with ProcessPoolExecutor(4, mp_context=rivals) as pool:
        racers = [pool.submit(race_to_register, database.url, "storm/a.nc", 50) for _ in range(4)]
        assert sum(racer.result() for racer in racers) == 1
    assert count(database, DataObject) == count(database, Claim) == 1


def test_one_of_many_copies_to_one_place_wins(database: Database) -> None:
    sources = [register(database, f"source{i}") for i in range(8)]
    ends = at_once(*[lambda s=s: submit(database, order("copy", s, "same/place")) for s in sources])
    assert ends == {"ok": 1, "DestinationExists": 7}
    assert count(database, Transfer) == 1
    assert len([claim for claim in claims(database) if claim[0] == "read"]) == 1  # the losers' claims are gone


def test_readers_and_writers_of_one_object(database: Database) -> None:
    for attempt in range(6):
        source = register(database, f"source{attempt}")
        copies = [order("copy", source, f"copy{attempt}-{i}") for i in range(4)]
        writers = [order("move", source, f"moved{attempt}-{i}") for i in range(2)] + [order("delete", source)]
        ends = at_once(*[lambda o=o: submit(database, o) for o in (*copies, *writers)])
        modes = Counter(claim[0] for claim in claims(database) if claim[2] == source)
        assert modes["write"] <= 1
        assert not (modes["write"] and modes["read"])
        assert ends["ok"] == modes["write"] + modes["read"] >= 1
        assert ends["ok"] + ends["ObjectBusy"] == 7


def test_two_moves_that_swap_places_end_without_a_deadlock(database: Database) -> None:
    first, second = register(database, "first"), register(database, "second")
    for _ in range(10):
        ends = at_once(
            lambda: submit(database, order("move", first, "second", "alpha")),
            lambda: submit(database, order("move", second, "first", "alpha")),
        )
        assert ends == {"DestinationExists": 2}
    assert {mode for mode, *_ in claims(database)} == {"place"}
    assert get_object(database, first).status == ObjectStatus.ACTIVE


def test_two_takers_never_take_one_transfer(database: Database) -> None:
    wanted = {submit(database, order("getexternal", dest=f"in/{i}")) for i in range(60)}
    taken: list[TransferLease] = []

    def taker(name: str) -> list[TransferLease]:
        mine: list[TransferLease] = []
        while holds := take(database, owner=name, limit=3):
            mine += holds
        return mine

    with ThreadPoolExecutor(6) as pool:
        for holds in pool.map(taker, [f"mover-{i}" for i in range(6)]):
            taken += holds
    assert Counter(hold.transfer for hold in taken) == dict.fromkeys(wanted, 1)
    assert {hold.epoch for hold in taken} == {1}


def test_two_takers_of_the_same_transfer(database: Database) -> None:
    for i in range(10):
        transfer: UUID = submit(database, order("getexternal", dest=f"in/{i}"))
        start = Barrier(4)

        def taker(name: str, transfer: UUID = transfer, start: Barrier = start) -> list[TransferLease]:
            start.wait()
            return take(database, transfer, owner=name)

        with ThreadPoolExecutor(4) as pool:
            assert sum(len(holds) for holds in pool.map(taker, "abcd")) == 1


@pytest.mark.parametrize("path", ["/".join(f"{n:032x}" for n in range(120)), "grüße/☃"])
def test_any_allowed_path_can_be_claimed(database: Database, path: str) -> None:
    register(database, path)
    with pytest.raises(DestinationExists):
        register(database, path)
