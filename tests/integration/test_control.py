"""Cancel, pause, resume, deadlines, starts and priorities in the catalogue; the list of transfers."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from datamanager.domain.fields import Priority
from datamanager.domain.states import Phase, TransferKind, TransferStatus
from datamanager.errors import (
    Cancelled,
    ConnectionLost,
    DataManagerError,
    DeadlineExceeded,
    InvalidRequest,
    LeaseLost,
    Paused,
    TaskEnded,
    TaskNotFound,
)
from models.access.visibility import ALL
from models.database import Database, now
from models.objects.catalogue import Facts
from models.tables import Claim, OutboxMessage, Transfer
from models.transfers import cancel_pause, outcomes, queue
from models.transfers.lookup import TransferSelection, select_transfers
from models.transfers.queue import TransferLease
from tests.support.bookkeeping import LEASE, get_transfer, order, register, submit

pytestmark = pytest.mark.dialect

INTENT = {"size": 5, "sha256": None, "mtime": 1}
HOUR = timedelta(hours=1)


def asked(database: Database, name: str | None = None, kind: str = "copy", **fields: Any) -> UUID:
    """Ask for a transfer."""
    name = name or str(uuid4())
    return submit(database, order(kind, register(database, f"in/{name}"), f"out/{name}", **fields))


def take(database: Database, limit: int = 100, **options: Any) -> list[TransferLease]:
    with database.write() as session:
        return queue.take(session, "mover", LEASE, limit, **options)


def begun(database: Database, transfer: UUID) -> TransferLease:
    (hold,) = take(database, only=transfer)
    with database.write() as session:
        queue.begin(session, hold, uuid4())
    return hold


def do(database: Database, what: Any, *args: Any, **options: Any) -> Any:
    with database.write() as session:
        return what(session, *args, **options)


def reason(database: Database, transfer: UUID) -> DataManagerError | None:
    with database.read() as session:
        return cancel_pause.stop_reason(session, transfer)


def make_late(database: Database, transfer: UUID) -> None:
    """Let a transfer's deadline pass."""
    with database.write() as session:
        session.get_one(Transfer, transfer).deadline = now(session) - timedelta(seconds=1)


def events(database: Database, transfer: UUID) -> list[str]:
    """Return what was told of a transfer, in order."""
    with database.read() as session:
        told = session.scalars(
            select(OutboxMessage)
            .where(OutboxMessage.subject == transfer, OutboxMessage.exchange == "dm.events")
            .order_by(OutboxMessage.id)
        )
        rows = [(row.routing_key.rpartition(".")[2], row.body["sequence"]) for row in told]
    assert [sequence for _, sequence in rows] == [f"{number:010d}" for number in range(1, len(rows) + 1)]
    return [what for what, _ in rows]


def claims(database: Database, transfer: UUID) -> int:
    with database.read() as session:
        return len(session.scalars(select(Claim).where(Claim.transfer_id == transfer)).all())


# --- cancel ----------------------------------------------------------------------------------------------------------


def test_what_nobody_holds_is_cancelled_at_once(database: Database) -> None:
    transfer = asked(database)
    do(database, cancel_pause.cancel, transfer, ALL)
    row = get_transfer(database, transfer)
    assert (row.status, row.error_code, row.phase, row.leaves_partial) == ("ERROR", "cancelled", "done", False)
    assert claims(database, transfer) == 0
    assert take(database) == []
    assert events(database, transfer) == ["queued", "error"]
    for change in (cancel_pause.cancel, cancel_pause.pause, cancel_pause.resume):
        with pytest.raises(TaskEnded):
            do(database, change, transfer, ALL)
        with pytest.raises(TaskNotFound):
            do(database, change, uuid4(), ALL)


def test_what_a_mover_holds_is_left_to_it(database: Database) -> None:
    transfer = asked(database)
    hold = begun(database, transfer)
    assert reason(database, transfer) is None
    for _ in range(2):
        row = do(database, cancel_pause.cancel, transfer, ALL)
        assert (row.status, row.stop_requested, row.ended) == ("RUNNING", "cancel", None)
    assert isinstance(reason(database, transfer), Cancelled)
    for change in (cancel_pause.pause, cancel_pause.resume):
        with pytest.raises(TaskEnded, match="being cancelled"):
            do(database, change, transfer, ALL)
    do(database, outcomes.fail, hold, Cancelled("cancelled by request"), leaves_partial=True)
    row = get_transfer(database, transfer)
    assert (row.error_code, row.stop_requested, row.leaves_partial) == ("cancelled", None, True)
    assert events(database, transfer) == ["queued", "running", "error"]


