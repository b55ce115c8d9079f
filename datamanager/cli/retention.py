"""`dm retention …`: check rules, plan and start runs, hold and restore objects."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import typer

from datamanager.cli.options import connected
from datamanager.cli.tables import Listing, tell
from datamanager.client import RetentionClient, RetentionRunInfo
from datamanager.domain.fields import size_text
from datamanager.domain.retention_rules import check_archives, load_rules, objections
from datamanager.errors import InvalidRequest
from datamanager.machines import load_machines
from datamanager.settings import load_settings

SHOWN = 50
"""Maximum number of objects that a plan or a run prints."""

app = typer.Typer(help="Manage the rules that archive or delete old objects (retention.toml).", no_args_is_help=True)
Object = Annotated[str, typer.Argument(metavar="UUID", help="The object's identifier.")]
RuleName = Annotated[str, typer.Option("--rule", metavar="NAME", help="Only this rule.")]
MaxObjects = Annotated[int | None, typer.Option(help="Maximum number of objects; retention.toml may allow fewer.")]
MaxBytes = Annotated[str | None, typer.Option(metavar="SIZE", help="Maximum number of bytes, such as 10GiB.")]


@app.command()
def check() -> None:
    """Validate retention.toml and describe each rule."""
    settings = load_settings()
    file = settings.retention_file
    rules = load_rules(file)
    if not file.exists():
        tell(f"{file} does not exist: there are no rules, and nothing is archived or deleted")
        return
    machines = load_machines(settings.machines_file).with_archives(settings.archive_rules)
    check_archives(rules, machines)
    for number, rule in enumerate(rules.rule, 1):
        tell(f"{number}. {rule.sentence()}")
    limits = rules.limits
    tell(f"Limits of a run: {limits.max_objects:,} objects, {size_text(limits.max_bytes)}.")
    for warning in objections(rules, machines):
        tell(f"warning: {warning}")


@app.command()
def plan(rule: RuleName = "", max_objects: MaxObjects = None, max_bytes: MaxBytes = None) -> None:
    """Show the actions of a run, with reasons, without changing anything."""
    caps = {"max_objects": max_objects, "max_bytes": max_bytes}
    with connected(RetentionClient) as dm:
        found = dm.plan(rule, **{name: value for name, value in caps.items() if value is not None})
    _print_counts(found.counts)
    _print_lines(found.lines, truncated=found.truncated)


@app.command()
def run(
    rule: RuleName = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; only write a report.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result and print the report.")] = False,
    max_objects: MaxObjects = None,
    max_bytes: MaxBytes = None,
) -> None:
    """Start a run now, in addition to the schedule."""
    with connected(RetentionClient) as dm:
        begun = dm.start_retention(rule=rule, dry_run=dry_run, max_objects=max_objects, max_bytes=max_bytes)
        if not wait:
            tell(begun.run)
            return
        _print_run(dm.wait_for_retention(begun.run))


@app.command()
def runs() -> None:
    """List the stored runs, newest first."""
    table = Listing("run", "status", "begun", "acted on", "freed", "spared", "error")
    with connected(RetentionClient) as dm:
        for one in dm.retention_runs():
            begun = "" if one.started is None else f"{one.started:%Y-%m-%d %H:%M}"
            status = f"{one.status} (dry)" if one.dry_run else one.status
            acted, spared = _objects(one.counts, "act"), _objects(one.counts, "spare")
            table.add(str(one.run), status, begun, f"{acted:,}", f"{one.bytes_freed:,}", f"{spared:,}", one.error)
    table.print()


@app.command()
def show(run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run's identifier.")]) -> None:
    """Show the report of a run."""
    with connected(RetentionClient) as dm:
        _print_run(dm.retention_run(_uuid(run_id)))


@app.command()
def hold(
    uuid: Object,
    reason: Annotated[str, typer.Option(help="Reason, shown to anyone who tries to delete the object.")],
    by: Annotated[str, typer.Option(help="Person or system that places the hold.")] = "",
) -> None:
    """Protect an object from deletion by retention rules and by clients."""
    with connected(RetentionClient) as dm:
        found = dm.hold(_uuid(uuid), reason, by)
    tell(f"{found.machine}:{found.path}/{found.filename} is held: {reason}")


@app.command()
def release(uuid: Object) -> None:
    """Remove the hold of an object."""
    with connected(RetentionClient) as dm:
        found = dm.release(_uuid(uuid))
    tell(f"{found.machine}:{found.path}/{found.filename} is no longer held")


@app.command()
def lifetime(
    uuid: Object,
    duration: Annotated[str, typer.Argument(metavar="DURATION", help="Duration from now, such as 30d, or never.")],
) -> None:
    """Set the lifetime of an object, which rules with `expired = true` evaluate."""
    with connected(RetentionClient) as dm:
        found = dm.set_lifetime(_uuid(uuid), None if duration == "never" else duration)
    until = "does not expire" if found.expires_at is None else f"expires {found.expires_at:%Y-%m-%d %H:%M:%S %Z}"
    tell(f"{found.id} {until}")


@app.command()
def restore(
    uuid: Object,
    spare_for: Annotated[
        str | None,
        typer.Option("--for", metavar="DURATION", help="Time for which the rule skips the object; default: 30d."),
    ] = None,
) -> None:
    """Remove the mark of an object, or activate an object that a rule archived. Deleted objects cannot be restored."""
    with connected(RetentionClient) as dm:
        task = dm.restore(_uuid(uuid), spare_for)
    tell(f"{uuid} restored" if task is None else f"{uuid} is being activated by task {task}")


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidRequest(f"{text!r} is not a valid identifier") from None


def _objects(counts: list[dict[str, Any]], verdict: str) -> int:
    return sum(one["objects"] for one in counts if one["verdict"] == verdict)


def _print_run(found: RetentionRunInfo) -> None:
    tell(f"run {found.run}: {found.status}{' (dry run)' if found.dry_run else ''}")
    if found.error is not None:
        tell(f"  {found.error}")
    tell(f"  {found.bytes_freed:,} bytes freed, {found.pending:,} objects pending")
    _print_counts(found.counts)
    _print_lines(found.lines, truncated=found.truncated)


def _print_counts(counts: list[dict[str, Any]]) -> None:
    if not counts:
        tell("no rule selects any object")
        return
    table = Listing("rule", "action", "what", "why", "objects", "bytes")
    for one in counts:
        numbers = f"{one['objects']:,}", f"{one['bytes']:,}"
        table.add(one["rule"], one["action"], one["verdict"], one["reason"] or "", *numbers)
    table.print()


def _print_lines(lines: list[dict[str, Any]], *, truncated: bool) -> None:
    for line in lines[:SHOWN]:
        why = line["detail"] or line["reason"] or ""
        due = f"due {line['due'][:16]}" if line["verdict"] == "mark" and line["due"] else ""
        words = [line["verdict"], line["object"], f"{line['machine']}:{line['place']}", line["rule"], why, due]
        tell("  ".join(word for word in words if word))
    if truncated or len(lines) > SHOWN:
        tell("… and more")
