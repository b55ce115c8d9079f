"""Service tokens in the catalogue, withdrawn persons, and grants that are asked again while they wait or run."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, update

from datamanager.domain.recurring import ScheduleRequest
from datamanager.domain.requests import CopyManyRequest, validated
from datamanager.domain.states import TransferKind
from datamanager.engine.control import Control
from datamanager.errors import InvalidRequest, NotAllowed, NotAuthenticated, TaskEnded, TokenNotFound
from datamanager.identity.grant import Grant, Means
from datamanager.identity.roles import Roles, RolesFile, load_roles
from datamanager.identity.service_token import ServiceToken
from datamanager.sealing import Sealer
from datamanager.settings import Settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from deployments.mover.dispatcher import Dispatcher
from flows.runtime.services import Services
from models.access.standing import require_standing, standing
from models.access.tokens import (
    NewToken,
    create_token,
    find_token,
    get_token,
    grant_of,
    is_withdrawn,
    list_tokens,
    note_uses,
    readmit_person,
    require_live,
    revoke_token,
    rotate_token,
    withdraw_person,
    withdrawn_persons,
)
from models.access.visibility import ALL, seen
from models.database import Database, now
from models.external import schedules
from models.submission import SealedRequest
from models.tables import TokenRecord, Transfer
from models.transfers import cancel_pause, outcomes, queue, shared_outcomes, withdrawal
from tests.support.access import ROLES, granted, in_role
from tests.support.bookkeeping import MACHINES, begin, get_transfer, order, register, submit, take
from tests.support.catalogue import statements

pytestmark = pytest.mark.dialect

KEY = b"k" * 32
WHOLE = in_role("admin", person="root")


def entered(database: Database, name: str = "ci", **fields: Any) -> tuple[ServiceToken, Grant]:
    """Enter a token; return it, and what it permits."""
    token = ServiceToken.make()
    new = NewToken(token.identifier, token.digest(KEY), name, **({"roles": ("mover",), "groups": ("fire",)} | fields))
    with database.write() as session:
        return token, grant_of(create_token(session, new, WHOLE), ROLES)


def is_live(database: Database, token: ServiceToken) -> bool:
    """Say whether the API would let it in."""
    with database.read() as session:
        found = find_token(session, token.identifier)
        if not token.matches(KEY, None if found is None else found.digest) or found is None:
            return False
        try:
            require_live(found, now(session))
        except NotAuthenticated:
            return False
    return True


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_token_is_found_by_its_id_and_only_its_digest_is_kept(database: Database) -> None:
    token, grant = entered(database, scopes=("audits!machine=alpha",))
    assert (grant.person, grant.means, grant.credential) == ("token:ci", Means.TOKEN, token.identifier)
    assert grant.groups == {"fire"}
    assert grant.may("audits") is False
    assert [str(one) for one in grant.scopes] == [
        *map(str, ROLES.scopes_of(["mover"])),
        "audits!machine=alpha",
    ]
    assert is_live(database, token)
    assert not is_live(database, replace(token, secret=ServiceToken.make().secret))
    with database.read() as session:
        row = find_token(session, token.identifier)
        kept = " ".join(str(value) for value in vars(row).values())
        assert find_token(session, "x" * 12) is None
    assert token.secret not in kept
    assert row is not None
    assert (row.created_by, row.last_used, row.revoked) == ("root", None, None)
    with database.read() as session:  # a role that was taken away permits nothing
        assert grant_of(row, Roles({}, "none")).scopes == grant.scopes[-1:]


def test_of_live_tokens_each_has_its_name_alone(database: Database) -> None:
    first, _ = entered(database, expires=datetime.now(UTC) + timedelta(seconds=60))
    with pytest.raises(InvalidRequest, match="'ci' already"):
        entered(database)
    with database.write() as session:
        session.execute(update(TokenRecord).values(expires=datetime(2026, 1, 1, tzinfo=UTC)))
    assert not is_live(database, first)
    second, _ = entered(database)  # an expired one is in nobody's way
    with database.write() as session:
        assert revoke_token(session, second.identifier, ALL, WHOLE).revoked_by == "root"
        revoke_token(session, second.identifier, ALL, None)
    assert not is_live(database, second)
    entered(database)


def test_rotated_token_is_accepted_as_long_as_they_overlap(database: Database) -> None:
    old, grant = entered(database)
    new, newest = ServiceToken.make(), ServiceToken.make()
    with database.write() as session:
        row = rotate_token(session, old.identifier, new.identifier, new.digest(KEY), ALL, WHOLE, timedelta(seconds=60))
        assert (row.name, row.roles, row.groups) == ("ci", ["mover"], ["fire"])
    assert is_live(database, old)
    assert is_live(database, new)
    with pytest.raises(InvalidRequest, match="rotated already"), database.write() as session:
        rotate_token(session, old.identifier, "z" * 12, "", ALL, WHOLE, timedelta(0))
    with database.write() as session:
        rotate_token(session, new.identifier, newest.identifier, newest.digest(KEY), ALL, WHOLE, timedelta(0))
        session.execute(update(TokenRecord).where(TokenRecord.id == old.identifier).values(overlap_until=now(session)))
    assert [is_live(database, one) for one in (old, new, newest)] == [False, False, True]
    with database.read() as session:  # what waits with the first one's grant goes on with the newest
        assert standing(session, [grant], ROLES)[grant] == replace(grant, credential=newest.identifier)
    with database.write() as session:
        revoke_token(session, newest.identifier, ALL, WHOLE)
        assert standing(session, [grant], ROLES) == {grant: None}


def test_tokens_are_seen_by_groups_and_maker(database: Database) -> None:
    mine, _ = entered(database)
    entered(database, "both", groups=("fire", "flood"))
    entered(database, "none", groups=())
    with database.read() as session:

        def names(*scopes: str) -> list[str]:
            visible = seen(granted(*scopes, person="root", groups=("fire",)), "admin:tokens")
            return [row.name for row in list_tokens(session, visible)]

        assert names("admin:tokens") == ["ci", "both", "none"]
        assert names("admin:tokens!group") == ["ci"]
        assert names("admin:tokens!group=fire!user") == ["ci"]
        assert names("admin:trail") == []
        with pytest.raises(TokenNotFound):
            get_token(session, mine.identifier, seen(granted("admin:tokens!user"), "admin:tokens"))
        with pytest.raises(TokenNotFound):
            get_token(session, "x" * 12, ALL)


def test_last_use_is_noted_once_a_minute(database: Database) -> None:
    token, _ = entered(database)
    time = datetime(2026, 1, 1, tzinfo=UTC)
    with database.write() as session:
        uses = [note_uses(session, {token.identifier: time + timedelta(seconds=late)}) for late in (0, 59, 60, 61)]
    assert uses == [1, 0, 1, 0]


def test_withdrawn_persons(database: Database) -> None:
    with database.write() as session:
        assert withdraw_person(session, "ann", WHOLE)
        assert not withdraw_person(session, "ann", None)
        assert is_withdrawn(session, "ann")
        assert not is_withdrawn(session, "jo")
        assert [(row.person, row.by) for row in withdrawn_persons(session)] == [("ann", "root")]
        assert readmit_person(session, "ann")
        assert not readmit_person(session, "ann")


# --- asked again -----------------------------------------------------------------------------------------------------


def refused(database: Database, *transfers: UUID, roles: Roles = ROLES, users: Collection[str] = ()) -> set[UUID]:
    with database.read() as session:
        rows = session.scalars(select(Transfer).where(Transfer.id.in_(transfers))).all()
        return withdrawal.refused(session, rows, roles, users)


def copied(database: Database, grant: Grant | None, name: str, **fields: Any) -> UUID:
    """Request a copy of an object of the group fire."""
    uuid = register(database, f"in/{name}", group="fire")
    return submit(database, replace(order("copy", uuid, f"out/{name}", **fields), grant=grant))


def fewer(text: str, tmp_path: Path) -> Roles:
    """Return the roles of a site's own file."""
    file = tmp_path / "roles.toml"
    file.write_text(f"version = 1\n{text}")
    return load_roles(file)


