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

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import ClassVar, Self


class DataManagerError(Exception):
    """The root: everything the Data Manager raises on purpose."""

    code: ClassVar[str] = "internal"
    retryable: bool = False

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class RequestError(DataManagerError):
    """The request can't be accepted as it is; nothing was changed."""

    code = "invalid_request"


class MalformedBody(RequestError):
    """The body can't be parsed at all."""

    code = "malformed_body"


class InvalidRequest(RequestError):
    """A field is missing or wrong; `fields` maps each field's name to what would be right."""

    code = "invalid_request"

    def __init__(self, detail: str, fields: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.fields = fields or {}

    @classmethod
    def of(cls, fields: dict[str, str]) -> Self:
        """Return the error whose detail names these fields, each with what would be right."""
        return cls("; ".join(f"{name}: {wanted}" for name, wanted in fields.items()), fields)


class UnknownMachine(RequestError):
    """The machine is not in machines.toml."""

    code = "unknown_machine"

    def __init__(self, machine: str, known: Iterator[str] | list[str] | tuple[str, ...] = ()) -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(f"machine {machine!r} is not configured; configured: {names}")
        self.machine = machine


class PathNotAllowed(RequestError):
    """The path leaves the machine's base directory, or can't be a path."""

    code = "path_not_allowed"


class UrlNotAllowed(RequestError):
    """The URL is refused: its scheme, its host's address, or its host does not resolve."""

    code = "url_not_allowed"


class RegisteredSizeMismatch(RequestError):
    """The size given at registration is not the file's."""

    code = "size_mismatch"


class CredentialUnknown(RequestError):
    """No stored credential has this name."""

    code = "credential_unknown"


class CredentialUnusable(RequestError):
    """The stored credential can't be read, or does not say to which hosts it may be sent."""

    code = "credential_unusable"


class CredentialNotAllowed(RequestError):
    """The stored credential may not be sent to this host."""

    code = "credential_not_allowed"


class IdempotencyMismatch(RequestError):
    """The Idempotency-Key was used for another request."""

    code = "idempotency_mismatch"


class OriginNotAllowed(RequestError):
    """The request's Host or Origin is not ours: a page of another site is asking."""

    code = "origin_not_allowed"


class NotSupported(RequestError):
    """The protocol, option or operation is not supported."""

    code = "not_supported"


class CatalogueError(DataManagerError):
    """The catalogue's state does not allow it."""

    code = "catalogue_error"


class ObjectNotFound(CatalogueError):
    """No object has this identifier."""

    code = "object_not_found"


class TaskNotFound(CatalogueError):
    """No task has this identifier."""

    code = "task_not_found"


class ScheduleNotFound(CatalogueError):
    """No schedule has this identifier."""

    code = "schedule_not_found"


class AuditNotFound(CatalogueError):
    """No audit has this identifier."""

    code = "audit_not_found"


class AuditSuspicious(CatalogueError):
    """An audit found so much lost that it is not believed; no object was changed."""

    code = "audit_suspicious"


class DutyTaken(CatalogueError):
    """Another run has the duty just now; maintenance of a kind is done by one at a time."""

    code = "duty_taken"
    retryable = True


class TaskEnded(CatalogueError):
    """The task has ended; nothing of it can be changed any more."""

    code = "task_ended"


class ObjectDeleted(CatalogueError):
    """The object is DELETED; its row stays, its file is gone."""

    code = "object_deleted"


class ObjectArchived(CatalogueError):
    """The object is ARCHIVED where an ACTIVE one is needed."""

    code = "object_archived"


class ObjectActive(CatalogueError):
    """The object is ACTIVE where an ARCHIVED one is needed."""

    code = "object_active"


class ObjectUnknown(CatalogueError):
    """The object is UNKNOWN (its file was not found) where an ACTIVE one is needed."""

    code = "object_unknown"


class ObjectBusy(CatalogueError):
    """Another transfer reads or writes the object; readers share, writers exclude."""

    code = "object_busy"


class ObjectHeld(CatalogueError):
    """Somebody holds the object: it can't be deleted until the hold is released."""

    code = "object_held"


class NotMarked(CatalogueError):
    """Retention has not marked the object, so there is nothing to take back."""

    code = "not_marked"


class RetentionRunNotFound(CatalogueError):
    """No run of retention has this identifier."""

    code = "retention_run_not_found"


class DestinationExists(CatalogueError):
    """The place is taken: by a live object, a transfer under way, or an unregistered file."""

    code = "destination_exists"


class TransportError(DataManagerError):
    """A machine, or the way to it, failed."""

    code = "remote_error"


class MachineUnavailable(TransportError):
    """The machine can't be reached."""

    code = "machine_unavailable"
    retryable = True


class ConnectionLost(TransportError):
    """The connection broke under the work."""

    code = "connection_lost"
    retryable = True


class TransportTimeout(TransportError):
    """The other side stalled: no progress within the time allowed."""

    code = "timeout"
    retryable = True


class HostKeyMismatch(TransportError):
    """The machine's host key is unknown, revoked or another one than pinned."""

    code = "host_key_mismatch"


class AuthenticationFailed(TransportError):
    """The machine refused our login."""

    code = "authentication_failed"


class PermissionDenied(TransportError):
    """The machine's file system refused access."""

    code = "permission_denied"


class NoSpace(TransportError):
    """The destination has no space (or no quota) left."""

    code = "no_space"


class PathMissing(TransportError):
    """There is nothing at the path."""

    code = "path_missing"


class PathExists(TransportError):
    """Something is already at the path; it was left as it was."""

    code = "path_exists"


class RemoteFailure(TransportError):
    """The other side answered with an error that has no better name here."""

    code = "remote_error"


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

    def __init__(self, detail: str, *, retryable: bool = False) -> None:
        super().__init__(detail)
        self.retryable = retryable


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

    def __init__(self, detail: str, again: timedelta = timedelta(0)) -> None:
        super().__init__(detail)
        self.again = again


class ItemsFailed(TransferError):
    """Items of a batch failed; each has an error of its own, the others are done."""

    code = "items_failed"


class LeaseLost(TransferError):
    """The transfer's epoch moved on: another mover has it, this runner must touch nothing more."""

    code = "lease_lost"


class ServiceError(DataManagerError):
    """A part of the service itself is away."""

    code = "service_unavailable"
    retryable = True


class CatalogueUnavailable(ServiceError):
    """The catalogue's database does not answer."""

    code = "catalogue_unavailable"


class OrchestratorUnavailable(ServiceError):
    """The Prefect server does not answer, or no mover is online."""

    code = "orchestrator_unavailable"


class BrokerUnavailable(ServiceError):
    """RabbitMQ does not answer."""

    code = "broker_unavailable"


class SettingsError(DataManagerError):
    """A setting or machines.toml is wrong; the message is one clear line and stops the start."""

    code = "invalid_settings"


class InvalidRules(SettingsError):
    """The file with the rules of retention is wrong; nothing is done by it until it is right."""

    code = "invalid_rules"


class InternalError(DataManagerError):
    """A fault of ours."""

    code = "internal"


def every_error(root: type[DataManagerError] = DataManagerError) -> Iterator[type[DataManagerError]]:
    """Yield `root` and all classes below it, parents first."""
    yield root
    for child in root.__subclasses__():
        yield from every_error(child)


def by_code(code: str, detail: str) -> DataManagerError:
    """Return an error of the class that owns `code` (for faults read back from the catalogue).

    `size_mismatch` has two owners; the transfer's is meant here. An unknown code becomes InternalError.
    """
    classes = [*every_error(TransferError), *every_error()]
    leaves_first = sorted(classes, key=lambda cls: bool(cls.__subclasses__()))
    cls = next((cls for cls in leaves_first if cls.code == code), InternalError)
    if cls is UnknownMachine:  # made of a machine's name; here its sentence is already there
        error = UnknownMachine("")
        DataManagerError.__init__(error, detail)
        return error
    return cls(detail)
