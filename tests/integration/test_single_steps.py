"""The steps of one file's flow: which of them are one, and that a further try of a joint one repeats only the rest."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event

from datamanager.domain.requests import CopyRequest, MoveRequest, validated
from datamanager.domain.states import TransferKind
from datamanager.engine.attempt import Found, Moved, Proof
from datamanager.engine.single.verify import READ_BACK
from datamanager.errors import CatalogueUnavailable
from datamanager.machines import Machine, Machines
from datamanager.settings import load_settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from flows.runtime.services import Services
from flows.runtime.transfer_run import TransferRun, make_current
from flows.steps import single
from models import submission
from models.access.visibility import ALL
from models.database import Database
from models.submission import SealedRequest
from models.transfers import queue
from models.transfers.lookup import get_transfer
from tests.support import bundling

DATA = b"the only copy"
OTHER = b"another one's bytes"


@pytest.fixture
def parts(tmp_path: Path, database: Database) -> Iterator[Services]:
    """A mover over two machines that are this host."""
    own = {name: {"name": name, "transport": "local", "base_dir": str(tmp_path / name)} for name in ("here", "there")}
    for name in own:
        (tmp_path / name).mkdir()
    machines = Machines({name: Machine.model_validate(fields) for name, fields in own.items()})
    storages = Storages(machines, tmp_path / "run")
    settings = load_settings(home=tmp_path / "home")
    yield Services(settings, machines, database, storages, EgressGuard(()), "mover", notify=lambda _: None)
    storages.close()


def submitted(parts: Services, kind: TransferKind, data: bytes = DATA, machine: str = "there") -> UUID:
    """Ask for a copy or move, which may replace a file, of a new object; return the transfer."""
    source = bundling.an_object(parts, "source", data)
    model = CopyRequest if kind is TransferKind.COPY else MoveRequest
    request = validated({"machine": machine, "dest": "dest", "overwrite": True}, model)
    with parts.database.write() as session:
        return submission.submit(session, parts.machines, SealedRequest(kind, request, source, grant=None)).id


def performed(run: TransferRun, steps: Callable[[], Awaitable[Any]]) -> Any:
    """Perform steps of a flow run, without Prefect; return what they return."""

    async def within() -> Any:
        make_current(run)
        return await steps()

    return asyncio.run(within())


def failing_once(parts: Services, statement: str) -> None:
    """Have the catalogue fail the next statement that begins so."""
    failures = [sqlite3.OperationalError("disk I/O error")]

    def fail(_connection: Any, _cursor: Any, text: str, *_rest: Any) -> None:
        if failures and text.startswith(statement):
            raise failures.pop()

    event.listen(parts.database.engine, "before_cursor_execute", fail)


def ended(parts: Services, transfer: UUID) -> str:
    """Return the status of a transfer."""
    with parts.database.read() as session:
        return get_transfer(session, transfer, ALL).status


@pytest.mark.parametrize("size", [READ_BACK, READ_BACK + 1])
def test_transfer_verifies_a_small_file_at_once(parts: Services, size: int) -> None:
    run = bundling.attempt(parts, submitted(parts, TransferKind.COPY, os.urandom(size)))

    async def steps() -> tuple[Moved | Proof, Proof]:
        found = await single.probe.fn()
        moved = await single.transfer.fn(found)
        return moved, moved if isinstance(moved, Proof) else await single.verify.fn(found, moved)

    moved, proof = performed(run, steps)
    assert isinstance(moved, Proof if size == READ_BACK else Moved)
    assert (proof.size, proof.verified, len(proof.sha256)) == (size, "sha256", 64)


@pytest.mark.parametrize("kind", [TransferKind.COPY, TransferKind.MOVE])
def test_further_try_after_the_name_was_given_only_commits(parts: Services, tmp_path: Path, kind: TransferKind) -> None:
    """A move here is by rename. What lies there by the second try is somebody else's, and stays."""
    moves = kind is TransferKind.MOVE
    transfer = submitted(parts, kind, machine="here" if moves else "there")
    run = bundling.attempt(parts, transfer)
    dest = tmp_path / ("here" if moves else "there") / "dest"

    async def steps() -> single.Delivered | None:
        found = await single.probe.fn()
        proof = None if moves else await single.transfer.fn(found)
        assert moves or isinstance(proof, Proof)

        async def give_name() -> single.Delivered | None:
            return await (single.publish.fn(found, proof) if isinstance(proof, Proof) else single.rename.fn(found))

        failing_once(parts, "UPDATE object" if moves else "INSERT INTO object")
        with pytest.raises(CatalogueUnavailable):
            await give_name()
        assert dest.read_bytes() == DATA
        for again in (found.part, found.source_path):
            Path(again).write_bytes(OTHER)
        return await give_name()

    done = performed(run, steps)
    assert done is not None
    assert dest.read_bytes() == DATA
    if moves:
        assert (tmp_path / "here" / "source").read_bytes() == OTHER
    else:
        assert ended(parts, transfer) == "COMPLETE"


def test_next_attempt_commits_what_the_last_one_published(parts: Services, tmp_path: Path) -> None:
    transfer = submitted(parts, TransferKind.COPY)
    run = bundling.attempt(parts, transfer)

    async def until_the_crash() -> None:
        found = await single.probe.fn()
        proof = await single.transfer.fn(found)
        assert isinstance(proof, Proof)
        failing_once(parts, "INSERT INTO object")
        with pytest.raises(CatalogueUnavailable):
            await single.publish.fn(found, proof)

    performed(run, until_the_crash)
    inode = (tmp_path / "there" / "dest").stat().st_ino
    with parts.database.write() as session:
        queue.requeue(session, run.hold)

    async def steps() -> Found:
        found = await single.probe.fn()
        assert found.published is not None
        await single.commit.fn(found.published, run.attempt().proof_level)
        return found

    performed(bundling.attempt(parts, transfer), steps)
    assert ended(parts, transfer) == "COMPLETE"
    assert (tmp_path / "there" / "dest").stat().st_ino == inode
    assert [file.name for file in (tmp_path / "there").iterdir()] == ["dest"]
