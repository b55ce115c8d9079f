"""Logins by service tokens: the API's and those of messages. Each is looked up; nothing is kept from one to the next."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property

from sqlalchemy.orm import Session

from datamanager.errors import NotAuthenticated
from datamanager.identity.grant import Grant, Means
from datamanager.identity.roles import Roles
from datamanager.identity.service_token import ServiceToken
from datamanager.sealing import Sealer
from models.access.tokens import USED_EVERY, find_token, grant_of, note_uses, require_live
from models.tables import TokenRecord

PURPOSE = "dm service tokens"
"""Of the key that their digests are made with."""


class TokenLogins:
    """Makes grants of service tokens; safe to share between threads."""

    def __init__(self, sealer: Sealer, roles: Roles) -> None:
        self._sealer = sealer
        self.roles = roles
        self._uses: dict[str, datetime] = {}

    @cached_property
    def key(self) -> bytes:
        """The key of digests, read once. Raises: SecretsUnreadable."""
        return self._sealer.derived(PURPOSE)

    def grant(self, session: Session, text: str) -> Grant:
        """Return what the bearer of a token may, by one statement. What can't be a token is not looked up.

        Raises: NotAuthenticated, SecretsUnreadable.
        """
        token = ServiceToken.parse(text)
        record = find_token(session, token.identifier)
        if not token.matches(self.key, None if record is None else record.digest) or record is None:
            raise NotAuthenticated("the service token is unknown")
        return self._used(record)

    def grant_of_user(self, session: Session, identifier: str) -> Grant:
        """Return what a user of the broker may, whom the settings give the token with this id. Raises:
        NotAuthenticated.
        """
        record = find_token(session, identifier)
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

    def _used(self, record: TokenRecord) -> Grant:
        time = datetime.now(UTC)
        require_live(record, time)
        if record.last_used is None or record.last_used <= time - USED_EVERY:
            self._uses[record.id] = time
        return grant_of(record, self.roles)
