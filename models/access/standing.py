"""Grants that wait, asked again: what their persons are permitted now.

A grant is on a row because its person was known then. Since then its token may have been revoked, or have expired; the
person may have been withdrawn; a role may permit less. One that was rotated goes on as its newest token. A user of the
broker may have been taken out of the settings.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from datamanager.errors import NotAllowed, NotAuthenticated
from datamanager.identity.grant import Grant, Means
from datamanager.identity.roles import Roles
from models.access.tokens import grant_of, require_live
from models.bulk_rows import among
from models.database import now
from models.tables import TokenRecord, WithdrawnPerson

BY_TOKEN = (Means.TOKEN, Means.BROKER)
"""Means whose credential is the id of a service token: a user of the broker has one by the settings."""


def standing(
    session: Session, grants: Collection[Grant], roles: Roles, users: Collection[str] = ()
) -> dict[Grant, Grant | None]:
    """Return for each grant what is permitted now; None: nothing any more. Two statements, however many there are.

    `users` are the ids of the service tokens that users of the broker have by the settings.
    """
    persons = {grant.person for grant in grants}
    named = {grant.credential for grant in grants if grant.means in BY_TOKEN and grant.credential is not None}
    if any(grant.means is Means.BROKER for grant in grants):
        named.update(users)
    query = select(WithdrawnPerson.person).where(among(session, WithdrawnPerson.person, persons))
    withdrawn = set(session.scalars(query))
    tokens = _newest(session, named, roles)
    of_users = {tokens[user].credential for user in users if user in tokens}
    return {grant: None if grant.person in withdrawn else _now(grant, tokens, roles, of_users) for grant in grants}


def require_standing(session: Session, grant: Grant | None, roles: Roles, users: Collection[str] = ()) -> None:
    """Check that something is permitted still by a grant that waited; None is the service's own. Raises: NotAllowed."""
    if grant is not None and standing(session, [grant], roles, users)[grant] is None:
        raise NotAllowed("whoever requested it is not permitted anything any more")


def _newest(session: Session, named: Collection[str], roles: Roles) -> dict[str, Grant]:
    """Return what the tokens with these ids permit now, or those that they were rotated to."""
    if not named:
        return {}
    newest, time = aliased(TokenRecord), now(session)
    query = select(TokenRecord, newest).outerjoin(newest, newest.id == TokenRecord.replaced_by)
    found = {}
    for old, new in session.execute(query.where(among(session, TokenRecord.id, named))):
        try:
            token = old if old.revoked is not None or new is None else new
            require_live(token, time)
        except NotAuthenticated:
            continue
        found[old.id] = grant_of(token, roles)
    return found


def _now(grant: Grant, tokens: dict[str, Grant], roles: Roles, of_users: Collection[str | None]) -> Grant | None:
    if grant.means in BY_TOKEN:
        found = tokens.get(grant.credential or "")
        if found is None or (grant.means is Means.BROKER and found.credential not in of_users):
            return None
        return replace(found, means=grant.means)
    if not grant.roles:
        return grant
    return replace(grant, scopes=roles.scopes_of(roles.known(grant.roles)))
