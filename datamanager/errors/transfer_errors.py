"""Errors of transfers that began and can't be completed, and reasons to interrupt one."""

from __future__ import annotations

from datetime import timedelta

from datamanager.errors.root import DataManagerError


class TransferError(DataManagerError):
    """A running transfer cannot be completed."""

    code = "transfer_failed"


class SourceMissing(TransferError):
    """The source does not exist, or is not a regular file."""

    code = "source_missing"


class SourceChanged(TransferError):
    """The source changed during the transfer; nothing was published."""

    code = "source_changed"


class SourceNotRemoved(TransferError):
    """A move or an archive published its copy but could not remove the source; the detail names both places."""

    code = "source_not_removed"


class SizeMismatch(TransferError):
    """The number of bytes differs from the announced one; nothing was published."""

    code = "size_mismatch"


class ChecksumMismatch(TransferError):
    """The two ends' checksums differ; nothing was published."""

    code = "checksum_mismatch"
    retryable = True


class TooLarge(TransferError):
    """The size limit is exceeded."""

    code = "too_large"


class DownloadFailed(TransferError):
    """The external source reported an error."""

    code = "download_failed"


class SecretsUnreadable(TransferError):
    """The key for the request's secrets is missing or wrong."""

    code = "secrets_unreadable"


class Cancelled(TransferError):
    """The transfer was cancelled."""

    code = "cancelled"


class DeadlineExceeded(TransferError):
    """The request's deadline passed."""

    code = "deadline_exceeded"


class Paused(TransferError):
    """The transfer is paused; transferred data is kept until it is resumed."""

    code = "paused"


class Staging(TransferError):
    """An archive is staging bundles from tape; the transfer polls after `again` and then continues."""

    code = "staging"

    def __init__(self, detail: str, again: timedelta = timedelta(0), *, retryable: bool | None = None) -> None:
        super().__init__(detail, retryable=retryable)
        self.again = again


class ItemsFailed(TransferError):
    """Items of a batch failed; each has its own error, the others are complete."""

    code = "items_failed"


class LeaseLost(TransferError):
    """The transfer's epoch has increased: another mover owns it, and this one must not touch it any more."""

    code = "lease_lost"
