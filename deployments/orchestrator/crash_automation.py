"""The automation that marks dead runs in Prefect: those whose heartbeat stopped, because their process is gone.

It is for people who look at Prefect when no mover is left; a mover that runs repairs states sooner, and what the
catalogue says does not depend on it (docs/architecture.md). A self-hosted Prefect has no such automation by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from deployments.orchestrator.environment import RUN_HEARTBEAT

NAME = "data-manager: runs without a heartbeat have crashed"
SILENCE = timedelta(seconds=3 * RUN_HEARTBEAT)
HEARTBEAT = "prefect.flow-run.heartbeat"
RUN_LEFT = "data-manager.flow-run.left"
"""A mover works on a run no more, however that ended. It is no state: no server holds it back for the one before it."""
NO_HEARTBEAT_AFTER = frozenset(
    f"prefect.flow-run.{state}"
    for state in (
        "Completed",
        "Failed",
        "Cancelled",
        "Crashed",
        "AwaitingRetry",  # waits in our queue for its next attempt
        "Scheduled",
        "Pending",
        "Paused",
        "Suspended",
    )
)
"""After these no heartbeat is due. Not `Running`: its event may come after the first heartbeat."""


async def provide_automation(client: PrefectClient, deployments: Sequence[UUID]) -> None:
    """Make the automation for runs of `deployments`, or bring it up to date; one that a person disabled stays so."""
    found = await client.read_automations_by_name(NAME)
    wanted = automation(deployments, enabled=found[0].enabled if found else True)
    if not found:
        await client.create_automation(wanted)
        return
    await client.update_automation(found[0].id, wanted)
    for double in found[1:]:  # two movers may have made it at once
        await client.delete_automation(double.id)


def automation(deployments: Sequence[UUID], *, enabled: bool = True) -> AutomationCore:
    """Describe it: a heartbeat, and then for SILENCE neither another nor an event after which none is due."""
    return AutomationCore(
        name=NAME,
        description="Made by dm deploy. A mover resumes the transfer itself, whatever is shown here.",
        enabled=enabled,
        trigger=EventTrigger(
            # a heartbeat names its run's deployment, but not its work pool
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification(
                {
                    "prefect.resource.role": "deployment",
                    "prefect.resource.id": [f"prefect.deployment.{deployment}" for deployment in deployments],
                }
            ),
            for_each={"prefect.resource.id"},
            after={HEARTBEAT},
            expect={HEARTBEAT, RUN_LEFT, *NO_HEARTBEAT_AFTER},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {SILENCE.total_seconds():.0f} s")
        ],
    )
