"""What a request needs its person to be permitted, asked in the transaction that accepts it; and what rows keep of who
asked. docs/adr/0031-grants-wait.md has the table of what each kind of transfer needs.

A grant of None is the service's own: nothing is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, and_, literal, true

from datamanager.domain.location import Place
from datamanager.domain.states import TransferKind
from datamanager.errors import NotAllowed, ObjectNotFound
from datamanager.identity.grant import Clause, Grant, Means
from datamanager.identity.scopes import AccessTarget, FilterKind
from datamanager.machines import Reach
from models.access.visibility import OBJECTS, Columns, Visible, permitted, seen

READ, WRITE, DELETE = "read:objects", "write:objects", "delete:objects"
TRANSFERS, ARCHIVE = "transfers", "archive"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a kind of transfer needs to be permitted: each action to its object where that is, and to what will be at
    the destination. The archive itself is the site's choice, and nobody's destination.
    """

    source: tuple[str, ...] = ()
    destination: tuple[str, ...] = ()
    keeps_owner: bool = False
    """What is at the destination is the object itself, whose owner stays; else the person's own."""


_COPY = Needs((READ, TRANSFERS), (TRANSFERS, WRITE))
_MOVE = Needs((READ, TRANSFERS, WRITE), (TRANSFERS, WRITE), keeps_owner=True)
_FETCH = Needs((), (TRANSFERS, WRITE))
_PUT_AWAY = Needs((ARCHIVE,))
_RECALL = Needs((ARCHIVE,), (ARCHIVE,), keeps_owner=True)
NEEDS: Mapping[TransferKind, Needs] = {
    TransferKind.COPY: _COPY,
    TransferKind.COPY_MANY: _COPY,
    TransferKind.MOVE: _MOVE,
    TransferKind.MOVE_MANY: _MOVE,
    TransferKind.DELETE: Needs((DELETE,)),
    TransferKind.GETEXTERNAL: _FETCH,
    TransferKind.GETEXTERNAL_MANY: _FETCH,
    TransferKind.ARCHIVE: _PUT_AWAY,
    TransferKind.ARCHIVE_MANY: _PUT_AWAY,
    TransferKind.ACTIVATE: _RECALL,
    TransferKind.ACTIVATE_MANY: _RECALL,
}
"""Of each kind; a contract (docs/security.md)."""


def maker(grant: Grant | None) -> str | None:
    """Return whom a row names as who made it; None where authentication is off, or the service did it."""
    return None if grant is None or grant.means is Means.NONE else grant.person


def kept(grant: Grant | None) -> dict[str, Any] | None:
    """Return what a row keeps of a grant, to be asked again; None where authentication is off, or the service asks."""
    return None if grant is None or grant.means is Means.NONE else grant.to_json()


def kept_of(value: dict[str, Any] | None) -> Grant | None:
    """Return the grant that a row keeps. Raises: NotAllowed when it can't be read."""
    return None if value is None else Grant.from_json(value)


def target_of(obj: Any) -> AccessTarget:
    """Return an object's row (the columns group, machine, place and created_by) as a target."""
    return AccessTarget(obj.group, obj.machine, obj.place, obj.created_by)


def require_source(grant: Grant | None, kind: TransferKind, obj: Any) -> None:
    """Check that a transfer of this kind may be of an object, given by its row.

    Raises: ObjectNotFound when it is not seen: it may neither be read, nor be acted on; NotAllowed when it is.
    """
    if grant is None:
        return
    target, actions = target_of(obj), NEEDS[kind].source
    missing = [action for action in actions if not grant.may(action, target)]
    if not missing:
        return
    if READ in missing or (missing == list(actions) and not grant.may(READ, target)):
        raise ObjectNotFound(f"no object has the identifier {obj.id}")
    grant.require(missing[0], target)


def require_destination(grant: Grant | None, kind: TransferKind, place: Place, group: str, owner: str | None) -> None:
    """Check that a transfer of this kind may write at a place; `group` and `owner`: of the object that it is of; its
    result is the person's own where it is a new object. Raises: NotAllowed.
    """
    if grant is not None:
        needs = NEEDS[kind]
        require_place(grant, place, group, *needs.destination, owner=owner if needs.keeps_owner else grant.person)


def require_place(grant: Grant | None, place: Place, group: str, *actions: str, owner: str | None = None) -> None:
    """Check that actions may be done at a place, to what will be there: of a group, and (without `owner`) the person's
    own. Raises: NotAllowed.
    """
    if grant is None:
        return
    target = AccessTarget.at(place, group, owner or grant.person)
    for action in actions:
        if not grant.may(action, target):
            whose = f"group {group!r}" if group else "no group"
            raise NotAllowed(f"the scope {action} is missing for {place} in {whose}, or its filters exclude this")


def may_be_source(grant: Grant, kind: TransferKind, columns: Columns = OBJECTS) -> ColumnElement[bool]:
    """Return the condition that `require_source` refuses no row with these columns."""
    return and_(true(), *(permitted(grant.filters_of(action), columns) for action in NEEDS[kind].source))


def may_be_destination(grant: Grant, kind: TransferKind, columns: Columns) -> ColumnElement[bool]:
    """Return the condition that `require_destination` refuses no row with these columns, of which `owner` is that of
    the object.
    """
    needs = NEEDS[kind]
    if not needs.keeps_owner:
        columns = replace(columns, owner=literal(grant.person))
    return and_(true(), *(permitted(grant.filters_of(action), columns) for action in needs.destination))


def reach_of(grant: Grant | None, machine: str, group: str, actions: Iterable[str]) -> Reach:
    """Return what of a machine is reached by a grant that permits actions at a place there: the directories that its
    scopes name. () is all of it. `group`: of what is there, "" where that is not known; whose it is does not count.
    """
    if grant is None:
        return ()
    found = dict[frozenset[str], None]()
    for action in actions:
        directories = {_directory(clause) for clause in grant.filters_of(action) if _is_there(clause, machine, group)}
        if "" not in directories:
            found[frozenset(directories)] = None
    return tuple(found)


def _is_there(clause: Clause, machine: str, group: str) -> bool:
    on_machine = (FilterKind.MACHINE, FilterKind.PREFIX)
    return all(
        machine in one.values if one.kind in on_machine else one.kind is FilterKind.USER or group in ("", *one.values)
        for one in clause
    )


def _directory(clause: Clause) -> str:
    return max((one.path for one in clause), key=len, default="")


def sources_of(grant: Grant | None, kind: TransferKind) -> Visible:
    """Return what a directory is seen to contain for a transfer of this kind: what is foreign is not there."""
    actions = NEEDS[kind].source
    return seen(grant, READ, to="" if READ in actions else actions[0])
