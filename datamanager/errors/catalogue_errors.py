"""The catalogue says no."""

from __future__ import annotations

from uuid import UUID

from datamanager.errors.root import DataManagerError


class CatalogueError(DataManagerError, code="catalogue_error"):
    """The catalogue's state does not allow it."""


class ObjectNotFound(CatalogueError, code="object_not_found"):
    """No object has this identifier."""


class TaskNotFound(CatalogueError, code="task_not_found"):
    """No task has this identifier."""


class ScheduleNotFound(CatalogueError, code="schedule_not_found"):
    """No schedule has this identifier."""


class TokenNotFound(CatalogueError, code="token_not_found"):
    """No service token has this id."""


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


class QueryTooSlow(CatalogueError, code="query_too_slow"):
    """The query took longer than the service allows; nothing was changed."""


class DestinationExists(CatalogueError, code="destination_exists"):
    """The place is taken by an ACTIVE object, a running transfer or an unregistered file; `holder`, if it is known:
    ("object", its identifier) or ("task", …)."""

    def __init__(self, detail: str, holder: tuple[str, UUID] | None = None, *, retryable: bool | None = None) -> None:
        super().__init__(detail, retryable=retryable)
        self.holder = holder
