"""The catalogue's side of retention against a model: whatever rules, people and failures do in whatever order, no rule
deletes the last verified copy or a held object, and no object is submitted twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from datamanager.domain.location import Place
from datamanager.domain.requests import CopyRequest, DeleteRequest, RegisterRequest
from datamanager.domain.retention_decisions import Verdict
from datamanager.domain.retention_rules import RetentionRules, Rule
from datamanager.domain.states import ObjectStatus, TransferKind, Verified
from datamanager.errors import CatalogueError, RemoteFailure
from datamanager.machines import parse_machines
from models.access.visibility import ALL
from models.database import Database, now
from models.objects.catalogue import Facts, register_object
from models.retention import holds, marks
from models.retention import runs as retention_runs
from models.retention import submission as retention_submission
from models.retention.report import make_decider
from models.retention.runs import RetentionTerms
from models.retention.survey import Survey
from models.submission import SealedRequest, submit
from models.tables import Base, Claim, DataObject, RetentionMark, Transfer
from models.transfers import outcomes, queue
from tests.support import archiving
from tests.support.bookkeeping import LEASE

pytestmark = pytest.mark.dialect

MACHINES = parse_machines(
    '[machines.alpha]\ntransport = "local"\nbase_dir = "/a"\n'
    '[machines.tape]\ntransport = "local"\nbase_dir = "/t"\narchive = true\n',
    "test",
)
OLD = datetime(2020, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
PEOPLE = ("hold", "release", "delete", "copy", "restore", "lose")
"""What others do; `late …`: after the next run has decided, and has seen what remains, before it acts. To
object -1: that is the copy which remains by the latest decision.
"""

rule_sets = st.lists(
    st.fixed_dictionaries(
        {
            "action": st.sampled_from(["archive", "delete", "delete-copies", "delete-copies"]),
            "grace": st.sampled_from(["0s", "0s", "1d"]),
            "group": st.lists(st.sampled_from("ab"), min_size=1, max_size=2, unique=True),
            "last": st.booleans(),
            "archived_too": st.booleans(),
        },
        optional={"max_objects": st.integers(1, 2)},
    ),
    min_size=1,
    max_size=3,
)
object_sets = st.lists(
    st.tuples(st.sampled_from("xxy"), st.sampled_from("ab"), st.sampled_from(["sha256", "sha256", "size"])),
    min_size=2,
    max_size=5,
)
steps = st.lists(
    st.one_of(
        st.just(("run", 0)),
        st.just(("run", 1)),
        st.just(("perform", 0)),
        st.just(("due", 0)),
        st.tuples(st.sampled_from(["fail", *PEOPLE]), st.integers(-1, 4)),
        st.tuples(st.sampled_from([f"late {what}" for what in PEOPLE]), st.integers(-1, 4)),
    ),
    min_size=3,
    max_size=12,
)


@pytest.mark.slow
@given(given_rules=rule_sets, objects=object_sets, events=steps)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_order_of_events_loses_a_last_copy(
    database: Database, given_rules: list[dict[str, Any]], objects: list[tuple[str, str, str]], events: list[Any]
) -> None:
    with database.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
    world = World(database, _rules(given_rules))
    world.enter(objects)
    for what, number in [*events, ("run", 0), ("perform", 0)]:
        world.step(what, number)
        world.check()


@dataclass
class World:
    """The catalogue, the rules, and what was decided by whom."""

    database: Database
    rules: RetentionRules
    ids: list[UUID] = field(default_factory=list)
    by_retention: dict[UUID, tuple[Rule, UUID | None]] = field(default_factory=dict)
    late: list[tuple[str, int]] = field(default_factory=list)
    kept: UUID | None = None

    def enter(self, objects: list[tuple[str, str, str]]) -> None:
        for number, (content, group, verified) in enumerate(objects):
            request = RegisterRequest(filename=f"{number}", machine="alpha", group=group)
            facts = Facts(5, f"sha256:{content.encode().hex() * 32}", Verified(verified))
            with self.database.write() as session:
                self.ids.append(register_object(session, request, Place("alpha", str(number)), facts, by=None))
                when = OLD + timedelta(minutes=number)
                session.execute(update(DataObject).where(DataObject.id == self.ids[-1]).values(date_registered=when))

    def step(self, what: str, number: int) -> None:
        one = self.kept if number < 0 and self.kept is not None else self.ids[number % len(self.ids)]
        try:
            match what:
                case "run":
                    self.run()
                case "perform":
                    self.perform(None)
                case "fail":
                    self.perform(one)
                case "due":
                    with self.database.write() as session:
                        session.execute(update(RetentionMark).values(due=now(session)))
                case _ if what.startswith("late "):
                    self.late.append((what.removeprefix("late "), number))
                case _:
                    with self.database.write() as session:
                        self.person(session, what, one)
        except CatalogueError:
            pass  # refused, which is fine: the invariants are what counts

    def person(self, session: Any, what: str, one: UUID) -> None:
        match what:
            case "hold":
                holds.hold(session, one, ALL, "why", "")
            case "release":
                holds.release(session, one, ALL)
            case "delete":
                submit(session, MACHINES, SealedRequest(TransferKind.DELETE, DeleteRequest(), one, grant=None))
            case "copy":
                request = CopyRequest(machine="alpha", dest=f"{uuid4()}")
                submit(session, MACHINES, SealedRequest(TransferKind.COPY, request, one, grant=None))
            case "restore":
                holds.restore(session, MACHINES, one, ALL, DAY, None)
            case "lose":
                row = session.get(DataObject, one)
                claims = select(Claim.id).where(Claim.object_id == one, Claim.mode != "place")
                # an audit leaves alone what a transfer has
                if row.status == ObjectStatus.ACTIVE and not session.scalars(claims).all():
                    row.status = ObjectStatus.UNKNOWN.value

    def run(self) -> None:
        """Do what a run does with the catalogue, the files being as they should."""
        with self.database.write() as session:
            run = retention_runs.begin_run(session, RetentionTerms(), None, "test", None).id
            marks.settle(session)
            decider = make_decider(session, self.rules, MACHINES, RetentionTerms())
        survey = Survey(self.database, decider, None)
        stale = list(survey.stale())
        with self.database.write() as session:
            marks.void(session, stale)
        found = list(survey.decisions())
        with self.database.write() as session:
            marks.mark(session, run, [one for one in found if one.verdict is Verdict.MARK], decider.now)
        acts = [one for one in found if one.verdict is Verdict.ACT]
        self.kept = next((one.survivor for one in acts if one.survivor), self.kept)
        for rule in self.rules.rule:
            mine = [one for one in acts if one.rule is rule]
            if not rule.action.deletes:
                if mine:
                    self.others()
                    with self.database.write() as session:
                        retention_submission.submit_archive(session, MACHINES, run, self.rules, rule, mine)
                continue
            for one in mine:
                with self.database.write() as session:
                    kept = one.survivor and retention_submission.survivor_of(session, one.survivor)
                    if kept is None and not rule.even_last_copy:
                        continue
                self.others()
                with self.database.write() as session:
                    out = retention_submission.submit_delete(session, MACHINES, run, self.rules, one, kept or None)
                if out.verdict is Verdict.ACT:
                    self.by_retention[one.subject.id] = rule, one.survivor
        with self.database.write() as session:
            retention_runs.end_run(session, run, counts=[], lines=[])

    def others(self) -> None:
        while self.late:
            self.step(*self.late.pop())

    def perform(self, failing: UUID | None) -> None:
        with self.database.read() as session:
            queued = list(session.scalars(select(Transfer).where(Transfer.ended.is_(None))))
        for row in queued:
            if row.kind in ("archive_many", "activate") and failing is None:
                archiving.perform(self.database, row.id, MACHINES["tape"])
                continue
            with self.database.write() as session:
                (hold,) = queue.take(session, "mover", LEASE, 1, only=row.id)
            with self.database.write() as session:
                queue.begin(session, hold, uuid4())
            with self.database.write() as session:
                if failing is not None and row.object_id in (failing, None):
                    outcomes.fail(session, hold, RemoteFailure("on purpose"))
                elif row.kind == "delete":
                    self.deleted(session, row)
                    outcomes.complete_delete(session, hold)
                elif row.kind == "copy":
                    outcomes.complete_copy(session, hold, Facts(5, None, Verified.SIZE))
                else:
                    outcomes.fail(session, hold, RemoteFailure("not this time"))

    def deleted(self, session: Any, row: Transfer) -> None:
        """Check, in the transaction that makes an object DELETED, what must hold."""
        assert row.object_id is not None
        obj = session.get_one(DataObject, row.object_id)
        assert obj.held_since is None
        if row.reason is None:
            return  # a person's: people may delete the last copy
        rule, survivor = self.by_retention[row.object_id]
        if rule.even_last_copy:
            return
        kept = session.get_one(DataObject, survivor)
        assert kept.id != obj.id
        assert (kept.checksum, kept.verified) == (obj.checksum, "sha256")
        assert kept.status in ("ACTIVE", "ARCHIVED")
        going = select(Transfer.id).where(Transfer.object_id == kept.id, Transfer.ended.is_(None))
        assert session.scalars(going.where(Transfer.kind == "delete")).all() == []

    def check(self) -> None:
        """No object has two open deletes, and none that is held is to be deleted."""
        with self.database.read() as session:
            going = select(Transfer.object_id).where(Transfer.kind == "delete", Transfer.ended.is_(None))
            deletes = list(session.scalars(going))
            assert len(deletes) == len(set(deletes))
            held = session.scalars(select(DataObject.id).where(DataObject.held_since.is_not(None)))
            assert not set(held) & set(deletes)


def _rules(given_rules: list[dict[str, Any]]) -> RetentionRules:
    made = []
    for number, keys in enumerate(given_rules):
        keys = dict(keys)
        last, too = keys.pop("last"), keys.pop("archived_too")
        if keys["action"] == "delete":
            keys["even_last_copy"] = last
        if keys["action"] != "archive" and too:
            keys["status"] = ["ACTIVE", "ARCHIVED"]
        made.append(Rule.model_validate({"name": f"rule {number}", **keys}))
    return RetentionRules(rule=tuple(made))
