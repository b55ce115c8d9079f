"""The requests of transfers: which model each kind has, as it comes in and as it is kept on the row."""

from __future__ import annotations

from datamanager.domain.archive.archive_requests import (
    AcceptedActivate,
    AcceptedArchive,
    ActivateManyRequest,
    ActivateRequest,
    ArchiveManyRequest,
    ArchiveRequest,
)
from datamanager.domain.requests import (
    AcceptedBatch,
    CopyManyRequest,
    CopyRequest,
    DeleteRequest,
    GetExternalRequest,
    MoveManyRequest,
    MoveRequest,
    TransferTerms,
)
from datamanager.domain.states import TransferKind
from models.tables import Transfer

REQUEST_OF_KIND: dict[TransferKind, type[TransferTerms]] = {
    TransferKind.COPY: CopyRequest,
    TransferKind.MOVE: MoveRequest,
    TransferKind.GETEXTERNAL: GetExternalRequest,
    TransferKind.DELETE: DeleteRequest,
    TransferKind.COPY_MANY: CopyManyRequest,
    TransferKind.MOVE_MANY: MoveManyRequest,
    TransferKind.ARCHIVE: ArchiveRequest,
    TransferKind.ACTIVATE: ActivateRequest,
    TransferKind.ARCHIVE_MANY: ArchiveManyRequest,
    TransferKind.ACTIVATE_MANY: ActivateManyRequest,
    TransferKind.GETEXTERNAL_MANY: GetExternalRequest,
}
"""What comes in."""
KEPT_OF_KIND: dict[TransferKind, type[TransferTerms]] = REQUEST_OF_KIND | {
    TransferKind.COPY_MANY: AcceptedBatch,
    TransferKind.MOVE_MANY: AcceptedBatch,
    TransferKind.ARCHIVE_MANY: AcceptedArchive,
    TransferKind.ACTIVATE_MANY: AcceptedActivate,
}
"""What is kept of it."""


def request_of(transfer: Transfer) -> TransferTerms:
    """Return the transfer's request, typed again; of a batch what is kept of it."""
    return KEPT_OF_KIND[TransferKind(transfer.kind)].model_validate(transfer.request)
