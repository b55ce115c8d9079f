"""Every error of the Data Manager, and what a caller may do about it.

    DataManagerError
    ├── RequestError                 the request can't be accepted as it is; nothing was changed
    │   ├── NotAuthenticated         not_authenticated    (who asks is not known)
    │   ├── NotAllowed               not_allowed          (who asks is known, and may not do this)
    │   ├── MalformedBody            malformed_body
    │   ├── InvalidRequest           invalid_request      (names each field)
    │   ├── UnknownMachine           unknown_machine
    │   ├── PathNotAllowed           path_not_allowed
    │   ├── UrlNotAllowed            url_not_allowed
    │   ├── RegisteredSizeMismatch   size_mismatch
    │   ├── CredentialUnknown        credential_unknown
    │   ├── CredentialUnusable       credential_unusable
    │   ├── CredentialNotAllowed     credential_not_allowed
    │   ├── IdempotencyMismatch      idempotency_mismatch
    │   ├── OriginNotAllowed         origin_not_allowed
    │   ├── ConnectionNotSecure      connection_not_secure (it came without TLS)
    │   ├── CsrfTokenMissing         csrf_token_missing   (of a request with a browser's session)
    │   ├── NotSupported             not_supported
    │   ├── QuotaExceeded            quota_exceeded       (retryable) of objects, bytes or tasks
    │   ├── TooManyRequests          too_many_requests    (retryable) per second
    │   └── TooManyStreams           too_many_streams     (retryable)
    ├── CatalogueError               the catalogue says no
    │   ├── ObjectNotFound           object_not_found
    │   ├── TaskNotFound             task_not_found
    │   ├── TokenNotFound            token_not_found
    │   ├── AuditNotFound            audit_not_found
    │   ├── AuditSuspicious          audit_suspicious     (so much is lost that it is not believed)
    │   ├── DutyTaken                duty_taken           (retryable) maintenance of a kind is one run at a time
    │   ├── ScheduleNotFound         schedule_not_found
    │   ├── TaskEnded                task_ended
    │   ├── ObjectDeleted            object_deleted
    │   ├── ObjectArchived           object_archived
    │   ├── ObjectActive             object_active
    │   ├── ObjectUnknown            object_unknown
    │   ├── ObjectBusy               object_busy
    │   ├── ObjectHeld               object_held
    │   ├── NotMarked                not_marked
    │   ├── RetentionRunNotFound     retention_run_not_found
    │   ├── QueryTooSlow             query_too_slow       (narrow it)
    │   └── DestinationExists        destination_exists
    ├── TransportError               a machine, or the way to it
    │   ├── MachineUnavailable       machine_unavailable  (retryable)
    │   ├── ConnectionLost           connection_lost      (retryable)
    │   ├── TransportTimeout         timeout              (retryable)
    │   ├── HostKeyMismatch          host_key_mismatch
    │   ├── AuthenticationFailed     authentication_failed
    │   ├── NoLogin                  no_login             (a machine that acts as the caller, for nobody)
    │   ├── LoginOutput              login_output         (its operator has to change a login script)
    │   ├── PermissionDenied         permission_denied
    │   ├── NoSpace                  no_space
    │   ├── PathMissing              path_missing         (the engine says which side: source_missing)
    │   ├── PathExists               path_exists          (the engine says: destination_exists)
    │   ├── PathReplaced             path_replaced        (by a link that may lead out of the base directory)
    │   └── RemoteFailure            remote_error         (the other side's own error)
    ├── TransferError                a transfer that began and can't be completed
    │   ├── SourceMissing            source_missing
    │   ├── SourceChanged            source_changed
    │   ├── SourceNotRemoved         source_not_removed
    │   ├── SizeMismatch             size_mismatch
    │   ├── ChecksumMismatch         checksum_mismatch    (retryable)
    │   ├── TooLarge                 too_large
    │   ├── DownloadFailed           download_failed      (retryable for 5xx, 408 and 429)
    │   ├── SecretsUnreadable        secrets_unreadable
    │   ├── Cancelled                cancelled
    │   ├── DeadlineExceeded         deadline_exceeded
    │   ├── Paused                   paused               (not an end: it continues when it is resumed)
    │   ├── Staging                  staging              (not an end: an archive brings bundles from its tapes)
    │   ├── ItemsFailed              items_failed         (of a batch; each item has its own error)
    │   └── LeaseLost                lease_lost           (another mover has the transfer)
    ├── ServiceError                 a part of the service itself is away
    │   ├── CatalogueUnavailable     catalogue_unavailable    (retryable)
    │   │   └── CatalogueFull        no_space                 (retryable) the disk of the service itself
    │   ├── OrchestratorUnavailable  orchestrator_unavailable (retryable)
    │   ├── BrokerUnavailable        broker_unavailable       (retryable)
    │   ├── ServerBusy               server_busy              (retryable)
    │   ├── SigningUnavailable       signing_unavailable      (retryable) the signer of SSH certificates
    │   └── SigningFailed            signing_failed
    ├── SettingsError                invalid_settings     (stops the start)
    │   └── InvalidRules             invalid_rules        (of retention)
    └── InternalError                internal             (a fault of ours)

`code` is stable: clients may compare it. `retryable` says whether the same thing may work if it is tried again later;
a fatal error ends a transfer at once. Nothing here knows HTTP: the API has the table of statuses.
"""

from __future__ import annotations

from collections.abc import Iterator

from datamanager.errors.catalogue_errors import *  # noqa: F403
from datamanager.errors.request_errors import *  # noqa: F403
from datamanager.errors.request_errors import UnknownMachine
from datamanager.errors.root import DataManagerError as DataManagerError
from datamanager.errors.service_errors import *  # noqa: F403
from datamanager.errors.service_errors import InternalError
from datamanager.errors.transfer_errors import *  # noqa: F403
from datamanager.errors.transfer_errors import TransferError
from datamanager.errors.transport_errors import *  # noqa: F403
from datamanager.errors.transport_errors import TransportError


def every_error(root: type[DataManagerError] = DataManagerError) -> Iterator[type[DataManagerError]]:
    """Yield `root` and all classes below it, parents first."""
    yield root
    for child in root.__subclasses__():
        yield from every_error(child)


def by_code(code: str, detail: str, *, retryable: bool | None = None) -> DataManagerError:
    """Return an error of the class that owns `code` (for faults read back from the catalogue, or from an answer).

    `size_mismatch` and `no_space` have two owners; a transfer's and a machine's are meant here. An unknown
    code becomes InternalError.
    """
    classes = [*every_error(TransferError), *every_error(TransportError), *every_error()]
    leaves_first = sorted(classes, key=lambda cls: bool(cls.__subclasses__()))
    cls = next((cls for cls in leaves_first if cls.code == code), InternalError)
    if cls is UnknownMachine:  # made of a machine's name; here its sentence is already there
        error = UnknownMachine("")
        DataManagerError.__init__(error, detail, retryable=retryable)
        return error
    return cls(detail, retryable=retryable)
