"""`dm trail`: verify, export and prune the audit trail, in the catalogue itself: on the service's host, also while it
does not run.
"""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import time
from datetime import datetime
from itertools import islice

from datamanager.domain.fields import read_time
from datamanager.errors import DataManagerError, RequestError, SettingsError
from datamanager.settings import load_settings
from datamanager.transports.values import printable
from models.access.requester import HOST, requested
from models.access.trail_chain import ZEROS, Flaw, FlawKind, Link
from models.access.trail_links import (
    FIRST,
    LAST,
    begin_pruning,
    flaws_before,
    has_unlinked,
    mark,
    prunable,
    prune,
    records,
    snapshot,
    verify,
)
from models.database import LET_OTHERS, Database
from models.migrate import require_current

SHOWN = 20
"""Flaws that are printed; the rest is counted."""
DAMAGED = 3
"""The exit code for a trail that is not as it was."""


def main() -> int:
    """Do what the command line says; return the exit code: 3 for a trail with flaws."""
    given = _read_arguments()
    try:
        database = Database(load_settings().catalogue_url)
        try:
            require_current(database)
            return int(_COMMANDS[given.command](database, given))
        finally:
            database.close()
    except DataManagerError as exc:
        sys.stderr.write(f"dm trail: {exc.detail}\n")
        return 2 if isinstance(exc, SettingsError | RequestError) else 1


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dm trail", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("verify").add_argument("--expect", type=_link, metavar="NUMBER:HASH")
    exporting = commands.add_parser("export")
    exporting.add_argument("--since", type=_time, metavar="TIME")
    exporting.add_argument("--until", type=_time, metavar="TIME")
    commands.add_parser("prune").add_argument("--before", type=_time, metavar="TIME", required=True)
    return parser.parse_args()


def _verify(database: Database, given: argparse.Namespace) -> int:
    with database.read() as session:
        snapshot(session)
        first, last, waiting = mark(session, FIRST), mark(session, LAST), has_unlinked(session)
        if _print_flaws(verify(session, given.expect)):
            return DAMAGED
    unlinked = "; rows that are not linked yet are not verified" if waiting else ""
    sys.stdout.write(f"rows {first.number + 1} to {last.number} are as they were written{unlinked}\n")
    sys.stdout.write(f"{last.number}:{last.hash}\n")
    return 0


def _export(database: Database, given: argparse.Namespace) -> int:
    with database.read() as session:
        snapshot(session)
        for record in records(session, given.since, given.until):
            sys.stdout.write(json.dumps(record, sort_keys=True, separators=(",", ":")) + "\n")
    return 0


def _prune(database: Database, given: argparse.Namespace) -> int:
    with database.read() as session:
        snapshot(session)
        end = prunable(session, given.before)
        if _print_flaws(flaws_before(session, end)):
            sys.stderr.write("dm trail: nothing was pruned: the flaws could not be found any more then\n")
            return DAMAGED
    with requested("", None, HOST, getpass.getuser()), database.write() as session:
        gone = begin_pruning(session, end) if end != mark(session, FIRST) else 0
    count = gone
    while gone:
        time.sleep(LET_OTHERS)
        with database.write() as session:
            gone = prune(session, end)
        count += gone
    sys.stdout.write(f"{count} rows were removed; the chain begins after {end.number}:{end.hash}\n")
    return 0


_COMMANDS = {"verify": _verify, "export": _export, "prune": _prune}


def _print_flaws(flaws: object) -> bool:
    """Print flaws to standard error; say whether there are any."""
    found = iter(flaws)  # type: ignore[call-overload]
    some = list(islice(found, SHOWN))
    for flaw in some:
        sys.stderr.write(f"dm trail: {printable(_sentence(flaw))}\n")  # a changed row may contain anything
    rest = sum(1 for _ in found)
    if rest:
        sys.stderr.write(f"dm trail: and {rest} more\n")
    return bool(some)


def _sentence(flaw: Flaw) -> str:
    rows = f"row {flaw.number}" if flaw.number == flaw.last else f"rows {flaw.number} to {flaw.last}"
    shown = "" if flaw.record is None else f" ({flaw.record.get('time')} {flaw.record.get('action')})"
    verb = "were" if flaw.number != flaw.last else "was"
    match flaw.kind:
        case FlawKind.CHANGED:
            return f"{rows}{shown} was changed, or its place was"
        case FlawKind.CUT:
            return f"{rows} is not the end that was noted"
    return f"{rows}{shown} {verb} {flaw.kind.value}"


def _time(text: str) -> datetime:
    try:
        return read_time(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r}: {exc}") from None


def _link(text: str) -> Link:
    number, colon, digest = text.partition(":")
    if not (number.isdecimal() and colon and len(digest) == len(ZEROS)):
        raise argparse.ArgumentTypeError(f"{text!r}: must be NUMBER:HASH, as verify prints it")
    return Link(int(number), digest)


if __name__ == "__main__":
    sys.exit(main())
