"""Turns of SQLite's writers: several processes write one after the other, and none twice while another one waits."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from datamanager.errors import CatalogueUnavailable
from models.database import Database
from models.tables import MachineSeen
from models.writer_turns import WriterTurns

GREEDY = """
import sys
from pathlib import Path
from models.writer_turns import WriterTurns
turns = WriterTurns(Path(sys.argv[1]))
with turns.within(60):
    print("has it", flush=True)
    sys.stdin.readline()
"""


def test_turn_goes_to_who_waits(tmp_path: Path) -> None:
    greedy, other = WriterTurns(tmp_path / "c.db"), WriterTurns(tmp_path / "c.db")  # as two processes
    has_it, done = threading.Event(), threading.Event()

    def write() -> None:
        with other.within(60):
            has_it.set()
            assert done.wait(60)

    with ThreadPoolExecutor(1) as pool:
        with greedy.within(60):
            writing = pool.submit(write)
            while not _is_locked(tmp_path / "c.db-next"):
                time.sleep(0.01)
        with pytest.raises(CatalogueUnavailable), greedy.within(0):  # it asks again at once
            pass
        assert has_it.wait(60)
        done.set()
        writing.result()
    with greedy.within(60):
        pass
    greedy.close()
    other.close()


def _is_locked(file: Path) -> bool:
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_turn_of_a_killed_process_is_free(tmp_path: Path) -> None:
    mine = WriterTurns(tmp_path / "c.db")
    command = [sys.executable, "-c", GREEDY, str(tmp_path / "c.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"has it\n"
        with pytest.raises(CatalogueUnavailable), mine.within(0.05):
            pass
        holder.kill()
        with mine.within(60):
            pass
    mine.close()


def test_turn_is_given_back_by_a_writer_that_fails(tmp_path: Path) -> None:
    mine, other = WriterTurns(tmp_path / "c.db"), WriterTurns(tmp_path / "c.db")
    with pytest.raises(ValueError, match="a fault"), mine.within(60):
        raise ValueError("a fault")
    for one in (other, mine):
        with one.within(0.05):
            pass
        one.close()
        one.close()


def test_folder_without_room_for_turns_is_the_catalogue_being_away(tmp_path: Path) -> None:
    with (
        pytest.raises(CatalogueUnavailable, match="No such file"),
        WriterTurns(tmp_path / "not there" / "c.db").within(1),
    ):
        pass


def test_writers_of_two_databases_of_one_file_lose_nothing(database: Database) -> None:
    other, each = Database(database.url), 20

    def write(one: Database, name: str) -> None:
        for number in range(each):
            with one.write() as session:
                session.add(MachineSeen(name=f"{name}{number}", base_dir="/"))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (database, other), "ab"))
    with database.read() as session:
        assert len(session.scalars(select(MachineSeen)).all()) == 2 * each
    other.close()