def test_what_was_cancelled_under_a_mover_that_died_is_ended_by_another_one(database: Database) -> None:
    transfer = asked(database)
    hold = begun(database, transfer)
    do(database, cancel_pause.cancel, transfer, ALL)
    assert not do(database, cancel_pause.due)
    do(database, queue.renew, [hold], -LEASE)
    do(database, queue.reap)
    assert take(database) == []
    assert do(database, cancel_pause.due)
    assert [row.id for row in do(database, cancel_pause.expire)] == [transfer]
    row = get_transfer(database, transfer)
    assert (row.status, row.error_code, row.leaves_partial) == ("ERROR", "cancelled", True)
    with database.read() as session:
        assert [row.id for row in cancel_pause.leaving_partials(session, 10)] == [transfer]
    do(database, cancel_pause.note_clean, transfer)
    with database.read() as session:
        assert cancel_pause.leaving_partials(session, 10) == []


@pytest.mark.parametrize("late", [False, True])
def test_what_may_have_its_name_is_looked_at_before_it_ends(database: Database, late: bool) -> None:
    transfer = asked(database)
    hold = begun(database, transfer)
    do(database, queue.remember, hold, intent=INTENT)
    do(database, queue.requeue, hold)
    if late:
        make_late(database, transfer)
    else:
        do(database, cancel_pause.pause, transfer, ALL)
        row = do(database, cancel_pause.cancel, transfer, ALL)
        assert (row.status, row.stop_requested, row.paused, row.ended) == ("QUEUED", "cancel", False, None)
    assert do(database, cancel_pause.expire) == []
    (again,) = take(database)
    with database.write() as session:
        assert queue.begin(session, again, uuid4()).past_commit_point
    assert isinstance(reason(database, transfer), DeadlineExceeded if late else Cancelled)


def test_a_delete_that_has_begun_is_not_undone(database: Database) -> None:
    transfer = asked(database, kind="delete")
    begun(database, transfer)
    assert get_transfer(database, transfer).past_commit_point


@pytest.mark.parametrize("ends", ["complete", "fail"])
def test_a_cancel_and_an_end_at_once_make_one_end(database: Database, ends: str) -> None:
    outcomes_seen: Counter[str] = Counter()
    for _ in range(15):
        transfer = asked(database)
        hold = begun(database, transfer)
        start = Barrier(3)

        def end(hold: TransferLease = hold, start: Barrier = start) -> str:
            start.wait(60)
            if ends == "complete":
                do(database, outcomes.complete_copy, hold, Facts(5))
            else:
                do(database, outcomes.fail, hold, ConnectionLost("cut"))
            return "ended"

        def cancel(transfer: UUID = transfer, start: Barrier = start) -> str:
            start.wait(60)
            try:
                return "asked" if do(database, cancel_pause.cancel, transfer, ALL).ended is None else "cancelled"
            except TaskEnded:
                return "too late"

        def give_back(hold: TransferLease = hold, start: Barrier = start) -> str:
            start.wait(60)
            try:
                do(database, queue.requeue, hold)
            except LeaseLost:
                return "not held"
            return "given back"

        with ThreadPoolExecutor(3) as pool:
            tasks = [pool.submit(work) for work in (end, cancel, give_back)]
            for task in tasks:
                try:
                    outcomes_seen[task.result(60)] += 1
                except LeaseLost:
                    outcomes_seen["lost"] += 1
        do(database, cancel_pause.expire)
        row = get_transfer(database, transfer)
        told = events(database, transfer)
        assert told.count("error") + told.count("complete") == 1
        assert row.ended is not None
        assert claims(database, transfer) == 0
    assert outcomes_seen.total() == 45


# --- pause -----------------------------------------------------------------------------------------------------------


