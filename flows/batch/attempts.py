"""The items of a chunk as the engine sees them: attempts, of which most are never made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datamanager.domain.states import TransferKind
from datamanager.engine.attempt import Attempt, Intent, KnownFile, Restart
from datamanager.engine.bulk.bulk_chunk import SmallItem, item_id
from datamanager.machines import VerifyPolicy
from flows.runtime.transfer_run import TransferRun
from models.batches import results as batch_results
from models.transfers.items import KNOWN


class ItemAttempts(dict[int, Attempt]):
    """By number. One that is not there is made when it is asked for: small files that go together need none, unless
    something was noted of them."""

    def __init__(self, run: TransferRun, rows: Mapping[int, Any]) -> None:
        super().__init__()
        self._run = run
        self._rows = rows
        self._verify: VerifyPolicy | None = getattr(run.request, "verify", None)
        self._moving = run.row.kind == TransferKind.MOVE_MANY.value
        self.overwrite: bool = getattr(run.request, "overwrite", False)

    def __missing__(self, number: int) -> Attempt:
        """Make one. Raises: what is wrong with the item."""
        row, run = self._rows[number], self._run
        destination = run.destination_at(batch_results.destination(row))
        intent, restart = row.notes.get("intent"), row.notes.get("restart")
        self[number] = attempt = Attempt(
            transfer=item_id(run.transfer, number),
            epoch=run.hold.epoch,
            kind=TransferKind.MOVE if self._moving else TransferKind.COPY,
            source=run.source_at(batch_results.source(row)),
            destination=destination,
            overwrite=self.overwrite,
            verify=self._verify or destination.machine.verify,
            intent=Intent(**intent) if intent else None,
            restart=Restart(**restart) if restart else None,
            known=KnownFile(**row.notes.get(KNOWN, {})),
            limited=run.limited,
        )
        return attempt

    def is_plain(self, number: int) -> bool:
        """Say whether nothing is noted of an item, and its attempt can be made at any time."""
        row, machines = self._rows[number], self._run.parts.machines
        placed = row.source_place is not None and row.destination_place is not None
        return not row.notes and placed and row.source_machine in machines and row.destination_machine in machines

    def machines(self, number: int) -> tuple[str, str]:
        """Return the machines of an item, that of its source first."""
        row = self._rows[number]
        return row.source_machine, row.destination_machine

    def way(self, number: int) -> tuple[str, str, VerifyPolicy]:
        """Return what small files have in common that go together."""
        source, destination = self.machines(number)
        return source, destination, self._verify or self._run.parts.machines[destination].verify

    def small_item(self, number: int) -> SmallItem:
        """Return an item as small files go together."""
        row = self._rows[number]
        return SmallItem(number, batch_results.source(row), batch_results.destination(row))
