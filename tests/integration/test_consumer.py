"""Requests over RabbitMQ, from a workflow system's message to its answer: real broker, real catalogue."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from sqlalchemy import select

from datamanager.domain.requests import GetExternalRequest
from datamanager.errors import OrchestratorUnavailable, UrlNotAllowed
from datamanager.identity.service_token import ServiceToken
from datamanager.messaging.broker import DEAD_QUEUE, REQUESTS_QUEUE, Broker
from datamanager.messaging.consuming import Delivery, Later
from datamanager.settings import Settings
from deployments.amqp.consumer import RequestConsumer
from deployments.amqp.relay import Relay
from deployments.amqp.senders import MessageSenders
from deployments.amqp.submission import BODY_MAX
from models.access.tokens import revoke_token
from models.access.visibility import ALL
from models.database import Database
from models.tables import Claim, OutboxMessage, Transfer
from tests.support.amqp import away, client, listener, put, rest, take
from tests.support.catalogue import an_object, catalogue, machines
from tests.support.postgres import Postgres
from tests.support.rabbitmq import RabbitMq
from tests.support.tokens import TokenMaker


@asynccontextmanager
async def consuming(
    database: Database, url: str, on_transfer: Callable[[UUID], Awaitable[bool]] | None = None, **options: Any
) -> AsyncIterator[None]:
    async def nobody(_: UUID) -> bool:
        return False

    broker = Broker(url)
    options = {"senders": None, "later": 0.3, **options}
    consumer = RequestConsumer(database, machines(), broker, on_transfer or nobody, "dm-reply.", **options)
    task = asyncio.create_task(consumer.run())
    try:
        yield
        assert not task.done(), "the consumer died"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await broker.close()


@asynccontextmanager
async def ready(url: str) -> AsyncIterator[tuple[AbstractChannel, str]]:
    """Yield a stranger's channel with everything declared, and the name of its queue for answers."""
    broker = Broker(url)
    await broker.connect()
    await broker.close()
    async with client(url) as channel:
        answers = await channel.declare_queue("dm-reply.answers", durable=True)
        yield channel, answers.name


def request(kind: str, data: Any, name: str | None = None, source: str = "/workflow/7") -> bytes:
    event = {
        "specversion": "1.0",
        "id": name or str(uuid4()),
        "source": source,
        "type": f"dm.request.{kind}",
        "data": data,
    }
    return json.dumps(event).encode()


def transfers(database: Database) -> list[Transfer]:
    with database.read() as session:
        return list(session.scalars(select(Transfer)))


async def ask(channel: AbstractChannel, body: bytes, **sender: str) -> dict[str, Any]:
    """Send a request; return its answer. `sender`: its token, or user_id."""
    correlation = str(uuid4())
    await put(channel, REQUESTS_QUEUE, body, reply_to="dm-reply.answers", correlation_id=correlation, **sender)
    (message,) = await take(channel, "dm-reply.answers", 1)
    assert message.correlation_id == correlation
    answer: dict[str, Any] = json.loads(message.body)
    assert answer["id"] == message.message_id
    return answer


def test_a_notification_is_given_to_the_mover_and_goes(catalogue_url: str, amqp_url: str) -> None:
    told: list[UUID] = []

    async def on_transfer(transfer: UUID) -> bool:
        told.append(transfer)
        return True

    async def scene(database: Database) -> None:
        async with AsyncExitStack() as stack:
            channel, _ = await stack.enter_async_context(ready(amqp_url))
            relay = Relay(database, Broker(amqp_url), "one")
            relaying = asyncio.create_task(relay.run())
            await stack.enter_async_context(consuming(database, amqp_url, on_transfer, on_entered=relay.notify))
            wanted = {"uuid": str(an_object(database)), "machine": "there", "dest": "out/a.nc"}
            answer = await ask(channel, request("copy", wanted))
            async with asyncio.timeout(60):
                while not told:
                    await asyncio.sleep(0.02)
            assert [str(transfer) for transfer in told] == [answer["data"]["task"]]
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)
        async with client(amqp_url) as channel:
            assert await rest(channel, REQUESTS_QUEUE) == []

    with catalogue(catalogue_url) as database:
        asyncio.run(scene(database))


