"""What a mover does to archive and activate, bytes included: files of `here` into bundles on `tape`, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from prefect.logging import disable_run_logger

from datamanager.domain.archive_requests import (
    ActivateManyRequest,
    ActivateRequest,
    ArchiveManyRequest,
    ArchiveRequest,
)
from datamanager.domain.location import Place
from datamanager.domain.requests import RegisterRequest, TransferTerms, validated
from datamanager.domain.states import TransferKind
from datamanager.engine.control import Control
from datamanager.errors import DataManagerError
from flows.archive import bundling, recalling
from flows.runtime.services import Services
from flows.runtime.transfer_run import TransferRun
from models import submission
from models.access.visibility import ALL
from models.archive import items as archive_items
from models.batches import results as batch_results
from models.objects.catalogue import Facts, get_object, register_object
from models.submission import SealedRequest
from models.tables import DataObject
from models.transfers import queue
from tests.support.bookkeeping import LEASE


def folder(parts: Services, machine: str) -> Path:
    """Return a machine's base_dir."""
    return Path(parts.machines[machine].base_dir)


def an_object(parts: Services, path: str, data: bytes) -> UUID:
    """Write a file of `here` and register it."""
    file = folder(parts, "here") / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    directory, _, name = path.rpartition("/")
    request = RegisterRequest(filename=name, path=directory, machine="here")
    with parts.database.write() as session:
        return register_object(session, request, Place("here", path), Facts(len(data)), by=None)


def submit(parts: Services, kind: str, *objects: UUID, **fields: Any) -> UUID:
    """Submit an archive or activate of one object or many; return the transfer."""
    archiving, many = kind == "archive", len(objects) > 1
    if many:
        fields["items"] = list(objects)
        model: type[TransferTerms] = ArchiveManyRequest if archiving else ActivateManyRequest
    else:
        model = ArchiveRequest if archiving else ActivateRequest
    order = SealedRequest(
        TransferKind(f"{kind}_many" if many else kind),
        validated(fields, model),
        None if many else objects[0],
        grant=None,
    )
    with parts.database.write() as session:
        return submission.submit(session, parts.machines, order).id


def attempt(parts: Services, transfer: UUID, control: Control | None = None) -> TransferRun:
    """Take a transfer as a mover does; return the attempt's work."""
    with parts.database.write() as session:
        (hold,) = queue.take(session, "mover", LEASE, 1, only=transfer)
    with parts.database.write() as session:
        row = queue.begin(session, hold, uuid4())
    with disable_run_logger():
        return TransferRun(parts, hold, row, control or Control())


def perform(work: TransferRun) -> str | DataManagerError:
    """Do all of a transfer, as its flow does."""
    with work.parts.database.read() as session:
        rows = batch_results.items_to_do(session, work.hold, -1, 10_000)
    if work.row.kind.startswith("archive"):
        groups = bundling.plan(work, rows)
        for group in groups:
            bundling.BundleWork(work, group, whole=len(groups) == 1).perform()
    else:
        for group in recalling.plan(work, rows):
            recalling.performing(work, group, recalling.RecallChunk)()
    with work.parts.database.write() as session:
        return archive_items.finish(session, work.hold)


def done(parts: Services, kind: str, *objects: UUID, **fields: Any) -> str | DataManagerError:
    """Submit and perform; return how it ended."""
    return perform(attempt(parts, submit(parts, kind, *objects, **fields)))


def status(parts: Services, uuid: UUID) -> str:
    """Return an object's status."""
    return row_of(parts, uuid).status


def row_of(parts: Services, uuid: UUID) -> DataObject:
    """Return an object's row."""
    with parts.database.read() as session:
        return get_object(session, uuid, ALL)


def stored(parts: Services) -> list[str]:
    """Return the names of the files on `tape`."""
    return sorted(file.name for file in folder(parts, "tape").rglob("*") if file.is_file())


def bundle_file(parts: Services, uuid: UUID) -> Path:
    """Return the bundle that an archived object is in."""
    return folder(parts, "tape") / str(row_of(parts, uuid).archived_in).removeprefix("tape:")