@pytest.mark.attack(cwe=672, title="A transfer waits in the queue until its person was withdrawn")
def test_what_waits_is_refused_when_its_person_is_permitted_less(database: Database, tmp_path: Path) -> None:
    token, of_token = entered(database)
    person, other = in_role("mover", groups=("fire",)), in_role("mover", person="ann", groups=("fire",))
    scoped = granted("read:objects", "transfers", "write:objects", person="sue")
    made = {
        name: copied(database, grant, name)
        for name, grant in (("t", of_token), ("p", person), ("o", other), ("s", scoped), ("n", None))
    }
    assert refused(database, *made.values()) == set()
    reading = fewer('[roles.mover]\nscopes = ["read:objects", "transfers"]', tmp_path)
    assert refused(database, *made.values(), roles=reading) == {made["t"], made["p"], made["o"]}
    narrower = fewer(
        '[roles.mover]\nscopes = ["read:objects!group", "transfers", "write:objects!prefix=beta:out/"]', tmp_path
    )
    assert refused(database, *made.values(), roles=narrower) == set()  # less, but enough for these
    elsewhere = fewer('[roles.mover]\nscopes = ["read:objects!group=snow", "transfers", "write:objects"]', tmp_path)
    assert refused(database, *made.values(), roles=elsewhere) == {made["t"], made["p"], made["o"]}
    with database.write() as session:
        withdraw_person(session, "ann", WHOLE)
    assert refused(database, *made.values()) == {made["o"]}
    with database.write() as session:
        revoke_token(session, token.identifier, ALL, WHOLE)
        session.execute(update(Transfer).where(Transfer.id == made["s"]).values(grant={"person": "x"}))
    assert refused(database, *made.values()) == {made["o"], made["t"], made["s"]}
    with database.read() as session:
        require_standing(session, None, ROLES)
        require_standing(session, person, ROLES)
        with pytest.raises(NotAllowed):
            require_standing(session, other, ROLES)