def test_each_kind_of_request_is_entered_and_answered_there_and_on_the_exchange(
    catalogue_url: str, amqp_url: str
) -> None:
    async def scene(database: Database) -> None:
        wanted = {
            "copy": {"uuid": str(an_object(database)), "machine": "there", "dest": "out/copy.nc", "overwrite": True},
            "move": {"uuid": str(an_object(database)), "machine": "there", "dest": "/more/out/moved.nc"},
            "delete": {"uuid": str(an_object(database)), "type": "an old client's"},
            "getexternal": {
                "url": "https://example.org/a",
                "machine": "here",
                "filename": "a",
                "size": "0",
                "options": {},
            },
        }
        async with ready(amqp_url) as (channel, _):
            events = await listener(channel)
            async with consuming(database, amqp_url):
                answers = {kind: await ask(channel, request(kind, data, name=kind)) for kind, data in wanted.items()}
            relay = Relay(database, Broker(amqp_url), "one")
            task = asyncio.create_task(relay.run())
            told = [json.loads(message.body) for message in await take(channel, events, 8 + 3)]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        found = {transfer.kind: transfer for transfer in transfers(database)}
        assert set(found) == set(wanted)
        for kind, answer in answers.items():
            assert answer["type"] == "dm.request.accepted"
            assert answer["data"] == {"task": str(found[kind].id), "request": {"source": "/workflow/7", "id": kind}}
            assert answer["subject"] == str(found[kind].id)
            assert answer in told
            about = [event["type"] for event in told if event["subject"] == str(found[kind].id)]
            assert about == ["dm.transfer.queued", "dm.request.accepted"]
        assert found["move"].destination_place == "out/moved.nc"

    with catalogue(catalogue_url) as database:
        asyncio.run(scene(database))


@pytest.mark.attack(cwe=294, title="A message is sent again")
@pytest.mark.dialect
def test_a_request_that_comes_again_is_entered_once_and_answered_alike(catalogue_url: str, amqp_url: str) -> None:
    async def scene(database: Database) -> None:
        wanted = {"uuid": str(an_object(database)), "machine": "there", "dest": "out/a.nc"}
        body = request("copy", wanted, name="once")
        refused = request("copy", wanted | {"dest": "../a"}, name="refused")
        async with ready(amqp_url) as (channel, answers), consuming(database, amqp_url):
            for _ in range(12):  # at once, so that they meet
                await put(channel, REQUESTS_QUEUE, body, reply_to=answers)
            bodies = {message.body for message in await take(channel, answers, 12)}
            assert len(bodies) == 1
            assert await ask(channel, body) == json.loads(bodies.pop())
            assert await ask(channel, refused) == await ask(channel, refused)

            other = await ask(channel, request("copy", wanted | {"dest": "out/b.nc"}, name="once"))
            assert (other["type"], other["data"]["code"]) == ("dm.request.refused", "idempotency_mismatch")
            again = await ask(channel, request("copy", wanted | {"dest": "out/b.nc"}, name="once", source="/another"))
            assert again["type"] == "dm.request.accepted"
        assert len(transfers(database)) == 2
        with database.read() as session:
            said = session.scalars(
                select(OutboxMessage.routing_key).where(OutboxMessage.routing_key.like("dm.request%"))
            )
            counts = list(said)
        assert (counts.count("dm.request.accepted"), counts.count("dm.request.refused")) == (2, 2)

    with catalogue(catalogue_url) as database:
        asyncio.run(scene(database))