def test_what_is_paused_in_the_queue_is_not_taken_until_it_is_resumed(database: Database) -> None:
    transfer = asked(database)
    for _ in range(2):
        row = do(database, cancel_pause.pause, transfer, ALL)
        assert (row.status, row.phase, row.paused) == ("QUEUED", "paused", True)
    assert take(database) == []
    with database.read() as session:
        assert not queue.waiting(session)
    for _ in range(2):
        row = do(database, cancel_pause.resume, transfer, ALL)
        assert (row.status, row.phase, row.paused) == ("QUEUED", "queued", False)
    assert [hold.transfer for hold in take(database)] == [transfer]
    assert events(database, transfer) == ["queued", "paused", "resumed"]


@pytest.mark.parametrize("way", ["stopped", "handed back", "died"])
def test_what_is_paused_while_it_runs_goes_back_to_the_queue_and_stays_there(database: Database, way: str) -> None:
    transfer = asked(database)
    hold = begun(database, transfer)
    for _ in range(2):
        row = do(database, cancel_pause.pause, transfer, ALL)
        assert (row.status, row.stop_requested, row.paused) == ("RUNNING", "pause", False)
    assert isinstance(reason(database, transfer), Paused)
    if way == "died":
        do(database, queue.renew, [hold], -LEASE)
        do(database, queue.reap)
    else:
        do(database, queue.requeue, hold, spent=False)
    row = get_transfer(database, transfer)
    assert (row.status, row.phase, row.paused, row.owner, row.stop_requested) == ("QUEUED", "paused", True, None, None)
    assert row.attempts == (1 if way == "died" else 0)
    assert take(database) == []
    assert do(database, cancel_pause.expire) == []
    do(database, cancel_pause.resume, transfer, ALL)
    assert [one.transfer for one in take(database)] == [transfer]
    assert events(database, transfer) == ["queued", "running", "paused", "resumed"]


def test_a_pause_that_is_taken_back_before_the_mover_saw_it(database: Database) -> None:
    transfer = asked(database)
    hold = begun(database, transfer)
    do(database, cancel_pause.pause, transfer, ALL)
    do(database, cancel_pause.resume, transfer, ALL)
    assert reason(database, transfer) is None
    do(database, queue.requeue, hold, spent=False)  # the mover saw it after all: it goes on at once
    assert [one.transfer for one in take(database)] == [transfer]


def test_what_is_paused_can_be_cancelled_and_its_deadline_counts(database: Database) -> None:
    cancelled, late = asked(database), asked(database)
    for transfer in (cancelled, late):
        do(database, cancel_pause.pause, transfer, ALL)
    assert do(database, cancel_pause.cancel, cancelled, ALL).error_code == "cancelled"
    make_late(database, late)
    assert [(row.id, row.error_code) for row in do(database, cancel_pause.expire)] == [(late, "deadline_exceeded")]


# --- deadlines and starts --------------------------------------------------------------------------------------------


def test_what_waits_at_its_deadline_ends_and_is_not_taken(database: Database) -> None:
    late, early, free = asked(database, deadline=HOUR), asked(database, deadline=HOUR), asked(database)
    assert not do(database, cancel_pause.due)
    make_late(database, late)
    assert {hold.transfer for hold in take(database)} == {early, free}
    assert [row.id for row in do(database, cancel_pause.expire)] == [late]
    row = get_transfer(database, late)
    assert (row.status, row.error_code, row.attempts, row.started) == ("ERROR", "deadline_exceeded", 0, None)
    assert claims(database, late) == 0
    make_late(database, early)
    assert do(database, cancel_pause.expire) == []  # a mover has it, and stops it itself
    assert isinstance(reason(database, early), DeadlineExceeded)


