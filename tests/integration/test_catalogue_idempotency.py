"""Idempotency keys: one works, others join; what a dead request made is found."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from datamanager.errors import CatalogueUnavailable, IdempotencyMismatch
from models.core import idempotency
from models.core.idempotency import Begun, StoredAnswer
from models.database import Database
from models.objects.claims import claim_place
from tests.support.bookkeeping import claims, place, register

pytestmark = pytest.mark.dialect

KEEP = timedelta(hours=24)
HOLD = timedelta(seconds=30)
LAPSED = timedelta(seconds=-1)
ANSWER = StoredAnswer(201, {"content-type": "text/plain"}, "ünïcode body")


def begin(database: Database, holder: str, *, fingerprint: str = "f" * 64, hold: timedelta = HOLD) -> Begun:
    with database.write() as session:
        return idempotency.begin(session, "key", fingerprint, holder, hold, KEEP)


def test_the_first_works_and_others_wait(database: Database) -> None:
    assert begin(database, "one") == Begun(mine=True)
    assert begin(database, "two") == Begun(holder="one")
    assert begin(database, "two") == Begun(holder="one")


def test_one_of_many_at_once_works(database: Database) -> None:
    with ThreadPoolExecutor(20) as pool:
        begun = list(pool.map(lambda i: begin(database, f"holder-{i}"), range(20)))
    assert sorted(one.mine for one in begun) == [False] * 19 + [True]


def test_a_stored_answer_is_replayed(database: Database) -> None:
    begin(database, "one")
    with database.write() as session:
        idempotency.store(session, "key", "one", ANSWER)
    for _ in range(2):
        assert begin(database, "two") == Begun(answer=ANSWER)


def test_another_request_under_the_key_is_refused(database: Database) -> None:
    begin(database, "one")
    with pytest.raises(IdempotencyMismatch):
        begin(database, "two", fingerprint="0" * 64)
    with database.write() as session:
        idempotency.store(session, "key", "one", ANSWER)
    with pytest.raises(IdempotencyMismatch):
        begin(database, "two", fingerprint="0" * 64)


def test_a_dropped_key_is_free(database: Database) -> None:
    begin(database, "one")
    with database.write() as session:
        idempotency.drop(session, "key", "two")  # not the holder: nothing happens
    assert begin(database, "two") == Begun(holder="one")
    with database.write() as session:
        idempotency.drop(session, "key", "one")
    assert begin(database, "two", fingerprint="0" * 64) == Begun(mine=True)


def test_what_a_dead_request_made_is_found(database: Database) -> None:
    made = uuid4()
    begin(database, "one", hold=LAPSED)
    with database.write() as session:
        idempotency.attach(session, "key", "one", made)
    assert begin(database, "two") == Begun(mine=True, subject=made)
    assert begin(database, "three") == Begun(holder="two")


@pytest.mark.parametrize("made", [None, uuid4()])
def test_the_next_holder_of_a_released_key_finds_what_was_made(database: Database, made: UUID | None) -> None:
    begin(database, "one")
    with database.write() as session:
        if made is not None:
            idempotency.attach(session, "key", "one", made)
        idempotency.release(session, "key", "two")  # not the holder: nothing happens
    assert begin(database, "two") == Begun(holder="one")
    with database.write() as session:
        idempotency.release(session, "key", "one")
        idempotency.prolong(session, "key", "one", HOLD)  # one that was under way comes too late
    with pytest.raises(IdempotencyMismatch):
        begin(database, "two", fingerprint="0" * 64)
    assert begin(database, "two") == Begun(mine=True, subject=made)


def test_looking_whether_a_key_is_held(database: Database) -> None:
    def held() -> bool:
        with database.read() as session:
            return idempotency.holder_of(session, "key") is not None

    assert not held()
    begin(database, "one")
    assert held()
    with database.write() as session:
        idempotency.release(session, "key", "one")
    assert not held()
    begin(database, "two", hold=LAPSED)
    assert not held()
    begin(database, "three")
    assert held()
    with database.write() as session:
        idempotency.store(session, "key", "three", ANSWER)
    assert not held()


def test_prolonging_keeps_the_key(database: Database) -> None:
    begin(database, "one", hold=LAPSED)
    with database.write() as session:
        idempotency.prolong(session, "key", "one", HOLD)
    assert begin(database, "two") == Begun(holder="one")


def test_who_lost_the_key_makes_nothing(database: Database) -> None:
    begin(database, "slow", hold=LAPSED)
    assert begin(database, "fast").mine
    with pytest.raises(CatalogueUnavailable), database.write() as session:
        idempotency.attach(session, "key", "slow", uuid4())
    with database.write() as session:
        idempotency.store(session, "key", "slow", ANSWER)
    assert begin(database, "third") == Begun(holder="fast")  # the slow one's answer was not stored


def test_attaching_and_making_are_one_transaction(database: Database) -> None:
    begin(database, "slow", hold=LAPSED)
    begin(database, "fast")
    with pytest.raises(CatalogueUnavailable), database.write() as session:
        claim_place(session, place("a"), object_id=uuid4())
        idempotency.attach(session, "key", "slow", uuid4())
    assert claims(database) == set()
    register(database, "a")


def test_keys_expire(database: Database) -> None:
    begin(database, "one")
    with database.write() as session:
        idempotency.store(session, "key", "one", ANSWER)
        assert idempotency.prune(session, KEEP) == 0
    with database.write() as session:  # an expired key is as good as gone, pruned or not
        again = idempotency.begin(session, "key", "0" * 64, "two", HOLD, LAPSED)
    assert again == Begun(mine=True)
    with database.write() as session:
        assert idempotency.prune(session, LAPSED) == 1
    assert begin(database, "three") == Begun(mine=True)