def test_refusals_are_http_s_and_leave_nothing(catalogue_url: str, amqp_url: str) -> None:
    def no_private_address(wanted: GetExternalRequest) -> None:
        if "127.0.0.1" in getattr(wanted, "url", ""):
            raise UrlNotAllowed("127.0.0.1 is not public")

    async def scene(database: Database) -> None:
        mine = an_object(database, "mine.nc")
        copy = {"uuid": str(mine), "machine": "there", "dest": "out/a.nc"}
        fetch = {"url": "https://example.org/a", "machine": "here", "filename": "a"}
        refused: list[tuple[str, Any, str]] = [
            ("copy", copy | {"uuid": str(uuid4())}, "object_not_found"),
            ("copy", copy | {"uuid": "mine"}, "invalid_request"),
            ("copy", copy | {"uuid": None}, "invalid_request"),
            ("copy", copy | {"machine": "nowhere"}, "unknown_machine"),
            ("copy", copy | {"machine": ""}, "invalid_request"),
            ("copy", copy | {"machine": 7}, "invalid_request"),
            ("copy", copy | {"dest": "../a"}, "path_not_allowed"),
            ("copy", copy | {"dest": "/etc/passwd"}, "path_not_allowed"),
            ("copy", copy | {"dest": "a\0b"}, "invalid_request"),
            ("copy", copy | {"overwrite": "perhaps"}, "invalid_request"),
            ("copy", copy | {"overwrit": True}, "invalid_request"),
            ("copy_many", {"items": [copy | {"dst": "x"}]}, "invalid_request"),
            ("copy", copy | {"machine": "here", "dest": "in/mine.nc"}, "destination_exists"),
            ("copy", None, "invalid_request"),
            ("copy", [copy], "invalid_request"),
            ("delete", {}, "invalid_request"),
            ("getexternal", fetch | {"filename": "a/b"}, "invalid_request"),
            ("getexternal", fetch | {"size": -1}, "invalid_request"),
            ("getexternal", fetch | {"options": {"password": "hunter2"}}, "not_supported"),
            ("getexternal", fetch | {"options": {"pasword": "hunter2"}}, "invalid_request"),
            ("getexternal", fetch | {"size": True}, "invalid_request"),
            ("getexternal", fetch | {"uuid": str(uuid4())}, "invalid_request"),
            ("getexternal", fetch | {"metadata": '{"a": NaN}'}, "invalid_request"),
            ("getexternal", fetch | {"metadata": '{"a":' * 50000 + "1" + "}" * 50000}, "invalid_request"),
            ("getexternal", fetch | {"metadata": '{"a":' * 900 + "1" + "}" * 900}, "invalid_request"),
            ("getexternal", fetch | {"path": "in", "filename": "mine.nc"}, "destination_exists"),
            ("getexternal", fetch | {"url": "http://127.0.0.1/"}, "url_not_allowed"),
        ]
        async with ready(amqp_url) as (channel, _), consuming(database, amqp_url, check=no_private_address):
            for kind, data, code in refused:
                answer = await ask(channel, request(kind, data))
                assert (answer["type"], answer["data"]["code"]) == ("dm.request.refused", code), (kind, data)
                assert answer["data"]["retryable"] is False
                assert "hunter2" not in json.dumps(answer)
            answer = await ask(channel, request("copy", copy | {"machine": "", "dest": ""}))
            assert set(answer["data"]["fields"]) == {"machine", "dest"}
            assert await rest(channel, DEAD_QUEUE) == []
        assert transfers(database) == []
        with database.read() as session:
            assert len(list(session.scalars(select(Claim)))) == 1, "the registered object's own"

    with catalogue(catalogue_url) as database:
        asyncio.run(scene(database))


@pytest.mark.attack(cwe=20, title="Messages are no JSON, too deep, too large, or have properties that cannot be read")
@pytest.mark.dialect
def test_hostile_messages_become_dead_letters_and_the_consumer_goes_on(catalogue_url: str, amqp_url: str) -> None:
    chance = random.Random(20)
    good = request("copy", {"uuid": str(uuid4()), "machine": "there", "dest": "a"})
    hostile = [b"", b"{", b"[" * 50_000, b"\xff" * 100, b" " * (BODY_MAX + 1), b'{"specversion":"1.0"}', b'"\\ud800"']
    hostile += [chance.randbytes(chance.randrange(1, 2000)) for _ in range(100)]
    hostile += [good[: chance.randrange(1, len(good) - 1)] for _ in range(100)]
    hostile += [
        good.replace(b"dm.request.copy", kind) for kind in (b"dm.request.\\u0000", b"\\ud83d\\ude9a", b"dm.dead")
    ]

    async def scene(database: Database) -> None:
        async with ready(amqp_url) as (channel, _), consuming(database, amqp_url):
            for body in hostile:
                await put(channel, REQUESTS_QUEUE, body, reply_to="answers" * chance.randrange(30))
            wanted = {"uuid": str(an_object(database)), "machine": "there", "dest": "a.nc"}
            assert (await ask(channel, request("copy", wanted)))["type"] == "dm.request.accepted"
            dead = await take(channel, DEAD_QUEUE, len(hostile))
            assert sorted(message.body for message in dead) == sorted(hostile)
            known = {"malformed_body", "not_a_cloud_event", "unknown_type", "too_large"}
            assert {message.headers["dm-reason"] for message in dead} == known
            assert all(message.headers["dm-detail"] for message in dead)

    with catalogue(catalogue_url) as database:
        asyncio.run(scene(database))