def test_nothing_is_taken_before_its_time(database: Database) -> None:
    transfer = asked(database, not_before=HOUR, deadline=2 * HOUR)
    row = get_transfer(database, transfer)
    assert (row.not_before, row.deadline) == (row.created + HOUR, row.created + 2 * HOUR)
    assert take(database) == []
    with database.write() as session:
        session.get_one(Transfer, transfer).not_before = now(session)
    assert len(take(database)) == 1


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"deadline": timedelta(0)}, "deadline"),
        ({"deadline": HOUR, "not_before": HOUR}, "not_before"),
        ({"deadline": HOUR, "not_before": 2 * HOUR}, "not_before"),
    ],
)
def test_times_that_leave_no_time_are_refused(database: Database, fields: dict[str, Any], wrong: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(database, "refused", **fields)
    assert set(refused.value.fields) == {wrong}
    with database.read() as session:
        assert session.scalars(select(Transfer)).all() == []


# --- priorities ------------------------------------------------------------------------------------------------------


def test_the_higher_priority_is_taken_first_and_of_one_the_older(database: Database) -> None:
    wanted = [asked(database, priority=one) for one in ("low", "normal", "high", "low", "high", "normal")]
    low, normal, high, low2, high2, normal2 = wanted
    assert [hold.transfer for hold in take(database, 3)] == [high, high2, normal]
    assert [hold.transfer for hold in take(database, 3)] == [normal2, low, low2]


def test_each_priority_has_its_own_room(database: Database) -> None:
    by_priority = {one: [asked(database, priority=one) for _ in range(3)] for one in ("high", "normal", "low")}
    holds = take(database, room={"high": 1, "low": 0})
    assert [hold.transfer for hold in holds] == [by_priority["high"][0], *by_priority["normal"]]
    holds = take(database, 2, room={"high": 5, "normal": 5, "low": 1})
    assert [hold.transfer for hold in holds] == by_priority["high"][1:]
    holds = take(database, 2, room={"high": 5, "normal": 5, "low": 1})
    assert [hold.transfer for hold in holds] == by_priority["low"][:1]


def test_a_full_machine_and_priorities_together(database: Database) -> None:
    first = asked(database, priority="high")
    second, third = asked(database, priority="high"), asked(database, priority="low", machine="alpha")
    holds = take(database, caps={"beta": 1})
    assert [hold.transfer for hold in holds] == [first, third]
    assert get_transfer(database, second).owner is None


# --- the list --------------------------------------------------------------------------------------------------------


@pytest.fixture
def listed(database: Database) -> list[UUID]:
    """Seven transfers, the oldest first."""
    return [
        asked(database, "one", priority="low"),
        asked(database, "two", kind="move"),
        asked(database, "three", kind="delete"),
        asked(database, "four", machine="alpha"),
        asked(database, "five"),
        asked(database, "six"),
        submit(database, order("getexternal", dest="seven", machine="alpha", group="fire")),
    ]


def pages(database: Database, **wanted: Any) -> list[UUID]:
    """Return what all pages list."""
    found: list[UUID] = []
    cursor = None
    while True:
        with database.read() as session:
            rows, cursor = select_transfers(session, TransferSelection(cursor=cursor, **wanted), ALL)
        found += [row.id for row in rows]
        if cursor is None:
            return found


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_pages_have_every_transfer_once_newest_first(database: Database, listed: list[UUID], limit: int) -> None:
    assert pages(database, limit=limit) == listed[::-1]
    assert pages(database, limit=limit, oldest_first=True) == listed


def test_filters(database: Database, listed: list[UUID]) -> None:
    one, two, three, four, five, six, seven = listed
    hold = begun(database, five)
    do(database, outcomes.complete_copy, hold, Facts(5))
    do(database, cancel_pause.pause, six, ALL)
    do(database, cancel_pause.cancel, four, ALL)
    assert pages(database, status=TransferStatus.COMPLETE) == [five]
    assert pages(database, status=TransferStatus.ERROR) == [four]
    assert pages(database, status=TransferStatus.QUEUED, limit=2) == [seven, six, three, two, one]
    assert pages(database, phase=Phase.PAUSED) == [six]
    assert pages(database, kind=TransferKind.DELETE) == [three]
    assert pages(database, priority=Priority.LOW) == [one]
    assert pages(database, group="fire") == [seven]
    assert pages(database, machine="beta", status=TransferStatus.QUEUED) == [six, two, one]
    row = get_transfer(database, five)
    assert row.object_id is not None
    assert row.result_object_id is not None
    assert pages(database, object=row.object_id) == pages(database, object=row.result_object_id) == [five]
    times = [get_transfer(database, transfer).created for transfer in listed]
    assert pages(database, since=times[2], until=times[5]) == [five, four, three]
    with pytest.raises(InvalidRequest), database.read() as session:
        select_transfers(session, TransferSelection(cursor="nonsense"), ALL)
