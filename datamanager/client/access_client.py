"""The client's calls for service tokens; who one is, and the quotas that apply."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from datamanager.client.answers import ServiceAnswer
from datamanager.client.connection import at
from datamanager.client.rest_client import Client


class TokenInfo(ServiceAnswer):
    """A service token; `token` is its text, there only when it was made just now."""

    id: str
    name: str
    roles: list[str]
    groups: list[str]
    scopes: list[str]
    created: datetime
    created_by: str | None
    expires: datetime | None
    last_used: datetime | None
    revoked: datetime | None
    replaced_by: str | None
    overlap_until: datetime | None
    token: str | None = None


class WhoamiInfo(ServiceAnswer):
    """Who the service takes the client for."""

    person: str
    groups: list[str]
    roles: list[str]
    scopes: list[str]
    means: str
    credential: str | None
    principal: str | None


class UseInfo(ServiceAnswer):
    """How much there is, and how much there may be; None: it is not limited."""

    used: int
    limit: int | None


class QuotaInfo(ServiceAnswer):
    """What a group or person (`kind`) may have, and has; `objects` and `bytes` with what open tasks may add."""

    kind: str
    name: str
    objects: UseInfo
    bytes: UseInfo
    queued: UseInfo
    requests_per_second: int | None


class AccessClient(Client):
    """A client with the calls for service tokens."""

    def whoami(self) -> WhoamiInfo:
        """Return who the service takes this client for."""
        return self._get(WhoamiInfo, at("whoami"))

    def quotas(self) -> list[QuotaInfo]:
        """Return the quotas that apply to this client and its groups."""
        return list(self._list(QuotaInfo, at("quota"), {}))

    def create_token(self, name: str, **fields: Any) -> TokenInfo:
        """Make a service token; its `token` is shown this once. If the answer is lost, revoke it and make another one.

        `fields`: roles, groups, scopes, expires (a time with a zone, or a timedelta from now).
        """
        return self._ask(TokenInfo, "POST", at("tokens"), {"name": name, **fields})

    def tokens(self) -> list[TokenInfo]:
        """Return the service tokens, oldest first, revoked ones too."""
        return list(self._list(TokenInfo, at("tokens"), {}))

    def rotate_token(self, token: str, overlap: str | timedelta | None = None) -> TokenInfo:
        """Replace a token, by its id, with a new one; the old one is accepted for `overlap` more (a day)."""
        return self._ask(TokenInfo, "POST", at("tokens", token, "rotate"), {"overlap": overlap})

    def withdraw_person(self, person: str) -> None:
        """Permit a person nothing any more, whatever their tokens of the issuer say. Idempotent."""
        self._write("PUT", at("withdrawn"), {"person": person})

    def readmit_person(self, person: str) -> None:
        """Let a withdrawn person in again. Idempotent."""
        self._write("DELETE", at("withdrawn"), {"person": person})

    def withdrawn(self) -> list[str]:
        """Return the persons whom nothing is permitted any more, by name."""
        return [one["person"] for page in self._pages(at("withdrawn")) for one in page]

    def revoke_token(self, token: str) -> TokenInfo:
        """Revoke a token, by its id."""
        return self._ask(TokenInfo, "DELETE", at("tokens", token))
