"""The flows that this project ships: the only ones that a mover runs.

Reaching Prefect's API must not be code execution, so an entry point that is not in this table is refused.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from prefect import Flow

from datamanager.domain.states import TransferKind
from flows.activate_data import activate_data, activate_many
from flows.apply_retention import retention
from flows.archive_data import archive_data, archive_many
from flows.audit_machine import audit
from flows.copy_data import copy_data, copy_many
from flows.delete_data import delete_data
from flows.fetch_recurring import recurring
from flows.get_external import extract_data, get_external
from flows.move_data import move_data, move_many
from flows.share_run import share_run
from flows.sweep_files import sweep

AnyFlow = Flow[..., Coroutine[Any, Any, Any]]

DEPLOYMENT = "data-manager"
"""Every flow's deployment has this name: `copy/data-manager`."""

FLOW_OF_KIND: dict[TransferKind, AnyFlow] = {
    TransferKind.COPY: copy_data,
    TransferKind.MOVE: move_data,
    TransferKind.GETEXTERNAL: get_external,
    TransferKind.DELETE: delete_data,
    TransferKind.COPY_MANY: copy_many,
    TransferKind.MOVE_MANY: move_many,
    TransferKind.ARCHIVE: archive_data,
    TransferKind.ACTIVATE: activate_data,
    TransferKind.ARCHIVE_MANY: archive_many,
    TransferKind.ACTIVATE_MANY: activate_many,
    TransferKind.GETEXTERNAL_MANY: extract_data,
}

SHARED: AnyFlow = share_run
"""The flow of transfers that share a run: movers begin it, and nobody else."""

MAINTENANCE: tuple[AnyFlow, ...] = (audit, sweep, retention, recurring)
"""Flows that are no transfers: they have no row of one, and take no transfer's slot of a mover."""

FORMER_ENTRYPOINTS: dict[str, AnyFlow] = {
    "flows.copy_data:copy_many": copy_many,
    "flows.move_data:move_many": move_many,
    "flows.get_external:extract_data": extract_data,
    "flows.audit_machine:audit": audit,
    "flows.sweep_files:sweep": sweep,
    "flows.apply_retention:retention": retention,
    "flows.fetch_recurring:recurring": recurring,
}
"""Where flows were in earlier versions. Runs that wait under a deployment of that time still run; `dm deploy` brings it
up to date."""


def entrypoint_of(flow: AnyFlow) -> str:
    """Return what prefect.yaml calls a flow: `module:function`."""
    return f"{flow.fn.__module__}:{flow.fn.__name__}"


ENTRYPOINTS: dict[str, AnyFlow] = {entrypoint_of(flow): flow for flow in (*FLOW_OF_KIND.values(), SHARED, *MAINTENANCE)}


def flow_at(entrypoint: str | None) -> AnyFlow | None:
    """Return the flow that an entry point names, or named in an earlier version; None when it is none of ours."""
    if entrypoint is None:
        return None
    return ENTRYPOINTS.get(entrypoint) or FORMER_ENTRYPOINTS.get(entrypoint)
