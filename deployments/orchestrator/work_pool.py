"""What Prefect's work pool allows: how many transfers at once, in it and in each of its queues, and which are paused.

Runs begun in Prefect are handed out by its server, which keeps to these limits. Transfers of `/DM` are taken from the
catalogue and pass no queue of Prefect's, so a mover reads what a person has set there and keeps to it itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import WorkPool, WorkQueue
from prefect.exceptions import ObjectNotFound

from deployments.orchestrator.environment import WORK_POOL

QUEUES: dict[str, int] = {"high": 1, "normal": 2, "low": 3}
"""A work queue for each priority of a transfer, and its rank in the pool: Prefect hands out lower ones first."""
NO_JOB: dict[str, Any] = {"job_configuration": {"labels": {}}, "variables": {"type": "object", "properties": {}}}
"""The pool's job template: a mover starts no job for a run, so there is nothing to be set, and little to be checked for
each run. Prefect wants both parts not to be empty."""
NORMAL = "normal"
"""The queue of runs begun in Prefect, unless they name another."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many more transfers may be taken: in all, and of each priority."""

    total: int
    queues: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Caps:
    """How many transfers may run at once, over all movers. What has no limit is None, or absent from `queues`.

    A pool or queue that is paused allows none; what runs there already continues.
    """

    pool: int | None = None
    queues: Mapping[str, int] = field(default_factory=dict)

    @property
    def limited(self) -> bool:
        """Whether anything is limited, so that what runs must be counted."""
        return self.pool is not None or bool(self.queues)

    def room(self, held: Mapping[str, int], free: int) -> Room:
        """Say how many more may be taken by a mover with `free` slots, while `held` run by priority on all movers."""
        total = free if self.pool is None else min(free, self.pool - sum(held.values()))
        total = max(0, total)
        queues = {
            name: max(0, min(total, self.queues[name] - held.get(name, 0))) if name in self.queues else total
            for name in QUEUES
        }
        return Room(min(total, sum(queues.values())), queues)


async def read_caps(client: PrefectClient, only: Collection[str] = ()) -> Caps | None:
    """Read the limits of the pool; None when the pool or one of its queues is missing.

    With `only` (a worker's own choice of queues) the other queues are treated as paused.
    """
    try:
        pool = await client.read_work_pool(WORK_POOL)
        found = {queue.name: queue for queue in await client.read_work_queues(work_pool_name=WORK_POOL)}
    except ObjectNotFound:
        return None
    if not QUEUES.keys() <= found.keys():
        return None
    limits = {name: 0 if only and name not in only else _limit(found[name]) for name in QUEUES}
    return Caps(_limit(pool), {name: limit for name, limit in limits.items() if limit is not None})


def _limit(of: WorkPool | WorkQueue) -> int | None:
    return 0 if of.is_paused else of.concurrency_limit
