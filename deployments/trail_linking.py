"""What processes do for the audit trail beside their work: link its rows, and write refusals."""

from __future__ import annotations

import time

import structlog

from datamanager.errors import CatalogueUnavailable
from deployments.periodic import every
from models.access.refusals import Refusals, write_refusals
from models.access.trail_links import LINKED_AT_ONCE, has_unlinked, link
from models.database import LET_OTHERS, Database, read, write

LINK_EVERY = 1.0
"""Seconds for which a row may be unlinked, while any process of the service is alive; one transaction links all."""
WRITE_EVERY = 1.0
"""Seconds after which a refusal is written."""

log = structlog.get_logger(__name__)


async def link_trail(database: Database) -> None:
    """Link the rows of the audit trail until cancelled. Any process may do it, several at once too."""

    async def turn() -> float | None:
        if not await read(database, has_unlinked):
            return None
        return LET_OTHERS if await write(database, link) >= LINKED_AT_ONCE else None

    await every(LINK_EVERY, "link the audit trail", turn)


async def tell_refusals(database: Database, refusals: Refusals) -> None:
    """Write the refusals of this process until cancelled, and then those that are left."""
    try:
        await every(WRITE_EVERY, "write refusals", lambda: _write(database, refusals))
    finally:
        try:
            await _write(database, refusals, last=True)
        except CatalogueUnavailable as exc:
            log.warning("refusals_left_out", error=exc.detail)


async def _write(database: Database, refusals: Refusals, *, last: bool = False) -> None:
    taken = refusals.take(time.monotonic(), last=last)
    if taken:
        try:
            await write(database, write_refusals, taken)
        except CatalogueUnavailable:
            refusals.give_back(taken)
            raise
