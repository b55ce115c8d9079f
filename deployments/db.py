"""`dm db`: the catalogue's schema: upgrade, current, downgrade."""

from __future__ import annotations

import argparse
import os
import sys

from datamanager.errors import DataManagerError, SettingsError
from datamanager.settings import Settings, load_settings
from deployments.local.prepare import make_home
from models import migrate
from models.database import Database


def main() -> int:
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="dm db", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("upgrade", help="upgrade the schema to the revision of this version").add_argument(
        "revision", nargs="?", default="head"
    )
    commands.add_parser("current", help="print the schema's revision")
    commands.add_parser("downgrade", help='downgrade the schema; "base" deletes all data').add_argument("revision")
    given = parser.parse_args()
    os.umask(0o077)  # the catalogue is its owner's alone
    try:
        settings = load_settings()
        make_home(settings)
        revision = _run(settings, given)
    except DataManagerError as exc:
        sys.stderr.write(f"dm db: {exc.detail}\n")
        return 2 if isinstance(exc, SettingsError) else 1
    sys.stdout.write(f"{revision or 'empty'}\n")
    return 0


def _run(settings: Settings, given: argparse.Namespace) -> str | None:
    database = Database(settings.catalogue_url)
    try:
        if given.command == "upgrade":
            migrate.upgrade(database, given.revision)
        elif given.command == "downgrade":
            migrate.downgrade(database, given.revision)
        return migrate.current(database)
    finally:
        database.close()


if __name__ == "__main__":
    sys.exit(main())
