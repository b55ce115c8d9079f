"""How often a chunk of small files waits for a machine: over a long path that is what it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from datamanager.domain.location import Place
from datamanager.engine.bulk import bulk_publish, bulk_staging
from datamanager.engine.bulk.bulk_chunk import BulkEndpoints, BulkRules, SmallItem, Staged
from datamanager.engine.control import Control
from datamanager.engine.single import staged_file
from datamanager.errors import SettingsError
from datamanager.machines import Machine, Machines
from datamanager.settings import Settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from datamanager.transports.port import Session, Storage
from datamanager.transports.sftp.pool import SftpStorage
from datamanager.transports.sftp.session import SftpSession
from deployments.mover.dispatcher import Dispatcher
from flows.runtime.services import Services
from models.database import Database
from models.tables import Transfer
from tests.support.ends import Ends
from tests.support.sshd import PrivateSshd
from tests.support.turns import Turns

COUNT, DIRECTORIES = 400, 10
SURVEY, STORE, NAME = 1, 1, 1
READ, LOOK_AGAIN = 1, 1


@pytest.fixture
def ends(sshd_pair: tuple[PrivateSshd, PrivateSshd], tmp_path: Path) -> Iterator[Ends]:
    """Two SSH machines, and this host."""
    folders = {name: tmp_path / name for name in ("first", "second", "here")}
    for folder in folders.values():
        folder.mkdir()
    machines = {
        name: server.machine(name, folders[name], connection="openssh")
        for name, server in zip(("first", "second"), sshd_pair, strict=True)
    }
    machines["here"] = Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(folders["here"])})
    found = Ends(machines, tmp_path / "run")
    yield found
    found.storages.close()


@contextmanager
def many(storage: Storage) -> Iterator[Session]:
    with storage.session() as session:
        session.begin_many()
        yield session


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("here", "first", {"first": SURVEY + STORE + NAME}),
        ("first", "here", {"first": SURVEY + READ + LOOK_AGAIN}),
        ("first", "second", {"first": SURVEY + READ + LOOK_AGAIN, "second": SURVEY + STORE + NAME}),
    ],
    ids=["put", "get", "relay"],
)
def test_a_chunk_takes_a_turn_for_each_step(ends: Ends, source: str, target: str, expected: dict[str, int]) -> None:
    machines, storages = ends.machines, {name: ends.storages.get(name) for name in (source, target)}
    items = list[SmallItem]()
    for number in range(COUNT):
        path = f"run/{number % DIRECTORIES}/file-{number}"
        file = ends.folder(source) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"%01024d" % number)
        items.append(SmallItem(number, Place.of(machines[source], path), Place.of(machines[target], f"new/{path}")))
    turns = {name: Turns(storage) for name, storage in storages.items() if isinstance(storage, SftpStorage)}
    with many(storages[source]) as reading, many(storages[target]) as writing:
        begun = {name: one.count for name, one in turns.items()}
        both = BulkEndpoints(reading, writing, machines[source], machines[target])
        found = bulk_staging.stage(both, items, BulkRules(uuid4(), 1), Control())
        staged = [one for one in found if isinstance(one, Staged)]
        assert bulk_publish.publish(writing, staged, overwrite=False) == [None] * COUNT
    assert {name: one.count - begun[name] for name, one in turns.items()} == expected
    for item in items:
        assert (ends.folder(target) / item.destination.path).read_bytes() == b"%01024d" % item.number


@pytest.mark.parametrize(
    ("source", "target", "folder", "expected"),
    [("here", "first", "", 17), ("here", "first", "new/", 21), ("first", "here", "", 7)],
    ids=["put", "put into a new directory", "get"],
)
def test_turns_of_a_single_file(ends: Ends, source: str, target: str, folder: str, expected: int) -> None:
    turns = Turns(ends.storages.get("first"))
    (ends.folder(source) / "file").write_bytes(b"data")
    for number in range(2):  # with the first one what the server does is tried
        before = turns.count
        ready = staged_file.stage(ends.job(f"{source}:file", f"{target}:{folder}{number}/copy"), Control())
        staged_file.publish(ready, Control())
        (ends.folder(target) / "1").mkdir(exist_ok=True)
    assert (ends.folder(target) / f"{folder}1/copy").read_bytes() == b"data"
    assert turns.count - before == expected


@pytest.mark.parametrize("count", [1, 100])
def test_a_mover_has_sessions_made_for_what_it_takes(ends: Ends, tmp_path: Path, count: int) -> None:
    """With a program for a batch of a hundred files. Another machine is left alone, as is one that is not known."""
    settings = Settings(home=tmp_path)
    services = Services(
        *(settings, Machines(ends.machines), Database(settings.catalogue_url), ends.storages),
        *(EgressGuard(()), "mover", lambda _: None),
    )
    request, ways = {"count": count}, [("first", "here"), ("gone", "here")]
    rows = [Transfer(source_machine=source, destination_machine=target, request=request) for source, target in ways]

    async def take() -> None:
        Dispatcher(services)._expect_sessions(rows)

    asyncio.run(take())
    storage = ends.storages.get("first")
    assert isinstance(storage, SftpStorage)
    with storage.session() as session:
        assert isinstance(session, SftpSession)
        assert session.has_program == (count == 100)
        assert storage._sessions == 1
    second = ends.storages.get("second")
    assert isinstance(second, SftpStorage)
    assert not second._expected
    assert second.idle == 0


def test_a_machine_that_cannot_be_used_is_left_to_the_run(ends: Ends, tmp_path: Path) -> None:
    open_to_all = tmp_path / "sockets"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    settings, machines = Settings(home=tmp_path), Machines(ends.machines)
    services = Services(
        *(settings, machines, Database(settings.catalogue_url), Storages(machines, open_to_all)),
        *(EgressGuard(()), "mover", lambda _: None),
    )

    async def take() -> None:
        Dispatcher(services)._expect_sessions(
            [Transfer(source_machine="first", destination_machine="here", request={})]
        )

    asyncio.run(take())
    with pytest.raises(SettingsError):
        services.storages.get("first")
