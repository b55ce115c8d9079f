"""What transfers left behind: partial files of ended ones, and bundles that nobody needs. Movers remove it later.

A transfer that ends without having removed its partial file notes so on its row (its machine was away, or a mover
died), and so does a mover that lost one: it may have made its partial file after the next one had looked for it. Movers
try until it is removed, or given up after a week.
Bundles go whose transfer ended before they were sealed, and those whose last object has left: no bundle of these states
is read, and none ever gets needed again (see `models.archive.bundles`).
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from uuid import UUID

from datamanager.domain.bundle_model import manifest_place
from datamanager.domain.location import Place, aside_name, temporary_name
from datamanager.domain.states import TransferKind, TransferStatus
from datamanager.engine.bulk.bulk_chunk import item_id, part_name
from datamanager.engine.bundles.member_files import aside_key
from datamanager.engine.path_confinement import confined
from datamanager.errors import DataManagerError, InvalidRequest, NotAllowed, PathMissing
from datamanager.machines import Machine
from datamanager.transports.port import Session
from datamanager.transports.values import shown
from flows.runtime.acting import clearing_up_for
from flows.runtime.services import Services
from models.archive import bundles
from models.batches import results as batch_results
from models.database import now
from models.tables import Bundle, Transfer, TransferItem
from models.transfers import cancel_pause, outcomes
from models.transfers.items import select_items

AT_ONCE = 20
"""Transfers, or bundles, that are cleared up in one go."""
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
        if not given_up and not _as_person(parts, row, partial(_removed, row=row)):
            continue
        with parts.database.write() as session:
            cancel_pause.note_clean(session, row.id)
        done += 1
    return done


def _as_person(parts: Services, row: Transfer | None, removes: Callable[[Services], bool]) -> bool:
    """Have something removed as the person for whom a transfer worked; say whether all of it is gone."""
    try:
        with clearing_up_for(parts, row) as acting:
            return removes(acting)
    except (NotAllowed, InvalidRequest) as error:
        log.info("transfer %s: what it left can't be removed for its person: %s", row and row.id, error.detail)
        return False


def _removed(parts: Services, row: Transfer) -> bool:
    """Remove what a transfer left; say whether all of it is gone."""
    epochs = range(max(0, row.epoch - EARLIER_EPOCHS), row.epoch + 1)
    gone, last, kind = True, -1, TransferKind(row.kind)
    if not kind.itemised and kind.removes_sources and row.source_machine is not None:
        gone = put_back(parts, row.source_machine, [(outcomes.source(row), row.id)])
    # of GETEXTERNAL_MANY the archive whose files are its items
    if kind.leaves_parts and (not kind.itemised or kind is TransferKind.GETEXTERNAL_MANY):
        place = outcomes.destination(row)
        names = [(place, temporary_name(place.name, row.id, epoch)) for epoch in epochs]
        gone = removed_beside(parts, place.machine, names, "partial files") and gone
    if not kind.itemised:
        return gone
    while items := _doubtful(parts, row, last):
        last = items[-1].number
        partials: dict[str, list[tuple[Place, str]]] = {}
        asides: dict[str, list[tuple[Place, UUID]]] = {}
        for item in items:
            if item.destination_place is None:
                continue  # it was refused
            if kind.removes_sources and item.source_place is not None:
                source = batch_results.source(item)
                moves = kind is TransferKind.MOVE_MANY
                key = item_id(row.id, item.number) if moves else aside_key(row.id, item.object_id)
                asides.setdefault(source.machine, []).append((source, key))
            if not kind.leaves_parts:
                continue
            place = batch_results.destination(item)
            for epoch in epochs:
                alone = temporary_name(place.name, item_id(row.id, item.number), epoch)
                together = part_name(row.id, item.number, place.name, epoch)
                partials.setdefault(place.machine, []).extend([(place, alone), (place, together)])
        for machine, sources in asides.items():
            gone = put_back(parts, machine, sources) and gone
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
        with parts.storages.get(machine).session() as session:
            paths, gone = _beside(session, parts.machines[machine], names), True
            for index, error in session.bulk.remove(paths):
                if error is not None and not isinstance(error, PathMissing):
                    log.info("%s: %s could not be removed yet: %s", machine, names[index][1], error.detail)
                    gone = False
    except DataManagerError as away:
        log.info("%s: %s could not be removed yet: %s", machine, what, away.detail)
        return False
    return gone


def put_back(parts: Services, machine: str, sources: Sequence[tuple[Place, UUID]]) -> bool:
    """Give sources of one machine their names back that a move or a delete took aside and did not remove; say whether
    none is left aside. They are never removed: what they are was not proved. One whose name is taken again stays.
    """
    names = [(place, aside_name(place.name, key)) for place, key in sources]
    names += [(place, place.name) for place, _ in sources]
    try:
        with parts.storages.get(machine).session() as session:
            paths, gone = _beside(session, parts.machines[machine], names), True
            pairs = list(zip(paths[: len(sources)], paths[len(sources) :], strict=True))
            for index, error in session.bulk.rename(pairs, overwrite=False):
                if error is None:
                    log.warning("%s was not removed, and has its name again", sources[index][0])
                elif not isinstance(error, PathMissing):
                    log.warning("%s lies at %s: %s", sources[index][0], shown(pairs[index][0]), error.detail)
                    gone = False
    except DataManagerError as away:
        log.info("%s: sources may lie aside yet: %s", machine, away.detail)
        return False
    return gone


def _beside(session: Session, machine: Machine, names: Sequence[tuple[Place, str]]) -> list[str]:
    """Return the paths of names beside places."""
    directories: dict[str, str] = {}
    paths = []
    for place, name in names:
        directory = posixpath.dirname(place.path)
        if directory not in directories:
            directories[directory] = posixpath.dirname(confined(session, machine, place.path, follow=False))
        paths.append(posixpath.join(directories[directory], name))
    return paths


def reclaim(parts: Services) -> int:
    """Remove some bundles that nobody needs; return how many. Blocks: call it in a thread.

    Those that were sealed once stay where the setting `reclaim` is off. Raises: CatalogueUnavailable.
    """
    with parts.database.read() as session:
        rows = bundles.to_remove(session, AT_ONCE, list(parts.machines), unneeded=parts.settings.reclaim)
        makers = {row.id: session.get(Transfer, row.transfer_id) for row in rows}
    removed = 0
    for row in rows:
        maker = makers[row.id]
        if _as_person(parts, maker, partial(_removed_bundle, row=row, maker=maker)):
            with parts.database.write() as session:
                bundles.note_removed(session, row.id)
            removed += 1
    return removed


def _removed_bundle(parts: Services, row: Bundle, maker: Transfer | None) -> bool:
    """Remove bundle, manifest and partial files; say whether all of it is gone."""
    bundle, epoch = Place(row.machine, row.place), 0 if maker is None else maker.epoch
    names = [bundle.name, manifest_place(row.id, bundle).name]
    for attempt in range(max(1, epoch - EARLIER_EPOCHS), epoch + 1):
        names += [temporary_name(name, row.transfer_id, attempt) for name in names[:2]]
    return removed_beside(parts, row.machine, [(bundle, name) for name in names], f"bundle {row.id}")
