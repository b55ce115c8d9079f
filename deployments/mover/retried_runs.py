"""Runs that are retried in Prefect although their work has ended: they end again as it did, and nothing is done."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Failed
from sqlalchemy.orm import Session

from deployments.orchestrator.reconcile import end_of, end_of_shared
from models.tables import Audit, RetentionRun
from models.transfers.lookup import by_flow_run
from models.transfers.shared_outcomes import count_shared

NOTHING_DONE = "nothing was done again; submit a new request"


def earlier_end(session: Session, flow_run: FlowRun) -> State[Any] | None:
    """Return the state in which a run ended whose work is over, with NOTHING_DONE; None for one that has work to do.

    Its work is a transfer, or what the API asked for: an audit or a run of retention. Other maintenance is done anew.
    """
    transfer = by_flow_run(session, [flow_run.id]).get(flow_run.id)
    if transfer is not None:
        return None if transfer.ended is None else _again(end_of(transfer))
    shared = count_shared(session, [flow_run.id]).get(flow_run.id)
    if shared is not None and not shared.held:
        return _again(end_of_shared(shared))
    if (name := _identifier(flow_run, "audit_id")) and (audit := session.get(Audit, name)) and audit.ended:
        return _again(_end(name, audit.error_detail))
    if (name := _identifier(flow_run, "run_id")) and (run := session.get(RetentionRun, name)) and run.ended:
        return _again(_end(name, run.error))
    return None


def _identifier(flow_run: FlowRun, parameter: str) -> UUID | None:
    try:
        return UUID(str(flow_run.parameters.get(parameter)))
    except ValueError:
        return None  # not given, or not one: the flow says so


def _end(what: UUID, error: str | None) -> State[Any]:
    return Completed(message=str(what)) if error is None else Failed(message=error)


def _again(state: State[Any]) -> State[Any]:
    state.message = f"{state.message}; {NOTHING_DONE}"
    return state
