"""Runs of retention that die, or that others come in between of: nothing is done twice, and no last copy goes."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from sqlalchemy import update

from datamanager.domain.requests import CopyRequest, DeleteRequest
from datamanager.domain.states import TransferKind
from datamanager.errors import (
    LeaseLost,
    ObjectBusy,
    RemoteFailure,
)
from flows.retention import run as retention_run
from flows.retention.run import Retaining
from models.access.visibility import ALL
from models.database import now
from models.retention import holds, marks
from models.retention import runs as retention_runs
from models.retention import submission as retention_submission
from models.retention.runs import RetentionTerms
from models.submission import SealedRequest, submit
from models.tables import RetentionMark, RetentionRun
from tests.support.retention import (
    ARCHIVE,
    COPIES,
    MONTH,
    WITH_GRACE,
    Keeper,
    moving,
    perform_all,
    reasons,
)


class Killed(BaseException):
    """The mover of a run is gone."""


def die_waiting(work: Retaining, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run die when it begins to wait for what it has submitted; no mover is there."""

    async def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(retention_run, "pause", dies)
        asyncio.run(work.work())


@pytest.mark.dialect
def test_a_run_that_dies_after_it_submitted_leaves_nothing_double(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = keeper.object("a.bin", group="scratch"), keeper.object("b.bin", group="scratch")
    keeper.object("paper.bin")
    run, work = keeper.begin(COPIES)
    die_waiting(work, monkeypatch)
    assert len(keeper.transfers()) == 2
    _, second = keeper.begin(COPIES)
    asyncio.run(second.work())
    assert set(reasons(second.report).values()) == {"under_way"}
    assert len(keeper.transfers()) == 2
    perform_all(keeper.parts)
    assert keeper.status(mine, other) == ["DELETED", "DELETED"]
    with keeper.parts.database.write() as session:
        assert run in retention_runs.end_lost(session)
        dead = session.get_one(RetentionRun, run)
        marks.settle(session)
    assert (dead.status, dead.error) == ("ERROR", retention_runs.INTERRUPTED)
    assert dead.counts[0]["objects"] == 2
    keeper.run(COPIES)
    assert len(keeper.transfers()) == 2


def test_a_run_that_others_have_ended_does_nothing_more(keeper: Keeper) -> None:
    keeper.object("a.bin", group="scratch")
    keeper.object("b.bin", b"else", group="tape")
    keeper.object("paper.bin")
    run, work = keeper.begin(COPIES + ARCHIVE.replace("scratch", "tape"))
    due = work._survey()
    assert len(due) == 2
    with keeper.parts.database.write() as session:
        assert retention_runs.end_lost(session) == [run]  # its mover was stopped for longer than its lease
    with pytest.raises(LeaseLost):
        work._survey()
    with pytest.raises(LeaseLost):
        work._delete(due[0])
    with pytest.raises(LeaseLost):
        asyncio.run(work._archive(due[1].rule, due[1:]))
    assert keeper.transfers() == []


def test_a_forgotten_delete_of_an_object_that_is_still_archived_is_not_done(keeper: Keeper) -> None:
    mine = keeper.object("a.bin", group="scratch")
    keeper.run(WITH_GRACE.replace("delete-copies", "delete") + "even_last_copy = true")
    keeper.change(mine, status="ARCHIVED")
    with keeper.parts.database.write() as session:
        session.execute(update(RetentionMark).values(transfer_id=uuid4()))
        assert marks.settle(session) == 1
    (mark,) = keeper.marks()
    assert (mark.outcome, mark.transfer_id, mark.attempts) == (None, None, 1)


def test_a_transfer_that_fails_is_tried_again_by_a_later_run(keeper: Keeper) -> None:
    mine = keeper.object("a.bin", group="scratch")
    keeper.object("paper.bin")
    row = keeper.run(COPIES, judge=lambda _: RemoteFailure("no such luck"))
    assert [line["verdict"] for line in row.lines] == ["failed", "act"]
    assert "no such luck" in row.lines[0]["detail"]
    assert (row.bytes_freed, keeper.status(mine)) == (0, ["ACTIVE"])
    assert keeper.run(COPIES).bytes_freed == 10
    assert keeper.status(mine) == ["DELETED"]


@pytest.mark.dialect
def test_two_runs_with_contrary_rules_never_take_both_copies(keeper: Keeper) -> None:
    pairs = [
        (keeper.object(f"{n}.a", str(n).encode(), group="scratch"), keeper.object(f"{n}.b", str(n).encode(), group="b"))
        for n in range(6)
    ]
    _, one = keeper.begin(COPIES)
    _, other = keeper.begin(COPIES.replace("scratch", "b"))

    async def both() -> None:
        await asyncio.gather(one.work(), other.work())

    with moving(keeper.parts):
        asyncio.run(both())
    for pair in pairs:
        assert sorted(keeper.status(*pair)) == ["ACTIVE", "DELETED"]


def test_the_copy_that_remains_is_kept_from_others_until_the_delete_has_ended(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = keeper.object("a.bin", group="scratch"), keeper.object("paper.bin")
    _, work = keeper.begin(COPIES)
    die_waiting(work, monkeypatch)
    machines = keeper.parts.machines
    with keeper.parts.database.write() as session, pytest.raises(ObjectBusy):
        submit(session, machines, SealedRequest(TransferKind.DELETE, DeleteRequest(), other, grant=None))
    perform_all(keeper.parts)
    assert keeper.status(mine) == ["DELETED"]
    with keeper.parts.database.write() as session:
        submit(session, machines, SealedRequest(TransferKind.DELETE, DeleteRequest(), other, grant=None))


@pytest.mark.dialect
@pytest.mark.parametrize("meanwhile", ["held", "survivor deleted", "read", "restored", "survivor moved"])
def test_what_changes_between_the_decision_and_the_act_is_seen(keeper: Keeper, meanwhile: str) -> None:
    mine, other = keeper.object("a.bin", group="scratch"), keeper.object("paper.bin")
    database, machines = keeper.parts.database, keeper.parts.machines
    keeper.run(WITH_GRACE)
    keeper.make_due()
    run, work = keeper.begin(WITH_GRACE)
    (decision,) = work._survey()
    with database.write() as session:
        survivor = retention_submission.survivor_of(session, other)
    with database.write() as session:
        match meanwhile:
            case "held":
                holds.hold(session, mine, ALL, "why", "")
            case "restored":
                holds.restore(session, machines, mine, ALL, MONTH, None)
            case "read":
                submit(
                    session,
                    machines,
                    SealedRequest(TransferKind.COPY, CopyRequest(machine="far", dest="x"), mine, grant=None),
                )
            case "survivor deleted":
                submit(session, machines, SealedRequest(TransferKind.DELETE, DeleteRequest(), other, grant=None))
            case _:
                pass
    if meanwhile == "survivor moved":
        keeper.change(other, place="elsewhere.bin")
    with database.write() as session:
        found = retention_submission.submit_delete(session, machines, run, work._rules, decision, survivor)
    assert found.reason is not None
    assert keeper.status(mine) == ["ACTIVE"]
    assert [one for one in keeper.transfers() if one.object_id == mine and one.kind == "delete"] == []


@pytest.mark.dialect
def test_runs_are_listed_and_forgotten(keeper: Keeper) -> None:
    ids = []
    for _ in range(3):
        with keeper.parts.database.write() as session:
            ids.append(retention_runs.ask_for_run(session, RetentionTerms(True), None))
    with keeper.parts.database.read() as session:
        assert retention_runs.asked_for(session) == ids
        first, cursor = retention_runs.list_runs(session, ALL, 2)
        rest, end = retention_runs.list_runs(session, ALL, 2, cursor)
    assert [row.id for row in (*first, *rest)] == ids[::-1]
    assert end is None
    with keeper.parts.database.write() as session:
        for run in ids:
            retention_runs.end_run(session, run, counts=[], lines=[])
    with keeper.parts.database.write() as session:
        assert retention_runs.prune_runs(session, now(session)) == 3
