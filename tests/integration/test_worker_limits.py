"""What Prefect's work pool allows, and that two movers which count at once never take one too many."""

from __future__ import annotations

import threading
from uuid import uuid4

import pytest

from deployments.orchestrator.work_pool import Caps, Room
from models.database import Database
from models.transfers import queue
from models.transfers.lookup import by_flow_run, held_by_priority, unheld_with_a_run
from tests.support.bookkeeping import LEASE, begin, get_transfer, order, submit

pytestmark = pytest.mark.dialect


@pytest.mark.parametrize(
    ("caps", "held", "free", "room"),
    [
        (Caps(), {}, 4, Room(4, {"high": 4, "normal": 4, "low": 4})),
        (Caps(pool=3), {"normal": 1, "low": 1}, 4, Room(1, {"high": 1, "normal": 1, "low": 1})),
        (Caps(pool=3), {"normal": 5}, 4, Room(0, {"high": 0, "normal": 0, "low": 0})),
        (Caps(pool=0), {}, 4, Room(0, {"high": 0, "normal": 0, "low": 0})),
        (Caps(queues={"low": 1}), {"low": 1}, 4, Room(4, {"high": 4, "normal": 4, "low": 0})),
        (
            Caps(queues={"high": 0, "normal": 2, "low": 1}),
            {"normal": 1},
            9,
            Room(2, {"high": 0, "normal": 1, "low": 1}),
        ),
        (Caps(pool=2, queues={"normal": 9}), {}, 1, Room(1, {"high": 1, "normal": 1, "low": 1})),
        (Caps(pool=2), {}, 0, Room(0, {"high": 0, "normal": 0, "low": 0})),
    ],
)
def test_room(caps: Caps, held: dict[str, int], free: int, room: Room) -> None:
    assert caps.room(held, free) == room


def test_movers_that_count_at_once_keep_to_the_limit(database: Database) -> None:
    for number in range(8):
        submit(database, order("getexternal", dest=f"out/{number}.nc"))
    caps, together, taken = Caps(pool=3), threading.Barrier(4), []

    def mover(name: str) -> None:
        together.wait()
        for _ in range(3):
            with database.write() as session:
                room = caps.room(held_by_priority(session), 2)
                if room.total:
                    taken.extend(queue.take(session, name, LEASE, room.total))

    threads = [threading.Thread(target=mover, args=(f"mover-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 3
    with database.write() as session:
        assert held_by_priority(session) == {"normal": 3}


def test_what_waits_although_it_has_a_run(database: Database) -> None:
    runs = {}
    for number in range(4):
        transfer = submit(database, order("getexternal", dest=f"out/{number}.nc"))
        if number:  # the first one was never taken
            hold = begin(database, transfer)
            if number > 1:  # the second one is held still
                with database.write() as session:
                    queue.requeue(session, hold, spent=False)
                runs[transfer] = get_transfer(database, transfer).flow_run_id
    with database.read() as session:
        assert {row.id: row.flow_run_id for row in unheld_with_a_run(session, 10)} == runs
        [first] = unheld_with_a_run(session, 1)
        [second] = unheld_with_a_run(session, 10, beyond=first.id)
        assert {first.id, second.id} == set(runs)
        assert {
            row.id for row in by_flow_run(session, [run for run in runs.values() if run] + [uuid4()]).values()
        } == set(runs)
    assert {get_transfer(database, transfer).attempts for transfer in runs} == {0}
