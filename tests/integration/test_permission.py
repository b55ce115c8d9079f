"""What a request needs to be permitted: transfers, batches, directories, archives, schedules and registration."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, update

from datamanager.domain.archive_requests import ArchiveManyRequest
from datamanager.domain.recurring import ScheduleRequest
from datamanager.domain.requests import (
    CopyManyRequest,
    MoveManyRequest,
    RegisterRequest,
    TransferTerms,
    TreeRequest,
    validated,
)
from datamanager.domain.states import TransferKind
from datamanager.errors import NotAllowed, ObjectNotFound, TaskNotFound
from datamanager.identity.grant import Grant
from datamanager.machines import parse_machines
from datamanager.sealing import Sealer
from models import submission
from models.access.permission import NEEDS, reach_of
from models.access.visibility import seen
from models.database import Database
from models.external import schedules
from models.objects.catalogue import Facts, FoundFile, register_files, register_object
from models.submission import SealedRequest
from models.tables import DataObject, TransferItem
from models.transfers import lookup
from tests.support.access import granted, in_role
from tests.support.bookkeeping import MACHINES, get_object, get_transfer, order, place, register, submit

pytestmark = pytest.mark.dialect

FIRE = in_role("mover", groups=("fire",))
READ, COPY, WRITE = "read:objects!group=fire", "transfers!group=fire", "write:objects!group=fire"
DELETE = "delete:objects"
FROM = "!machine=alpha"
WITH_TAPE = parse_machines(
    """
    [machines.alpha]
    transport = "local"
    base_dir = "/data/alpha"
    [machines.beta]
    transport = "local"
    base_dir = "/data/beta"
    [machines.tape]
    transport = "local"
    base_dir = "/data/tape"
    archive = true
    """,
    "machines.toml",
)


def made(database: Database, path: str, group: str = "fire", owner: str | None = None) -> UUID:
    """Register an object on alpha, of a group and of somebody."""
    uuid = register(database, path, group=group)
    with database.write() as session:
        session.execute(update(DataObject).where(DataObject.id == uuid).values(created_by=owner))
    return uuid


def items_of(database: Database, transfer: UUID) -> list[TransferItem]:
    with database.read() as session:
        query = select(TransferItem).where(TransferItem.transfer_id == transfer).order_by(TransferItem.number)
        return list(session.scalars(query))


def many(kind: TransferKind, grant: Grant | None, **fields: Any) -> SealedRequest:
    """Return a batch that somebody requests."""
    models: dict[TransferKind, type[TransferTerms]] = {
        TransferKind.COPY_MANY: CopyManyRequest,
        TransferKind.MOVE_MANY: MoveManyRequest,
        TransferKind.ARCHIVE_MANY: ArchiveManyRequest,
    }
    return SealedRequest(kind, validated(fields, models[kind]), grant=grant)


@pytest.mark.parametrize(
    ("kind", "scopes", "error"),
    [
        ("copy", [READ, COPY, WRITE], None),
        ("copy", [COPY, WRITE], ObjectNotFound),  # to copy reads
        ("copy", [READ, WRITE], NotAllowed),
        ("copy", [READ, COPY], NotAllowed),
        ("copy", [READ, COPY, WRITE + FROM], NotAllowed),  # not at the destination
        ("copy", [READ, COPY + FROM, WRITE], NotAllowed),
        ("copy", [READ, COPY, "write:objects!prefix=beta:out/"], None),
        ("copy", [READ, COPY, "write:objects!prefix=beta:outer/"], NotAllowed),
        ("copy", [READ, COPY, "write:objects!user"], None),  # what it makes is the person's own
        ("move", [READ, COPY, WRITE], None),
        ("move", [READ, COPY, WRITE + "!machine=beta"], NotAllowed),  # nor may its source go
        ("move", [READ, COPY, "write:objects!user"], NotAllowed),  # it stays somebody else's
        ("delete", [DELETE], None),
        ("delete", [READ], NotAllowed),
        ("delete", ["delete:objects!group=flood", "read:objects!group=flood"], ObjectNotFound),
        ("getexternal", [COPY, WRITE], None),
        ("getexternal", [COPY], NotAllowed),
        ("getexternal", [COPY, "write:objects!group=flood"], NotAllowed),
    ],
)
def test_single_transfer_needs_what_its_kind_does(
    database: Database, kind: str, scopes: list[str], error: type[Exception] | None
) -> None:
    fetches = kind == "getexternal"
    wanted = order(kind, None if fetches else made(database, "in/a"), "out/a", **({"group": "fire"} if fetches else {}))
    wanted = replace(wanted, grant=granted(*scopes))
    if error is not None:
        with pytest.raises(error):
            submit(database, wanted)
        return
    row = get_transfer(database, submit(database, wanted))
    assert (row.created_by, row.grant) == ("jo", granted(*scopes).to_json())
    assert Grant.from_json(row.grant or {}) == granted(*scopes)


def test_every_kind_needs_something() -> None:
    assert NEEDS.keys() == set(TransferKind)
    assert all(needs.source or needs.destination for needs in NEEDS.values())


def test_foreign_object_is_not_found_whatever_its_state(database: Database) -> None:
    foreign = made(database, "in/a", "flood")
    with database.write() as session:
        session.execute(update(DataObject).where(DataObject.id == foreign).values(status="DELETED"))
    for wanted in (foreign, uuid4()):
        for kind in ("copy", "move", "delete"):
            with pytest.raises(ObjectNotFound, match=f"no object has the identifier {wanted}"):
                submit(database, replace(order(kind, wanted, "out/z"), grant=FIRE))
        with pytest.raises(ObjectNotFound, match=f"no object has the identifier {wanted}"):
            submit(
                database,
                replace(
                    order("getexternal", dest="o/z", group="fire", options={"if_newer_than": str(wanted)}), grant=FIRE
                ),
            )


@pytest.mark.parametrize("kind", [TransferKind.COPY_MANY, TransferKind.MOVE_MANY, TransferKind.ARCHIVE_MANY])
def test_foreign_item_is_refused_alone_as_one_that_does_not_exist(database: Database, kind: TransferKind) -> None:
    wanted = made(database, "in/a"), made(database, "in/b", "flood"), uuid4()
    fields: dict[str, Any] = {"machine": "beta"}
    fields["items"] = [{"uuid": str(one), "dest": f"o/{n}"} for n, one in enumerate(wanted)]
    if kind is TransferKind.ARCHIVE_MANY:
        fields = {"items": [str(one) for one in wanted], "archive_to": "tape"}
    request = many(kind, in_role("archivist", groups=("fire",)), **fields)
    with database.read() as session:
        request = submission.judged(session, WITH_TAPE, request)
    with database.write() as session:
        transfer = submission.submit(session, WITH_TAPE, request).id
    first, second, third = items_of(database, transfer)
    assert (first.status, first.error_code) == ("QUEUED", None)
    for item in (second, third):
        assert (item.status, item.error_code) == ("ERROR", "object_not_found")
        assert (item.source_machine, item.source_place, item.size) == (None, None, None)
        assert item.error_detail == f"no object has the identifier {item.object_id}"
    assert get_transfer(database, transfer).group == "fire"


def test_item_is_refused_where_its_destination_is_not_permitted(database: Database) -> None:
    mine = made(database, "in/a")
    grant = granted(READ, COPY, "write:objects!prefix=beta:out/")
    items = [{"uuid": str(mine), "dest": dest} for dest in ("out/a", "other/a")]
    transfer = submit(database, many(TransferKind.COPY_MANY, grant, machine="beta", items=items))
    assert [item.error_code for item in items_of(database, transfer)] == [None, "not_allowed"]


@pytest.mark.parametrize("grouped", [False, True], ids=["judged before", "whole"])
@pytest.mark.parametrize("kind", [TransferKind.COPY_MANY, TransferKind.MOVE_MANY])
def test_directory_has_nothing_foreign_in_it(database: Database, kind: TransferKind, grouped: bool) -> None:
    mine = [made(database, f"in/{name}") for name in "bd"]
    for name in "ac":
        made(database, f"in/{name}", "flood")
    fields = {"directory": {"machine": "alpha", "path": "in"}, "machine": "beta", "dest": "out"}
    request = many(kind, FIRE, **fields)
    with database.write() as session:
        transfer = submission.submit(session, MACHINES, request).id if grouped else None
    transfer = transfer or submit(database, request)
    assert [item.object_id for item in items_of(database, transfer)] == mine
    assert get_transfer(database, transfer).group == "fire"
    foreign = {"directory": {"machine": "alpha", "path": "in"}, "machine": "beta", "dest": "out2"}
    with pytest.raises(ObjectNotFound, match="no ACTIVE object is below alpha:in"):
        submit(database, many(kind, in_role("mover", groups=("snow",)), **foreign))


def test_directory_items_that_may_be_read_only_are_refused_one_by_one(database: Database) -> None:
    for name, owner in (("a", "jo"), ("b", "ann")):
        made(database, f"in/{name}", owner=owner)
    grant = granted(READ, "transfers!user", "write:objects!machine=beta!user")
    fields = {"directory": {"machine": "alpha", "path": "in"}, "machine": "beta", "dest": "out"}
    transfer = submit(database, many(TransferKind.COPY_MANY, grant, **fields))
    assert [(item.source_place, item.error_code) for item in items_of(database, transfer)] == [
        ("in/a", None),
        ("in/b", "not_allowed"),
    ]


def test_batch_of_several_groups_is_seen_by_who_made_it(database: Database) -> None:
    items = [{"uuid": str(made(database, f"in/{group}", group)), "dest": f"o/{group}"} for group in ("fire", "flood")]
    grant = in_role("mover", groups=("fire", "flood"))
    transfer = submit(database, many(TransferKind.COPY_MANY, grant, machine="beta", items=items))
    with database.read() as session:
        assert lookup.get_transfer(session, transfer, seen(grant, "read:tasks")).group == ""
        with pytest.raises(TaskNotFound):
            lookup.get_transfer(session, transfer, seen(replace(grant, person="ann"), "read:tasks"))


def test_schedule_submits_with_the_grant_of_who_made_it(database: Database, tmp_path: Path) -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    fields = {"url": "https://e.org/{date:%Y}", "filename": "{date:%Y}.nc", "interval": "1h"}
    request = ScheduleRequest(**fields, group="fire", machine="beta")
    sealer = Sealer(tmp_path / "key", made_here=True)
    only = granted("schedules!group=fire", COPY)
    with database.write() as session:
        ids = [schedules.add_schedule(session, request, one).id for one in (FIRE, only, None)]
        runs = [schedules.run_moment(session, MACHINES, sealer, one, moment) for one in ids]
    assert [(run.outcome, run.code) for run in runs[:2]] == [("pending", None), ("failed", "not_allowed")]
    row = get_transfer(database, runs[0].transfer_id or uuid4())
    assert (row.created_by, row.grant) == ("jo", FIRE.to_json())
    with pytest.raises(NotAllowed), database.write() as session:
        schedules.add_schedule(session, request, granted(COPY, WRITE))


def test_registration_needs_to_write_at_each_of_its_places(database: Database) -> None:
    grant = granted("write:objects!prefix=alpha:in/")
    request = RegisterRequest(filename="a", path="in", machine="alpha", group="fire")
    with database.write() as session:
        uuid = register_object(session, request, place("in/a"), Facts(1), by=grant)
    obj = get_object(database, uuid)
    assert (obj.created_by, obj.acted_as) == ("jo", None)
    with pytest.raises(NotAllowed, match="for alpha:out/b in group 'fire'"), database.write() as session:
        register_object(session, request, place("out/b"), Facts(1), by=grant)
    with pytest.raises(NotAllowed, match="for alpha:in/b in no group"), database.write() as session:
        register_object(session, request.model_copy(update={"group": ""}), place("in/b"), Facts(1), by=FIRE)
    with pytest.raises(NotAllowed), database.write() as session:  # a link that leads elsewhere
        register_object(session, request, place("in/b"), Facts(1), canonical=place("out/b"), by=grant)
    files = [FoundFile(place(path), "in", Facts(1), place(path)) for path in ("in/c", "out/c")]
    with database.write() as session:
        (new,) = register_files(session, files[:1], TreeRequest(machine="alpha"), grant)
    assert get_object(database, new.id).created_by == "jo"
    with pytest.raises(NotAllowed), database.write() as session:
        register_files(session, files, TreeRequest(machine="alpha"), grant)


@pytest.mark.parametrize(
    ("scopes", "reach"),
    [
        (["transfers", "write:objects"], ()),
        (["transfers!group=fire!machine=here!user", "write:objects!group"], ()),
        (["transfers!prefix=here:a/", "write:objects"], ({"a"},)),
        (["transfers!prefix=here:a/", "write:objects!prefix=here:a/"], ({"a"},)),
        (["transfers!prefix=here:a/", "write:objects!prefix=here:a/b/"], ({"a"}, {"a/b"})),
        (["transfers!prefix=here:a/", "transfers!prefix=here:b/", "write:objects"], ({"a", "b"},)),
        (["transfers!prefix=here:a/!prefix=here:a/b/", "write:objects"], ({"a/b"},)),
        (["transfers!prefix=here:a/", "transfers!group=fire", "write:objects"], ()),
        (["transfers!prefix=here:a/", "transfers!group=water", "write:objects"], ({"a"},)),
        (["transfers!prefix=here:a/!group=water", "transfers!prefix=here:b/", "write:objects"], ({"b"},)),
        (["transfers!prefix=here:a/", "transfers!prefix=there:b/", "write:objects"], ({"a"},)),
        (["transfers!prefix=here:", "write:objects"], ()),
        (["write:objects"], (set(),)),
    ],
)
def test_reach_is_what_scopes_name_of_a_machine(scopes: list[str], reach: tuple[set[str], ...]) -> None:
    grant = granted(*scopes, groups=("fire",))
    found = reach_of(grant, "here", "fire", NEEDS[TransferKind.COPY].destination)
    assert found == tuple(map(frozenset, reach))
    assert reach_of(None, "here", "fire", ("transfers",)) == ()
