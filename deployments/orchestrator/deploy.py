"""`dm deploy`: bring prefect.yaml to the Prefect server: its work pool and queues, one deployment per flow. Idempotent.

`prefect deploy` would add pull steps that change a process's working directory, which a warm mover must never do.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
import yaml

from datamanager.errors import DataManagerError, OrchestratorUnavailable, SettingsError
from datamanager.settings import load_settings
from deployments.orchestrator.environment import WORK_POOL, prefect_environment, run_with

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.actions import DeploymentScheduleCreate

    from deployments.orchestrator.flow_registry import AnyFlow

PREFECT_YAML = Path(__file__).parents[2] / "prefect.yaml"
WORKER_TYPE = "mover"
POOL_DESCRIPTION = "Movers of the Data Manager. They run only its own flows."


def read_deployments(path: Path = PREFECT_YAML) -> list[dict[str, Any]]:
    """Return the deployments of prefect.yaml."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    deployments: list[dict[str, Any]] = document["deployments"]
    return deployments


async def apply(path: Path = PREFECT_YAML) -> list[str]:
    """Make or update the work pool, its queues, the deployments and the automation; return the deployments' names.

    What a person has set on them in Prefect (limits, pauses, schedules) stays. A deployment gets the schedules of
    prefect.yaml when it is made, and never again: one that was changed, switched off or removed stays as it is.

    Raises: OrchestratorUnavailable; SettingsError when prefect.yaml names a flow that this project does not ship.
    """
    from prefect.client.orchestration import get_client

    from deployments.orchestrator.crash_automation import provide_automation
    from deployments.orchestrator.flow_registry import ENTRYPOINTS

    deployments = {}
    try:
        async with get_client() as client:
            await _provide_pool(client)
            for entry in read_deployments(path):
                entrypoint = entry["entrypoint"]
                if entrypoint not in ENTRYPOINTS:
                    raise SettingsError(f"{path.name}: {entrypoint} is not a flow of this project")
                flow = ENTRYPOINTS[entrypoint]
                deployments[f"{flow.name}/{entry['name']}"] = await _deploy(client, flow, entry)
            await provide_automation(client, list(deployments.values()))
    except httpx.HTTPError as exc:
        raise OrchestratorUnavailable(f"the Prefect server does not answer: {exc}") from exc
    return list(deployments)


async def _provide_pool(client: PrefectClient) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectAlreadyExists

    from deployments.orchestrator.work_pool import NO_JOB, QUEUES

    pool = WorkPoolCreate(name=WORK_POOL, type=WORKER_TYPE, description=POOL_DESCRIPTION, base_job_template=NO_JOB)
    try:
        await client.create_work_pool(pool)
    except ObjectAlreadyExists:
        await client.update_work_pool(WORK_POOL, WorkPoolUpdate(base_job_template=NO_JOB))
    there = {queue.name for queue in await client.read_work_queues(work_pool_name=WORK_POOL)}
    for name, rank in QUEUES.items():
        if name not in there:
            with contextlib.suppress(ObjectAlreadyExists):  # another mover was quicker
                await client.create_work_queue(name=name, work_pool_name=WORK_POOL, priority=rank)


async def _deploy(client: PrefectClient, flow: AnyFlow, entry: dict[str, Any]) -> UUID:
    from prefect.client.schemas.actions import DeploymentUpdate
    from prefect.exceptions import ObjectNotFound
    from prefect.utilities.callables import parameter_schema

    from deployments.orchestrator.work_pool import NORMAL, QUEUES

    facts: dict[str, Any] = {
        "description": entry.get("description"),
        "entrypoint": entry["entrypoint"],
        "tags": entry.get("tags", []),
        "enforce_parameter_schema": True,
        "parameter_openapi_schema": parameter_schema(flow).model_dump_for_openapi(),
    }
    pool = {"work_pool_name": entry["work_pool"]["name"], "work_queue_name": NORMAL}
    try:
        known = await client.read_deployment_by_name(f"{flow.name}/{entry['name']}")
    except ObjectNotFound:
        return await client.create_deployment(
            flow_id=await client.create_flow(flow),
            name=entry["name"],
            schedules=_schedules(entry),
            **facts,
            **pool,
        )
    if known.work_pool_name == pool["work_pool_name"] and known.work_queue_name in QUEUES:
        pool["work_queue_name"] = known.work_queue_name
    # to create it once more would remove the schedules that a person gave it
    await client.update_deployment(known.id, DeploymentUpdate(**facts, **pool))
    return known.id


def _schedules(entry: dict[str, Any]) -> list[DeploymentScheduleCreate]:
    """Return an entry's schedules: `cron`, `timezone`, `slug`, and maybe `parameters` and `active`.

    Raises: SettingsError for one that Prefect would not take.
    """
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule

    found = []
    for given in entry.get("schedules", []):
        try:
            schedule = CronSchedule(cron=given["cron"], timezone=given.get("timezone", "UTC"))
            rest = {key: value for key, value in given.items() if key in ("slug", "parameters", "active")}
            found.append(DeploymentScheduleCreate(schedule=schedule, **rest))
        except (KeyError, ValueError) as exc:
            raise SettingsError(f"{PREFECT_YAML.name}: {entry['entrypoint']}: schedules: {exc}") from exc
    return found


def main() -> int:
    """Apply prefect.yaml to the Prefect server of the settings."""
    try:
        settings = load_settings()
        run_with(prefect_environment(settings), "deployments.orchestrator.deploy", sys.argv[1:])
        names = asyncio.run(apply())
    except DataManagerError as exc:
        sys.stderr.write(f"dm deploy: {exc.detail}\n")
        return 1
    sys.stdout.write("".join(f"{name}\n" for name in names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
