"""`dm schedule …`: recurring downloads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from datamanager.cli.options import connected, name_value
from datamanager.cli.tables import Listing, tell
from datamanager.client import Client

app = typer.Typer(help="Manage recurring downloads.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(metavar="SCHEDULE", help="The schedule's identifier.")]


@app.command()
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL; may contain the scheduled time: {date:%Y%m%d}.")],
    machine: Annotated[str, typer.Argument(metavar="MACHINE", help="Destination machine.")],
    filename: Annotated[str, typer.Argument(metavar="NAME", help="File name, such as forecast-{date:%Y%m%d%H}.nc.")],
    path: Annotated[str, typer.Option(help="Destination directory; may contain the scheduled time too.")] = "",
    interval: Annotated[str | None, typer.Option(help="Interval between downloads: 15m, 6h, 1d.")] = None,
    cron: Annotated[
        str | None, typer.Option(help='Cron expression (UTC), instead of --interval: "0 */6 * * *".')
    ] = None,
    keep: Annotated[int | None, typer.Option(min=1, help="Number of versions to keep; default: all.")] = None,
    group: Annotated[str, typer.Option(help="Group of the objects.")] = "",
    credential: Annotated[str | None, typer.Option(help="Name of a stored credential.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="An option of getexternal. Repeatable.")
    ] = None,
    again: Annotated[bool, typer.Option("--even-unchanged", help="Download even if the source is unchanged.")] = False,
) -> None:
    """Create a schedule that downloads a URL at regular times."""
    options = dict(_option(text) for text in option or [])
    if credential is not None:
        options["credential"] = credential
    rhythm = {"interval": interval, "cron": cron, "keep": keep, "skip_unchanged": not again}
    with connected(Client) as dm:
        tell(dm.add_schedule(url, machine, filename, path, group=group, options=options, **rhythm)["id"])


@app.command("list")
def list_schedules() -> None:
    """List schedules, oldest first."""
    with connected(Client) as dm:
        _show(dm.schedules())


@app.command()
def show(schedule: Id) -> None:
    """Show a schedule and the results of its latest runs."""
    with connected(Client) as dm:
        found = dm.schedule(schedule)
    _show([found])
    _show_runs(found)


@app.command()
def pause(schedule: Id) -> None:
    """Pause a schedule."""
    with connected(Client) as dm:
        _show([dm.change_schedule(schedule, "pause")])


@app.command()
def resume(schedule: Id) -> None:
    """Resume a schedule."""
    with connected(Client) as dm:
        _show([dm.change_schedule(schedule, "resume")])


@app.command()
def run(
    schedule: Id,
    moment: Annotated[
        str | None, typer.Option(help="Scheduled time to run for, such as 2026-01-31T06:00:00Z; default: now.")
    ] = None,
) -> None:
    """Run a schedule once: for the current time, or for a scheduled time in the past."""
    with connected(Client) as dm:
        found = dm.run_schedule(schedule, moment)
    _show([found])
    if moment is not None:
        _show_runs(found)


@app.command()
def remove(schedule: Id) -> None:
    """Delete a schedule; the objects that it created are kept."""
    with connected(Client) as dm:
        dm.remove_schedule(schedule)
    tell(f"{schedule} removed")


def _option(text: str) -> tuple[str, Any]:
    name, value = name_value(text)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _show(schedules: Iterable[dict[str, Any]]) -> None:
    table = Listing("schedule", "every", "keep", "state", "url", "where")
    for one in schedules:
        keep = "all" if one["keep"] is None else str(one["keep"])
        where = f"{one['machine']}:{'/'.join(filter(None, (one['path'], one['filename'])))}"
        state = "paused" if one["paused"] else "active"
        table.add(one["id"], one["interval"] or one["cron"], keep, state, one["url"], where)
    table.print()


def _show_runs(schedule: dict[str, Any]) -> None:
    table = Listing("moment", "outcome", "object", "task", "why")
    for run in schedule["runs"]:
        table.add(run["moment"], run["outcome"], run["object"], run["task"], run["code"])
    table.print()
