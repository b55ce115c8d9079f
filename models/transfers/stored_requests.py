"""The requests of transfers: which model each kind has, as it comes in and as it is kept on the row."""

from __future__ import annotations

from typing import TypeVar

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
from datamanager.errors import InternalError
from models.tables import Transfer

R = TypeVar("R", bound=TransferTerms)

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


def request_as(transfer: Transfer, model: type[R], what: str) -> R:
    """Return the request of a transfer that must be a `what`. Raises: InternalError for another one."""
    request = request_of(transfer)
    if not isinstance(request, model):
        raise InternalError(f"transfer {transfer.id} is not a {what}")
    return request


def request_of(transfer: Transfer) -> TransferTerms:
    """Return the transfer's request, typed again; of a batch what is kept of it."""
    return KEPT_OF_KIND[TransferKind(transfer.kind)].model_validate(transfer.request)
