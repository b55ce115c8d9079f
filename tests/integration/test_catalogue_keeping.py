"""What keeps the catalogue in order: housekeeping, leases, machines seen."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from datamanager.domain.states import ObjectStatus
from datamanager.errors import NoSpace, SettingsError
from datamanager.machines import Machines, parse_machines
from models import housekeeping
from models.core import idempotency, leases, outbox
from models.core.idempotency import StoredAnswer
from models.database import Database, now
from models.housekeeping import tidy
from models.machines.base_dirs import check_base_dirs
from models.objects.catalogue import has_objects
from models.tables import Base, DataObject, IdempotencyKey, Lease, MachineSeen, OutboxMessage, Transfer
from models.transfers import outcomes
from tests.support.bookkeeping import begin, order, register, submit

pytestmark = pytest.mark.dialect

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Durations:
    """The defaults of Settings."""

    keep_transfers: timedelta = 90 * DAY
    keep_outbox: timedelta = 7 * DAY
    idempotency_keep: timedelta = DAY


def count(database: Database, model: type[Base]) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(model)) or 0


# --- housekeeping ---


def age(database: Database, transfer: UUID, days: int) -> None:
    """Let the transfer have ended some days ago."""
    with database.write() as session:
        then = now(session) - days * DAY
        session.execute(update(Transfer).where(Transfer.id == transfer).values(ended=then, created=then))


def test_old_ended_transfers_go_and_open_ones_stay(database: Database) -> None:
    source = register(database, "a")
    ended = []
    for name in ("old", "new"):
        hold = begin(database, submit(database, order("copy", source, name)))
        with database.write() as session:
            outcomes.fail(session, hold, NoSpace("full"))
        ended.append(hold.transfer)
    waiting = submit(database, order("copy", source, "waiting"))
    age(database, ended[0], 91)
    with database.write() as session:
        session.execute(update(Transfer).where(Transfer.id == waiting).values(created=now(session) - 400 * DAY))
        assert tidy(session, Durations(), broker=True).transfers == 1
    with database.read() as session:
        assert set(session.scalars(select(Transfer.id)).all()) == {ended[1], waiting}
    assert count(database, DataObject) == 1


@pytest.mark.parametrize(("broker", "left"), [(True, {"fresh-sent", "fresh", "old"}), (False, {"fresh-sent", "fresh"})])
def test_the_outbox_keeps_what_the_broker_has_not_confirmed(database: Database, broker: bool, left: set[str]) -> None:
    with database.write() as session:
        today = now(session)
        for name, days, sent in (
            ("old-sent", 8, today),
            ("old", 8, None),
            ("fresh-sent", 6, today),
            ("fresh", 6, None),
        ):
            created = today - days * DAY
            session.add(OutboxMessage(exchange="", routing_key=name, body={}, created=created, sent=sent))
    with database.write() as session:
        tidy(session, Durations(), broker=broker)
    with database.read() as session:
        assert set(session.scalars(select(OutboxMessage.routing_key)).all()) == left


def test_old_keys_and_dead_leases_go(database: Database) -> None:
    with database.write() as session:
        for key in ("old", "fresh"):
            idempotency.begin(session, key, "f" * 64, "holder", DAY, DAY)
            idempotency.store(session, key, "holder", StoredAnswer(200, {}, ""))
        old = now(session) - timedelta(hours=25)
        session.execute(update(IdempotencyKey).where(IdempotencyKey.key == "old").values(created=old))
        leases.hold_lease(session, "mover:dead", "dead", timedelta(hours=-2))
        leases.hold_lease(session, "mover:late", "late", timedelta(seconds=-5))
        leases.hold_lease(session, "mover:live", "live", timedelta(seconds=60))
    with database.write() as session:
        tidied = tidy(session, Durations(), broker=True)
    assert (tidied.keys, tidied.leases, tidied.more) == (1, 1, False)
    with database.read() as session:
        assert set(session.scalars(select(Lease.name)).all()) == {"mover:late", "mover:live"}


def test_batches_are_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "BATCH", 10)
    with database.write() as session:
        old = now(session) - 30 * DAY
        session.add_all(OutboxMessage(exchange="", routing_key="x", body={}, created=old, sent=old) for _ in range(25))
    rounds = []
    while True:
        with database.write() as session:
            tidied = tidy(session, Durations(), broker=True)
        rounds.append(tidied.messages)
        if not tidied.more:
            break
    assert rounds == [10, 10, 5]


def test_the_outbox_is_read_in_order_and_marked(database: Database) -> None:
    for name in "abc":
        submit(database, order("getexternal", dest=name))
    with database.write() as session:
        messages = outbox.unsent(session, 4)
        assert [message.id for message in messages] == sorted(message.id for message in messages)
        outbox.mark_sent(session, [message.id for message in messages[:3]])
        outbox.mark_sent(session, [])
    with database.read() as session:
        assert outbox.unsent(session, 10)[0].id == messages[3].id
        assert len(outbox.unsent(session, 10)) == 3


# --- leases ---


def hold(database: Database, holder: str, seconds: float) -> bool:
    with database.write() as session:
        return leases.hold_lease(session, "outbox-relay", holder, timedelta(seconds=seconds))


def test_one_holds_a_lease_at_a_time(database: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda i: hold(database, f"relay-{i}", 60), range(8))) == 1
    with database.read() as session:
        holder = session.get_one(Lease, "outbox-relay").holder
    assert hold(database, holder, -1)  # its own it may always change
    assert hold(database, "next", 60)
    assert not hold(database, holder, 60)
    with database.write() as session:
        leases.drop_lease(session, "outbox-relay", holder)  # no longer its own
    assert not hold(database, holder, 60)
    with database.write() as session:
        leases.drop_lease(session, "outbox-relay", "next")
    assert hold(database, holder, 60)


def test_movers_online(database: Database) -> None:
    with database.write() as session:
        leases.hold_lease(session, f"{leases.MOVER_PREFIX}a", "a", timedelta(seconds=60), {"slots": 4})
        leases.hold_lease(session, f"{leases.MOVER_PREFIX}b", "b", timedelta(seconds=-1))
        leases.hold_lease(session, "moverish", "c", timedelta(seconds=60))
        for name, prefect in (("d", False), ("e", True)):
            leases.hold_lease(
                session, f"{leases.MOVER_PREFIX}{name}", name, timedelta(seconds=60), {"prefect": prefect}
            )
        found = leases.movers_online(session)
        assert list(found.items()) == [("a", True), ("d", False), ("e", True)]
        rows = [session.get_one(Lease, f"{leases.MOVER_PREFIX}{name}") for name in found]
        assert all(row.until > now(session) for row in rows)


# --- machines seen ---


def machines(base_dir: str) -> Machines:
    return parse_machines(f'[machines.alpha]\ntransport = "local"\nbase_dir = "{base_dir}"', "machines.toml")


def check(database: Database, base_dir: str, *, confirmed: bool = False) -> None:
    with database.write() as session:
        check_base_dirs(session, machines(base_dir), confirmed=confirmed)


def seen(database: Database) -> str:
    with database.read() as session:
        return session.get_one(MachineSeen, "alpha").base_dir


def test_a_changed_base_dir_with_objects_stops_the_start(database: Database) -> None:
    check(database, "/old")
    check(database, "/old/")
    register(database, "a")
    with pytest.raises(SettingsError) as refused:
        check(database, "/new")
    for word in ("machines.alpha.base_dir", "'/old'", "'/new'", "DM_CONFIRM_BASE_DIR=1"):
        assert word in refused.value.detail
    assert "\n" not in refused.value.detail
    assert seen(database) == "/old"
    check(database, "/new", confirmed=True)
    assert seen(database) == "/new"
    check(database, "/new")


def test_a_changed_base_dir_without_objects_is_noted(database: Database) -> None:
    check(database, "/old")
    register(database, "a", "beta")
    check(database, "/new")
    assert seen(database) == "/new"


def test_a_transfer_under_way_counts_as_an_object(database: Database) -> None:
    check(database, "/old")
    submit(database, order("getexternal", dest="a", machine="alpha"))
    with pytest.raises(SettingsError):
        check(database, "/new")


@pytest.mark.parametrize("status", ObjectStatus)
def test_objects_whose_files_may_be_there(database: Database, status: ObjectStatus) -> None:
    made = register(database, "a")
    with database.write() as session:
        session.execute(update(DataObject).where(DataObject.id == made).values(status=status.value))
    with database.read() as session:
        assert has_objects(session, "alpha") is (status in (ObjectStatus.ACTIVE, ObjectStatus.UNKNOWN))
        assert has_objects(session, "beta") is False
