"""Every error of the Data Manager, and what a caller may do about it.

    DataManagerError
    ├── RequestError                 the request can't be accepted as it is; nothing was changed
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
    │   └── NotSupported             not_supported
    ├── CatalogueError               the catalogue says no
    │   ├── ObjectNotFound           object_not_found
    │   ├── TaskNotFound             task_not_found
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
    │   └── DestinationExists        destination_exists
    ├── TransportError               a machine, or the way to it
    │   ├── MachineUnavailable       machine_unavailable  (retryable)
    │   ├── ConnectionLost           connection_lost      (retryable)
    │   ├── TransportTimeout         timeout              (retryable)
    │   ├── HostKeyMismatch          host_key_mismatch
    │   ├── AuthenticationFailed     authentication_failed
    │   ├── PermissionDenied         permission_denied
    │   ├── NoSpace                  no_space
    │   ├── PathMissing              path_missing         (the engine says which side: source_missing)
    │   ├── PathExists               path_exists          (the engine says: destination_exists)
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
    │   ├── Paused                   paused               (not an end: it goes on when it is resumed)
    │   ├── Staging                  staging              (not an end: an archive brings bundles from its tapes)
    │   ├── ItemsFailed              items_failed         (of a batch; each item has its own error)
    │   └── LeaseLost                lease_lost           (another mover has the transfer)
    ├── ServiceError                 a part of the service itself is away
    │   ├── CatalogueUnavailable     catalogue_unavailable    (retryable)
    │   ├── OrchestratorUnavailable  orchestrator_unavailable (retryable)
    │   └── BrokerUnavailable        broker_unavailable       (retryable)
    ├── SettingsError                invalid_settings     (stops the start)
    │   └── InvalidRules             invalid_rules        (of retention)
    └── InternalError                internal             (a fault of ours)

`code` is stable: clients may compare it. `retryable` says whether the same thing may work if it is tried again later;
a fatal error ends a transfer at once. Nothing here knows HTTP: the API has the table of statuses.
"""

from datamanager.errors.by_code import by_code, every_error
from datamanager.errors.catalogue_errors import (
    AuditNotFound,
    AuditSuspicious,
    CatalogueError,
    DestinationExists,
    DutyTaken,
    NotMarked,
    ObjectActive,
    ObjectArchived,
    ObjectBusy,
    ObjectDeleted,
    ObjectHeld,
    ObjectNotFound,
    ObjectUnknown,
    RetentionRunNotFound,
    ScheduleNotFound,
    TaskEnded,
    TaskNotFound,
)
from datamanager.errors.request_errors import (
    CredentialNotAllowed,
    CredentialUnknown,
    CredentialUnusable,
    IdempotencyMismatch,
    InvalidRequest,
    MalformedBody,
    NotSupported,
    OriginNotAllowed,
    PathNotAllowed,
    RegisteredSizeMismatch,
    RequestError,
    UnknownMachine,
    UrlNotAllowed,
)
from datamanager.errors.root import DataManagerError
from datamanager.errors.service_errors import (
    BrokerUnavailable,
    CatalogueUnavailable,
    InternalError,
    InvalidRules,
    OrchestratorUnavailable,
    ServiceError,
    SettingsError,
)
from datamanager.errors.transfer_errors import (
    Cancelled,
    ChecksumMismatch,
    DeadlineExceeded,
    DownloadFailed,
    ItemsFailed,
    LeaseLost,
    Paused,
    SecretsUnreadable,
    SizeMismatch,
    SourceChanged,
    SourceMissing,
    SourceNotRemoved,
    Staging,
    TooLarge,
    TransferError,
)
from datamanager.errors.transport_errors import (
    AuthenticationFailed,
    ConnectionLost,
    HostKeyMismatch,
    MachineUnavailable,
    NoSpace,
    PathExists,
    PathMissing,
    PermissionDenied,
    RemoteFailure,
    TransportError,
    TransportTimeout,
)

__all__ = [
    "AuditNotFound",
    "AuditSuspicious",
    "AuthenticationFailed",
    "BrokerUnavailable",
    "Cancelled",
    "CatalogueError",
    "CatalogueUnavailable",
    "ChecksumMismatch",
    "ConnectionLost",
    "CredentialNotAllowed",
    "CredentialUnknown",
    "CredentialUnusable",
    "DataManagerError",
    "DeadlineExceeded",
    "DestinationExists",
    "DownloadFailed",
    "DutyTaken",
    "HostKeyMismatch",
    "IdempotencyMismatch",
    "InternalError",
    "InvalidRequest",
    "InvalidRules",
    "ItemsFailed",
    "LeaseLost",
    "MachineUnavailable",
    "MalformedBody",
    "NoSpace",
    "NotMarked",
    "NotSupported",
    "ObjectActive",
    "ObjectArchived",
    "ObjectBusy",
    "ObjectDeleted",
    "ObjectHeld",
    "ObjectNotFound",
    "ObjectUnknown",
    "OrchestratorUnavailable",
    "OriginNotAllowed",
    "PathExists",
    "PathMissing",
    "PathNotAllowed",
    "Paused",
    "PermissionDenied",
    "RegisteredSizeMismatch",
    "RemoteFailure",
    "RequestError",
    "RetentionRunNotFound",
    "ScheduleNotFound",
    "SecretsUnreadable",
    "ServiceError",
    "SettingsError",
    "SizeMismatch",
    "SourceChanged",
    "SourceMissing",
    "SourceNotRemoved",
    "Staging",
    "TaskEnded",
    "TaskNotFound",
    "TooLarge",
    "TransferError",
    "TransportError",
    "TransportTimeout",
    "UnknownMachine",
    "UrlNotAllowed",
    "by_code",
    "every_error",
]
