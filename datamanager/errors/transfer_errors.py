"""Errors of transfers that began and can't be completed, and reasons to interrupt one."""

from __future__ import annotations

from datetime import timedelta

from datamanager.errors.root import DataManagerError


class TransferError(DataManagerError):
    """A transfer that began and can't be completed."""

    code = "transfer_failed"


class SourceMissing(TransferError):
    """The source file is not there, or is no regular file."""

    code = "source_missing"


class SourceChanged(TransferError):
    """The source changed under the transfer; nothing was published."""

    code = "source_changed"


class SourceNotRemoved(TransferError):
    """A move or an archive published its copy but could not remove the source; the detail names both places."""

    code = "source_not_removed"


class SizeMismatch(TransferError):
    """Other bytes arrived than were announced; nothing was published."""

    code = "size_mismatch"


class ChecksumMismatch(TransferError):
    """The two ends' checksums differ; nothing was published."""

    code = "checksum_mismatch"
    retryable = True


class TooLarge(TransferError):
    """More bytes than are allowed."""

    code = "too_large"


class DownloadFailed(TransferError):
    """The external source answered with an error."""

    code = "download_failed"


class SecretsUnreadable(TransferError):
    """The key for the request's secrets is missing, or another one."""

    code = "secrets_unreadable"


class Cancelled(TransferError):
    """Somebody cancelled the transfer."""

    code = "cancelled"


class DeadlineExceeded(TransferError):
    """The request's deadline passed."""

    code = "deadline_exceeded"


class Paused(TransferError):
    """The transfer was paused; it keeps what it has moved and goes on when it is resumed."""

    code = "paused"


class Staging(TransferError):
    """An archive brings bundles from its tapes; the transfer goes on when they are there, and looks `again` later."""

    code = "staging"

    def __init__(self, detail: str, again: timedelta = timedelta(0), *, retryable: bool | None = None) -> None:
        super().__init__(detail, retryable=retryable)
        self.again = again


class ItemsFailed(TransferError):
    """Items of a batch failed; each has an error of its own, the others are done."""

    code = "items_failed"


class LeaseLost(TransferError):
    """The transfer's epoch moved on: another mover has it, this runner must touch nothing more."""

    code = "lease_lost"
