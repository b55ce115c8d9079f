"""Changes that share a transaction: each is made or undone by itself, and all that were made are committed at once."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.orm import Session

from api.write_queue import MOST, WriteQueue
from datamanager.domain.requests import RegisterRequest
from datamanager.errors import CatalogueFull, CatalogueUnavailable, DestinationExists, InvalidRequest
from models import migrate
from models.core import group_commit
from models.core.group_commit import Outcome, commit_group
from models.database import Database
from models.objects.catalogue import Facts, register_object
from models.objects.namesakes import has_namesake
from models.submission import submit
from models.tables import Claim, DataObject, MachineSeen, OutboxMessage, Transfer
from tests.support.bookkeeping import MACHINES, order, place, register

pytestmark = pytest.mark.dialect

FULL = "DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$"
"""What PostgreSQL says on a full disk."""


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this host is, a transaction is not too long."""
    monkeypatch.setattr(group_commit, "HELD", 60.0)


def enter(name: str, error: Exception | None = None) -> Callable[[Session], UUID]:
    """Return the change that registers a file, and then fails with an error."""
    request = RegisterRequest(filename=name, path="in", machine="alpha")

    def change(session: Session) -> UUID:
        new = register_object(session, request, place(f"in/{name}"), Facts(5), by=None)
        session.add(MachineSeen(name=name, base_dir="/"))
        if error is not None:
            raise error
        return new

    return change


def kept(database: Database) -> tuple[list[str], ...]:
    """Return the names of the objects, their places, events and rows of the unit of work that are in the catalogue."""
    with database.read() as session:
        objects = {row.id: row.filename for row in session.scalars(select(DataObject))}
        claims = [objects[one] for one in session.scalars(select(Claim.object_id)) if one is not None]
        events = [objects[one] for one in session.scalars(select(OutboxMessage.subject)) if one is not None]
        return (
            sorted(objects.values()),
            sorted(claims),
            sorted(events),
            sorted(session.scalars(select(MachineSeen.name))),
        )


def commits(database: Database) -> list[None]:
    """Return a list that grows by each commit."""
    found = list[None]()
    event.listen(database.engine, "commit", lambda _: found.append(None))
    return found


def test_changes_of_a_group_fail_alone(database: Database) -> None:
    made = commits(database)
    wrong = InvalidRequest("after it wrote"), ValueError("a fault of ours")
    changes = [enter("a"), enter("b", wrong[0]), enter("a"), enter("c", wrong[1]), enter("b"), enter("d")]
    a, b, again, c, second_b, d = commit_group(database, changes)
    assert (b.error, c.error) == wrong
    assert isinstance(again.error, DestinationExists), "the first one has the place"
    assert again.error.holder == ("object", a.value)
    assert (second_b.error, d.error) == (None, None), "what was undone holds nothing"
    assert kept(database) == (["a", "b", "d"],) * 4
    assert len(made) == 1


def test_group_whose_transaction_is_lost_is_made_one_by_one(database: Database, tmp_path: Path) -> None:
    if not database.is_postgresql:
        database = Database(f"sqlite+pysqlite:///{tmp_path / 'small.db'}", pool_size=1)
        migrate.upgrade(database)

    def full(session: Session) -> None:
        if database.is_postgresql:
            session.execute(text(FULL))
        connection = session.connection()
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        try:
            session.execute(text("CREATE TABLE large AS SELECT zeroblob(10000000)"))
        finally:
            connection.exec_driver_sql("PRAGMA max_page_count = 100000")

    a, fault, b = commit_group(database, [enter("a"), full, enter("b")])
    assert isinstance(fault.error, CatalogueFull)
    assert (a.error, b.error) == (None, None)
    assert kept(database) == (["a", "b"],) * 4
    assert not database.full, "there was space again"


def test_group_whose_commit_is_in_doubt_is_not_made_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    dialect, calls = database.engine.dialect, Counter[str]()
    commit = dialect.do_commit

    def broken(connection: Any) -> None:
        commit(connection)
        raise dialect.loaded_dbapi.OperationalError("the connection broke after COMMIT was sent")

    def counted(name: str) -> Callable[[Session], UUID]:
        def change(session: Session) -> UUID:
            calls[name] += 1
            return enter(name)(session)

        return change

    with monkeypatch.context() as patch:
        patch.setattr(dialect, "do_commit", broken)
        with pytest.raises(CatalogueUnavailable):
            commit_group(database, [counted("a"), counted("b")])
    assert calls == {"a": 1, "b": 1}
    assert kept(database) == (["a", "b"],) * 4


