"""Idempotency keys: one request works under a key, others with the same fingerprint wait for its answer.

The object or transfer that the request makes is written into the key's row in the same transaction (`attach`). So when
the process that held the key dies, a retry finds what was made and continues from there, and nothing is made twice.
(IETF draft-ietf-httpapi-idempotency-key-header.)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from datamanager.errors import CatalogueUnavailable, IdempotencyMismatch
from models.database import affected, insert_if_free, now
from models.tables import IdempotencyKey

AMQP = "amqp:"
"""Begins the keys of requests that came as messages; no key of an HTTP request is stored under such a name."""
_FAILURE = "failure of "


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A stored answer."""

    status: int
    headers: dict[str, str]
    body: str


@dataclass(frozen=True, slots=True)
class Begun:
    """What `begin` found: `answer` to repeat; or `mine` (continue; a predecessor that died made `subject`);
    or neither: another request (`holder`) works under the key, wait and ask again.
    """

    mine: bool = False
    holder: str = ""
    answer: StoredAnswer | None = None
    subject: UUID | None = None


def begin(session: Session, key: str, fingerprint: str, holder: str, hold_for: timedelta, keep: timedelta) -> Begun:
    """Enter a key or join whoever has it. Raises: IdempotencyMismatch when the key stands for another request."""
    time = now(session)
    values = {
        "key": key,
        "fingerprint": fingerprint,
        "holder": holder,
        "held_until": time + hold_for,
        "created": time,
        "headers": {},
    }
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.key == key, IdempotencyKey.created < time - keep))
    if insert_if_free(session, IdempotencyKey, values):
        return Begun(mine=True)
    row = session.get(IdempotencyKey, key, with_for_update=True, populate_existing=True)
    if row is None:
        return Begun()  # just dropped by its holder: ask again
    if row.fingerprint != fingerprint:
        raise IdempotencyMismatch(f"Idempotency-Key {key!r} was used for another request")
    if row.status is not None:
        return Begun(answer=StoredAnswer(row.status, dict(row.headers), row.body or ""))
    if row.held_until is not None and row.held_until > time:
        return Begun(holder=row.holder)
    row.holder, row.held_until = holder, time + hold_for
    return Begun(mine=True, subject=row.subject)


def attach(session: Session, key: str, holder: str, subject: UUID) -> None:
    """Write what the request made into its key, in the transaction that makes it.

    Raises: CatalogueUnavailable when the lease ran out and another request works under the key now: what was made here
    must not stay, or it would be there twice.
    """
    if not _update(session, key, holder, subject=subject):
        raise CatalogueUnavailable("the request took too long; another one uses its Idempotency-Key now")


def prolong(session: Session, key: str, holder: str, hold_for: timedelta) -> None:
    """Prolong the lease on the key while the request is performed."""
    _update(session, key, holder, held_until=now(session) + hold_for)


def store(session: Session, key: str, holder: str, answer: StoredAnswer) -> None:
    """Keep the answer for later requests with this key."""
    _update(session, key, holder, status=answer.status, headers=answer.headers, body=answer.body, held_until=None)


def keep_failure(session: Session, holder: str, answer: StoredAnswer) -> None:
    """Keep the 5xx of one request under its own name, for those that joined it: later ones are executed again."""
    session.execute(
        insert(IdempotencyKey).values(
            key=f"{_FAILURE}{holder}",
            fingerprint="",  # no request has it, so nobody gets the answer by the key
            holder="",
            created=now(session),
            status=answer.status,
            headers=answer.headers,
            body=answer.body,
        )
    )


def failure_of(session: Session, holder: str) -> StoredAnswer | None:
    """Return the 5xx that the request `holder` ended with, None when it ended otherwise."""
    row = session.get(IdempotencyKey, f"{_FAILURE}{holder}")
    return None if row is None or row.status is None else StoredAnswer(row.status, dict(row.headers), row.body or "")


def drop(session: Session, key: str, holder: str) -> None:
    """Forget the key: its answer (5xx) must not be repeated."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.key == key, IdempotencyKey.holder == holder))


def release(session: Session, key: str, holder: str) -> None:
    """Leave the key at once to the next request with it, who finds what was made, if anything was."""
    # no holder any more: neither a prolonging nor a making that is pending can succeed afterwards
    mine = update(IdempotencyKey).where(IdempotencyKey.key == key, IdempotencyKey.holder == holder)
    session.execute(mine.values(holder="", held_until=now(session)))


def holder_of(session: Session, key: str) -> str | None:
    """Return the request that works under the key: entered, not answered, and its lease has not run out."""
    held = IdempotencyKey.status.is_(None), IdempotencyKey.held_until > now(session)
    return session.scalar(select(IdempotencyKey.holder).where(IdempotencyKey.key == key, *held))


def prune(session: Session, keep: timedelta, limit: int = 1000) -> int:
    """Forget up to `limit` keys older than `keep`; return how many."""
    old = select(IdempotencyKey.key).where(IdempotencyKey.created < now(session) - keep).limit(limit)
    return affected(session, delete(IdempotencyKey).where(IdempotencyKey.key.in_(old)))


def _update(session: Session, key: str, holder: str, **values: Any) -> bool:
    mine = update(IdempotencyKey).where(IdempotencyKey.key == key, IdempotencyKey.holder == holder)
    return affected(session, mine.values(**values)) == 1
