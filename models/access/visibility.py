"""What a person sees of the catalogue: their grant as conditions of SQL, part of the statement that reads.

So a foreign row and one that does not exist are the same: the same statement finds nothing. Functions that read for
persons take a `Visible`; `ALL` is for the service's own reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from sqlalchemy import ColumnElement, and_, case, false, or_, select, true
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Session

from datamanager.domain.states import TransferKind
from datamanager.errors import NotAllowed
from datamanager.identity.grant import Clause, Grant
from datamanager.identity.scopes import Condition, FilterKind
from models.tables import Audit, DataObject, RetentionRun, Schedule, Transfer
from models.tables.transfers import ITEMISED

Conditions = list[ColumnElement[bool]]
Row = TypeVar("Row", bound=DeclarativeBase)
EVERYTHING: tuple[Clause, ...] = ((),)
_SOURCELESS = [TransferKind.GETEXTERNAL.value, TransferKind.GETEXTERNAL_MANY.value]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a table, or of a query, that filters look at. What it has not is None: no filter for it holds."""

    group: ColumnElement[Any] | InstrumentedAttribute[Any] | None = None
    machine: ColumnElement[Any] | InstrumentedAttribute[Any] | None = None
    path: ColumnElement[Any] | InstrumentedAttribute[Any] | None = None
    """Normalised, below the machine's base_dir, compared by bytes."""
    owner: ColumnElement[Any] | InstrumentedAttribute[Any] | None = None


OBJECTS = Columns(DataObject.group, DataObject.machine, DataObject.place, DataObject.created_by)


@dataclass(frozen=True, slots=True)
class Visible:
    """What may be seen: rows for which one of `clauses` holds. Each method returns conditions for a WHERE, [] if it
    sees all rows. Immutable.
    """

    person: str | None
    clauses: tuple[Clause, ...] = EVERYTHING
    action: str = ""
    needed: tuple[Clause, ...] = EVERYTHING
    """What must hold besides of a row that is to be acted on (`action`): otherwise it is seen, and refused."""

    @property
    def everything(self) -> bool:
        """Whether all rows are seen."""
        return () in self.clauses

    @property
    def nothing(self) -> bool:
        """Whether no row is seen, whatever it is."""
        return not self.clauses

    @property
    def own(self) -> bool:
        """Whether only what the person has made is seen."""
        return bool(self.clauses) and all(any(one.kind is FilterKind.USER for one in clause) for clause in self.clauses)

    @property
    def groups(self) -> frozenset[str] | None:
        """The groups whose rows are seen, if that is all that is asked; None where other filters count too."""
        if not self.clauses or not all(len(one) == 1 and one[0].kind is FilterKind.GROUP for one in self.clauses):
            return None
        return frozenset().union(*(one[0].values for one in self.clauses))

    @property
    def acting(self) -> Self:
        """What may be acted on, of that which is seen."""
        return replace(self, clauses=self.needed)

    def objects(self) -> Conditions:
        """Return what holds for objects, wherever the query has `DataObject` or its table."""
        return self.where(OBJECTS)

    def transfers(self) -> Conditions:
        """Return what holds for transfers. A machine must be that of both ends, where a transfer has both; of one
        whose items differ there it is not known. One whose items are of several groups is seen by who made it.
        """
        if self.everything:
            return []
        mixed = and_(Transfer.group == "", Transfer.kind.in_(ITEMISED), Transfer.created_by == self.person)

        def holds(condition: Condition) -> ColumnElement[bool]:
            match condition.kind:
                case FilterKind.GROUP:
                    return or_(_among(Transfer.group, condition.values), mixed)
                case FilterKind.USER:
                    return _among(Transfer.created_by, condition.values)
                case FilterKind.MACHINE:
                    source, destination = Transfer.source_machine, Transfer.destination_machine
                    return and_(
                        or_(
                            _among(source, condition.values),
                            and_(source.is_(None), Transfer.kind.in_(_SOURCELESS)),
                        ),
                        or_(
                            _among(destination, condition.values),
                            and_(destination.is_(None), Transfer.kind == TransferKind.DELETE.value),
                        ),
                    )
            return false()

        return [or_(false(), *(and_(true(), *map(holds, clause)) for clause in self.clauses))]

    def schedules(self) -> Conditions:
        """Return what holds for schedules."""
        request = Schedule.request
        columns = Columns(request["group"].as_string(), request["machine"].as_string(), owner=Schedule.created_by)
        return self.where(columns)

    def retention_runs(self) -> Conditions:
        """Return what holds for runs of retention: a person whose grant has filters sees their own."""
        return [] if self.everything else [false() if self.nothing else RetentionRun.created_by == self.person]

    def audits(self) -> Conditions:
        """Return what holds for audits."""
        return self.where(Columns(machine=Audit.machine, owner=Audit.created_by))

    def machines(self, names: Collection[str]) -> list[str]:
        """Return those of the machines that are seen, in their order."""
        return [name for name in names if any(all(name in one.values for one in clause) for clause in self.clauses)]

    def where(self, columns: Columns) -> Conditions:
        """Return what holds for rows with these columns."""
        return [] if self.everything else [permitted(self.clauses, columns)]


