"""`dm deploy`: bring prefect.yaml to the Prefect server: the work pool and one deployment per flow. Idempotent.

`prefect deploy` would add pull steps that change a process's working directory, which a warm mover must never do.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import httpx
import yaml

from datamanager.errors import DataManagerError, OrchestratorUnavailable, SettingsError
from datamanager.settings import load_settings
from deployments.environment import WORK_POOL, prefect_environment, run_with

PREFECT_YAML = Path(__file__).parent.parent / "prefect.yaml"
WORKER_TYPE = "mover"
POOL_DESCRIPTION = "The Data Manager's movers: they run its own flows, warm, and nothing else."


def read_deployments(path: Path = PREFECT_YAML) -> list[dict[str, Any]]:
    """Return the deployments of prefect.yaml."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    deployments: list[dict[str, Any]] = document["deployments"]
    return deployments


async def apply(path: Path = PREFECT_YAML) -> list[str]:
    """Make or update the work pool and the deployments; return their names.

    Raises: OrchestratorUnavailable; SettingsError when prefect.yaml names a flow that this project does not ship.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.utilities.callables import parameter_schema

    from deployments.flow_table import ENTRYPOINTS

    names = []
    try:
        async with get_client() as client:
            try:
                await client.create_work_pool(
                    WorkPoolCreate(name=WORK_POOL, type=WORKER_TYPE, description=POOL_DESCRIPTION)
                )
            except ObjectAlreadyExists:
                logging.getLogger(__name__).debug("work pool %s is there", WORK_POOL)
            for entry in read_deployments(path):
                entrypoint = entry["entrypoint"]
                if entrypoint not in ENTRYPOINTS:
                    raise SettingsError(f"{path.name}: {entrypoint} is no flow of this project")
                flow = ENTRYPOINTS[entrypoint]
                await client.create_deployment(
                    flow_id=await client.create_flow(flow),
                    name=entry["name"],
                    description=entry.get("description"),
                    entrypoint=entrypoint,
                    work_pool_name=entry["work_pool"]["name"],
                    tags=entry.get("tags", []),
                    parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
                    enforce_parameter_schema=True,
                )
                names.append(f"{flow.name}/{entry['name']}")
    except httpx.HTTPError as exc:
        raise OrchestratorUnavailable(f"the Prefect server does not answer: {exc}") from exc
    return names


def main() -> int:
    """Apply prefect.yaml to the Prefect server of the settings."""
    try:
        settings = load_settings()
        run_with(prefect_environment(settings), "deployments.deploy", sys.argv[1:])
        names = asyncio.run(apply())
    except DataManagerError as exc:
        sys.stderr.write(f"dm deploy: {exc.detail}\n")
        return 1
    sys.stdout.write("".join(f"{name}\n" for name in names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
