"""The API as it is deployed, `python -m deployments.api`, alone: its catalogue has its schema, nothing else runs."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import requests

from models import migrate
from models.database import Database, insert_rows
from models.tables import DataObject
from tests.support.ports import free_port
from tests.support.prefect import answers
from tests.support.process import Process, clean_environment
from tests.support.programs import listens

START_TIMEOUT = 120.0
ANSWER_TIMEOUT = 60.0
ESTABLISHED = "01"
"""A connection's state in /proc/net/tcp."""
MACHINE = '[machines.here]\ntransport = "local"\nbase_dir = "{}"\n'


class ApiProcess:
    """One API below `home`, with the local machine `here` and those of `machines` (TOML); `settings` are DM_* ones.
    Without authentication, unless one of them says so.

    `descriptors` is how many files the process may have open.
    """

    def __init__(self, home: Path, *, machines: str = "", descriptors: int | None = None, **settings: object) -> None:
        self.folder = home / "here"
        self.folder.mkdir(parents=True)
        (home / "machines.toml").write_text(MACHINE.format(self.folder) + machines)
        self.port = free_port()
        self.scheme = "https" if "tls_cert" in settings else "http"
        self.catalogue = home / "catalogue.db"
        self.database = Database(f"sqlite+pysqlite:///{self.catalogue}")
        migrate.upgrade(self.database)
        prefect = f"http://127.0.0.1:{free_port()}/api"
        given = {"home": home, "port": self.port, "prefect_api_url": prefect, "auth": "none", **settings}
        env = {f"DM_{name.upper()}": str(value) for name, value in given.items()}
        command = [sys.executable, "-m", "deployments.api"]
        if descriptors is not None:
            command = ["sh", "-c", 'ulimit -n "$1" && shift && exec "$@"', "sh", str(descriptors), *command]
        self.process = Process(command, log=home / "api.log", env=clean_environment(**env), cwd=home)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def log(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self.process.log.read_text().splitlines() if line.startswith("{")]

    def __enter__(self) -> Self:
        self.process.start()
        self.process.wait_until(
            lambda: listens(self.port) if self.scheme == "https" else answers(f"{self.url}/DM/health/live"),
            START_TIMEOUT,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.process.kill()
        self.database.close()

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request as a client does; `path` with its leading slash."""
        return requests.request(method, self.url + path, timeout=ANSWER_TIMEOUT, **options)

    def connect(self, sent: bytes = b"", *, source: str = "127.0.0.1", receive_buffer: int = 4096) -> socket.socket:
        """Connect and send bytes; whatever is answered is left to the caller to read. `source` is the client's
        address; little is taken that nobody reads.
        """
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.bind((source, 0))
        client.settimeout(ANSWER_TIMEOUT)
        client.connect(("127.0.0.1", self.port))
        client.sendall(sent)
        return client

    def get(self, path: str, **options: Any) -> socket.socket:
        """Send the head of a GET request; nothing is read."""
        return self.connect(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(), **options)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        lines = Path("/proc/net/tcp").read_text().splitlines()
        rows = [line.split() for line in lines]
        return sum(row[1].endswith(f":{self.port:04X}") and row[3] == ESTABLISHED for row in rows)

    def fill(self, objects: int, size: int) -> None:
        """Put objects into the catalogue, each with a description of `size` bytes."""
        begun = datetime(2026, 1, 1, tzinfo=UTC)
        rows = [
            {
                "id": uuid4(),
                "machine": "here",
                "path": "",
                "filename": f"{number}",
                "place": f"{number}",
                "description": "x" * size,
                "size": number,
                "metadata": {},
                "date_registered": begun + timedelta(seconds=number),
                "date_modified": begun,
                "status": "ACTIVE",
                "originator": "",
                "group": "",
                "verified": "none",
            }
            for number in range(objects)
        ]
        with self.database.write() as session:
            insert_rows(session, DataObject, rows)


def is_cut(client: socket.socket) -> bool:
    """Read what is left; say whether the server ended the connection (False after the socket's timeout)."""
    try:
        while client.recv(2**20):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@contextmanager
def closing_all(*clients: socket.socket) -> Iterator[tuple[socket.socket, ...]]:
    """Close the connections with the context."""
    try:
        yield clients
    finally:
        for client in clients:
            client.close()
