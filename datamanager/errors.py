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
    │   ├── NotSupported             not_supported
    │   └── TooManyStreams           too_many_streams     (retryable)
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
    │   ├── LoginOutput              login_output         (its operator has to change a login script)
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
    │   ├── Paused                   paused               (not an end: it continues when it is resumed)
    │   ├── Staging                  staging              (not an end: an archive brings bundles from its tapes)
    │   ├── ItemsFailed              items_failed         (of a batch; each item has its own error)
    │   └── LeaseLost                lease_lost           (another mover has the transfer)
    ├── ServiceError                 a part of the service itself is away
    │   ├── CatalogueUnavailable     catalogue_unavailable    (retryable)
    │   ├── OrchestratorUnavailable  orchestrator_unavailable (retryable)
    │   ├── BrokerUnavailable        broker_unavailable       (retryable)
    │   └── ServerBusy               server_busy              (retryable)
    ├── SettingsError                invalid_settings     (stops the start)
    │   └── InvalidRules             invalid_rules        (of retention)
    └── InternalError                internal             (a fault of ours)

`code` is stable: clients may compare it. `retryable` says whether the same thing may work if it is tried again later;
a fatal error ends a transfer at once. Nothing here knows HTTP: the API has the table of statuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import ClassVar, Self


class DataManagerError(Exception):
    """The root: everything the Data Manager raises on purpose. Its classes say `code` and `retryable` in their head.

    `retryable` is a fact of the class; who raises may know better of this one. `again`: after which wait it may work.
    """

    code: ClassVar[str] = "internal"
    retryable: bool = False

    def __init_subclass__(cls, *, code: str, retryable: bool | None = None) -> None:
        cls.code = code
        if retryable is not None:
            cls.retryable = retryable

    def __init__(self, detail: str, *, retryable: bool | None = None, again: timedelta | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.again = again
        self.retryable = type(self).retryable if retryable is None else retryable


class RequestError(DataManagerError, code="invalid_request"):
    """The request cannot be accepted; nothing was changed."""


class MalformedBody(RequestError, code="malformed_body"):
    """The body can't be parsed at all."""


class InvalidRequest(RequestError, code="invalid_request"):
    """A field is missing or invalid; `fields` maps each field's name to the values allowed."""

    def __init__(self, detail: str, fields: dict[str, str] | None = None, *, retryable: bool | None = None) -> None:
        super().__init__(detail, retryable=retryable)
        self.fields = fields or {}

    @classmethod
    def of(cls, fields: dict[str, str]) -> Self:
        """Return the error whose detail names these fields, each with what would be right."""
        return cls("; ".join(f"{name}: {wanted}" for name, wanted in fields.items()), fields)


class UnknownMachine(RequestError, code="unknown_machine"):
    """The machine is not in machines.toml."""

    def __init__(self, machine: str, known: Iterator[str] | list[str] | tuple[str, ...] = ()) -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(f"machine {machine!r} is not configured; configured: {names}")
        self.machine = machine


class PathNotAllowed(RequestError, code="path_not_allowed"):
    """The path leaves the machine's base directory, or is not a valid path."""


class UrlNotAllowed(RequestError, code="url_not_allowed"):
    """The URL is refused: its scheme, its host's address, or its host does not resolve."""


class RegisteredSizeMismatch(RequestError, code="size_mismatch"):
    """The size given at registration differs from the file's."""


class CredentialUnknown(RequestError, code="credential_unknown"):
    """No stored credential has this name."""


class CredentialUnusable(RequestError, code="credential_unusable"):
    """The stored credential can't be read, or does not name the hosts that it may be sent to."""


class CredentialNotAllowed(RequestError, code="credential_not_allowed"):
    """The stored credential may not be sent to this host."""


class IdempotencyMismatch(RequestError, code="idempotency_mismatch"):
    """The Idempotency-Key was used for another request."""


class OriginNotAllowed(RequestError, code="origin_not_allowed"):
    """The request's Host or Origin is foreign."""


class NotSupported(RequestError, code="not_supported"):
    """The protocol, option or operation is not supported."""


class TooManyStreams(RequestError, code="too_many_streams", retryable=True):
    """The client receives as many listings of all objects as it may at once."""


class CatalogueError(DataManagerError, code="catalogue_error"):
    """The catalogue's state does not allow it."""


class ObjectNotFound(CatalogueError, code="object_not_found"):
    """No object has this identifier."""


class TaskNotFound(CatalogueError, code="task_not_found"):
    """No task has this identifier."""


class ScheduleNotFound(CatalogueError, code="schedule_not_found"):
    """No schedule has this identifier."""


class AuditNotFound(CatalogueError, code="audit_not_found"):
    """No audit has this identifier."""


class AuditSuspicious(CatalogueError, code="audit_suspicious"):
    """An audit found more lost objects than its threshold; no object was changed."""


class DutyTaken(CatalogueError, code="duty_taken", retryable=True):
    """Another run performs this maintenance now; one run at a time."""


class TaskEnded(CatalogueError, code="task_ended"):
    """The task has ended and can no longer be changed."""


class ObjectDeleted(CatalogueError, code="object_deleted"):
    """The object is DELETED; only its row remains."""


class ObjectArchived(CatalogueError, code="object_archived"):
    """The object is ARCHIVED where an ACTIVE one is required."""


class ObjectActive(CatalogueError, code="object_active"):
    """The object is ACTIVE where an ARCHIVED one is required."""


class ObjectUnknown(CatalogueError, code="object_unknown"):
    """The object is UNKNOWN (its file was not found) where an ACTIVE one is required."""


class ObjectBusy(CatalogueError, code="object_busy"):
    """Another transfer reads or writes the object; readers share, writers exclude."""


class ObjectHeld(CatalogueError, code="object_held"):
    """The object is held: it cannot be deleted until the hold is released."""


class NotMarked(CatalogueError, code="not_marked"):
    """Retention has not marked the object, so it cannot be restored."""


class RetentionRunNotFound(CatalogueError, code="retention_run_not_found"):
    """No retention run has this identifier."""


class DestinationExists(CatalogueError, code="destination_exists"):
    """The place is taken by an ACTIVE object, a running transfer or an unregistered file."""


class TransportError(DataManagerError, code="remote_error"):
    """A machine, or the connection to it, failed."""


class MachineUnavailable(TransportError, code="machine_unavailable", retryable=True):
    """The machine can't be reached."""


class ConnectionLost(TransportError, code="connection_lost", retryable=True):
    """The connection broke."""


class TransportTimeout(TransportError, code="timeout", retryable=True):
    """The other side stalled: no progress within the time allowed."""


class HostKeyMismatch(TransportError, code="host_key_mismatch"):
    """The machine's host key is unknown, revoked or different from the pinned one."""


class AuthenticationFailed(TransportError, code="authentication_failed"):
    """The machine refused our login."""


class LoginOutput(TransportError, code="login_output"):
    """The machine's login scripts print text where SFTP is expected."""


class PermissionDenied(TransportError, code="permission_denied"):
    """The machine's file system refused access."""


class NoSpace(TransportError, code="no_space"):
    """The destination has no space (or no quota) left."""


class PathMissing(TransportError, code="path_missing"):
    """The path does not exist."""


class PathExists(TransportError, code="path_exists"):
    """The path exists already; it was not changed."""


class RemoteFailure(TransportError, code="remote_error"):
    """The remote side reported an error without a code of its own."""


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


class ServiceError(DataManagerError, code="service_unavailable", retryable=True):
    """A part of the service is unavailable."""


class CatalogueUnavailable(ServiceError, code="catalogue_unavailable"):
    """The catalogue's database does not answer."""


class OrchestratorUnavailable(ServiceError, code="orchestrator_unavailable"):
    """The Prefect server does not answer, or no mover is online."""


class BrokerUnavailable(ServiceError, code="broker_unavailable"):
    """RabbitMQ does not answer."""


class ServerBusy(ServiceError, code="server_busy"):
    """Too much is under way already."""


class SettingsError(DataManagerError, code="invalid_settings"):
    """A setting or machines.toml is invalid; the message is one line and stops the start."""


class InvalidRules(SettingsError, code="invalid_rules"):
    """The retention rules are invalid; no rule is applied."""


class InternalError(DataManagerError, code="internal"):
    """An internal error."""


def every_error(root: type[DataManagerError] = DataManagerError) -> Iterator[type[DataManagerError]]:
    """Yield `root` and all classes below it, parents first."""
    yield root
    for child in root.__subclasses__():
        yield from every_error(child)


def by_code(code: str, detail: str, *, retryable: bool | None = None) -> DataManagerError:
    """Return an error of the class that owns `code` (for faults read back from the catalogue, or from an answer).

    `size_mismatch` has two owners; the transfer's is meant here. An unknown code becomes InternalError.
    """
    classes = [*every_error(TransferError), *every_error()]
    leaves_first = sorted(classes, key=lambda cls: bool(cls.__subclasses__()))
    cls = next((cls for cls in leaves_first if cls.code == code), InternalError)
    if cls is not UnknownMachine:
        return cls(detail, retryable=retryable)
    error = UnknownMachine("")  # made of a machine's name; here its sentence is already there
    DataManagerError.__init__(error, detail, retryable=retryable)
    return error
