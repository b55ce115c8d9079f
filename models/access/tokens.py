"""Service tokens in the catalogue, and persons who were withdrawn. Only digests come in here, never a token.

Functions take the caller's session; those that change something want a writing one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from datamanager.errors import InvalidRequest, NotAuthenticated, TokenNotFound
from datamanager.identity.grant import PERSON_OF_TOKEN, Grant, Means
from datamanager.identity.roles import Roles
from datamanager.identity.scopes import Condition, FilterKind, Scope
from models.access.permission import maker
from models.access.visibility import Visible
from models.database import affected, insert_if_free, now
from models.tables import TokenRecord, WithdrawnPerson

USED_EVERY = timedelta(minutes=1)
"""How often a token's last use is noted at most."""


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that is to be entered; `id` and `digest` are those of `datamanager.identity.service_token`."""

    id: str
    digest: str
    name: str
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    expires: datetime | None = None


def create_token(session: Session, new: NewToken, by: Grant | None) -> TokenRecord:
    """Enter a token. Raises: InvalidRequest when a live one has its name."""
    time = now(session)
    same = TokenRecord.name == new.name, TokenRecord.revoked.is_(None), TokenRecord.replaced_by.is_(None)
    session.execute(update(TokenRecord).where(*same, TokenRecord.expires <= time).values(revoked=TokenRecord.expires))
    values = {
        "id": new.id,
        "digest": new.digest,
        "name": new.name,
        "roles": list(new.roles),
        "groups": list(new.groups),
        "scopes": list(new.scopes),
        "created": time,
        "created_by": maker(by),
        "expires": new.expires,
    }
    if not insert_if_free(session, TokenRecord, values):
        raise InvalidRequest.of({"name": f"a token has the name {new.name!r} already; revoke or rotate it"})
    return session.get_one(TokenRecord, new.id, populate_existing=True)


def find_token(session: Session, identifier: str) -> TokenRecord | None:
    """Return a token by its id, by one statement; whether it is live, `require_live` says."""
    return session.scalar(select(TokenRecord).where(TokenRecord.id == identifier))


def require_live(token: TokenRecord, time: datetime) -> None:
    """Check that a token may be used at this time. Raises: NotAuthenticated, with why."""
    if token.revoked is not None:
        raise NotAuthenticated("the service token was revoked")
    if token.expires is not None and token.expires <= time:
        raise NotAuthenticated("the service token has expired")
    if token.overlap_until is not None and token.overlap_until <= time:
        raise NotAuthenticated("the service token was replaced by another one")


def grant_of(token: TokenRecord, roles: Roles) -> Grant:
    """Return what a token permits. Roles that there are not any more permit nothing."""
    known = roles.known(token.roles)
    scopes = (*roles.scopes_of(known), *map(Scope.parse, token.scopes))
    person = f"{PERSON_OF_TOKEN}{token.name}"
    return Grant(person, frozenset(token.groups), scopes, Means.TOKEN, token.id, None, tuple(token.roles))


def list_tokens(session: Session, visible: Visible) -> list[TokenRecord]:
    """Return the tokens that are seen, oldest first."""
    query = select(TokenRecord).order_by(TokenRecord.created, TokenRecord.id)
    return [token for token in session.scalars(query) if _is_seen(token, visible)]


def get_token(session: Session, identifier: str, visible: Visible, *, lock: bool = False) -> TokenRecord:
    """Return a token by its id. Raises: TokenNotFound, also when it is not seen."""
    query = select(TokenRecord).where(TokenRecord.id == identifier)
    found = session.scalar(query.with_for_update() if lock else query)
    if found is None or not _is_seen(found, visible):
        raise TokenNotFound(f"no token has the id {identifier!r}")
    return found


def rotate_token(
    session: Session, identifier: str, new: str, digest: str, visible: Visible, by: Grant | None, overlap: timedelta
) -> TokenRecord:
    """Enter a token in the place of another one, which is accepted for `overlap` more. It has the same name, roles,
    groups, scopes and span of life, counted from now. What waits with a grant of the old one goes on with that of the
    new one. Raises: TokenNotFound; InvalidRequest when the old one is not live.
    """
    old = get_token(session, identifier, visible, lock=True)
    time = now(session)
    try:
        require_live(old, time)
    except NotAuthenticated as exc:
        raise InvalidRequest.of({"token": exc.detail}) from None
    if old.replaced_by is not None:
        raise InvalidRequest.of({"token": f"it was rotated already, to {old.replaced_by}"})
    expires = None if old.expires is None else time + (old.expires - old.created)
    # all before it in the line, too: who looks for the newest one finds it by one step
    session.execute(update(TokenRecord).where(TokenRecord.replaced_by == old.id).values(replaced_by=new))
    old.replaced_by, old.overlap_until = new, time + overlap
    session.flush()
    wanted = NewToken(new, digest, old.name, tuple(old.roles), tuple(old.groups), tuple(old.scopes), expires)
    return create_token(session, wanted, by)


def revoke_token(session: Session, identifier: str, visible: Visible, by: Grant | None) -> TokenRecord:
    """Revoke a token; at once, for all processes. Idempotent. Raises: TokenNotFound."""
    token = get_token(session, identifier, visible, lock=True)
    if token.revoked is None:
        token.revoked, token.revoked_by = now(session), maker(by)
    return token


def note_uses(session: Session, uses: Mapping[str, datetime]) -> int:
    """Note when tokens were used last, those that were not noted in the last minute; return how many were. It is not
    part of a request: who answers collects uses, and notes those of all requests together.
    """
    noted = 0
    for identifier, time in uses.items():
        late = or_(TokenRecord.last_used.is_(None), TokenRecord.last_used <= time - USED_EVERY)
        change = update(TokenRecord).where(TokenRecord.id == identifier, late).values(last_used=time)
        noted += affected(session, change.execution_options(synchronize_session=False))
    return noted


def withdraw_person(session: Session, person: str, by: Grant | None) -> bool:
    """Permit a person nothing any more; say whether it is new. What they have requested ends too: movers ask
    (`models.transfers.withdrawal`).
    """
    return insert_if_free(session, WithdrawnPerson, {"person": person, "since": now(session), "by": maker(by)})


def readmit_person(session: Session, person: str) -> bool:
    """Let a withdrawn person in again; say whether they were withdrawn."""
    return affected(session, delete(WithdrawnPerson).where(WithdrawnPerson.person == person)) == 1


def is_withdrawn(session: Session, person: str) -> bool:
    """Say whether a person was withdrawn; one statement."""
    return session.scalar(select(WithdrawnPerson.person).where(WithdrawnPerson.person == person)) is not None


def withdrawn_persons(session: Session) -> list[WithdrawnPerson]:
    """Return those who were withdrawn, by name."""
    return list(session.scalars(select(WithdrawnPerson).order_by(WithdrawnPerson.person)))


def _is_seen(token: TokenRecord, visible: Visible) -> bool:
    """Say whether a token is seen: by a filter for groups if all that it has are among them."""

    def holds(condition: Condition) -> bool:
        mine = token.groups if condition.kind is FilterKind.GROUP else [token.created_by]
        return bool(mine) and condition.values.issuperset(mine)

    return any(all(map(holds, clause)) for clause in visible.clauses)
