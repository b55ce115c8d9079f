"""How the bytes will go, decided before anything is done.

`plan` is pure: its test is a table.
"""

from __future__ import annotations

from enum import StrEnum

from datamanager.domain.states import TransferKind


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
