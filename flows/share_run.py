"""The flow of transfers that share a run: small copies, or moves, from one machine to another, which waited together.

A mover decides which they are (`models.transfers.sharing`) and begins it; each of them is requested as ever.
"""

from __future__ import annotations

from prefect import flow

from flows.shared.shared_steps import commit_all, conclude, going_together, publish_all, remove_sources, stage_all


@flow(name="shared", persist_result=False)
async def share_run(members: int = 0) -> str:  # noqa: ARG001 - for those who look at the run
    """Perform small transfers that wait for the same machines together. Movers begin it; it can't be begun by hand.

    Args:
        members: How many transfers share the run. Set by the Data Manager.
    """
    async with going_together() as run:
        await stage_all()
        await publish_all()
        await commit_all()
        if run.moving:
            await remove_sources()
    return await conclude(run)