def test_user_of_the_broker_is_permitted_what_settings_and_token_say_now(database: Database, tmp_path: Path) -> None:
    token, grant = entered(database)
    other, _ = entered(database, "other")
    by_user = replace(grant, means=Means.BROKER)
    waiting, running, by_token = (
        copied(database, by_user, "a"),
        copied(database, by_user, "b"),
        copied(database, grant, "c"),
    )
    everything = (waiting, running, by_token)
    users = [other.identifier, token.identifier]
    assert refused(database, *everything, users=users) == set()
    reading = fewer('[roles.mover]\nscopes = ["read:objects", "transfers"]', tmp_path)
    assert refused(database, *everything, roles=reading, users=users) == set(everything)  # its role shrank
    new = ServiceToken.make()
    with database.write() as session:
        rotate_token(session, token.identifier, new.identifier, new.digest(KEY), ALL, WHOLE, timedelta(0))
        assert standing(session, [by_user], ROLES, users) == {by_user: replace(by_user, credential=new.identifier)}
    for named in ([token.identifier], [new.identifier]):  # settings may name the old one, or the new one already
        assert refused(database, *everything, users=named) == set()
    for named in ([], [other.identifier]):  # the user is not in the settings any more
        assert refused(database, *everything, users=named) == {waiting, running}
    take(database, running)
    with database.write() as session:
        assert withdrawal.forbid(session, [running, by_token], ROLES, users) == []
        assert withdrawal.forbid(session, [running, by_token], ROLES, [other.identifier]) == [running]
    assert get_transfer(database, running).stop_requested == queue.FORBID
    with database.write() as session:
        revoke_token(session, new.identifier, ALL, WHOLE)
    assert refused(database, *everything, users=users) == set(everything)


def test_mover_stops_what_a_user_requested_who_is_not_in_its_settings(database: Database, tmp_path: Path) -> None:
    token, grant = entered(database)
    by_user = replace(grant, means=Means.BROKER)

    def mover(*users: str) -> Dispatcher:
        settings, storages = Settings(home=tmp_path, amqp_users=users), Storages(MACHINES, tmp_path)
        return Dispatcher(
            Services(settings, MACHINES, database, storages, EgressGuard(()), "mover-1", notify=lambda _: None)
        )

    async def scene() -> None:
        running = copied(database, by_user, "running")
        ((taken,),) = mover(f"lexis={token.identifier}")._take_now(5, ())
        waiting = copied(database, by_user, "waiting")
        restarted = mover()
        assert restarted._take_now(5, ()) == []
        restarted._services.running[taken[0]] = Control()
        await restarted.ask_again()
        assert get_transfer(database, running).stop_requested == queue.FORBID
        ended = get_transfer(database, waiting)
        assert (ended.status, ended.error_code, ended.bytes_done) == ("ERROR", "not_allowed", 0)

    asyncio.run(scene())


