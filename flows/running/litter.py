"""Partial files that ended transfers left behind: on a machine that was away, or where a mover died. Removed later.

A transfer that ends without having removed its partial file says so on its row. Movers come back to it until it is
done, or given up after a week.
"""

from __future__ import annotations

import logging
import posixpath
from datetime import timedelta

from datamanager.domain.location import temporary_name
from datamanager.engine.confine import confined
from datamanager.errors import DataManagerError, PathMissing
from flows.running.services import Services
from models import control, outcomes
from models.database import now
from models.tables import Transfer

AT_ONCE = 20
"""Transfers that are cleared up in one go."""
GIVEN_UP_AFTER = timedelta(days=7)
EARLIER_EPOCHS = 20
"""How many attempts' partial files are looked for."""

log = logging.getLogger(__name__)


def clear_up(parts: Services) -> int:
    """Remove what some ended transfers left; return how many of them are clean now. Blocks: call it in a thread.

    What can't be removed now is tried again by the next call. Touches only names that those transfers' own attempts
    gave. Raises: CatalogueUnavailable.
    """
    with parts.database.read() as session:
        rows = control.littered(session, AT_ONCE)
        time = now(session)
    done = 0
    for row in rows:
        given_up = row.ended is not None and row.ended < time - GIVEN_UP_AFTER
        if not given_up and not _removed(parts, row):
            continue
        with parts.database.write() as session:
            control.clean(session, row.id)
        done += 1
    return done


def _removed(parts: Services, row: Transfer) -> bool:
    if row.destination_machine is None or row.destination_place is None:
        return True  # a batch, whose items remove their own
    place = outcomes.destination(row)
    try:
        machine = parts.machines[place.machine]
        with parts.storages.get(place.machine).session() as session:
            directory = posixpath.dirname(confined(session, machine, place.path, follow=False))
            for epoch in range(max(1, row.epoch - EARLIER_EPOCHS), row.epoch + 1):
                try:
                    session.remove(posixpath.join(directory, temporary_name(place.name, row.id, epoch)))
                except PathMissing:
                    continue
    except PathMissing:
        return True  # not even the directory is there
    except DataManagerError as error:
        log.info("transfer %s: its partial file stays for now: %s", row.id, error.detail)
        return False
    return True
