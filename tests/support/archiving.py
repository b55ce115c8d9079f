"""What a mover does with the catalogue when it archives and activates, without the bytes."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid4

from datamanager.domain.bundle_model import Manifest, Member, Pack, SealedBundle, VerifyLevel
from datamanager.domain.location import Place
from datamanager.domain.states import Verified
from datamanager.errors import DataManagerError
from datamanager.machines import Machine
from models.access.visibility import ALL
from models.archive import items as archive_items
from models.batches import results as batch_results
from models.database import Database
from models.objects.catalogue import Facts, get_object
from models.tables import Bundle as BundleRow
from models.transfers import queue
from models.transfers.queue import TransferLease
from tests.support.bookkeeping import LEASE

SHA = "cd" * 32
FACTS = Facts(7, f"sha256:{SHA}", Verified.SHA256)


def manifest(database: Database, bundle: BundleRow, *objects: UUID) -> Manifest:
    """Return what the engine would say of a bundle of these objects."""
    members = []
    with database.read() as session:
        for number, uuid in enumerate(objects):
            obj = get_object(session, uuid, ALL)
            members.append(Member(uuid, Place(obj.machine, obj.place), 7, 0o644, 1, SHA, 512 + number * 2048))
    stored = SealedBundle(bundle.id, Pack.TAR, Place(bundle.machine, bundle.place), 10240, "ef" * 32)
    made = datetime(2026, 1, 1, tzinfo=UTC)
    return Manifest(stored, made, "tests", bundle.transfer_id, VerifyLevel.CHECKSUMS, 10240, tuple(members))


def perform(database: Database, transfer: UUID, archive: Machine) -> str | DataManagerError:
    """Do all of a transfer to or from an archive; return how it ended."""
    with database.write() as session:
        (hold,) = queue.take(session, "mover-of-archives", LEASE, 1, only=transfer)
    with database.write() as session:
        kind = queue.begin(session, hold, uuid4()).kind
        items = batch_results.items_to_do(session, hold, -1, 10_000)
    numbers = [item.number for item in items]
    if kind.startswith("activate"):
        with database.write() as session:
            archive_items.commit_recalls(session, hold, [(number, FACTS) for number in numbers])
    elif items:
        _archive(database, hold, numbers, archive, [item.object_id for item in items])
    with database.write() as session:
        return archive_items.finish(session, hold)


def _archive(
    database: Database, hold: TransferLease, numbers: list[int], archive: Machine, objects: list[UUID]
) -> None:
    with database.write() as session:
        bundle = archive_items.begin_bundle(session, hold, numbers, archive, Pack.TAR, VerifyLevel.CHECKSUMS)
    made = manifest(database, bundle, *objects)
    with database.write() as session:
        archive_items.commit_archive(session, hold, made, keep_source=False)
    with database.write() as session:
        batch_results.end_committed(session, hold, numbers)
