"""`dm task …`: list, show, cancel, pause and resume tasks."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Annotated

import typer

from datamanager.cli.options import connected
from datamanager.cli.tables import Listing
from datamanager.client import Client, Task

app = typer.Typer(help="Manage tasks (transfers).", no_args_is_help=True)
Id = Annotated[str, typer.Argument(metavar="TASK", help="The task's identifier.")]
FAILED = 6
"""The exit code for a task that ended in ERROR: not one of the command's own failures."""
FILTERS = ("status", "kind", "phase", "priority", "machine", "group", "object", "since", "until")


@app.command("list")
def list_tasks(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME=VALUE", help=f"Filter: {', '.join(FILTERS)}. Repeatable."),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Maximum number of tasks.")] = 20,
) -> None:
    """List tasks, newest first."""
    filters = dict(_filter(text) for text in only or [])
    with connected(Client) as dm:
        _show(islice(dm.tasks(limit=min(count, 1000), **filters), count))


@app.command()
def status(task: Id) -> None:
    """Show the status of a task; exit code 6 when it failed."""
    with connected(Client) as dm:
        found = dm.status(task)
    _show([found])
    if found.error is not None:
        raise typer.Exit(FAILED)


@app.command()
def cancel(task: Id) -> None:
    """Cancel a task; its source is kept, transferred data is removed."""
    with connected(Client) as dm:
        _show([dm.cancel(task)])


@app.command()
def pause(task: Id) -> None:
    """Pause a task; transferred data is kept."""
    with connected(Client) as dm:
        _show([dm.pause(task)])


@app.command()
def resume(task: Id) -> None:
    """Resume a paused task."""
    with connected(Client) as dm:
        _show([dm.resume(task)])


def _filter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if name not in FILTERS or not equals:
        raise typer.BadParameter(f"{text!r}: must be NAME=VALUE with one of {', '.join(FILTERS)}")
    return name, value


def _show(tasks: Iterable[Task]) -> None:
    table = Listing("task", "kind", "priority", "status", "phase", "done", "eta", "why")
    for task in tasks:
        done = f"{task.bytes_done:,}" if task.bytes_total is None else f"{task.bytes_done:,} of {task.bytes_total:,}"
        eta = "" if task.eta is None else task.eta.isoformat()
        why = task.waiting_for if task.error is None else task.error.code
        table.add(str(task.task), task.kind, task.priority, task.status, task.phase, done, eta, why)
    table.print()
