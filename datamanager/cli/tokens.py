"""`dm token …`: service tokens; and `dm whoami`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated

import typer

from datamanager.cli.options import connected
from datamanager.cli.tables import Listing, tell
from datamanager.client.access_client import AccessClient, QuotaInfo, TokenInfo
from datamanager.transports.values import shown

app = typer.Typer(help="Manage service tokens.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(metavar="TOKEN", help="The token's identifier: its 12 characters after dm_.")]


@app.command()
def create(
    name: Annotated[str, typer.Option(help="What the token is for, such as the workflow that has it.")],
    role: Annotated[
        list[str] | None, typer.Option(help="Role: reader, mover, archivist, operator, admin. Repeatable.")
    ] = None,
    group: Annotated[list[str] | None, typer.Option(help="Group whose objects it is for. Repeatable.")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="Further scope, such as read:machines. Repeatable.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="When it ends: a duration such as P90D, or a time; default: never.")
    ] = None,
) -> None:
    """Make a service token and print it. It is shown this once."""
    with connected(AccessClient) as dm:
        made = dm.create_token(name, roles=role or [], groups=group or [], scopes=scope or [], expires=expires)
    _reveal(made)


@app.command("list")
def list_tokens() -> None:
    """List service tokens, oldest first."""
    with connected(AccessClient) as dm:
        _show(dm.tokens())


@app.command()
def rotate(
    token: Id,
    overlap: Annotated[str | None, typer.Option(help="How long the old one is accepted still; default: 1d.")] = None,
) -> None:
    """Replace a token by a new one with the same name, roles and groups, and print it. It is shown this once."""
    with connected(AccessClient) as dm:
        _reveal(dm.rotate_token(token, overlap))


@app.command()
def revoke(token: Id) -> None:
    """Revoke a token: it is refused at once, and transfers that were requested with it end."""
    with connected(AccessClient) as dm:
        _show([dm.revoke_token(token)])


Person = Annotated[str, typer.Argument(metavar="PERSON", help="The person, as `dm whoami` names them.")]


@app.command()
def withdraw(person: Person) -> None:
    """Permit a person nothing any more: tokens of an OIDC issuer cannot be revoked. What they have requested ends."""
    with connected(AccessClient) as dm:
        dm.withdraw_person(person)
    tell(f"{person} withdrawn")


@app.command()
def readmit(person: Person) -> None:
    """Let a withdrawn person in again."""
    with connected(AccessClient) as dm:
        dm.readmit_person(person)
    tell(f"{person} readmitted")


@app.command()
def withdrawn() -> None:
    """List the persons who were withdrawn."""
    with connected(AccessClient) as dm:
        for person in dm.withdrawn():
            tell(person)


def whoami() -> None:
    """Show who the service takes you for, what you may do, and the quotas of you and your groups."""
    with connected(AccessClient) as dm:
        found = dm.whoami()
        tell(f"{found.person} ({found.means}{'' if found.credential is None else f' {found.credential}'})")
        for name, values in (("groups", found.groups), ("roles", found.roles), ("scopes", found.scopes)):
            tell(f"{name}: {' '.join(values) or 'none'}")
        quotas = dm.quotas()  # after these are printed: whoever may send few requests may be refused this one
    for quota in quotas:
        tell(f"quota of {quota.kind} {shown(quota.name)}: {', '.join(_limits(quota))}")


def _limits(quota: QuotaInfo) -> Iterator[str]:
    uses = {"objects": quota.objects, "bytes": quota.bytes, "queued": quota.queued}
    yield from (f"{name} {use.used} of {use.limit}" for name, use in uses.items() if use.limit is not None)
    if quota.requests_per_second is not None:
        yield f"{quota.requests_per_second} requests per second"


def _reveal(made: TokenInfo) -> None:
    """Print a token alone on standard output, so that it can be redirected to a file."""
    tell(f"{made.name}: id {made.id}; the token is shown this once", error=True)
    tell(made.token)


def _show(tokens: Iterable[TokenInfo]) -> None:
    table = Listing("token", "name", "state", "roles", "groups", "scopes", "created by", "last used", "expires")
    for one in tokens:
        table.add(
            one.id,
            one.name,
            _state(one),
            " ".join(one.roles),
            " ".join(one.groups),
            " ".join(one.scopes),
            one.created_by,
            one.last_used and f"{one.last_used:%Y-%m-%dT%H:%MZ}",
            one.expires and f"{one.expires:%Y-%m-%dT%H:%MZ}",
        )
    table.print()


def _state(token: TokenInfo) -> str:
    time = datetime.now(UTC)
    if token.revoked is not None:
        return "revoked"
    if token.expires is not None and token.expires <= time:
        return "expired"
    if token.overlap_until is not None:
        return "replaced" if token.overlap_until <= time else f"until {token.overlap_until:%Y-%m-%dT%H:%MZ}"
    return "active"
