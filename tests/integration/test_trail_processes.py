"""What processes do for the audit trail: link its rows, write refusals, note certificates and messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import SecretStr
from sqlalchemy import select

from datamanager.errors import CatalogueUnavailable
from datamanager.identity.quotas import load_quotas
from datamanager.messaging.broker import Broker
from datamanager.messaging.consuming import Delivery
from datamanager.settings import Settings
from datamanager.signing.builtin_ca import BuiltinCa, create_key
from datamanager.signing.certificate import CertificateRequest, Person
from deployments import trail_linking
from deployments.amqp.consumer import RequestConsumer
from deployments.amqp.submission import Call, read_message
from deployments.composition import open_runtime
from deployments.noted_signer import SIGNED, NotedSigner
from deployments.trail_linking import link_trail, tell_refusals
from models.access import trail_links
from models.access.refusals import Refusals, RefusedRequest
from models.access.requester import Requester
from models.access.trail import TrailOutcome, note
from models.access.trail_links import verify
from models.database import Database
from models.tables import TrailEntry
from tests.support.bookkeeping import MACHINES, register
from tests.support.ports import free_port

PATIENCE = 30.0


def rows_of(database: Database) -> list[TrailEntry]:
    with database.read() as session:
        return list(session.scalars(select(TrailEntry).order_by(TrailEntry.id)))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.01)


def write_rows(database: Database, count: int) -> None:
    with database.write() as session:
        for _ in range(count):
            note(session, "copy", TrailOutcome.DONE)


def test_rows_are_linked_by_several_processes(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trail_linking, "LINK_EVERY", 0.02)
    monkeypatch.setattr(trail_linking, "LINKED_AT_ONCE", 5)
    monkeypatch.setattr(trail_links, "LINKED_AT_ONCE", 5)

    async def run() -> None:
        linking = [asyncio.create_task(link_trail(database)) for _ in range(2)]
        write_rows(database, 12)
        await until(lambda: all(row.number for row in rows_of(database)))
        write_rows(database, 1)
        await until(lambda: all(row.number for row in rows_of(database)))
        for task in linking:
            task.cancel()
        await asyncio.gather(*linking, return_exceptions=True)

    asyncio.run(run())
    assert sorted(row.number or 0 for row in rows_of(database)) == list(range(1, 14))
    with database.read() as session:
        assert list(verify(session)) == []


def test_refusals_are_written_and_what_is_left_at_the_end_of_the_process(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail_linking, "WRITE_EVERY", 0.02)
    refusals = Refusals()
    one = RefusedRequest(Requester("maria", "token"), "not_allowed", "GET /DM/trail", "/DM/trail")

    async def run() -> None:
        telling = asyncio.create_task(tell_refusals(database, refusals))
        refusals.note(one)
        refusals.note(one)
        await until(lambda: len(rows_of(database)) == 1)
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)

    asyncio.run(run())
    first, rest = rows_of(database)
    assert (first.person, first.outcome, first.code, first.counts) == ("maria", "refused", "not_allowed", None)
    assert (rest.subject, rest.counts) == (None, {"refusals": 1})


def test_refusals_wait_while_the_catalogue_is_away(database: Database) -> None:
    refusals = Refusals()
    refusals.note(RefusedRequest(Requester(None, "none", origin="10.0.0.1"), "not_authenticated", "GET /DM/info", "/"))
    away = Database(f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none")
    with pytest.raises(CatalogueUnavailable):
        asyncio.run(trail_linking._write(away, refusals))
    away.close()
    asyncio.run(trail_linking._write(database, refusals))
    assert [row.code for row in rows_of(database)] == ["not_authenticated"]


def test_a_certificate_is_noted_before_it_is_used(database: Database, tmp_path: Path) -> None:
    create_key(tmp_path / "ca")
    task, now = uuid4(), datetime.now(UTC)
    key = Ed25519PrivateKey.generate().public_key()

    def asked(key_id: str) -> CertificateRequest:
        return CertificateRequest(key, "maria", key_id, ("127.0.0.1",), now, now)

    signer = NotedSigner(BuiltinCa(tmp_path / "ca"), database)
    made = [signer.sign(asked(f"dm:{task}:maria@example.org")), signer.sign(asked("dm:cleanup:service"))]
    rows = rows_of(database)
    assert [(row.action, row.acted_as, row.certificate) for row in rows] == [
        (SIGNED, "maria", str(one.serial)) for one in made
    ]
    assert [row.transfer_id for row in rows] == [task, None]
    assert [row.subject for row in rows] == [one.key_id for one in made]


def test_runtime_notes_the_certificates_of_its_logins(tmp_path: Path, migrated_url: str) -> None:
    create_key(tmp_path / "ssh-ca.key")
    machine = '[machines.cluster]\ntransport = "sftp"\nhost = "127.0.0.1"\nbase_dir = "/data"\nacts_as = "caller"'
    (tmp_path / "machines.toml").write_text(machine)
    task = uuid4()
    runtime = open_runtime(Settings(home=tmp_path, database_url=SecretStr(migrated_url)))
    try:
        with runtime.storages.acting_as(Person("maria", str(task), "maria@example.org")) as own:
            login = own.get("cluster").login
            assert login is not None
            _, made = login.make()
        (row,) = rows_of(runtime.database)
    finally:
        runtime.close()
    assert (row.action, row.transfer_id, row.acted_as) == (SIGNED, task, "maria")
    assert (row.certificate, row.subject) == (str(made.serial), f"dm:{task}:maria@example.org")


def message(kind: str, data: dict[str, Any]) -> tuple[Delivery, Call]:
    event = {"specversion": "1.0", "id": "m-1", "source": "/workflow", "type": f"dm.request.{kind}", "data": data}
    body = json.dumps(event).encode()
    call = read_message(body)
    assert isinstance(call, Call)
    return Delivery(body), call


def test_messages_have_rows_with_their_queue(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "quotas.toml"
    file.write_text("version = 1\n[groups.fire]\nqueued = 1")
    nobody: Any = None
    consumer = RequestConsumer(
        database, MACHINES, Broker("amqp://127.0.0.1:1"), nobody, "dm-reply.", None, quotas=load_quotas(file)
    )
    source = register(database, "a", group="fire")
    accepted = consumer._enter(*message("copy", {"uuid": str(source), "machine": "beta", "dest": "b"}))
    (row,) = rows_of(database)
    assert (row.action, row.origin, row.request_id, row.transfer_id) == (
        *("copy", "queue dm.requests", "m-1"),
        UUID(accepted["data"]["task"]),
    )
    delivery, call = message("copy", {"uuid": str(source), "machine": "beta", "dest": "c"})
    call = Call(call.source, "m-2", call.kind, call.data, call.fingerprint)
    assert consumer._enter(delivery, call)["data"]["code"] == "quota_exceeded"
    (refused,) = consumer.refusals.take(0.0)
    assert (refused.code, refused.action, refused.subject) == ("quota_exceeded", "copy", "/workflow")
