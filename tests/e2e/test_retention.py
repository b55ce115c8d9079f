"""Retention as a site uses it: rules in a file, a plan, a run by a mover, its report in Prefect, its event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from datamanager.client import RetentionClient
from tests.support.amqp import client, take
from tests.support.prefect import PrefectApi
from tests.support.site import PATIENCE, Site, eventually

RULES = """
[[rule]]
name = "{tag} to tape"
action = "archive"
group = "{tag}-old"
grace = "0s"
archive_to = "tape"

[[rule]]
name = "{tag} copies"
action = "delete-copies"
path = "{tag}/scratch/**"
grace = "0s"

[[rule]]
name = "{tag} later"
action = "delete"
group = "{tag}-later"
even_last_copy = true
"""


@pytest.fixture
def tag() -> str:
    """What this test's objects have, and no other's."""
    return f"r{uuid4().hex[:8]}"


@pytest.fixture
def rules(site: Site, tag: str) -> Iterator[Path]:
    """The site's rules, which are for this test's objects alone; afterwards there are none again."""
    file = site.service.home / "retention.toml"
    file.write_text(RULES.format(tag=tag), encoding="utf-8")
    yield file
    file.unlink()


def artifacts(prefect: PrefectApi, flow_run: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = prefect.post("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run]}}})
    return found


async def listen(url: str) -> None:
    """Collect what is told of retention from now on."""
    async with client(url) as channel:
        queue = await channel.declare_queue("retention")
        await queue.bind("dm.events", "dm.retention.*")


async def heard(url: str, count: int) -> list[dict[str, Any]]:
    """Return the events that came."""
    async with client(url) as channel:
        found: list[dict[str, Any]] = [json.loads(one.body) for one in await take(channel, "retention", count)]
        return found


@pytest.mark.slow
def test_a_run_does_what_the_plan_said(site: Site, tag: str, rules: Path, prefect: PrefectApi) -> None:
    asyncio.run(listen(site.service.env["DM_AMQP_URL"]))
    old = [site.register("archer2", f"{tag}/old/{n}.bin", b"old" * n, group=f"{tag}-old") for n in (1, 2, 3)]
    keep = site.register("cirrus", f"{tag}/keep.bin", b"content", verify="hash")
    copy = site.register("archer2", f"{tag}/scratch/keep.bin", b"content", verify="hash")
    alone = site.register("archer2", f"{tag}/scratch/alone.bin", b"alone", verify="hash")
    later = site.register("archer2", f"{tag}/later.bin", b"later", group=f"{tag}-later")
    held = site.register("archer2", f"{tag}/held.bin", b"held", group=f"{tag}-later")
    with site.service.client_of(RetentionClient) as dm:
        dm.hold(held, "figures of a paper")
        plan = dm.plan()
        expected = {line["object"]: line["reason"] or line["verdict"] for line in plan.lines}
        assert expected == {
            **dict.fromkeys(old, "act"),
            copy: "act",
            alone: "last_verified_copy",
            later: "mark",
            held: "held",
        }
        assert {site.info(uuid)["status"] for uuid in expected} == {"ACTIVE"}
        dry = dm.wait_for_retention(dm.start_retention(dry_run=True).run, timeout=PATIENCE)
        assert {line["object"]: line["reason"] or line["verdict"] for line in dry.lines} == expected
        run = dm.wait_for_retention(dm.start_retention().run, timeout=PATIENCE)
        assert {line["object"]: line["reason"] or line["verdict"] for line in run.lines} == expected
        assert (run.bytes_freed, run.pending) == (18 + 7, 0)
        assert {site.info(uuid)["status"] for uuid in old} == {"ARCHIVED"}
        assert site.info(copy)["status"] == "DELETED"
        assert not site.exists("archer2", f"{tag}/scratch/keep.bin")
        assert [site.info(uuid)["status"] for uuid in (keep, alone, later, held)] == ["ACTIVE"] * 4
        reasons = {task.reason for task in dm.tasks(limit=100)}
        assert {f"retention: {tag} to tape", f"retention: {tag} copies"} <= reasons
        assert run.flow_run_id is not None
        (table,) = eventually(lambda: artifacts(prefect, str(run.flow_run_id)), "the report is in Prefect")
        assert (table["type"], table["key"]) == ("table", "retention")
        assert "25 B freed" in table["description"]
        assert dm.restore(later) is None
        task = dm.restore(old[0])
        assert task is not None
        dm.wait(task, timeout=PATIENCE)
        assert site.read("archer2", f"{tag}/old/1.bin") == b"old"
        again = dm.wait_for_retention(dm.start_retention().run, timeout=PATIENCE)
        spared = {line["object"]: line["reason"] for line in again.lines}
        assert spared[later] == spared[old[0]] == "restored"
        assert again.bytes_freed == 0
    events = asyncio.run(heard(site.service.env["DM_AMQP_URL"], 3))
    assert [event["subject"] for event in events] == [str(one.run) for one in (dry, run, again)]
    assert {event["type"] for event in events} == {"dm.retention.completed"}
    assert [event["data"]["bytes_freed"] for event in events] == [0, 25, 0]
