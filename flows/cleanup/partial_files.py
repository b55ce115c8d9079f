"""Partial files that ended transfers left behind: on a machine that was away, or where a mover died. Removed later.

A transfer that ends without having removed its partial file says so on its row, and so does a mover that lost one: it
may have made its partial file after the next one had looked for it. Movers come back to it until it is done, or given
up after a week.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Sequence
from datetime import timedelta

from datamanager.domain.location import Place, temporary_name
from datamanager.domain.states import TransferKind, TransferStatus
from datamanager.engine.bulk.bulk_chunk import item_id, part_name
from datamanager.engine.path_confinement import confined
from datamanager.errors import DataManagerError, PathMissing
from flows.runtime.services import Services
from models.batches import results as batch_results
from models.database import now
from models.tables import Transfer, TransferItem
from models.transfers import cancel_pause, outcomes
from models.transfers.items import select_items

AT_ONCE = 20
"""Transfers that are cleared up in one go."""
ITEMS_AT_ONCE = 500
"""Items of a batch that are cleared up in one go."""
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
        rows = cancel_pause.leaving_partials(session, AT_ONCE)
        time = now(session)
    done = 0
    for row in rows:
        given_up = row.ended is not None and row.ended < time - GIVEN_UP_AFTER
        if not given_up and not _removed(parts, row):
            continue
        with parts.database.write() as session:
            cancel_pause.note_clean(session, row.id)
        done += 1
    return done


def _removed(parts: Services, row: Transfer) -> bool:
    """Remove what a transfer left; say whether all of it is gone."""
    epochs = range(max(0, row.epoch - EARLIER_EPOCHS), row.epoch + 1)
    gone, last, kind = True, -1, TransferKind(row.kind)
    if not kind.itemised or kind is TransferKind.GETEXTERNAL_MANY:  # of that the archive whose files are its items
        place = outcomes.destination(row)
        names = [(place, temporary_name(place.name, row.id, epoch)) for epoch in epochs]
        gone = removed_beside(parts, place.machine, names, "partial files")
    if not kind.itemised:
        return gone
    while items := _doubtful(parts, row, last):
        last = items[-1].number
        partials: dict[str, list[tuple[Place, str]]] = {}
        for item in items:
            if item.destination_place is None:
                continue  # it was refused
            place = batch_results.destination(item)
            for epoch in epochs:
                alone = temporary_name(place.name, item_id(row.id, item.number), epoch)
                together = part_name(row.id, item.number, place.name, epoch)
                partials.setdefault(place.machine, []).extend([(place, alone), (place, together)])
        for machine, names in partials.items():
            gone = removed_beside(parts, machine, names, "partial files") and gone
    return gone


def _doubtful(parts: Services, row: Transfer, after: int) -> list[TransferItem]:
    """Return items that may have left a partial file: those that failed, and of one that was taken again all."""
    status = TransferStatus.ERROR if row.epoch == 1 else None
    with parts.database.read() as session:
        return select_items(session, row.id, status=status, after=after, limit=ITEMS_AT_ONCE)


def removed_beside(parts: Services, machine: str, names: Sequence[tuple[Place, str]], what: str) -> bool:
    """Remove files beside places of one machine; say whether all are gone. `what` is said of a machine that is away."""
    try:
        configured = parts.machines[machine]
        with parts.storages.get(machine).session() as session:
            directories: dict[str, str] = {}
            paths = []
            for place, name in names:
                directory = posixpath.dirname(place.path)
                if directory not in directories:
                    directories[directory] = posixpath.dirname(confined(session, configured, place.path, follow=False))
                paths.append(posixpath.join(directories[directory], name))
            gone = True
            for index, error in session.bulk.remove(paths):
                if error is not None and not isinstance(error, PathMissing):
                    log.info("%s: %s could not be removed yet: %s", machine, names[index][1], error.detail)
                    gone = False
    except DataManagerError as away:
        log.info("%s: %s could not be removed yet: %s", machine, what, away.detail)
        return False
    return gone
