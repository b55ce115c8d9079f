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
from flows.sweep_files import sweep

AnyFlow = Flow[..., Coroutine[Any, Any, Any]]

DEPLOYMENT = "data-manager"
"""Every flow's deployment has this name: `copy/data-manager`."""

MAINTENANCE: dict[str, AnyFlow] = {
    "flows.audit_machine:audit": audit,
    "flows.sweep_files:sweep": sweep,
    "flows.apply_retention:retention": retention,
    "flows.fetch_recurring:recurring": recurring,
}
"""Flows that are no transfers: they have no row of one, and take no transfer's slot of a mover."""

ENTRYPOINTS: dict[str, AnyFlow] = {
    **MAINTENANCE,
    "flows.copy_data:copy_data": copy_data,
    "flows.move_data:move_data": move_data,
    "flows.get_external:get_external": get_external,
    "flows.get_external:extract_data": extract_data,
    "flows.delete_data:delete_data": delete_data,
    "flows.copy_data:copy_many": copy_many,
    "flows.move_data:move_many": move_many,
    "flows.archive_data:archive_data": archive_data,
    "flows.archive_data:archive_many": archive_many,
    "flows.activate_data:activate_data": activate_data,
    "flows.activate_data:activate_many": activate_many,
}

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
