"""Second looks at files that transfers did not find: an object whose file is not there either time becomes UNKNOWN."""

from __future__ import annotations

import logging

from datamanager.engine.path_confinement import confined
from datamanager.errors import DataManagerError, PathMissing, RemoteFailure
from datamanager.machines import Machine
from datamanager.transports.port import Session
from datamanager.transports.values import FileKind
from flows.runtime.services import Services
from models.audit import missing_objects
from models.audit.missing_objects import MissingObject
from models.machines import health

AT_ONCE = 100
"""Second looks that are made in one go."""

log = logging.getLogger(__name__)


def look_again(parts: Services) -> int:
    """Make the second looks that are due; return how many objects became UNKNOWN. Blocks: call it in a thread.

    On a machine that is away nothing is found missing; it is looked at again a minute later. Raises:
    CatalogueUnavailable.
    """
    with parts.database.read() as session:
        if not missing_objects.any_due(session):
            return 0
        machines = set(parts.machines) - health.unavailable(session)
    with parts.database.write() as session:
        taken = missing_objects.take_due(session, parts.owner, machines, AT_ONCE)
    lost = 0
    for missing in taken:
        try:
            machine = parts.machines[missing.place.machine]
            with parts.storages.get(machine.name).session() as session:
                there = _is_there(session, machine, missing)
        except DataManagerError as error:
            log.info("object %s: %s can't be looked for again yet: %s", missing.id, missing.place, error.detail)
            continue
        with parts.database.write() as writing:
            if missing_objects.settle(writing, parts.owner, missing, there=there):
                log.warning("object %s is UNKNOWN: %s was not found twice", missing.id, missing.place)
                lost += 1
    return lost


def _is_there(session: Session, machine: Machine, missing: MissingObject) -> bool:
    """Say whether a file is at an object's place.

    Raises: RemoteFailure when base_dir is missing, or empty although there are other objects: its file system may not
    be mounted; what the transport raises.
    """
    try:
        return session.stat(confined(session, machine, missing.place.path)).kind is FileKind.FILE
    except PathMissing:
        pass
    try:
        if missing.alone or any(True for _ in session.list_dir(machine.base_dir)):
            session.stat(machine.base_dir)
            return False
    except PathMissing:
        pass
    raise RemoteFailure(f"base_dir of {machine.name} is missing or empty: is its file system mounted?")