@pytest.mark.attack(cwe=441, title="A message has its answer sent to a queue of somebody else's")
def test_answers_go_to_queues_of_the_declared_prefix_only(catalogue_url: str, amqp_url: str) -> None:
    closed = ("payroll", "dm-reply", "DM-REPLY.x", "answers.dm-reply.")

    async def scene(database: Database) -> None:
        async with ready(amqp_url) as (channel, _), consuming(database, amqp_url):
            for name in closed:
                await channel.declare_queue(name, durable=True)
            for target in (REQUESTS_QUEUE, DEAD_QUEUE, "dm-reply.nobody", *closed):
                await put(channel, REQUESTS_QUEUE, request("delete", {"uuid": str(uuid4())}), reply_to=target)
            await ask(channel, request("delete", {"uuid": str(uuid4())}))  # answered after all of them
            assert [await rest(channel, name) for name in (DEAD_QUEUE, *closed)] == [[]] * 5

    with catalogue(catalogue_url) as database:
        asyncio.run(scene(database))


def test_rabbitmqs_direct_reply_to_is_answered(catalogue_url: str, amqp_url: str) -> None:
    async def scene(database: Database) -> None:
        async with ready(amqp_url) as (channel, _), consuming(database, amqp_url):
            answers: asyncio.Queue[bytes] = asyncio.Queue()

            async def keep(message: AbstractIncomingMessage) -> None:
                answers.put_nowait(message.body)

            direct = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
            await direct.consume(keep, no_ack=True)
            body = request("delete", {"uuid": str(uuid4())})
            await put(channel, REQUESTS_QUEUE, body, reply_to="amq.rabbitmq.reply-to")
            async with asyncio.timeout(30):
                assert json.loads(await answers.get())["type"] == "dm.request.refused"

    with catalogue(catalogue_url) as database:
        asyncio.run(scene(database))

    with catalogue(catalogue_url) as database:
        asyncio.run(scene(database))


def test_a_transfer_whose_orchestrator_is_away_comes_again(catalogue_url: str, amqp_url: str) -> None:
    told = 0

    async def on_transfer(_: UUID) -> bool:
        nonlocal told
        told += 1
        if told < 4:
            raise OrchestratorUnavailable("Prefect does not answer")
        return True

    async def scene(database: Database) -> None:
        async with ready(amqp_url) as (channel, _), consuming(database, amqp_url, on_transfer):
            notification = json.loads(request("copy", {"transfer": str(uuid4())})) | {"type": "dm.transfer.requested"}
            await put(channel, REQUESTS_QUEUE, json.dumps(notification).encode())
            async with asyncio.timeout(60):
                while told < 4:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)
            assert told == 4
            assert await rest(channel, DEAD_QUEUE) == []

    with catalogue(catalogue_url) as database:
        asyncio.run(scene(database))


@pytest.mark.faults
@pytest.mark.slow
def test_a_request_outlives_a_catalogue_that_is_away(amqp_url: str, tmp_path: Path) -> None:
    async def scene(database: Database, server: Postgres) -> None:
        wanted = {"uuid": str(an_object(database)), "machine": "there", "dest": "a.nc"}
        async with ready(amqp_url) as (channel, answers), consuming(database, amqp_url):
            await asyncio.to_thread(server.stop)
            await put(channel, REQUESTS_QUEUE, request("copy", wanted), reply_to=answers)
            await asyncio.sleep(3)
            assert await rest(channel, answers) == []
            await asyncio.to_thread(server.start)
            (message,) = await take(channel, answers, 1)
            assert json.loads(message.body)["type"] == "dm.request.accepted"
            assert await rest(channel, DEAD_QUEUE) == []
        assert len(transfers(database)) == 1

    with Postgres(tmp_path) as server, catalogue(server.url()) as database:
        asyncio.run(scene(database, server))


@pytest.mark.faults
@pytest.mark.slow
def test_requests_are_answered_after_the_broker_was_away_at_the_start_and_in_between(
    rabbitmq: RabbitMq, tmp_path: Path
) -> None:
    url = rabbitmq.fresh_vhost()

    async def scene(database: Database) -> None:
        async with AsyncExitStack() as stack:
            async with away(rabbitmq):
                await stack.enter_async_context(consuming(database, url))
                await asyncio.sleep(1)
            for name in ("first", "second"):
                async with ready(url) as (channel, _):
                    wanted = {"uuid": str(an_object(database)), "machine": "there", "dest": f"{name}.nc"}
                    assert (await ask(channel, request("copy", wanted)))["type"] == "dm.request.accepted"
                if name == "first":
                    async with away(rabbitmq):
                        await asyncio.sleep(1)
        assert len(transfers(database)) == 2

    with catalogue(f"sqlite+pysqlite:///{tmp_path / 'catalogue.db'}") as database:
        asyncio.run(scene(database))
    rabbitmq.drop_vhost(url)