ALL = Visible(None)
"""Everything: what the service itself reads."""


def seen(grant: Grant | None, reading: str, *, to: str = "") -> Visible:
    """Return what is seen by whoever has the grant, by the scope `reading`; None sees everything, as the service does.

    With `to`, an action that changes something: what it may be done to is seen, too, and to act on something else that
    is seen is NotAllowed. Raises: ValueError for an unknown action.
    """
    if grant is None:
        return ALL
    read = grant.filters_of(reading)
    if not to:
        return Visible(grant.person, read)
    needed = grant.filters_of(to)
    return Visible(grant.person, tuple(dict.fromkeys((*read, *needed))), to, needed)


def find_seen(
    session: Session,
    entity: type[Row],
    key: ColumnElement[bool],
    visible: Visible,
    conditions: Callable[[Visible], Conditions],
    *,
    lock: bool = False,
) -> Row | None:
    """Return the row of a key, None where there is none, or where it is not seen: by the same statement. `conditions`:
    the method of `Visible` for rows of this entity. `lock`: until the transaction ends.

    Raises: NotAllowed when it is seen, and may not be acted on.
    """
    query = select(entity, and_(true(), *conditions(visible.acting))).where(key, *conditions(visible))
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    found = session.execute(query).one_or_none()
    if found is None:
        return None
    if not found[1]:
        raise NotAllowed(f"the scope {visible.action} is missing, or its filters exclude this")
    row: Row = found[0]
    return row


def permitted(clauses: tuple[Clause, ...], columns: Columns) -> ColumnElement[bool]:
    """Return the condition that one of the clauses holds for a row; never NULL's third value but for false."""
    alternatives = (and_(true(), *(_holds(condition, columns) for condition in clause)) for clause in clauses)
    return or_(false(), *alternatives)


def _holds(condition: Condition, columns: Columns) -> ColumnElement[bool]:
    match condition.kind:
        case FilterKind.GROUP:
            return _among(columns.group, condition.values)
        case FilterKind.USER:
            return _among(columns.owner, condition.values)
        case FilterKind.MACHINE:
            return _among(columns.machine, condition.values)
    machine, path = _among(columns.machine, condition.values), columns.path
    if path is None:
        return false()
    if not condition.path:
        return and_(machine, path.is_not(None))
    # all that begins with "path/": "0" is the character after "/"
    start, end = f"{condition.path}/", f"{condition.path}0"
    return and_(machine, or_(path == condition.path, and_(path > start, path < end)))


def _among(column: Any, values: Collection[str]) -> ColumnElement[bool]:
    if column is None:
        return false()
    equal: ColumnElement[bool] = column == next(iter(values)) if len(values) == 1 else column.in_(sorted(values))
    return equal


def counted(visible: Visible, columns: Columns = OBJECTS) -> ColumnElement[int]:
    """Return 1 for a row that is seen and 0 for another, to be summed up."""
    return case((and_(true(), *visible.where(columns)), 1), else_=0)
