"""The `dm` command."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from datamanager.cli import audits, machines, retention, schedules, tasks, tokens, trail
from datamanager.cli.application import become
from datamanager.cli.options import with_settings
from datamanager.cli.tables import tell
from datamanager.errors import DataManagerError, RequestError, SettingsError

app = typer.Typer(
    name="dm",
    help="The Data Manager: catalogue and transfers of data objects on SSH machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
database = typer.Typer(
    help="Manage the schema of the catalogue. Settings come from the environment.", no_args_is_help=True
)
app.add_typer(database, name="db")
app.add_typer(machines.app, name="machine")
app.add_typer(tasks.app, name="task")
app.add_typer(retention.app, name="retention")
app.add_typer(audits.app, name="audit")
app.add_typer(schedules.app, name="schedule")
app.add_typer(tokens.app, name="token")
app.command()(tokens.whoami)
app.add_typer(trail.app, name="trail")


@app.command()
@with_settings
def up(environment: dict[str, str]) -> None:
    """Run Prefect server, API and one mover in the foreground. Ctrl-C stops them."""
    become("local.up", environment)


@app.command()
@with_settings
def mover(
    environment: dict[str, str],
    *,
    work_queue: Annotated[
        list[str] | None, typer.Option(help="Run only transfers of this priority: high, normal or low. Repeatable.")
    ] = None,
) -> None:
    """Run one mover. Several can run; on several hosts they need PostgreSQL."""
    become("mover", environment, [f"--work-queue={name}" for name in work_queue or ()])


@app.command()
@with_settings
def api(environment: dict[str, str]) -> None:
    """Run the REST API."""
    become("api", environment)


@app.command()
@with_settings
def deploy(environment: dict[str, str]) -> None:
    """Create or update the deployments of prefect.yaml on the Prefect server."""
    become("orchestrator.deploy", environment)


@database.command()
def upgrade(revision: Annotated[str, typer.Argument(help="Target revision.")] = "head") -> None:
    """Upgrade the schema to the revision of this version."""
    become("db", {}, ["upgrade", revision])


@database.command()
def current() -> None:
    """Print the revision of the schema."""
    become("db", {}, ["current"])


@database.command()
def downgrade(revision: Annotated[str, typer.Argument(help="Target revision; `base` deletes all data.")]) -> None:
    """Downgrade the schema."""
    become("db", {}, ["downgrade", revision])


@tokens.app.command()
@with_settings
def bootstrap(environment: dict[str, str]) -> None:
    """Write a token of the role admin to the file admin-token in DM_HOME, on a host that reaches the catalogue."""
    become("admin_token", environment)


@app.command()
def version() -> None:
    """Print the version."""
    tell(installed_version("datamanager"))


def main() -> None:
    """Run the command line. Errors are one line on standard error; exit code 2 for settings and requests, else 1."""
    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # else it prints traces of errors raised anyway
    logging.getLogger("paramiko").propagate = False
    try:
        app()
    except DataManagerError as exc:
        tell(f"dm: {exc.detail}", error=True)
        sys.exit(2 if isinstance(exc, SettingsError | RequestError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
