"""What a person sees: every function that reads for persons, by every filter, own and foreign; and no oracle."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, update

from datamanager.domain.audit_rules import AuditTerms
from datamanager.domain.recurring import ScheduleRequest
from datamanager.domain.states import ObjectStatus
from datamanager.errors import (
    AuditNotFound,
    NotAllowed,
    ObjectNotFound,
    RetentionRunNotFound,
    ScheduleNotFound,
    TaskNotFound,
)
from datamanager.identity.grant import Grant
from datamanager.identity.scopes import AccessTarget
from models.access.visibility import ALL, Visible, seen
from models.audit import runs as audit_runs
from models.core.cursors import Rendering
from models.database import Database
from models.external import schedules
from models.machines import limits
from models.objects.catalogue import get_object
from models.objects.listing import Selection, every_page, select_objects
from models.objects.totals import totals_by
from models.retention import holds
from models.retention import runs as retention_runs
from models.tables import DataObject, ObjectTotal, Transfer
from models.transfers import cancel_pause
from models.transfers.lookup import TransferSelection, get_transfer, select_transfers
from tests.support.access import granted, in_role
from tests.support.bookkeeping import order, register, submit
from tests.support.catalogue import statements

pytestmark = pytest.mark.dialect

PATHS = ("a/x", "a/b/x", "ab/x", "b/x%_")
PERSONS = ("jo", "ann", None)
GRANTS = [
    granted(*scopes, groups=groups)
    for scopes, groups in [
        (["read:objects"], ()),
        ([], ("fire",)),
        (["read:objects!group"], ()),
        (["read:objects!group"], ("fire",)),
        (["read:objects!group"], ("fire", "flood")),
        (["read:objects!group=flood"], ("fire",)),
        (["read:objects!user"], ("fire",)),
        (["read:objects!machine=beta"], ()),
        (["read:objects!prefix=alpha:a/"], ()),
        (["read:objects!prefix=alpha:a/b/x"], ()),
        (["read:objects!prefix=alpha:"], ()),
        (["read:objects!group=fire!machine=alpha!user"], ()),
        (["read:objects!group=fire!prefix=beta:b/", "read:objects!user!group=flood"], ()),
    ]
]


def person(name: str) -> Grant:
    """Return somebody who may do everything, by whom a row is made."""
    return in_role("admin", person=name)


@pytest.fixture
def objects(database: Database) -> dict[UUID, AccessTarget]:
    """Objects of every kind, and how a grant sees them."""
    found: dict[UUID, AccessTarget] = {}
    for group in ("fire", "flood", ""):
        for machine in ("alpha", "beta"):
            for number, path in enumerate(PATHS):
                owner = PERSONS[(number + len(found)) % len(PERSONS)]
                uuid = register(database, f"{path}{group}", machine, group=group)
                found[uuid] = AccessTarget(group, machine, f"{path}{group}", owner)
    with database.write() as session:
        for uuid, target in found.items():
            session.execute(update(DataObject).where(DataObject.id == uuid).values(created_by=target.owner))
    return found


def listed(database: Database, visible: Visible, **selection: Any) -> list[UUID]:
    found, cursor = [], None
    with database.read() as session:
        while True:
            rows, cursor = select_objects(session, Selection(limit=5, cursor=cursor, **selection), visible)
            found += [row.id for row in rows]
            if cursor is None:
                return found


def test_objects_are_seen_as_the_grant_says(database: Database, objects: dict[UUID, AccessTarget]) -> None:
    for grant in GRANTS:
        check_objects(database, objects, grant)


def check_objects(database: Database, objects: dict[UUID, AccessTarget], grant: Grant) -> None:
    """Compare what each function shows with what the grant says of each object."""
    wanted = [uuid for uuid, target in objects.items() if grant.may("read:objects", target)]
    visible = seen(grant, "read:objects")
    with database.read() as session:
        for uuid in objects:
            if uuid in wanted:
                assert get_object(session, uuid, visible).id == uuid
            else:
                with pytest.raises(ObjectNotFound, match=str(uuid)):
                    get_object(session, uuid, visible)
        counted = sum(row.objects for row in totals_by(session, visible, ObjectTotal.group))
    assert listed(database, visible) == wanted
    assert listed(database, visible, sort="-date_registered") == wanted[::-1]
    assert set(listed(database, visible, sort="filename")) == set(wanted)
    for group in ("fire", "flood"):
        mine = [uuid for uuid in wanted if objects[uuid].group == group]
        assert listed(database, visible, group=group) == mine
        assert set(listed(database, visible, group=group, filename="x*", status=ObjectStatus.ACTIVE)) == set(mine)
    pages = every_page(database, visible, Rendering(show=lambda row: row.id))
    assert [uuid for page in pages for uuid in page] == wanted
    if all(condition.kind in ("group", "machine") for clause in visible.clauses for condition in clause):
        assert counted == len(wanted)
    else:
        assert counted == 0 or grant.may("read:objects", AccessTarget("fire", "alpha"))


@pytest.mark.parametrize("candidates", [1, 5000], ids=["all are looked at", "indexes find them"])
def test_cursor_names_no_foreign_object(
    database: Database, objects: dict[UUID, AccessTarget], monkeypatch: pytest.MonkeyPatch, candidates: int
) -> None:
    for name, value in (("LOOKED_FIRST", 1), ("LOOKED_PER_ROW", 1), ("CANDIDATES", candidates)):
        monkeypatch.setattr(f"models.core.bounded_pages.{name}", value)
    filters: list[dict[str, Any]] = [{}, {"machine": "alpha"}, {"filename": "x*"}, {"group": "flood"}]
    for grant in GRANTS[1:]:
        visible = seen(grant, "read:objects")
        wanted = {uuid for uuid, target in objects.items() if grant.may("read:objects", target)}
        for sort in ("date_registered", "-filename"):
            for some in filters:
                cursor, found = None, set[UUID]()
                while True:
                    with database.read() as session:
                        selection = Selection(limit=2, cursor=cursor, sort=sort, **some)
                        rows, cursor = select_objects(session, selection, visible)
                    found |= {row.id for row in rows}
                    if cursor is None:
                        break
                    assert len(rows) == 2
                    assert UUID(json.loads(base64.urlsafe_b64decode(cursor + "=="))[2]) in wanted
                assert found <= wanted
                assert some or found == wanted


@pytest.mark.attack(cwe=208, title="What is foreign is told from what does not exist by the work that it makes")
def test_what_is_foreign_and_what_does_not_exist_are_the_same(database: Database) -> None:
    foreign, mine = register(database, "in/a", group="flood"), register(database, "in/b", group="fire")
    task = submit(database, order("copy", foreign, "out/a"))
    grant = in_role("mover", groups=("fire",))
    reading, holding = seen(grant, "read:objects"), seen(grant, "read:objects", to="retention")
    tasks, control = seen(grant, "read:tasks"), seen(grant, "read:tasks", to="control:tasks")
    looks: list[tuple[Callable[..., Any], int, tuple[Any, ...]]] = [
        (get_object, 0, (reading,)),
        (holds.hold, 0, (holding, "why", "me")),
        (holds.set_expiry, 0, (holding, None)),
        (get_transfer, 1, (tasks,)),
        (cancel_pause.cancel, 1, (control,)),
        (limits.change_transfer, 1, (7, control)),
    ]
    answers = []
    for wanted in ((foreign, task), (uuid4(), uuid4())):
        with statements(database) as texts, database.write() as session:
            for look, which, others in looks:
                with pytest.raises((ObjectNotFound, TaskNotFound)) as refused:
                    look(session, wanted[which], *others)
                texts.append(refused.value.detail.replace(str(wanted[which]), "ID"))
        answers.append(texts)
    assert answers[0] == answers[1]
    with database.write() as session, pytest.raises(NotAllowed, match="the scope retention is missing"):
        holds.hold(session, mine, holding, "why", "me")


def test_tasks_are_seen_by_group_machines_and_maker(database: Database) -> None:
    made = {}
    for group, maker, kind in (("fire", "jo", "copy"), ("fire", "ann", "delete"), ("flood", "jo", "move")):
        made[group, kind] = submit(
            database,
            replace(
                order(kind, register(database, f"in/{group}{kind}", group=group), f"o/{kind}"), grant=person(maker)
            ),
        )
    made["fire", "getexternal"] = submit(
        database, replace(order("getexternal", None, "o/d", group="fire"), grant=person("ann"))
    )
    made["", "service"] = submit(database, order("copy", register(database, "in/none"), "o/none"))

    def found(grant: Grant) -> set[tuple[str, str]]:
        visible = seen(grant, "read:tasks")
        with database.read() as session:
            rows, _ = select_transfers(session, TransferSelection(), visible)
            for key, task in made.items():
                if task in {row.id for row in rows}:
                    assert get_transfer(session, task, visible).id == task, key
                else:
                    with pytest.raises(TaskNotFound):
                        get_transfer(session, task, visible)
        return {key for key, task in made.items() if task in {row.id for row in rows}}

    fire = {key for key in made if key[0] == "fire"}
    assert found(granted("read:tasks")) == set(made)
    assert found(granted("read:tasks!group", groups=("fire",))) == fire
    assert found(granted("read:tasks!group")) == found(granted("read:objects")) == set()
    assert found(granted("read:tasks!user")) == {("fire", "copy"), ("flood", "move")}
    assert found(granted("read:tasks!group!user", groups=("fire",))) == {("fire", "copy")}
    # both ends must be of a permitted machine, where there are two
    assert found(granted("read:tasks!machine=alpha")) == {("fire", "delete")}
    assert found(granted("read:tasks!machine=beta")) == {("fire", "getexternal")}
    with database.write() as session, pytest.raises(NotAllowed, match="control:tasks"):
        visible = seen(in_role("mover", groups=("fire",)), "read:tasks", to="control:tasks")
        cancel_pause.pause(session, made["fire", "delete"], visible)  # a colleague's
    with database.write() as session:
        assert cancel_pause.pause(session, made["fire", "copy"], visible).paused
        assert session.scalar(select(func.count()).where(Transfer.created_by == "jo")) == 2


def test_schedules_audits_and_runs_of_retention_are_seen_by_whose_they_are(database: Database) -> None:
    def schedule(group: str, machine: str, maker: str) -> UUID:
        fields = {"url": "https://e.org/{date:%Y}", "filename": "{date:%Y}", "interval": "1h"}
        request = ScheduleRequest(**fields, group=group, machine=machine)
        with database.write() as session:
            return schedules.add_schedule(session, request, person(maker)).id

    mine, theirs, foreign = (
        schedule("fire", "alpha", "jo"),
        schedule("fire", "beta", "ann"),
        schedule("x", "beta", "jo"),
    )
    with database.write() as session:
        audit = audit_runs.submit(session, "alpha", AuditTerms(), person("ann")).id
        run = retention_runs.ask_for_run(
            session, retention_runs.RetentionTerms(), in_role("archivist", person="jo", groups=("fire",))
        )

    def list_of(visible: Visible) -> set[UUID]:
        with database.read() as session:
            rows, _ = schedules.select_schedules(session, visible, 10, None, Rendering())
        return {row.id for row in rows}

    fire = granted("schedules!group", groups=("fire",))
    own = granted("schedules!group!user", groups=("fire",))
    for grant, wanted in (
        (granted("schedules"), {mine, theirs, foreign}),
        (fire, {mine, theirs}),
        (own, {mine}),
        (granted("schedules!machine=beta"), {theirs, foreign}),
        (granted("audits"), set()),
    ):
        assert list_of(seen(grant, "schedules")) == wanted
    changes: list[Callable[..., Any]] = [schedules.get_schedule, schedules.want_run, schedules.remove_schedule]
    with database.write() as session:
        for change in changes:
            with pytest.raises(ScheduleNotFound):
                change(session, theirs, seen(own, "schedules"))
            change(session, mine, seen(own, "schedules"))
    with pytest.raises(NotAllowed), database.write() as session:
        schedules.add_schedule(session, schedules.request_of(schedules.get_schedule(session, foreign, ALL)), fire)
    with database.read() as session:
        assert audit_runs.get_audit(session, audit, seen(granted("audits!machine=alpha"), "audits")).created_by == "ann"
        for grant in (granted("audits!machine=beta"), granted("read:objects")):
            with pytest.raises(AuditNotFound):
                audit_runs.get_audit(session, audit, seen(grant, "audits"))
            assert audit_runs.select_audits(session, seen(grant, "audits"))[0] == []
        for name, sees in (("jo", True), ("ann", False)):
            visible = seen(in_role("archivist", person=name, groups=("fire",)), "retention")
            assert bool(retention_runs.list_runs(session, visible, 10)[0]) is sees
            if not sees:
                with pytest.raises(RetentionRunNotFound):
                    retention_runs.get_run(session, run, visible)
        assert retention_runs.get_run(session, run, seen(person("x"), "retention")).id == run
        assert seen(None, "retention") is ALL


def test_list_of_several_groups_reads_the_index_of_groups_alone(database: Database) -> None:
    for number in range(30):
        register(database, f"in/{number}", group=f"g{number % 3}")
    visible = seen(granted("list:objects!group", groups=("g0", "g2")), "list:objects")
    with statements(database) as texts:
        found = listed(database, visible)
    assert len(found) == 20
    if database.is_postgresql:
        return
    merged = next(text for text in texts if "UNION ALL" in text)
    with database.engine.connect() as connection:
        plan = [
            row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {merged}", (None,) * merged.count("?"))
        ]
    reads = [line for line in plan if line.startswith(("SEARCH objects", "SCAN objects"))]
    assert len(reads) == 2
    assert all("USING COVERING INDEX ix_objects_group (group=?" in line for line in reads)
