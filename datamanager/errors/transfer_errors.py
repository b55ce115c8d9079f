"""Errors of a transfer that began and can't be completed."""

from __future__ import annotations

from datamanager.errors.root import DataManagerError


class TransferError(DataManagerError, code="transfer_failed"):
    """A running transfer cannot be completed."""


class SourceMissing(TransferError, code="source_missing"):
    """The source does not exist, or is not a regular file."""


class SourceChanged(TransferError, code="source_changed"):
    """The source changed during the transfer; nothing was published."""


class SourceNotRemoved(TransferError, code="source_not_removed"):
    """A move or an archive published its copy but could not remove the source; the detail names both places."""


class SizeMismatch(TransferError, code="size_mismatch"):
    """The number of bytes differs from the announced one; nothing was published."""


class ChecksumMismatch(TransferError, code="checksum_mismatch", retryable=True):
    """The two ends' checksums differ; nothing was published."""


class TooLarge(TransferError, code="too_large"):
    """The size limit is exceeded."""


class DownloadFailed(TransferError, code="download_failed"):
    """The external source reported an error."""


class SecretsUnreadable(TransferError, code="secrets_unreadable"):
    """The key for the request's secrets is missing or wrong."""


class Cancelled(TransferError, code="cancelled"):
    """The transfer was cancelled."""


class DeadlineExceeded(TransferError, code="deadline_exceeded"):
    """The request's deadline passed."""


class Paused(TransferError, code="paused"):
    """The transfer is paused; transferred data is kept until it is resumed."""


class Staging(TransferError, code="staging"):
    """An archive is staging bundles from tape; the transfer polls after `again` and then continues."""


class ItemsFailed(TransferError, code="items_failed"):
    """Items of a batch failed; each has its own error, the others are complete."""


class LeaseLost(TransferError, code="lease_lost"):
    """The transfer's epoch has increased: another mover owns it, and this one must not touch it any more."""
