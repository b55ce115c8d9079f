"""`dm retention …`: what the rules mean, what they would do, runs, and what is said of single objects."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import typer

from datamanager.cli.tables import Listing
from datamanager.client import RetentionClient, RetentionRunInfo
from datamanager.domain.retention.rules import check_archives, load_rules, objections
from datamanager.domain.units import size_text
from datamanager.errors import InvalidRequest
from datamanager.machines import load_machines
from datamanager.settings import load_settings

SHOWN = 50
"""Objects that a plan or a run prints."""

app = typer.Typer(help="Rules by which old objects are archived or deleted (retention.toml).", no_args_is_help=True)
Object = Annotated[str, typer.Argument(metavar="UUID", help="The object's identifier.")]
RuleName = Annotated[str, typer.Option("--rule", metavar="NAME", help="Only this rule.")]
MaxObjects = Annotated[int | None, typer.Option(help="At most so many objects; the file may allow fewer.")]
MaxBytes = Annotated[str | None, typer.Option(metavar="SIZE", help="At most so many bytes, such as 10GiB.")]


@app.command()
def check() -> None:
    """Read retention.toml; say what is wrong, or what each rule does."""
    settings = load_settings()
    file = settings.retention_file
    rules = load_rules(file)
    if not file.exists():
        print(f"{file} is not there: there are no rules, and nothing is done")
        return
    machines = load_machines(settings.machines_file).with_archives(settings.archive_rules)
    check_archives(rules, machines)
    for number, rule in enumerate(rules.rule, 1):
        print(f"{number}. {rule.sentence()}")
    limits = rules.limits
    print(f"A run acts on at most {limits.max_objects:,} objects and {size_text(limits.max_bytes)}.")
    for warning in objections(rules, machines):
        print(f"warning: {warning}")


@app.command()
def plan(rule: RuleName = "", max_objects: MaxObjects = None, max_bytes: MaxBytes = None) -> None:
    """Show what a run would do now, and why; nothing is changed."""
    caps = {"max_objects": max_objects, "max_bytes": max_bytes}
    with _client() as dm:
        found = dm.plan(rule, **{name: value for name, value in caps.items() if value is not None})
    _print_counts(found.counts)
    _print_lines(found.lines, truncated=found.truncated)


@app.command()
def run(
    rule: RuleName = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; leave a report.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end, and print its report.")] = False,
    max_objects: MaxObjects = None,
    max_bytes: MaxBytes = None,
) -> None:
    """Run retention now, besides its schedule."""
    with _client() as dm:
        begun = dm.start_retention(rule=rule, dry_run=dry_run, max_objects=max_objects, max_bytes=max_bytes)
        if not wait:
            print(begun.run)
            return
        _print_run(dm.wait_for_retention(begun.run))


@app.command()
def runs() -> None:
    """List the runs that are kept, the newest first."""
    table = Listing("run", "status", "begun", "acted on", "freed", "spared", "error")
    with _client() as dm:
        for one in dm.retention_runs():
            begun = "" if one.started is None else f"{one.started:%Y-%m-%d %H:%M}"
            status = f"{one.status} (dry)" if one.dry_run else one.status
            acted, spared = _objects(one.counts, "act"), _objects(one.counts, "spare")
            table.add(str(one.run), status, begun, f"{acted:,}", f"{one.bytes_freed:,}", f"{spared:,}", one.error)
    table.print()


@app.command()
def show(run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run's identifier.")]) -> None:
    """Show what a run did, and what it spared and why."""
    with _client() as dm:
        _print_run(dm.retention_run(_uuid(run_id)))


@app.command()
def hold(
    uuid: Object,
    reason: Annotated[str, typer.Option(help="Why; whoever wants to delete it will read this.")],
    by: Annotated[str, typer.Option(help="Who.")] = "",
) -> None:
    """Keep an object from being deleted, by retention and by clients alike."""
    with _client() as dm:
        found = dm.hold(_uuid(uuid), reason, by)
    print(f"{found.machine}:{found.path}/{found.filename} is held: {reason}")


@app.command()
def release(uuid: Object) -> None:
    """End an object's hold."""
    with _client() as dm:
        found = dm.release(_uuid(uuid))
    print(f"{found.machine}:{found.path}/{found.filename} is not held")


@app.command()
def lifetime(
    uuid: Object,
    duration: Annotated[str, typer.Argument(metavar="DURATION", help="From now on, such as 30d; never: for ever.")],
) -> None:
    """Say how long an object is wanted; rules with `expired = true` ask for that."""
    with _client() as dm:
        found = dm.set_lifetime(_uuid(uuid), None if duration == "never" else duration)
    until = "does not expire" if found.expires_at is None else f"expires {found.expires_at:%Y-%m-%d %H:%M:%S %Z}"
    print(f"{found.id} {until}")


@app.command()
def restore(
    uuid: Object,
    spare_for: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="How long the rule leaves it alone; default 30d.")
    ] = None,
) -> None:
    """Take an object back from the rule that marked it; one that it archived is activated. Deleted ones are gone."""
    with _client() as dm:
        task = dm.restore(_uuid(uuid), spare_for)
    print(f"{uuid} is taken back" if task is None else f"{uuid} comes back with task {task}")


def _client() -> RetentionClient:
    return RetentionClient(load_settings().api_url)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidRequest(f"{text!r} is no identifier") from None


def _objects(counts: list[dict[str, Any]], verdict: str) -> int:
    return sum(one["objects"] for one in counts if one["verdict"] == verdict)


def _print_run(found: RetentionRunInfo) -> None:
    print(f"run {found.run}: {found.status}{' (dry run)' if found.dry_run else ''}")
    if found.error is not None:
        print(f"  {found.error}")
    print(f"  {found.bytes_freed:,} bytes freed, {found.pending:,} objects still under way")
    _print_counts(found.counts)
    _print_lines(found.lines, truncated=found.truncated)


def _print_counts(counts: list[dict[str, Any]]) -> None:
    if not counts:
        print("no rule selects anything")
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
        print("  ".join(word for word in words if word))
    if truncated or len(lines) > SHOWN:
        print("… and more")
