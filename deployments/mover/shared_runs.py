"""Shared flow runs, from their making to their end: transfers that a mover has taken together.

The run is made for these transfers alone. What does not end in it goes back to the queue, and gets a run of its own, so
a shared run is never taken up again: it ends with its mover.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Abort
from prefect.states import Running
from sqlalchemy.orm import Session

from datamanager.errors import CatalogueUnavailable, LeaseLost, OrchestratorUnavailable
from deployments.mover.flow_runner import BACK_IN, run_warm
from deployments.orchestrator.flow_registry import SHARED
from deployments.orchestrator.gateway import ANSWER_WITHIN, PrefectGateway, translated
from deployments.orchestrator.reconcile import end_of_shared
from flows.runtime.progress import shared_name, shared_tags
from flows.runtime.services import Services, SharedGroup, provided
from models.database import read, write
from models.objects.bulk_claims import chunks
from models.tables import Transfer
from models.transfers import queue
from models.transfers.queue import TransferLease
from models.transfers.shared_outcomes import SharedCounts, count_shared

GIVEN_BACK_AT_ONCE = 50
"""Transfers that one transaction returns to the queue: it is to be short."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SharedRunner:
    """Runs what a mover has taken together. `stopping` says whether the mover stops."""

    services: Services
    gateway: PrefectGateway
    stopping: Callable[[], bool]

    async def run(self, key: UUID, taken: Sequence[tuple[TransferLease, Transfer]]) -> None:
        """Make the run of these transfers and run it to its end; give back what has not ended then. `key` is theirs
        (`Transfer.shared_run`). Raises: CancelledError.
        """
        holds, group = [hold for hold, _ in taken], SharedGroup(taken)
        flow_run, spent = None, True
        try:
            flow_run = await self._make(key, [row for _, row in taken])
            self.services.shared[flow_run.id] = group
            with provided(self.services), translated():
                state = await run_warm(SHARED, flow_run, {"members": len(taken)})
            await self._show_end(flow_run.id, state)
        except Abort:
            log.info("shared_run_abandoned", key=str(key))
        except asyncio.CancelledError:
            spent = False  # the mover stops, which is no fault of the transfers
            if flow_run is not None:
                await self._show_stopped(flow_run.id)
            raise
        except CatalogueUnavailable as exc:
            log.warning("shared_run_failed", key=str(key), code=exc.code, error=exc.detail)
        except OrchestratorUnavailable as exc:
            spent = False  # Prefect is away, neither
            self.gateway.miss()
            log.warning("prefect_unavailable", transfers=len(taken), error=exc.detail)
        finally:
            if flow_run is not None:
                self.services.shared.pop(flow_run.id, None)
            left = [hold for hold in holds if self.services.running.pop(hold, None) is not None]
            await self.give_back(left, spent=spent)

    async def give_back(self, holds: Sequence[TransferLease], *, spent: bool) -> None:
        """Return transfers to the queue; `spent`: the attempt counts. Never raises for a catalogue that is away."""
        for some in chunks(holds, GIVEN_BACK_AT_ONCE):
            with contextlib.suppress(CatalogueUnavailable):  # the leases run out by themselves
                await asyncio.shield(write(self.services.database, self._requeue, some, spent))

    def _requeue(self, session: Session, holds: Sequence[TransferLease], spent: bool) -> None:
        for hold in holds:
            with contextlib.suppress(LeaseLost):  # it has ended
                after = timedelta(0) if self.stopping() else BACK_IN
                queue.requeue(session, hold, after=after, spent=spent)

    async def _make(self, key: UUID, rows: Sequence[Transfer]) -> FlowRun:
        return await self.gateway.create_run(
            SHARED,
            {"members": len(rows)},
            state=Running(),
            work_queue_name=rows[0].priority,
            name=shared_name(rows),
            tags=shared_tags(rows),
            idempotency_key=f"shared:{key}",
        )

    async def _show_end(self, run: UUID, state: State[Any]) -> None:
        """Let a run end as its transfers did where the engine can't know: it has no end for what was cancelled."""
        if state.is_completed() or state.is_cancelled():
            return
        wanted = end_of_shared(await self._counts(run))
        if wanted.type is not state.type:
            await self.gateway.set_state(run, wanted)

    async def _show_stopped(self, run: UUID) -> None:
        """End a run whose mover stops; the engine has called it crashed. In vain while Prefect is away."""
        with contextlib.suppress(OrchestratorUnavailable, CatalogueUnavailable, TimeoutError):
            async with asyncio.timeout(ANSWER_WITHIN):
                await self.gateway.set_state(run, end_of_shared(await self._counts(run), "its mover stops"))

    async def _counts(self, run: UUID) -> SharedCounts:
        found = await read(self.services.database, count_shared, [run])
        return found.get(run, SharedCounts())
