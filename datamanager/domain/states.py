"""The states of objects and transfers, what each means, and which may follow which; the route of a transfer's bytes."""

from __future__ import annotations

from enum import StrEnum


class ObjectStatus(StrEnum):
    """What the catalogue believes of an object's file."""

    ACTIVE = "ACTIVE"
    """The file is at its place and may be used. The only status that holds a place."""
    ARCHIVED = "ARCHIVED"
    """The bytes are in a bundle on an archive machine; the place is free."""
    DELETED = "DELETED"
    """The file was deleted; the row stays as a record."""
    UNKNOWN = "UNKNOWN"
    """The file was not found at its place; an operator has to look."""


class TransferStatus(StrEnum):
    """The four states that clients see."""

    QUEUED = "QUEUED"
    """Accepted and stored; no byte has moved."""
    RUNNING = "RUNNING"
    """A mover works on it, or will again after a fault."""
    COMPLETE = "COMPLETE"
    """Done, verified and in the catalogue."""
    ERROR = "ERROR"
    """Ended without effect (or with the effect that its error code names)."""

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        return self in (TransferStatus.COMPLETE, TransferStatus.ERROR)


TRANSITIONS: dict[TransferStatus, frozenset[TransferStatus]] = {
    TransferStatus.QUEUED: frozenset({TransferStatus.RUNNING, TransferStatus.ERROR}),
    # back to QUEUED when a mover was lost: another one takes it
    TransferStatus.RUNNING: frozenset({TransferStatus.QUEUED, TransferStatus.COMPLETE, TransferStatus.ERROR}),
    TransferStatus.COMPLETE: frozenset(),
    TransferStatus.ERROR: frozenset(),
}


class TransferKind(StrEnum):
    """What a transfer does."""

    COPY = "copy"
    MOVE = "move"
    GETEXTERNAL = "getexternal"
    DELETE = "delete"
    COPY_MANY = "copy_many"
    """Copies of many objects in one task: its items are rows."""
    MOVE_MANY = "move_many"
    """Moves of many objects in one task."""
    ARCHIVE = "archive"
    """Puts an object into a bundle on an archive machine."""
    ACTIVATE = "activate"
    """Brings an archived object's file back: a recall."""
    ARCHIVE_MANY = "archive_many"
    """Puts many objects into bundles, in one task."""
    ACTIVATE_MANY = "activate_many"
    """Brings many objects back, in one task."""
    GETEXTERNAL_MANY = "getexternal_many"
    """Fetches an archive (tar, zip) from outside; its files become objects, which are the task's items."""

    @property
    def many(self) -> bool:
        """Whether this is a batch."""
        return self.value.endswith("_many")

    @property
    def itemised(self) -> bool:
        """Whether what it does is rows of items: batches, and archive and activate of one object, which has one."""
        return self.many or self in (TransferKind.ARCHIVE, TransferKind.ACTIVATE)

    @property
    def leaves_parts(self) -> bool:
        """Whether it writes partial files beside its destinations. Those of bundles are known by the bundle's row."""
        return self not in (TransferKind.DELETE, TransferKind.ARCHIVE, TransferKind.ARCHIVE_MANY)

    @property
    def removes_sources(self) -> bool:
        """Whether it removes files, which it takes aside before."""
        return self in (
            *(TransferKind.MOVE, TransferKind.MOVE_MANY, TransferKind.DELETE),
            *(TransferKind.ARCHIVE, TransferKind.ARCHIVE_MANY),
        )


class Phase(StrEnum):
    """Where a transfer is; for people and progress bars."""

    QUEUED = "queued"
    PAUSED = "paused"
    """Waits to be resumed; what it has moved by then is kept."""
    PROBE = "probe"
    """Looking at both ends: source, free space, destination."""
    TRANSFER = "transfer"
    """Bytes move."""
    VERIFY = "verify"
    """The other end's bytes are hashed."""
    PUBLISH = "publish"
    """The file gets its name."""
    COMMIT = "commit"
    """The catalogue is updated."""
    CLEANUP = "cleanup"
    """A move or an archive removes its source."""
    STAGING = "staging"
    """An archive brings a bundle from its tapes; the transfer waits in the queue meanwhile."""
    DONE = "done"


class BundleStatus(StrEnum):
    """What a bundle on an archive machine is worth."""

    OPEN = "OPEN"
    """Its transfer writes, verifies or names it; every object is still ACTIVE."""
    SEALED = "SEALED"
    """Verified and named; ARCHIVED objects have their bytes there."""
    UNNEEDED = "UNNEEDED"
    """No object needs it any more; it is removed where the setting `reclaim` says so."""
    ABANDONED = "ABANDONED"
    """Its transfer ended before it was sealed; what there is of it is removed."""
    REMOVED = "REMOVED"
    """Its files are gone; the row stays as a record."""


class Verified(StrEnum):
    """What was proved of an object when it was last written or registered."""

    SHA256 = "sha256"
    SIZE = "size"
    NONE = "none"


# Prefect's states by type, and the names that mean something else than their type. Plain strings: the domain knows no
# Prefect.
_BY_TYPE: dict[str, TransferStatus] = {
    "SCHEDULED": TransferStatus.QUEUED,
    "PENDING": TransferStatus.QUEUED,
    "PAUSED": TransferStatus.QUEUED,
    "RUNNING": TransferStatus.RUNNING,
    "CANCELLING": TransferStatus.RUNNING,
    "COMPLETED": TransferStatus.COMPLETE,
    "FAILED": TransferStatus.ERROR,
    "CRASHED": TransferStatus.ERROR,
    "CANCELLED": TransferStatus.ERROR,
}


def status_of_run(state_type: str, state_name: str, *, bytes_moved: bool) -> TransferStatus:
    """Map a Prefect flow run's state to a transfer's status.

    `AwaitingRetry` (a SCHEDULED state) after the first byte is RUNNING: clients must not see a transfer go back in
    the queue while it waits for its next attempt. Unknown types raise ValueError: a new Prefect must not pass unseen.
    """
    try:
        status = _BY_TYPE[state_type.upper()]
    except KeyError:
        raise ValueError(f"Prefect state type {state_type!r} has no mapping") from None
    if state_name in ("AwaitingRetry", "Retrying") and bytes_moved:
        return TransferStatus.RUNNING
    return status


class Route(StrEnum):
    """The way of a transfer's bytes."""

    RENAME = "rename"
    """A move on one machine: the file gets another name, no byte moves."""
    WITHIN = "within"
    """A copy that the machine makes itself."""
    DIRECT = "direct"
    """Pushed by the source machine to the destination; the mover watches. What fails becomes a RELAY."""
    RELAY = "relay"
    """Read from the one machine, written to the other, through the mover."""
    DOWNLOAD = "download"
    """Read from a URL, written to a machine, through the mover."""


def plan(
    kind: TransferKind,
    *,
    source_machine: str | None,
    destination_machine: str,
    can_copy_within: bool,
    can_go_direct: bool = False,
) -> Route:
    """Choose the route. `can_copy_within`: the machine can copy a file by itself; `can_go_direct`: the source may push
    to the destination.

    A RENAME may turn out to cross file systems; the engine then falls back to WITHIN or RELAY.
    """
    if kind in (TransferKind.GETEXTERNAL, TransferKind.GETEXTERNAL_MANY):
        return Route.DOWNLOAD
    if source_machine != destination_machine:
        return Route.DIRECT if can_go_direct else Route.RELAY
    if kind is TransferKind.MOVE:
        return Route.RENAME
    return Route.WITHIN if can_copy_within else Route.RELAY
