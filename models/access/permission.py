"""What a request needs its person to be permitted, asked in the transaction that accepts it; and what rows keep of who
asked. docs/adr/0031-grants-wait.md has the table of what each kind of transfer needs.

A grant of None is the service's own: nothing is asked.
"""

from __future__ import annotations

from typing import Any

from datamanager.domain.location import Place
from datamanager.errors import NotAllowed, ObjectNotFound
from datamanager.identity.grant import Grant, Means
from datamanager.identity.scopes import AccessTarget

READ, WRITE = "read:objects", "write:objects"


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


def require_object(grant: Grant | None, obj: Any, *actions: str) -> None:
    """Check that actions may be done to an object, given by its row.

    Raises: ObjectNotFound when it is not seen: it may neither be read, nor be acted on; NotAllowed when it is.
    """
    if grant is None:
        return
    target = target_of(obj)
    missing = [action for action in actions if not grant.may(action, target)]
    if missing and (missing == list(actions) or READ in missing) and not grant.may(READ, target):
        raise ObjectNotFound(f"no object has the identifier {obj.id}")
    for action in missing:
        grant.require(action, target)


def require_place(grant: Grant | None, place: Place, group: str, *actions: str) -> None:
    """Check that actions may be done at a place, to what will be there: of a group, and the person's own. Raises:
    NotAllowed.
    """
    if grant is None:
        return
    target = AccessTarget.at(place, group, grant.person)
    for action in actions:
        if not grant.may(action, target):
            raise NotAllowed(f"the scope {action} is missing for {place}, or its filters exclude this")
