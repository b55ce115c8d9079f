"""The flow that compares a machine's storage with the catalogue. It is no transfer: it takes none of their slots."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

from prefect import flow
from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from sqlalchemy.orm import Session

from datamanager.domain.audit_rules import AuditTerms
from datamanager.domain.requests import validated
from datamanager.engine.control import Control
from datamanager.errors import CatalogueUnavailable, DataManagerError, InternalError, LeaseLost
from flows.audit.context import Examination
from flows.audit.first_pass import first_look
from flows.audit.report import show_audit
from flows.audit.scrub import scrub
from flows.audit.second_pass import conclude, second_look
from flows.runtime.maintenance import control_of, kept, pause, this_run, threaded
from flows.runtime.services import Services, services
from models.access.visibility import ALL
from models.audit import runs as audit_runs
from models.audit.runs import AuditLease
from models.database import read, write
from models.machines import health

TURN_EVERY = 5.0  # seconds between two looks whether another run has ended its audit of the same machine


@flow(name="audit", persist_result=False)
async def audit(
    machine: str = "",
    scrub_share: float = 0.02,
    scrub_bytes: int = 100 * 2**30,
    second_look: float = 60.0,
    most_lost: float = 0.1,
    accept_losses: bool = False,
    audit_id: UUID | None = None,
) -> str:
    """Compare the files of a machine with the catalogue. Nothing is deleted.

    Args:
        machine: The machine; empty means all, one after the other.
        scrub_share: Fraction of the objects with a checksum to hash again, 0 to 1.
        scrub_bytes: Maximum number of bytes to hash.
        second_look: Seconds between the two passes.
        most_lost: Fraction of lost objects (0 to 1) above which no object is changed.
        accept_losses: Accept any number of lost objects.
        audit_id: Leave it empty. It is set by the Data Manager.
    """
    form, parts = locals(), services()
    rows: Sequence[UUID] = [audit_id] if audit_id is not None else []
    if audit_id is None:
        terms = validated({name: form[name] for name in AuditTerms.model_fields}, AuditTerms)
        rows = await _enter(parts, [parts.machines[machine].name] if machine else list(parts.machines), terms)
    said, failed = list[str](), list[DataManagerError]()
    for row in rows:
        try:
            said.append(await _audited(parts, row))
        except LeaseLost as lost:
            raise Abort(lost.detail) from lost  # another run has it: this one must not say how it ended
        except DataManagerError as error:
            if control_of(parts).stopping is not None:
                await write(parts.database, audit_runs.drop_rest, this_run(), error)
                raise
            get_run_logger().warning("%s: %s", error.code, error.detail)
            failed.append(error)
    if failed:
        raise failed[0]
    return "; ".join(said) or "no machine is configured"


async def _enter(parts: Services, machines: Sequence[str], terms: AuditTerms) -> list[UUID]:
    def enter(session: Session, run: UUID) -> list[UUID]:
        return [audit_runs.submit(session, name, terms, None, flow_run=run).id for name in machines]

    return await write(parts.database, enter, this_run())


async def _audited(parts: Services, audit: UUID) -> str:
    """Perform one audit and end it, well or not; return what it found in one line."""
    control = control_of(parts)
    hold, terms = await _begun(parts, audit)
    try:
        async with kept(parts, lambda session: audit_runs.renew(session, hold, parts.settings.lease), control):
            exam = await threaded(control, _examination, parts, hold, terms, control)
            await threaded(control, first_look, exam)
            await threaded(control, scrub, exam)
            await pause(control, terms.second_look)
            await threaded(control, second_look, exam)
            await threaded(control, conclude, exam)
            await write(parts.database, audit_runs.end, hold)
    except asyncio.CancelledError:
        # the mover stops: another one begins anew
        await asyncio.shield(write(parts.database, audit_runs.release, hold))
        raise
    except (LeaseLost, CatalogueUnavailable):
        raise
    except DataManagerError as error:
        await _end_in_error(parts, hold, error)
        raise
    except Exception as error:
        get_run_logger().exception("internal error")
        await _end_in_error(parts, hold, InternalError(f"unexpected {type(error).__name__}"))
        raise
    parts.notify("posted")
    return await show_audit(parts, audit)


async def _end_in_error(parts: Services, hold: AuditLease, error: DataManagerError) -> None:
    await write(parts.database, audit_runs.end, hold, error)
    parts.notify("posted")
    await show_audit(parts, hold.audit)


async def _begun(parts: Services, audit: UUID) -> tuple[AuditLease, AuditTerms]:
    """Begin when it is this audit's turn: one run audits a machine at a time."""
    run, control = this_run(), control_of(parts)
    while True:
        hold = await write(parts.database, audit_runs.begin, audit, run, parts.settings.lease)
        if hold is not None:
            break
        await pause(control, TURN_EVERY)

    row = await read(parts.database, audit_runs.get_audit, audit, ALL)
    return hold, AuditTerms.model_validate(row.options)


def _examination(parts: Services, hold: AuditLease, terms: AuditTerms, control: Control) -> Examination:
    """Make ready. Raises: UnknownMachine, MachineUnavailable for one that is drained or known to be away."""
    with parts.database.read() as session:
        health.require_open(session, [hold.machine])
    return Examination(parts, hold, terms, control)
