"""The base_dir that each machine had when it was last used.

Objects are stored by their path below base_dir: another base_dir would silently mean other files.
"""

from __future__ import annotations

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from datamanager.errors import SettingsError
from datamanager.machines import Machine, Machines
from models.database import insert_if_free
from models.objects.catalogue import has_objects
from models.tables import MachineSeen, Transfer


def check_base_dirs(session: Session, machines: Machines, *, confirmed: bool) -> None:
    """Compare each machine's base_dir with the one seen last, and store it. Wants a writing session.

    Raises: SettingsError for a changed base_dir on a machine with objects or open transfers, unless `confirmed`;
    nothing is stored then.
    """
    for machine in machines.values():
        if insert_if_free(session, MachineSeen, {"name": machine.name, "base_dir": machine.base_dir}):
            continue
        seen = session.get_one(MachineSeen, machine.name, with_for_update=True, populate_existing=True)
        if seen.base_dir == machine.base_dir:
            continue
        if not confirmed and _in_use(session, machine):
            raise SettingsError(
                f"machines.{machine.name}.base_dir: was {seen.base_dir!r} and is {machine.base_dir!r} now, but the "
                "catalogue has objects there; put it back, or set DM_CONFIRM_BASE_DIR=1 if their files were moved too"
            )
        seen.base_dir = machine.base_dir


def _in_use(session: Session, machine: Machine) -> bool:
    ends = or_(Transfer.source_machine == machine.name, Transfer.destination_machine == machine.name)
    waiting = select(Transfer.id).where(Transfer.ended.is_(None), ends).limit(1)
    return has_objects(session, machine.name) or session.scalar(waiting) is not None
