"""The survey: every object that a rule selects, and what becomes of it. A dry run is this and nothing more.

It reads page by page, each in a transaction of its own, in constant memory; who acts on a decision looks again in the
transaction that acts (`models.retention.submission`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from datamanager.domain.retention_decisions import Decider, Decision, Subject
from datamanager.identity.grant import Grant
from models.access.visibility import seen
from models.database import Database
from models.retention.facts import PAGE, candidates, keepers, subjects
from models.tables import DataObject, RetentionMark

REMEMBERED = 20_000
"""Groups of copies whose keeper is remembered from page to page."""


class Survey:
    """One look by `decider` at all that `by` may run retention of (None: at the whole catalogue); blocks, for one
    thread. A copy that they don't see keeps nothing.
    """

    def __init__(self, database: Database, decider: Decider, by: Grant | None) -> None:
        self._visible = seen(by, "retention")
        self._database = database
        self._decider = decider
        self._keepers: OrderedDict[str, UUID | None] = OrderedDict()

    def decisions(self) -> Iterator[Decision]:
        """Yield what becomes of each object that a rule selects, the oldest first. Raises: CatalogueUnavailable."""
        if not self._decider.rules.rule:
            return
        after: tuple[datetime, UUID] | None = None
        while True:
            with self._database.read() as session:
                rows = candidates(session, self._decider.rules, self._decider.now, after, visible=self._visible)
                if not rows:
                    return
                page = self._with_keepers(session, rows)
            for one, keeper in page:
                found = self._decider.decide(one, keeper)
                if found is not None:
                    yield found
            after = rows[-1].date_registered, rows[-1].id

    def stale(self) -> Iterator[tuple[UUID, str]]:
        """Yield objects with marks that no transfer has, and that do not hold any more, and why: the rule does not
        select the object now, or must not act on it.
        """
        last = 0
        while True:
            with self._database.read() as session:
                query = (
                    select(RetentionMark.id, DataObject)
                    .join(DataObject, DataObject.id == RetentionMark.object_id)
                    .where(RetentionMark.id > last, RetentionMark.closed.is_(None), RetentionMark.transfer_id.is_(None))
                    .where(*self._visible.objects())
                )
                found = session.execute(query.order_by(RetentionMark.id).limit(PAGE)).all()
                if not found:
                    return
                last = found[-1][0]
                page = self._with_keepers(session, [row for _, row in found])
            for one, keeper in page:
                why = self._decider.voids(one, keeper)
                if why is not None:
                    yield one.id, why

    def _with_keepers(self, session: Session, rows: Sequence[DataObject]) -> list[tuple[Subject, UUID | None]]:
        """Return a page's subjects, each with its group's keeper: the same one for later pages, as far as they are
        remembered.
        """
        page = subjects(session, rows, self._decider.now)
        wanted = {one.checksum for one in page if one.checksum is not None}
        known = {checksum: self._keepers[checksum] for checksum in wanted & self._keepers.keys()}
        decider, missing = self._decider, wanted - known.keys()
        found = keepers(session, decider.rules, missing, decider.now, decider.away, self._visible) if missing else {}
        new = {checksum: found.get(checksum) for checksum in missing}
        self._keepers.update(new)
        while len(self._keepers) > REMEMBERED:
            self._keepers.popitem(last=False)
        kept = known | new
        return [(one, kept.get(one.checksum or "")) for one in page]
