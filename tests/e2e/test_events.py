"""What a workflow system hears on RabbitMQ, and what it may ask there."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

from aio_pika.abc import AbstractChannel

from tests.support.amqp import client, put
from tests.support.site import Site, sha256, some_bytes

PATIENCE = 120.0


def amqp_url(site: Site) -> str:
    """Return the address of the site's broker."""
    return site.service.env["DM_AMQP_URL"]


async def hear(channel: AbstractChannel, subject: str, last: str) -> list[dict[str, Any]]:
    """Collect the events about `subject` until one of the type `last`."""
    queue = await channel.get_queue("listener")
    heard: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE), queue.iterator() as messages:
        async for message in messages:
            await message.ack()
            event = json.loads(message.body)
            if event["subject"] == subject:
                assert message.routing_key == event["type"]
                heard.append(event)
                if event["type"] == last:
                    return heard
    raise AssertionError("the queue ended")


async def listen(channel: AbstractChannel) -> None:
    """Begin to collect events."""
    queue = await channel.declare_queue("listener", exclusive=True)
    await queue.bind("dm.events", "dm.#")


def test_a_copy_is_told_from_queued_to_complete(site: Site) -> None:
    url = amqp_url(site)
    source = site.register("archer2", "events/a.bin", some_bytes(10_000))

    async def run() -> None:
        async with client(url) as channel:
            await listen(channel)
            answer = await asyncio.to_thread(
                site.ask, "POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "events/b.bin"}
            )
            told = await hear(channel, answer.text, "dm.transfer.complete")
            assert [event["type"] for event in told] == [
                "dm.transfer.queued",
                "dm.transfer.running",
                "dm.transfer.complete",
            ]
            numbers = [event["sequence"] for event in told]
            assert numbers == sorted(numbers)
            assert len({event["id"] for event in told}) == 3
            assert all(event["specversion"] == "1.0" and event["source"] == "/DM" for event in told)
            assert told[-1]["data"]["result"] == site.status(answer.text)["result"]

    asyncio.run(run())


def test_objects_are_told_of(site: Site) -> None:
    url = amqp_url(site)

    async def run() -> None:
        async with client(url) as channel:
            await listen(channel)
            data = some_bytes(100)
            uuid = await asyncio.to_thread(site.register, "archer2", "events/c.bin", data)
            assert (await hear(channel, uuid, "dm.object.registered"))[0]["data"]["machine"] == "archer2"
            await asyncio.to_thread(
                site.ask, "POST", f"move/{uuid}", data={"machine": "cirrus", "dest": "events/d.bin"}
            )
            moved = (await hear(channel, uuid, "dm.object.moved"))[-1]["data"]
            assert (moved["machine"], moved["place"], moved["from"]["machine"]) == ("cirrus", "events/d.bin", "archer2")
            copy = (
                await asyncio.to_thread(
                    site.ask, "POST", f"copy/{uuid}", data={"machine": "archer2", "dest": "events/e.bin"}
                )
            ).text
            assert (await hear(channel, copy, "dm.object.copied"))[0]["data"]["checksum"] == sha256(data)
            await asyncio.to_thread(site.ask, "DELETE", f"delete/{uuid}")
            assert await hear(channel, uuid, "dm.object.deleted")

    asyncio.run(run())


def test_a_workflow_system_may_ask_by_message(site: Site) -> None:
    url = amqp_url(site)
    data = some_bytes(10_000)
    source = site.register("archer2", "events/asked.bin", data)
    request = {
        "specversion": "1.0",
        "id": str(uuid4()),
        "source": "/tests",
        "type": "dm.request.copy",
        "data": {"uuid": source, "machine": "cirrus", "dest": "events/asked.bin"},
    }

    async def run() -> None:
        async with client(url) as channel:
            replies = await channel.declare_queue("dm-reply.events", exclusive=True)
            body, token = json.dumps(request).encode(), site.service.token
            for _ in range(2):  # delivered twice, done once
                await put(channel, "dm.requests", body, token=token, reply_to=replies.name, correlation_id="c1")
            tasks = set()
            async with asyncio.timeout(PATIENCE):
                for _ in range(2):
                    while (reply := await replies.get(fail=False)) is None:
                        await asyncio.sleep(0.05)
                    await reply.ack()
                    assert reply.correlation_id == "c1"
                    event = json.loads(reply.body)
                    assert event["type"] == "dm.request.accepted", event
                    tasks.add(event["data"]["task"])
            assert len(tasks) == 1
            status = await asyncio.to_thread(site.wait, tasks.pop())
            assert status["status"] == "COMPLETE", status

    asyncio.run(run())
    assert site.read("cirrus", "events/asked.bin") == data
