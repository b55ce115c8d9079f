"""A run of retention: it surveys, marks, acts on what is due, waits for the transfers, and reports.

Whatever it does is an ordinary transfer that a mover performs; the run itself moves nothing, holds no slot, and waits
in the catalogue. It may die anywhere: what it had submitted continues, and no object is submitted twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Literal, TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.domain.retention_decisions import Decider, Decision, Reason, Subject, Verdict
from datamanager.domain.retention_rules import Action, RetentionRules, Rule
from datamanager.domain.states import ObjectStatus
from datamanager.engine.attempt import Endpoint
from datamanager.engine.control import Control
from datamanager.engine.inspection.copy_proof import why_no_copy, why_not_proved, why_one_file
from datamanager.errors import CatalogueError, CatalogueUnavailable, RequestError, TransportError
from flows.runtime.maintenance import pause, threaded
from flows.runtime.services import Services
from models.retention import marks
from models.retention import submission as acts
from models.retention.report import Report
from models.retention.runs import require_running
from models.retention.submission import Survivor
from models.retention.survey import Survey

WRITTEN_AT_ONCE = 500
"""Marks in one transaction."""
ARCHIVED_AT_ONCE = 500
"""Objects of one transfer to an archive."""
OPEN_AT_ONCE = 50
"""Deletes that wait or run at once: others' transfers must not wait behind ten thousand of ours."""
LOOK_EVERY = 0.5  # seconds between two looks at what is under way

T = TypeVar("T")
Log = logging.Logger | logging.LoggerAdapter[logging.Logger]
_log = logging.getLogger(__name__)