def test_silent_name_server_takes_no_thread_of_the_mover(catalogue_url: str, amqp_url: str) -> None:
    asked, speaks = list[str](), threading.Event()

    def check(fields: GetExternalRequest) -> None:
        asked.append(fields.filename)
        assert speaks.wait(60)

    async def scene(database: Database) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        async with ready(amqp_url) as (channel, _), consuming(database, amqp_url, check=check):
            for number in range(4):
                fields = {"url": "http://silent.example/f", "machine": "here", "filename": f"{number}"}
                await put(channel, REQUESTS_QUEUE, request("getexternal", fields))
            async with asyncio.timeout(60):
                while len(asked) < 4:
                    await asyncio.sleep(0.02)
                assert await asyncio.to_thread(transfers, database) == []
                speaks.set()
                while len(await asyncio.to_thread(transfers, database)) < 4:
                    await asyncio.sleep(0.02)

    with catalogue(catalogue_url) as database:
        asyncio.run(scene(database))


@pytest.mark.attack(cwe=290, title="A message says itself who has sent it")
@pytest.mark.dialect("sqlite")
def test_who_sends_is_known_by_a_token_or_as_a_user_of_the_broker(
    catalogue_url: str, amqp_url: str, tmp_path: Path
) -> None:
    user = urlsplit(amqp_url).username or ""

    async def scene(database: Database) -> None:
        settings = Settings(home=tmp_path)
        maker = TokenMaker(database, settings)
        fire, water = (maker.make("mover", groups=[group], name=group) for group in ("fire", "water"))
        senders = MessageSenders.of(settings.model_copy(update={"amqp_users": (f"{user}={fire[3:15]}",)}), database)
        file = an_object(database, group="fire")
        async with AsyncExitStack() as stack:
            channel, _ = await stack.enter_async_context(ready(amqp_url))
            await stack.enter_async_context(consuming(database, amqp_url, senders=senders))

            async def code(name: str, **sender: str) -> str:
                wanted = {"uuid": str(file), "machine": "there", "dest": f"out/{uuid4()}"}
                answer = await ask(channel, request("copy", wanted, name), **sender)
                return str(answer["data"].get("code", "accepted"))

            wrong = ServiceToken.make().reveal()
            assert await code("1") == "not_authenticated"
            assert await code("1", token=wrong) == "not_authenticated"
            assert await code("1", token="e30.e30.e30") == "not_authenticated"
            # what was refused without a person is kept for nobody
            assert await code("1", token=fire) == "accepted"
            assert await code("1", token=water) == "object_not_found"
            assert await code("2", user_id=user) == "accepted"
            with database.write() as session:
                revoke_token(session, fire[3:15], ALL, None)
            assert [await code("3", token=fire), await code("3", user_id=user)] == ["not_authenticated"] * 2
        rows = transfers(database)
        assert [(row.created_by, (row.grant or {})["means"]) for row in rows] == [
            ("token:fire", "token"),
            ("token:fire", "broker"),
        ]
        stored = (tmp_path / "catalogue.db").read_bytes() + (tmp_path / "catalogue.db-wal").read_bytes()
        assert all(token[15:47].encode() not in stored for token in (fire, water, wrong))

    with catalogue(catalogue_url) as database:
        asyncio.run(scene(database))


def test_message_that_is_put_back_is_known_by_its_user_still(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, amqp_users=("lexis=abcdefghijkl",))
    database = Database(f"sqlite+pysqlite:///{tmp_path / 'none.db'}")
    senders = MessageSenders.of(settings, database)
    assert senders is not None
    first = Delivery(b"body", user_id="lexis")
    kept = senders.kept(first)
    again = Delivery(b"body", user_id="data-manager", headers=kept)
    assert senders.kept(again) == kept
    forged = {"dm-user": "lexis", "dm-user-mark": "0" * 64}
    for other in (Delivery(b"other", headers=kept), Delivery(b"body", headers=forged), Delivery(b"body")):
        assert senders.kept(other) == {}
    assert senders.kept(Delivery(b"body", headers={"dm-token": "dm_x"})) == {"dm-token": "dm_x"}
    assert "dm_x" not in repr(Delivery(b"body", headers={"dm-token": "dm_x"})) + repr(Later(1.0, {"dm-token": "dm_x"}))
    database.close()
