"""What a mover asks of Prefect's API: deployments, flow runs and their states.

Prefect's errors end here: who asks gets OrchestratorUnavailable, whether the server is away or refuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import structlog
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import DeploymentResponse
from prefect.context import AsyncClientContext
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import AwaitingRetry

from datamanager.errors import OrchestratorUnavailable
from deployments.orchestrator.deploy import apply
from deployments.orchestrator.flow_registry import DEPLOYMENT, MAINTENANCE, SHARED, AnyFlow, flow_at
from flows.runtime.services import Services
from models.core.leases import leased

ANSWER_WITHIN = 2.0  # seconds
MISSES_UNTIL_AWAY = 3
"""Looks in a row without an answer until Prefect counts as away: one that takes long must not refuse requests."""
WAITS = timedelta(days=1)
"""A waiting run is scheduled so far ahead that Prefect hands it out to nobody: a mover takes its transfer, and the run
with it. If none has by then, the run asks for just that transfer, and waits again."""
DEPLOY_LEASE = "deploy"
DEPLOY_WITHIN = timedelta(seconds=30)

log = structlog.get_logger(__name__)


@contextmanager
def translated() -> Iterator[None]:
    """Turn errors of Prefect and of its HTTP client into OrchestratorUnavailable, with their cause."""
    try:
        yield
    except (httpx.HTTPError, PrefectException) as exc:
        raise OrchestratorUnavailable(f"the Prefect server does not do it: {exc!r}") from exc


class PrefectGateway:
    """Asks Prefect on behalf of one mover. Its methods raise OrchestratorUnavailable."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._deployments: dict[str, UUID] = {}
        self._flows: dict[UUID, AnyFlow | None] = {}
        self._misses = MISSES_UNTIL_AWAY  # nobody has looked yet

    @property
    def there(self) -> bool:
        """Say whether Prefect answered one of the last looks."""
        return self._misses < MISSES_UNTIL_AWAY

    @asynccontextmanager
    async def client(self) -> AsyncIterator[PrefectClient]:
        """Provide Prefect's client; its errors are translated."""
        with translated():
            async with AsyncClientContext.get_or_create() as context:
                yield context.client

    async def look(self) -> bool:
        """See whether Prefect answers, and note it. Without Prefect's own client, which would try for a minute before
        it says no.
        """
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_WITHIN) as client:
                answers = (await client.get(f"{self._services.settings.prefect_url}/health")).status_code < 500
        except httpx.HTTPError:
            answers = False
        if answers:
            self._misses = 0
        else:
            self.miss()
        return answers

    def miss(self) -> None:
        """Note that Prefect did not answer, or did not do what it was asked."""
        self._misses += 1

    async def deployment(self, flow: AnyFlow) -> DeploymentResponse:
        """Return a flow's deployment, which is made if it is missing."""
        name = f"{flow.name}/{DEPLOYMENT}"
        async with self.client() as client:
            try:
                return await client.read_deployment_by_name(name)
            except ObjectNotFound:
                await self.provide()
                return await client.read_deployment_by_name(name)

    async def entrypoint(self, deployment: UUID) -> str | None:
        """Return the entry point of a deployment; None when there is no such deployment."""
        async with self.client() as client:
            try:
                return (await client.read_deployment(deployment)).entrypoint
            except ObjectNotFound:
                return None

    async def is_maintenance(self, deployment: UUID | None) -> bool:
        """Say whether a deployment is one of a maintenance flow."""
        return await self._flow_of(deployment) in MAINTENANCE

    async def is_shared(self, deployment: UUID | None) -> bool:
        """Say whether a deployment is that of shared runs."""
        return await self._flow_of(deployment) is SHARED

    async def _flow_of(self, deployment: UUID | None) -> AnyFlow | None:
        """Return the flow of a deployment; None where there is none, or it is not ours."""
        if deployment is None:
            return None
        if deployment not in self._flows:
            if (entrypoint := await self.entrypoint(deployment)) is None:
                return None
            self._flows[deployment] = flow_at(entrypoint)
        return self._flows[deployment]

    async def create_run(self, flow: AnyFlow, parameters: dict[str, Any], **facts: Any) -> FlowRun:
        """Make a flow's run, with `facts` as `create_flow_run_from_deployment` of Prefect's client takes them."""
        if flow.name not in self._deployments:
            self._deployments[flow.name] = (await self.deployment(flow)).id
        try:
            async with self.client() as client:
                return await client.create_flow_run_from_deployment(
                    self._deployments[flow.name], parameters=parameters, **facts
                )
        except OrchestratorUnavailable:
            self._deployments.clear()  # they may have been made anew
            raise

    async def read_run(self, run: UUID) -> FlowRun | None:
        """Return a run; None when there is no such run."""
        async with self.client() as client:
            try:
                return await client.read_flow_run(run)
            except ObjectNotFound:
                return None

    async def set_state(self, run: UUID, state: State[Any]) -> None:
        """Set a run's state, whatever it was."""
        async with self.client() as client:
            await client.set_flow_run_state(run, state, force=True)

    async def show_waiting(self, run: UUID, message: str) -> None:
        """Show a run of ours as waiting, before its transfer goes back to the queue; in vain while Prefect is away."""
        if not self.there:
            return
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await self.set_state(run, waiting(message))
        except (OrchestratorUnavailable, TimeoutError) as exc:
            log.warning("run_not_shown", flow_run=str(run), error=repr(exc))  # the reconciler does it later

    async def provide(self) -> None:
        """Make the work pool and the deployments, which are missing: Prefect's database was lost, or is older.

        One mover does it at a time. Raises also: CatalogueUnavailable.
        """
        services = self._services
        async with leased(services.database, DEPLOY_LEASE, services.owner, DEPLOY_WITHIN) as ours:
            if ours:
                log.warning("deployments_missing", says="they are created again")
                with translated():
                    await apply()


def waiting(message: str) -> State[Any]:
    """Return the state of a run whose transfer waits in the catalogue's queue: no worker picks it up."""
    return AwaitingRetry(scheduled_time=datetime.now(UTC) + WAITS, message=message)