class Retaining:
    """One run that works; it alone has the lease `duty:retention`."""

    def __init__(
        self,
        parts: Services,
        run: UUID,
        rules: RetentionRules,
        decider: Decider,
        control: Control,
        log: Log = _log,
        report: Report | None = None,
    ) -> None:
        """`report` is written to during the work: whoever stops it has what was done until then."""
        self._parts = parts
        self._run = run
        self._rules = rules
        self._decider = decider
        self._control = control
        self._proofs: dict[tuple[Survivor, str], str | None] = {}
        self._end = 0.0
        self.report = Report() if report is None else report
        self._log = log

    async def work(self) -> None:
        """Do all of it. Raises: CatalogueUnavailable; what the run is stopped with."""
        await threaded(self._control, self._settle)
        due = await threaded(self._control, self._survey)
        self._log.info("%d marked, %d due", self.report.objects(Verdict.MARK), len(due))
        self._end = time.monotonic() + self._rules.limits.wait.total_seconds()
        for rule in self._rules.rule:  # archives first: what is deleted then has no reader in its way
            mine = [one for one in due if one.rule is rule and rule.action is Action.ARCHIVE]
            for start in range(0, len(mine), ARCHIVED_AT_ONCE):
                some = mine[start : start + ARCHIVED_AT_ONCE]
                if await self._until(0):
                    await self._archive(rule, some)
                else:
                    for one in some:
                        self.report.add(_too_late(one))
        await self._until(0)
        for one in due:
            if not one.rule.action.deletes:
                continue
            if await self._until(OPEN_AT_ONCE - 1):
                self.report.add(await threaded(self._control, self._delete, one))
            else:
                self.report.add(_too_late(one))
        await self._until(0)

    # --- what is done ------------------------------------------------------------------------------------------------

    def _survey(self) -> list[Decision]:
        """Take back marks that do not hold, mark what is new; return what is due. Blocks."""
        with self._parts.database.read() as session:
            by = require_running(session, self._run)
        survey, control = Survey(self._parts.database, self._decider, by), self._control
        stale = survey.stale()
        while some := list(islice(stale, WRITTEN_AT_ONCE)):  # a rule that went may leave a million of them
            control.check()
            self.report.add_void(self._write(lambda session, some=some: marks.void(session, some)))  # type: ignore[misc]
        due, new = list[Decision](), list[Decision]()
        for decision in survey.decisions():
            control.check()
            match decision.verdict:
                case Verdict.ACT:
                    due.append(decision)
                case Verdict.MARK:
                    new.append(decision)
                    self.report.add(decision)
                case Verdict.SPARE:
                    self.report.add(decision)
            if len(new) >= WRITTEN_AT_ONCE:
                self._mark(new)
                new = []
        self._mark(new)
        return due

    def _mark(self, new: Sequence[Decision]) -> None:
        self._write(lambda session: marks.mark(session, self._run, new, self._decider.now))

    async def _archive(self, rule: Rule, some: Sequence[Decision]) -> None:
        def submit() -> list[Decision]:
            machines = self._parts.machines
            try:
                return self._write(lambda s: acts.submit_archive(s, machines, self._run, self._rules, rule, some))
            except (CatalogueError, RequestError) as error:
                return [acts.refused(one, error) for one in some]

        for outcome in await threaded(self._control, submit):
            self.report.add(outcome)

    def _delete(self, decision: Decision) -> Decision:
        """Prove the copy that remains, and that this is one, then delete it; return how it came out. Blocks."""
        survivor: Survivor | None = None
        unproved = Reason.SURVIVOR_NOT_PROVED
        try:
            if not decision.rule.even_last_copy:
                wanted = decision.survivor
                if wanted is not None:
                    survivor = self._write(lambda session: acts.survivor_of(session, wanted))
                if survivor is None:
                    return acts.spared(decision, unproved, f"object {wanted} is no longer a verified copy")
                why = self._why_not(decision, survivor)
                if why is not None:
                    self._log.warning("%s is spared: %s", decision.subject.id, why)
                    return acts.spared(decision, unproved, why)
                why = self._why_no_copy(decision)
                if why is not None:
                    self._log.warning("%s is spared: %s", decision.subject.id, why)
                    return acts.spared(decision, Reason.CHANGED, why)
            proved, machines = survivor, self._parts.machines
            return self._write(
                lambda session: acts.submit_delete(session, machines, self._run, self._rules, decision, proved)
            )
        except (CatalogueError, RequestError) as error:
            return acts.refused(decision, error)

    def _why_not(self, decision: Decision, survivor: Survivor) -> str | None:
        """Return why the survivor is not proved. A file is read once a run, however many copies it stands for; that it
        is still there, with its size, is seen each time: a run may take half a day.
        """
        key = survivor, decision.rule.prove
        try:
            end = self._place(survivor.place)
            how: Literal["checksum", "size"] = decision.rule.prove
            if key in self._proofs and survivor.size is not None:
                how = "size"
            if self._proofs.get(key) is None:
                self._proofs[key] = why_not_proved(end, survivor.size, survivor.sha256, how, self._control)
            if self._proofs[key] is not None or survivor.bundle is not None:
                return self._proofs[key]
            subject = decision.subject
            if subject.status == ObjectStatus.ARCHIVED:
                return None
            return why_one_file(self._place(_place_of(subject)), end, self._control)
        except (TransportError, RequestError) as error:
            self._control.check()
            return f"{error.code}: {error.detail}"

    def _why_no_copy(self, decision: Decision) -> str | None:
        subject, how = decision.subject, decision.rule.prove
        if subject.status == ObjectStatus.ARCHIVED or subject.checksum is None:
            return None
        try:
            end, sha256 = self._place(_place_of(subject)), subject.checksum.removeprefix("sha256:")
            return why_no_copy(end, subject.size, sha256, how, self._control)
        except (TransportError, RequestError) as error:
            self._control.check()
            return f"{error.code}: {error.detail}"

    def _place(self, place: Place) -> Endpoint:
        return Endpoint(place, self._parts.machines[place.machine], self._parts.storages.get(place.machine))

    # --- waiting -----------------------------------------------------------------------------------------------------

    async def _until(self, most: int) -> bool:
        """Wait, without a thread, until at most so many of the run's objects are under way; False when the time is over
        before.
        """
        while await threaded(self._control, self._open) > most:
            if time.monotonic() >= self._end:
                return False
            await pause(self._control, LOOK_EVERY)
        return True

    def _open(self) -> int:
        self._settle()
        with self._parts.database.read() as session:
            return marks.under_way(session, self._run)

    def _settle(self) -> None:
        while self._write(marks.settle) >= marks.SETTLED_AT_ONCE:
            self._control.check()

    def _write(self, change: Callable[[Session], T]) -> T:
        """Run a change in a transaction, again when the catalogue was away for a moment: each of ours is idempotent."""
        for attempt in range(3):
            try:
                with self._parts.database.write() as session:
                    return change(session)
            except CatalogueUnavailable:
                if attempt == 2:
                    raise
                self._control.check()
                time.sleep(LOOK_EVERY)
        raise AssertionError("the last attempt returns or raises")


def _too_late(decision: Decision) -> Decision:
    return acts.spared(decision, Reason.OVER_CAP, "the run's time (limits.wait) was over")


def _place_of(subject: Subject) -> Place:
    return Place(subject.machine, subject.place)