def test_schedule_of_a_withdrawn_person_fetches_nothing(database: Database, tmp_path: Path) -> None:
    grant, moment = in_role("mover", groups=("fire",)), datetime(2026, 1, 2, tzinfo=UTC)
    fields = {"url": "https://e.org/{date:%Y}", "filename": "{date:%Y}.nc", "interval": "1h"}
    request = ScheduleRequest(**fields, group="fire", machine="beta")
    with database.write() as session:
        schedule = schedules.add_schedule(session, request, grant).id
        withdraw_person(session, "jo", WHOLE)
        sealer = Sealer(tmp_path / "key", made_here=True)
        run = schedules.run_moment(session, MACHINES, sealer, schedule, moment)
    assert run.transfer_id is not None
    assert refused(database, run.transfer_id) == {run.transfer_id}
    with database.write() as session:  # as the mover that takes it does
        (hold,) = queue.take(session, "mover", timedelta(seconds=30), 1)
        outcomes.fail(session, hold, NotAllowed(cancel_pause.WITHDRAWN))
    with database.write() as session:
        run = schedules.get_run(session, schedule, moment)
        schedules.settle(session, [run])
        assert (run.outcome, run.code) == ("failed", "not_allowed")


def test_batch_is_asked_for_each_of_its_items(database: Database, tmp_path: Path) -> None:
    objects = [register(database, f"in/{group}", group=group) for group in ("fire", "flood")]
    items = [{"uuid": str(uuid), "dest": f"out/{n}"} for n, uuid in enumerate(objects)]
    request = validated({"machine": "beta", "items": items}, CopyManyRequest)
    grant = in_role("mover", groups=("fire", "flood"))
    batch = submit(database, SealedRequest(TransferKind.COPY_MANY, request, grant=grant))
    start = '[roles.mover]\nscopes = ["transfers", "write:objects", "read:objects!group=fire"'
    assert refused(database, batch, roles=fewer(f"{start}]", tmp_path)) == {batch}
    both = fewer(f'{start}, "read:objects!group=flood"]', tmp_path)
    assert refused(database, batch, roles=both) == set()


def test_many_are_asked_by_as_many_statements_as_one(database: Database) -> None:
    grants = [entered(database, f"t{number}")[1] for number in range(5)]
    ids = [copied(database, grants[number % 5], str(number)) for number in range(20)]
    counts = []
    for some in (ids[:1], ids):
        with statements(database) as texts:
            assert refused(database, *some) == set()
        counts.append(len(texts))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("past", [False, True], ids=["working", "past its commit point"])
def test_what_runs_is_flagged_and_its_mover_stops_it(database: Database, past: bool) -> None:
    grant = in_role("mover", groups=("fire",))
    running, fine, waiting = (copied(database, one, name) for one, name in ((grant, "a"), (None, "b"), (grant, "c")))
    hold, _ = begin(database, running), begin(database, fine)
    with database.write() as session:
        withdraw_person(session, "jo", WHOLE)
        if past:
            queue.remember(session, hold, intent={"size": 1})
    for found in ([running], []):  # flagged once
        with database.write() as session:
            assert withdrawal.forbid(session, [running, fine, waiting], ROLES) == found
    with database.read() as session:
        reason = cancel_pause.stop_reason(session, running)
        assert isinstance(reason, NotAllowed)
        assert cancel_pause.stop_reason(session, fine) is None
        assert shared_outcomes.stops(session, [hold]).keys() == {hold}
    assert get_transfer(database, waiting).stop_requested is None  # it is asked when it is taken
    for change in (cancel_pause.pause, cancel_pause.resume):
        with pytest.raises(TaskEnded), database.write() as session:
            change(session, running, ALL)
    with database.write() as session:  # its mover is gone
        queue.requeue(session, hold)
        ended = [row.id for row in cancel_pause.expire(session)]
    row = get_transfer(database, running)
    if past:  # an attempt has to look first
        assert (ended, row.status) == ([], "QUEUED")
        assert [one.transfer for one in take(database, running)] == [running]
    else:
        assert (ended, row.status, row.error_code) == ([running], "ERROR", "not_allowed")


def test_roles_are_read_again_when_their_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "roles.toml"
    file.write_text('version = 1\n[roles.a]\nscopes = ["audits"]')
    roles = RolesFile(file)
    before = roles.current()
    assert roles.current() is before
    file.write_text("version = ")
    assert roles.current() is before  # a wrong one changes nothing
    file.write_text('version = 1\n[roles.b]\nscopes = ["audits"]')
    os.utime(file, (1, 1))
    assert list(roles.current().roles) == ["b"]
    assert next(iter(RolesFile().current().roles)) == "reader"
