"""All that a service leaves where others can read it, as bytes to be searched for secrets."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import requests
from sqlalchemy import MetaData, create_engine, select

from tests.support.amqp import client, rest
from tests.support.service import DataManagerService

LOOK_EVERY = 0.1  # seconds


def process_files(service: DataManagerService) -> dict[str, bytes]:
    """Return the command lines and environments of a service's processes and their children."""
    pids = {pid for process in service.processes if process.running for pid in process.members()}
    found = {}
    for file in (Path(f"/proc/{pid}/{what}") for pid in pids for what in ("cmdline", "environ")):
        try:
            found[str(file)] = file.read_bytes()
        except OSError:  # it has ended meanwhile
            continue
    return found


class ProcessWatch:
    """Looks at a service's processes again and again while its context lasts; `seen` is all that they had by then."""

    def __init__(self, service: DataManagerService) -> None:
        self.seen: set[bytes] = set()
        self._service = service
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="process-watch")

    def look(self) -> None:
        """Look once more."""
        self.seen |= set(process_files(self._service).values())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY):
            self.look()


def files_below(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder: databases, their logs, what processes have written."""
    files = [Path(base) / name for base, _, names in os.walk(folder) for name in names]
    return {str(file): file.read_bytes() for file in files if file.is_file()}


def postgresql_rows(url: str) -> bytes:
    """Return all rows of a catalogue."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        tables = MetaData()
        tables.reflect(connection)
        assert "sealed_secrets" in tables.tables
        rows = [tuple(row) for table in tables.sorted_tables for row in connection.execute(select(table))]
    engine.dispose()
    return repr(rows).encode()


def told_by_prefect(url: str) -> dict[str, bytes]:
    """Return what Prefect's API tells everybody who asks."""
    found = {}
    for what in ("flow_runs", "task_runs", "artifacts", "logs", "deployments", "block_documents", "variables"):
        pages = []
        for offset in count(step=200):
            answer = requests.post(f"{url}/{what}/filter", json={"limit": 200, "offset": offset}, timeout=60)
            assert answer.ok, answer.text
            pages.append(answer.content)
            if len(answer.json()) < 200:
                break
        found[f"prefect {what}"] = b"".join(pages)
    events = requests.post(f"{url}/events/filter", json={"limit": 50}, timeout=60)
    assert events.ok, events.text
    return found | {"prefect events": events.content}


async def messages_of(url: str, heard: str) -> dict[str, bytes]:
    """Return what a queue has heard of all events, taken from it, and, left as they are, requests and dead letters with
    their headers.
    """
    found = {}
    async with client(url) as channel:
        found["events"] = b"\n".join(await rest(channel, heard))
        for name in ("dm.requests", "dm.dead-letters"):
            queue, held = await channel.get_queue(name, ensure=False), []
            while (message := await queue.get(fail=False)) is not None:
                held.append(message)
            found[name] = b"\n".join(message.body + repr(message.headers).encode() for message in held)
            for message in held:
                await message.nack(requeue=True)
    return found


def places_of(needles: Iterable[bytes], seen: dict[str, bytes], apart_from: Callable[[str], bool]) -> set[str]:
    """Return where one of the needles is."""
    wanted = list(needles)
    return {
        name for name, content in seen.items() if not apart_from(name) and any(needle in content for needle in wanted)
    }
