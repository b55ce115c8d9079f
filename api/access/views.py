"""What clients see of tokens, and of who they are."""

from __future__ import annotations

from datetime import datetime
from typing import NotRequired

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from api.http.responses import OMIT, view_of
from datamanager.identity.grant import Grant
from models.tables import TokenRecord


class TokenView(TypedDict):
    """A service token. `token` is there in the answer that makes it, and never again. `last_used` is to the minute.

    A rotated one was `replaced_by` another, and is accepted until `overlap_until`.
    """

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
    revoked_by: str | None
    replaced_by: str | None
    overlap_until: datetime | None
    token: NotRequired[str]


class WithdrawnView(TypedDict):
    """A person whom nothing is permitted; `by`: who has withdrawn them, null where authentication was off."""

    person: str
    since: datetime
    by: str | None


class ReadmittedView(TypedDict):
    """A person who is let in; `was`: they were withdrawn before."""

    person: str
    was: bool


class WhoamiView(TypedDict):
    """Who asks. `means` is how that was proved: `token`, `oidc`, `session`, `broker`, or `none` where authentication is
    off; `credential` the token's id, or the issuer's subject; `principal` the login on machines that act as the caller.
    """

    person: str
    groups: list[str]
    roles: list[str]
    scopes: list[str]
    means: str
    credential: str | None
    principal: str | None


def token_view(row: TokenRecord, token: str | None = None) -> TokenView:
    """Show a token; with its text when it was made just now."""
    return view_of(TokenView, row, token=OMIT if token is None else token)


def whoami_view(grant: Grant) -> WhoamiView:
    """Show who asks."""
    return view_of(
        WhoamiView,
        grant,
        groups=sorted(grant.groups),
        roles=list(grant.roles),
        scopes=sorted(map(str, grant.scopes)),
        means=grant.means.value,
    )
