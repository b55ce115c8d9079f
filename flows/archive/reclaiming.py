"""Bundles that nobody needs: of transfers that ended before theirs was sealed, and those whose last object has left.

Any mover removes them, at any time: no bundle of these states is read, and none ever gets needed again (see
`models.archive.bundles`). What can't be removed now is tried again.
"""

from __future__ import annotations

from datamanager.domain.bundle_model import manifest_place
from datamanager.domain.location import Place, temporary_name
from flows.cleanup.partial_files import EARLIER_EPOCHS, removed_beside
from flows.runtime.services import Services
from models.archive import bundles
from models.tables import Bundle, Transfer

AT_ONCE = 20
"""Bundles that are removed in one go."""


def reclaim(parts: Services) -> int:
    """Remove some bundles that nobody needs; return how many. Blocks: call it in a thread.

    Those that were sealed once stay where the setting `reclaim` is off. Raises: CatalogueUnavailable.
    """
    with parts.database.read() as session:
        rows = bundles.to_remove(session, AT_ONCE, list(parts.machines), unneeded=parts.settings.reclaim)
        epochs = {row.id: _epoch(session.get(Transfer, row.transfer_id)) for row in rows}
    removed = 0
    for row in rows:
        if _is_gone(parts, row, epochs[row.id]):
            with parts.database.write() as session:
                bundles.note_removed(session, row.id)
            removed += 1
    return removed


def _epoch(transfer: Transfer | None) -> int:
    return 0 if transfer is None else transfer.epoch


def _is_gone(parts: Services, row: Bundle, epoch: int) -> bool:
    """Remove bundle, manifest and partial files; say whether all of it is gone."""
    bundle = Place(row.machine, row.place)
    names = [bundle.name, manifest_place(row.id, bundle).name]
    for attempt in range(max(1, epoch - EARLIER_EPOCHS), epoch + 1):
        names += [temporary_name(name, row.transfer_id, attempt) for name in names[:2]]
    return removed_beside(parts, row.machine, [(bundle, name) for name in names], f"bundle {row.id}")