def test_group_that_cannot_begin_makes_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.database.BUSY_TIMEOUT", 0.1)
    if database.is_postgresql:
        return  # writers do not exclude each other there
    other = Database(database.url)
    with other.write() as session:
        session.add(MachineSeen(name="x", base_dir="/"))
        session.flush()
        for changes in ([enter("a")], [enter("a"), enter("b")]):
            with pytest.raises(CatalogueUnavailable):
                commit_group(database, changes)
    other.close()
    assert kept(database) == ([], [], [], ["x"])


def test_group_that_takes_long_leaves_the_rest(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "HELD", 0.0)
    assert len(commit_group(database, [enter("a"), enter("b"), enter("c")])) == 1
    assert kept(database) == (["a"],) * 4


def test_requests_of_a_group_have_few_statements(database: Database) -> None:
    source, statements = register(database, "in/source"), list[str]()
    event.listen(database.engine, "before_cursor_execute", lambda _c, _r, statement, *_: statements.append(statement))

    def entered(session: Session, name: str) -> UUID:
        there = place(f"in/{name}")
        assert not has_namesake(session, there)
        request = RegisterRequest(filename=name, path="in", machine="alpha")
        return register_object(session, request, there, Facts(5), by=None)

    for changes, most in (
        ([partial(entered, name=name) for name in "abcdefgh"], 6),
        ([partial(submit, machines=MACHINES, request=order("copy", source, name)) for name in "abcdefgh"], 8),
    ):
        statements.clear()
        assert [outcome.error for outcome in commit_group(database, changes)] == [None] * 8
        assert sum(not statement.startswith("BEGIN") for statement in statements) <= 8 * most, statements[: 2 * most]


def test_row_of_a_submitted_transfer_is_whole(database: Database) -> None:
    source = register(database, "in/source")
    wanted = partial(submit, machines=MACHINES, request=order("copy", source, "out/copy"))
    (made,) = commit_group(database, [wanted])
    assert made.error is None
    with database.read() as session:
        row = session.get_one(Transfer, made.value.id)
        assert (row.object_id, row.result_object_id) == (source, made.value.result_object_id)
        assert (row.destination_place, row.bytes_total, row.sequence) == ("out/copy", 5, 1)
        assert (row.notes, row.paused, row.owner, row.leaves_partial) == ({}, False, None, False)  # by default
        assert (row.share_pair, row.share_group) == ("alpha>beta", "")  # what the database computes


# --- the queue of an API ---


def test_write_queue_shares_transactions_in_the_order_of_requests(database: Database) -> None:
    made, order = commits(database), list[int]()
    who = contextvars.ContextVar[int]("who")

    def change(session: Session) -> int:
        order.append(who.get())
        enter(f"{who.get():03}")(session)
        return who.get()

    async def request(queue: WriteQueue, number: int) -> int:
        who.set(number)  # as the request's identifier, which the log has
        return await queue.run(change)

    async def requests() -> list[int]:
        queue = WriteQueue(database)
        return await asyncio.gather(*(request(queue, number) for number in range(2 * MOST + 1)))

    count = 2 * MOST + 1
    assert asyncio.run(requests()) == order == list(range(count))
    assert kept(database)[0] == [f"{number:03}" for number in range(count)]
    assert len(made) < count / 2


def test_write_queue_tells_each_caller_its_own_error(database: Database) -> None:
    async def requests() -> list[UUID | BaseException]:
        queue = WriteQueue(database)
        changes = [enter("a"), enter("b", InvalidRequest("b")), enter("c", ValueError("c")), enter("a"), enter("d")]
        return await asyncio.gather(*map(queue.run, changes), return_exceptions=True)

    found = asyncio.run(requests())
    assert [type(one) for one in found] == [UUID, InvalidRequest, ValueError, DestinationExists, UUID]
    assert kept(database)[0] == ["a", "d"]


def test_write_queue_drops_what_nobody_waits_for_yet_and_ends_what_has_begun(database: Database) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(session: Session) -> UUID:
        begun.set()
        assert go.wait(60)
        return enter("slow")(session)

    async def requests() -> None:
        queue = WriteQueue(database)
        first = asyncio.create_task(queue.run(slow))
        await asyncio.to_thread(begun.wait, 60)
        waiting = [asyncio.create_task(queue.run(enter(name))) for name in "ab"]
        await asyncio.sleep(0)
        first.cancel()
        waiting[0].cancel()
        go.set()
        await waiting[1]

    asyncio.run(requests())
    assert kept(database)[0] == ["b", "slow"]


def test_outcome_of_one_change_is_that_of_a_transaction(database: Database) -> None:
    error = InvalidRequest("after it wrote")
    assert commit_group(database, [enter("a", error)]) == [Outcome(error=error)]
    assert kept(database) == ([],) * 4
