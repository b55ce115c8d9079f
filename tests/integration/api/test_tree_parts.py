"""POST /DM/register/tree goes part by part: others write in between, and the answer says what was registered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import pytest
import requests
from sqlalchemy import event, func, select, text

from api.objects.tree_answer import AT_ONCE, pause_after
from models.database import Database
from models.tables import DataObject
from tests.support.catalogue import an_object
from tests.support.live_api import LiveApi

FILES = 2 * AT_ONCE + 100
LOOKS = [0, 1, 2, 5, 10, 15, 20, 25, 25, 25, 50, 50, *[100] * 50]
"""Milliseconds between SQLite's looks for its turn (sqliteDefaultBusyCallback)."""


@pytest.fixture
def tree(api: LiveApi) -> LiveApi:
    """An API with a tree of FILES files on `here`."""
    for number in range(FILES):
        api.write(f"tree/{number % 7}/{number}")
    return api


def register_tree(api: LiveApi, key: str | None = None, *, stream: bool = False) -> requests.Response:
    headers = {"Idempotency-Key": key} if key else {}
    fields = {"machine": "here", "path": "tree"}
    return api.ask("POST", "/DM/register/tree", json=fields, headers=headers, stream=stream)


def registered(api: LiveApi) -> set[str]:
    """Return the identifiers of all objects."""
    with api.database.read() as session:
        return {str(one) for one in session.scalars(select(DataObject.id))}


@pytest.fixture
def transactions(api: LiveApi) -> Iterator[tuple[list[int], threading.Event]]:
    """How many objects each transaction of the API has inserted; and what is set when the first of them ends."""
    sizes: list[int] = []
    begun = threading.Event()
    rows = 0

    def inserted(_connection: object, cursor: Any, statement: str, *_more: object) -> None:
        nonlocal rows
        if statement.startswith("INSERT INTO objects"):
            rows += cursor.rowcount

    def committed(_connection: object) -> None:
        nonlocal rows
        if rows:
            sizes.append(rows)
            rows = 0
            begun.set()

    listeners: dict[str, Callable[..., Any]] = {"after_cursor_execute": inserted, "commit": committed}
    for name, listener in listeners.items():
        event.listen(api.database.engine, name, listener)
    yield sizes, begun
    for name, listener in listeners.items():
        event.remove(api.database.engine, name, listener)


@contextmanager
def failing_from(api: LiveApi, count: int) -> Iterator[None]:
    """Let every insert of an object fail while there are `count` of them."""
    when = f"BEFORE INSERT ON objects WHEN (SELECT count(*) FROM objects) >= {count}"
    with api.database.connection() as connection:
        connection.execute(text(f"CREATE TRIGGER full {when} BEGIN SELECT RAISE(ABORT, 'full'); END"))
    yield
    with api.database.connection() as connection:
        connection.execute(text("DROP TRIGGER full"))


@pytest.mark.parametrize("key", [None, "tree"])
@pytest.mark.dialect
def test_no_transaction_has_more_than_a_part(
    tree: LiveApi, transactions: tuple[list[int], threading.Event], key: str | None
) -> None:
    answer = register_tree(tree, key)
    assert answer.status_code == 201
    assert answer.json()["registered"] == len(answer.json()["objects"]) == FILES
    assert transactions[0] == [AT_ONCE, AT_ONCE, 100]


def test_another_process_registers_between_two_parts(
    tree: LiveApi, transactions: tuple[list[int], threading.Event]
) -> None:
    sizes, begun = transactions
    found = []

    def register() -> None:
        other = Database(tree.database.url)  # as another process would: nothing is shared
        assert begun.wait(60)
        found.append(an_object(other))
        other.close()

    thread = threading.Thread(target=register)
    thread.start()
    assert register_tree(tree).json()["registered"] == FILES
    thread.join()
    with tree.database.read() as session:
        dates = dict(session.execute(select(DataObject.id, DataObject.date_registered)).all())
    mine = dates.pop(found[0])
    assert min(dates.values()) < mine < max(dates.values())
    assert len(sizes) == 3


def test_the_answer_is_sent_as_files_are_registered(
    tree: LiveApi, transactions: tuple[list[int], threading.Event]
) -> None:
    _, begun = transactions
    locked, release = threading.Event(), threading.Event()

    def lock() -> None:
        other = Database(tree.database.url)
        assert begun.wait(60)
        with other.write():
            locked.set()
            assert release.wait(60)
        other.close()

    thread = threading.Thread(target=lock)
    thread.start()
    answer = register_tree(tree, stream=True)
    assert locked.wait(60)
    pieces = answer.iter_content(chunk_size=None)
    begin = next(pieces)
    with tree.database.read() as session:
        done = session.scalar(select(func.count()).select_from(DataObject)) or 0
    assert AT_ONCE <= done < FILES
    assert 0 < begin.count(b'"uuid"') <= done
    release.set()
    whole = begin + b"".join(pieces)
    thread.join()
    assert whole.count(b'"uuid"') == FILES
    assert whole.endswith(f'"registered":{FILES},"already":0,"skipped":0,"unnameable":0}}'.encode())


def test_a_failure_in_the_middle_is_told_with_what_is_registered(tree: LiveApi) -> None:
    with failing_from(tree, AT_ONCE + 1):
        answer = register_tree(tree)
    found = answer.json()
    assert answer.status_code == 201
    assert [found[key] for key in ("registered", "already", "left")] == [AT_ONCE, 0, FILES - AT_ONCE]
    assert {one["uuid"] for one in found["objects"]} == registered(tree)
    assert (found["error"]["code"], found["error"]["status"]) == ("internal", 500)
    assert f"{AT_ONCE} of {FILES} files are registered" in found["error"]["detail"]
    again = register_tree(tree).json()
    assert [again[key] for key in ("registered", "already")] == [FILES - AT_ONCE, AT_ONCE]
    assert {one["uuid"] for one in [*found["objects"], *again["objects"]]} == registered(tree)


def test_a_failure_under_a_key_is_its_problem_and_the_key_may_be_used_again(tree: LiveApi) -> None:
    with failing_from(tree, AT_ONCE + 1):
        answer = register_tree(tree, "tree")
    found = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert (found["code"], found["registered"], found["left"]) == ("internal", AT_ONCE, FILES - AT_ONCE)
    assert {one["uuid"] for one in found["objects"]} == registered(tree)
    again = register_tree(tree, "tree")
    assert [again.json()[key] for key in ("registered", "already")] == [FILES - AT_ONCE, AT_ONCE]
    replayed = register_tree(tree, "tree")
    assert replayed.headers["idempotency-replayed"] == "true"
    assert replayed.json() == again.json()
    assert len(registered(tree)) == FILES


@pytest.mark.parametrize("key", [None, "tree"])
def test_a_failure_of_the_first_part_registers_nothing(tree: LiveApi, key: str | None) -> None:
    with failing_from(tree, 10):
        answer = register_tree(tree, key)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert registered(tree) == set()


@pytest.mark.parametrize("held", [0, 1, 20, 39, 41, 60, 99, 101, 140, 250, 900])
def test_pause_after_leaves_a_turn_to_who_waited_since_then(held: int) -> None:
    pause = pause_after(held / 1000) * 1000
    assert 40 <= pause <= 100
    for since in range(held + 1):
        looks = [since + look for look in accumulate(LOOKS)]
        assert any(held <= look <= held + pause for look in looks), f"{since} of {held} ms"
