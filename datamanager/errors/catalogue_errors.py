"""Errors of the catalogue's state."""

from __future__ import annotations

from datamanager.errors.root import DataManagerError


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
