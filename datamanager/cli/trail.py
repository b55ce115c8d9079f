"""`dm trail …`: the audit trail of the service on this host."""

from __future__ import annotations

from typing import Annotated

import typer

from datamanager.cli.application import become

app = typer.Typer(
    help="Verify, export and prune the audit trail. Settings come from the environment.", no_args_is_help=True
)
Time = Annotated[str | None, typer.Option(metavar="TIME", help="RFC 3339 with a zone, such as 2026-01-31T12:00:00Z.")]


@app.command()
def verify(
    expect: Annotated[
        str | None, typer.Option(metavar="NUMBER:HASH", help="What an earlier `verify` printed; it must hold still.")
    ] = None,
) -> None:
    """Verify that no row was removed, changed or inserted; exit code 3 if one was. Print the newest row's hash."""
    become("trail_command", {}, ["verify", *_given(expect=expect)])


@app.command()
def export(since: Time = None, until: Time = None) -> None:
    """Print the rows as JSON lines, oldest first."""
    become("trail_command", {}, ["export", *_given(since=since, until=until)])


@app.command()
def prune(before: Annotated[str, typer.Option(metavar="TIME", help="Rows from this time on are kept.")]) -> None:
    """Remove the oldest rows, after they were verified. The chain begins with the hash of the last one then."""
    become("trail_command", {}, ["prune", *_given(before=before)])


def _given(**options: str | None) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items() if value is not None]
