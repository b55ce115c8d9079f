"""Logins by service tokens, of the API and of messages: the row is looked up each time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from datamanager.errors import NotAuthenticated
from datamanager.identity.grant import Grant, Means
from datamanager.identity.roles import Roles
from datamanager.identity.service_token import ServiceToken
from datamanager.sealing import Sealer
from models.access.tokens import USED_EVERY, grant_of, note_uses, require_live
from models.database import table_of
from models.tables import TokenRecord

PURPOSE = "dm service tokens"
"""Of the key that their digests are made with."""
GRANTS_KEPT = 1000
"""Grants that were made of rows: a row that says something else gets another one."""


class TokenLogins:
    """Makes grants of service tokens; safe to share between threads."""

    def __init__(self, sealer: Sealer, roles: Roles) -> None:
        self._sealer = sealer
        self.roles = roles
        self._uses: dict[str, datetime] = {}
        self._grant = lru_cache(GRANTS_KEPT)(self._made)

    @cached_property
    def key(self) -> bytes:
        """The key of digests, read once. Raises: SecretsUnreadable."""
        return token_key(self._sealer)

    def grant(self, session: Session, text: str) -> Grant:
        """Return what the bearer of a token may, by one statement. What can't be a token is not looked up.

        Raises: NotAuthenticated, SecretsUnreadable.
        """
        token = ServiceToken.parse(text)
        record = _find(session, token.identifier)
        if not token.matches(self.key, None if record is None else record.digest) or record is None:
            raise NotAuthenticated("the service token is unknown")
        return self._used(record)

    def grant_of_user(self, session: Session, identifier: str) -> Grant:
        """Return what a user of the broker may, whom the settings give the token with this id. Raises:
        NotAuthenticated.
        """
        record = _find(session, identifier)
        if record is not None and record.replaced_by is not None and record.revoked is None:
            record = _find(session, record.replaced_by)  # a user goes on with the newest one
        if record is None:
            raise NotAuthenticated("the service token of this user of the broker is unknown")
        return replace(self._used(record), means=Means.BROKER)

    @property
    def unnoted(self) -> bool:
        """Whether there are uses to note."""
        return bool(self._uses)

    def note(self, session: Session) -> None:
        """Note when tokens were used last; each at most once a minute."""
        uses, self._uses = dict(self._uses), {}
        note_uses(session, uses)

    def _used(self, record: Any) -> Grant:
        time = datetime.now(UTC)
        require_live(record, time)
        if record.last_used is None or record.last_used <= time - USED_EVERY:
            self._uses[record.id] = time
        names = (tuple(each) for each in (record.roles, record.groups, record.scopes))
        return self._grant(record.id, record.name, *names)

    def _made(
        self, identifier: str, name: str, roles: tuple[str, ...], groups: tuple[str, ...], scopes: tuple[str, ...]
    ) -> Grant:
        record = TokenRecord(id=identifier, name=name, roles=list(roles), groups=list(groups), scopes=list(scopes))
        return grant_of(record, self.roles)


def token_key(sealer: Sealer) -> bytes:
    """Return the key that tokens' digests are made with. Raises: SecretsUnreadable."""
    return sealer.derived(PURPOSE)


_TOKENS = table_of(TokenRecord)
_BY_ID = select(_TOKENS).where(_TOKENS.c.id == bindparam("identifier"))  # made once: it is asked at each request


def _find(session: Session, identifier: str) -> Any:
    """Return the row of a token, which is read only; None where there is none."""
    return session.execute(_BY_ID, {"identifier": identifier}).one_or_none()
