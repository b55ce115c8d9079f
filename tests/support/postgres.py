"""A private PostgreSQL server on loopback, and fresh databases on it or on a given one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import psycopg
from psycopg import sql
from sqlalchemy.engine import URL, make_url

from tests.support.ports import free_port
from tests.support.process import Process, children_of, command_line, signal_each
from tests.support.programs import find_program

START_TIMEOUT = 60.0
"""Seconds until a server that does not answer fails the test."""


class Databases:
    """Makes and drops databases on a server; `admin` is the SQLAlchemy URL of a database that may create others."""

    def __init__(self, admin: URL) -> None:
        self.admin = admin
        self.made: set[str] = set()
        """The names of the databases that were made here and not dropped."""

    def url(self, database: str | None = None, *, template: str | None = None) -> str:
        """Return the SQLAlchemy URL of `database`, made when it is not there; without a name, of a fresh one.

        `template` names a database to copy (nobody may be connected to it).
        """
        name = database or f"dm_test_{uuid4().hex}"
        with self._connect() as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
            if known is None:
                command = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
                source = template or "template0"
                connection.execute(command.format(sql.Identifier(name), sql.Identifier(source)))
                self.made.add(name)
        return self.admin.set(database=name).render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        """Drop the database of a URL that `url` returned, whoever is still connected to it."""
        name = make_url(url).database or ""
        with self._connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        self.made.discard(name)

    def clear(self, database: str, tables: Iterable[str]) -> None:
        """Empty the tables and begin their numbers anew, whoever is still connected; much quicker than a new one."""
        deletes = sql.SQL("; ").join(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)) for table in tables)
        with self._connect() as admin:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [database])
        with self._connect(database) as connection:
            connection.execute(deletes)
            connection.execute("SELECT setval(format('%I', sequencename)::regclass, 1, false) FROM pg_sequences")

    def _connect(self, database: str | None = None) -> psycopg.Connection[tuple[object, ...]]:
        url = self.admin.set(drivername="postgresql", database=database or self.admin.database)
        address = url.render_as_string(hide_password=False)
        return psycopg.connect(address, autocommit=True, connect_timeout=30)


def given_postgres() -> Databases | None:
    """Return the server that DM_TEST_POSTGRES names, if any."""
    address = os.environ.get("DM_TEST_POSTGRES")
    return Databases(make_url(address).set(drivername="postgresql+psycopg")) if address else None


class Postgres(Databases):
    """One PostgreSQL server: everybody on loopback may log in, nothing is fsynced, its data goes with it.

    It can be stopped or killed and started again; it keeps its port and its data until `close`. `further` are settings
    of the server.
    """

    def __init__(self, log_directory: Path, *, port: int | None = None, **further: str) -> None:
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        self._initdb = find_program("initdb", also=reversed(versions))
        self._server = find_program("postgres", also=[Path(self._initdb).parent])
        # the server refuses to run as root, and pytest's own folders are closed to its account
        self._user = "postgres" if os.geteuid() == 0 else None
        self.port = port or free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="dm-postgres-"))
        if self._user is not None:
            shutil.chown(self.directory, self._user, self._user)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": "200",
            "shared_buffers": "64MB",
            "autovacuum": "off",  # statistics of a few rows, made at any moment, would change plans that tests look at
            **further,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self.process = Process(
            [self._server, "-D", str(self.directory / "data"), *options],
            log=log_directory / "postgres.log",
            cwd=self.directory,
            user=self._user,
        )
        super().__init__(URL.create("postgresql+psycopg", "postgres", None, "127.0.0.1", self.port, "postgres"))

    def start(self) -> None:
        """Start the server, making its data folder at the first time; return when it answers."""
        if not (self.directory / "data").exists():
            command = [self._initdb, "-D", str(self.directory / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8"]
            subprocess.run(
                [*command, "--locale=C.UTF-8", "--no-sync", "--no-instructions"],
                check=True,
                cwd=self.directory,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )
        self.process.start()
        self.process.wait_until(self._answers, START_TIMEOUT)

    def stop(self) -> None:
        """End the server and its connections in an orderly way. Idempotent."""
        self.process.stop(signum=signal.SIGINT)

    def kill(self) -> None:
        """Kill every process of the server at once; return when all are gone. The next start recovers."""
        if self.process.running:
            # each of them is a session of its own, and as long as one lives a new server refuses to start
            signal_each([self.process.pid], signal.SIGSTOP)
            family = children_of(self.process.pid)
            self.process.kill()
            signal_each(family, signal.SIGKILL)
            while any(command_line(pid) for pid in family):
                time.sleep(0.01)

    def close(self) -> None:
        """Stop the server and remove its data."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True
