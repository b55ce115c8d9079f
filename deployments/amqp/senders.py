"""Who sends a message: by a token in its header, or as a user of the broker whom the settings name. RabbitMQ compares
the property `user_id` with the connection's user, so it is true of whoever set it.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Self

from datamanager.errors import NotAllowed, NotAuthenticated
from datamanager.identity.grant import EVERYBODY, Grant
from datamanager.identity.oidc import OidcLogin
from datamanager.identity.roles import load_roles
from datamanager.identity.service_token import is_service_token
from datamanager.messaging.consuming import Delivery
from datamanager.sealing import Sealer
from datamanager.settings import Settings
from models.access.logins import TokenLogins
from models.access.tokens import is_withdrawn
from models.database import Database

TOKEN = "dm-token"  # noqa: S105  # the name of a header
"""Header with a service token, or a bearer token of the issuer."""
USER, MARK = "dm-user", "dm-user-mark"
"""Headers of a message that was put back: its user of the broker, and that this was true when it came."""


class MessageSenders:
    """Makes grants of messages; safe to share between threads. All of it blocks.

    `users` maps users of the broker to the identifiers of their service tokens.
    """

    def __init__(
        self, database: Database, tokens: TokenLogins, sealer: Sealer, users: Mapping[str, str], oidc: OidcLogin | None
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._sealer = sealer
        self._users = users
        self._oidc = oidc

    @classmethod
    def of(cls, settings: Settings, database: Database) -> Self | None:
        """Return what the settings mean; None where whoever sends may do everything. Raises: SettingsError."""
        if settings.auth == "none":
            return None
        sealer = Sealer.of(settings)
        tokens = TokenLogins(sealer, load_roles(settings.roles))
        return cls(database, tokens, sealer, settings.amqp_tokens, OidcLogin.of(settings))

    def grant(self, delivery: Delivery) -> Grant:
        """Return what the sender of a message may. Raises: NotAuthenticated, NotAllowed, SecretsUnreadable,
        CatalogueUnavailable.
        """
        token, user = delivery.headers.get(TOKEN), self._user(delivery)
        if isinstance(token, str):
            grant = self._of_token(token)
        elif user in self._users:
            with self._database.read() as session:
                grant = self._tokens.grant_of_user(session, self._users[user])
        else:
            raise NotAuthenticated(
                f"the message has no token (header {TOKEN}), and no user_id that DM_AMQP_USERS names"
            )
        if self._tokens.unnoted:
            with self._database.write() as session:
                self._tokens.note(session)
        return grant

    def kept(self, delivery: Delivery) -> dict[str, str]:
        """Return the headers that a message needs to be known by when it is put back. Raises: SecretsUnreadable."""
        token, user = delivery.headers.get(TOKEN), self._user(delivery)
        if isinstance(token, str):
            return {TOKEN: token}
        return {USER: user, MARK: self._mark(user, delivery)} if user in self._users else {}

    def _of_token(self, token: str) -> Grant:
        with self._database.read() as session:
            if is_service_token(token):
                return self._tokens.grant(session, token)
        if self._oidc is None:
            raise NotAuthenticated("this is no service token, and no OIDC issuer is configured")
        grant = self._oidc.grant(token)
        with self._database.read() as session:
            if is_withdrawn(session, grant.person):
                raise NotAllowed("this person was withdrawn")
        return grant

    def _user(self, delivery: Delivery) -> str:
        """Return the message's user of the broker, "" for none: its property, or what it had when we put it back."""
        user, mark = delivery.headers.get(USER), delivery.headers.get(MARK)
        if isinstance(user, str) and isinstance(mark, str):
            true = hmac.compare_digest(mark.encode(), self._mark(user, delivery).encode())
            return user if true else ""
        return delivery.user_id or ""

    def _mark(self, user: str, delivery: Delivery) -> str:
        return self._sealer.mark(f"message of {user}\0{delivery.body.hex()}")


def grant_of_sender(senders: MessageSenders | None, delivery: Delivery) -> Grant:
    """Return what the sender of a message may; everything without `senders`. Raises: as `MessageSenders.grant`."""
    return EVERYBODY if senders is None else senders.grant(delivery)
