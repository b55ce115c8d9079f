"""`dm trail`: what it prints, its exit codes, and that it streams."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, text, update

from datamanager.cli.main import main as dm
from deployments import trail_command
from models.access.requester import HOST, requested
from models.access.trail import TrailOutcome, note
from models.access.trail_links import PRUNED, link
from models.database import Database, now
from models.tables import TrailEntry

Run = Callable[..., tuple[int, str, str]]
LATER = "2999-01-01T00:00:00Z"


@pytest.fixture
def run(
    database: Database, migrated_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the command in this process; return its exit code and what it prints."""
    monkeypatch.setenv("DM_DATABASE_URL", migrated_url.replace("+pysqlite", ""))
    with requested("10.0.0.1", "r", HOST, "maria"), database.write() as session:
        for number in range(6):
            note(session, "copy", TrailOutcome.DONE, subject=f"{number}")
        link(session)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dm trail", *arguments])
        code = trail_command.main()
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


def tamper(database: Database, statement: str) -> None:
    with database.write() as session:
        session.execute(text(statement))


def test_verify_prints_the_newest_link(run: Run, database: Database) -> None:
    code, out, err = run("verify")
    with database.read() as session:
        last = session.scalars(select(TrailEntry).where(TrailEntry.number == 6)).one()
    assert (code, err) == (0, "")
    assert out == f"rows 1 to 6 are as they were written\n6:{last.hash}\n"
    assert run("verify", "--expect", f"6:{last.hash}")[0] == 0
    code, out, err = run("verify", "--expect", f"6:{'0' * 64}")
    assert (code, out) == (3, "")
    assert err.startswith("dm trail: row 6 (20")
    with database.write() as session:
        note(session, "copy", TrailOutcome.DONE)
    assert "rows that are not linked yet are not verified" in run("verify")[1]


def test_verify_names_what_was_changed(run: Run, database: Database) -> None:
    tamper(database, "UPDATE trail SET subject = 'x' WHERE number = 2")
    tamper(database, "DELETE FROM trail WHERE number IN (4, 5)")
    code, out, err = run("verify")
    assert (code, out) == (3, "")
    first, second = err.splitlines()
    assert first.startswith("dm trail: row 2 (20")
    assert first.endswith(" copy) was changed, or its place was")
    assert second == "dm trail: rows 4 to 5 were removed"


def test_many_flaws_are_counted(run: Run, database: Database) -> None:
    with database.write() as session:
        for _ in range(50):
            note(session, "copy", TrailOutcome.DONE)
        link(session)
    tamper(database, "UPDATE trail SET subject = 'x'")
    assert run("verify")[2].splitlines()[-1] == "dm trail: and 36 more"


def test_export_can_be_verified_by_anybody(run: Run) -> None:
    """As docs/trail.md says."""
    code, out, _ = run("export")
    before, rows = "0" * 64, [json.loads(line) for line in out.splitlines()]
    assert (code, [row["number"] for row in rows]) == (0, [1, 2, 3, 4, 5, 6])
    for row in rows:
        stored = row.pop("hash")
        canonical = json.dumps(row, sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(f"{before}\n{canonical}".encode()).hexdigest() == stored
        before = stored
    assert run("export", "--since", LATER)[1] == ""
    assert len(run("export", "--until", LATER)[1].splitlines()) == 6


def test_prune_tells_of_itself_and_keeps_the_chain(run: Run, database: Database) -> None:
    with database.write() as session:
        session.execute(text("DELETE FROM trail"))
        session.execute(text("DELETE FROM trail_marks"))
        for _ in range(5):
            note(session, "copy", TrailOutcome.DONE)
        session.flush()
        time = now(session) - timedelta(days=40)
        oldest = select(TrailEntry.id).order_by(TrailEntry.id).limit(3)
        session.execute(update(TrailEntry).where(TrailEntry.id.in_(oldest)).values(time=time))
        link(session)
    before = (time + timedelta(days=1)).isoformat().replace("+00:00", "Z")
    code, out, _ = run("prune", "--before", before)
    assert (code, out.split(";")[0]) == (0, "3 rows were removed")
    with database.write() as session:
        rows = list(session.scalars(select(TrailEntry).order_by(TrailEntry.id)))
        link(session)
    assert [(row.action, row.number) for row in rows] == [("copy", 4), ("copy", 5), (PRUNED, None)]
    assert (rows[-1].means, rows[-1].person) == (HOST, getpass.getuser())
    assert rows[-1].subject is not None
    assert rows[-1].subject in out
    assert run("verify")[0] == 0
    assert run("prune", "--before", before)[1].startswith("0 rows were removed")


def test_what_has_flaws_is_not_pruned(run: Run, database: Database) -> None:
    tamper(database, "UPDATE trail SET subject = 'x' WHERE number = 2")
    code, out, err = run("prune", "--before", LATER)
    assert (code, out) == (3, "")
    assert "nothing was pruned" in err
    with database.read() as session:
        assert len(session.scalars(select(TrailEntry.id)).all()) == 6


@pytest.mark.parametrize(
    "arguments", [["prune"], ["prune", "--before", "yesterday"], ["verify", "--expect", "6"], ["export", "--since", ""]]
)
def test_wrong_arguments_are_refused(run: Run, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2


def test_the_command_becomes_the_application(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    became: list[list[str]] = []

    def execve(_path: str, argv: list[str], _environment: dict[str, str]) -> None:
        became.append(argv)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys, "argv", ["dm", "trail", "prune", "--before", LATER])
    with pytest.raises(SystemExit):
        dm()
    assert became == [[sys.executable, "-m", "deployments.trail_command", "prune", f"--before={LATER}"]]
