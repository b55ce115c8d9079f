"""Service tokens of tests: made in the catalogue, as `dm token create` does over the API."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from datamanager.identity.roles import load_roles
from datamanager.identity.service_token import ServiceToken
from datamanager.sealing import Sealer
from datamanager.settings import Settings
from models.access.logins import TokenLogins
from models.access.tokens import NewToken, create_token
from models.database import Database


class TokenMaker:
    """Makes tokens that a service with these settings accepts."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._logins = TokenLogins(Sealer.of(settings), load_roles(settings.roles))

    def make(
        self,
        *roles: str,
        groups: Sequence[str] = (),
        scopes: Sequence[str] = (),
        name: str = "",
        expires: datetime | None = None,
    ) -> str:
        """Return the text of a new token."""
        new = ServiceToken.make()
        digest, name = new.digest(self._logins.key), name or uuid4().hex
        wanted = NewToken(new.identifier, digest, name, roles, tuple(groups), tuple(scopes), expires)
        with self._database.write() as session:
            create_token(session, wanted, None)
        return new.reveal()


def as_person(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a request with `token`, if there is one, as its header."""
    token = options.pop("token", None)
    if token is None:
        return options
    return {**options, "headers": {"Authorization": f"Bearer {token}", **options.get("headers", {})}}
