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
    """An audit found more lost objects than its threshold; no object was changed."""

    code = "audit_suspicious"


class DutyTaken(CatalogueError):
    """Another run performs this maintenance now; one run at a time."""

    code = "duty_taken"
    retryable = True


class TaskEnded(CatalogueError):
    """The task has ended and can no longer be changed."""

    code = "task_ended"


class ObjectDeleted(CatalogueError):
    """The object is DELETED; only its row remains."""

    code = "object_deleted"


class ObjectArchived(CatalogueError):
    """The object is ARCHIVED where an ACTIVE one is required."""

    code = "object_archived"


class ObjectActive(CatalogueError):
    """The object is ACTIVE where an ARCHIVED one is required."""

    code = "object_active"


class ObjectUnknown(CatalogueError):
    """The object is UNKNOWN (its file was not found) where an ACTIVE one is required."""

    code = "object_unknown"


class ObjectBusy(CatalogueError):
    """Another transfer reads or writes the object; readers share, writers exclude."""

    code = "object_busy"


class ObjectHeld(CatalogueError):
    """The object is held: it cannot be deleted until the hold is released."""

    code = "object_held"


class NotMarked(CatalogueError):
    """Retention has not marked the object, so it cannot be restored."""

    code = "not_marked"


class RetentionRunNotFound(CatalogueError):
    """No retention run has this identifier."""

    code = "retention_run_not_found"


class DestinationExists(CatalogueError):
    """The place is taken by an ACTIVE object, a running transfer or an unregistered file."""

    code = "destination_exists"
