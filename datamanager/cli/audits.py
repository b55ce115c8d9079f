"""`dm audit …`: compare a machine with the catalogue, and read the reports of audits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Annotated

import typer

from datamanager.cli.options import connected
from datamanager.cli.tables import Listing, tell
from datamanager.client import AuditClient, AuditInfo
from datamanager.domain.audit_rules import AuditStatus
from datamanager.transports.values import shown

app = typer.Typer(help="Compare the files on a machine with the catalogue.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(metavar="AUDIT", help="The audit's identifier.")]
SHOWN = ("size", "sha256", "members", "mtime")


@app.command()
def run(
    machine: Annotated[str, typer.Argument(metavar="MACHINE", help="The machine's name in machines.toml.")],
    scrub: Annotated[float | None, typer.Option(min=0, max=1, help="Fraction of the objects to hash again.")] = None,
    scrub_bytes: Annotated[int | None, typer.Option(min=0, help="Maximum number of bytes to hash.")] = None,
    second_look: Annotated[float | None, typer.Option(min=0, help="Seconds between the two passes.")] = None,
    accept_losses: Annotated[bool, typer.Option("--accept-losses", help="Accept any number of lost objects.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result; exit code 1 if it is ERROR.")] = False,
) -> None:
    """Start an audit of a machine, which a mover runs. Audits delete nothing."""
    terms = {"scrub_share": scrub, "scrub_bytes": scrub_bytes, "second_look": second_look}
    given = {name: value for name, value in terms.items() if value is not None}
    with connected(AuditClient) as dm:
        audit = dm.start_audit(machine, accept_losses=accept_losses, **given)
        if wait:
            audit = dm.wait_for_audit(audit.audit)
    _show([audit])
    if audit.status is AuditStatus.ERROR:
        raise typer.Exit(1)


@app.command("list")
def list_audits(
    machine: Annotated[str | None, typer.Option(help="Only audits of this machine.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Maximum number of audits.")] = 20,
) -> None:
    """List audits, newest first."""
    with connected(AuditClient) as dm:
        _show(islice(dm.audits(machine, limit=min(count, 1000)), count))


@app.command()
def show(
    audit: Id,
    kind: Annotated[str | None, typer.Option(help="Only findings of this kind: LOST, CHANGED, DARK or FOUND.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Show an audit and its findings."""
    with connected(AuditClient) as dm:
        found, findings = dm.audit(audit), dm.audit_findings(audit, kind)
        if as_json:
            for one in findings:
                tell(json.dumps(one.model_dump(mode="json"), ensure_ascii=True))
            return
        _show([found])
        for one in findings:
            facts = f"{_facts(one.expected)} → {_facts(one.found)}"
            tell(f"{one.kind:<8}{shown(one.place)}  {facts}  {one.object or ''}".rstrip())


def _show(audits: Iterable[AuditInfo]) -> None:
    counted = ("lost", "changed", "dark", "found")
    table = Listing("audit", "machine", "status", "begun", *counted, "hashed", "why")
    for one in audits:
        counts = [str(one.counts.get(kind, "")) for kind in counted]
        begun = "" if one.begun is None else f"{one.begun:%Y-%m-%d %H:%M}"
        why = "" if one.error is None else f"{one.error.code}: {one.error.detail}"
        table.add(str(one.audit), one.machine, one.status, begun, *counts, f"{one.scrubbed_objects:,}", why)
    table.print()


def _facts(facts: dict[str, object]) -> str:
    return ", ".join(f"{name} {facts[name]}" for name in SHOWN if facts.get(name) is not None) or "nothing"
