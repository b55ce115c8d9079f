"""A trial of one batch: its items are the cells, and each is judged by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from datamanager.domain.states import TransferKind
from models.tables import TransferItem
from tests.faults.cells import Cell
from tests.faults.faults import FAULTS
from tests.faults.judging import Facts
from tests.faults.trial import Trial
from tests.support.hearing import Heard

"""The column of the results."""
ITEMS, SIZE = 120, 100 * 2**10
"""So many that a program on the machine does the work, and bytes of each."""
OF_BATCHES = [
    fault
    for fault in FAULTS
    if fault.name
    in (
        "mover killed",
        "mover terminated",
        "PostgreSQL restarted",
        "connection cut",
        "destination full",
        "two movers on one transfer",
    )
]
"""The faults that strike between two steps of a chunk; the others are the same for a batch as for one transfer."""


@dataclass
class Item(Cell):
    """An item of the batch; `number` is its place there."""

    number: int = 0

    def facts(self, allowed: frozenset[str], heard: list[Heard]) -> Facts:
        """Look at everything, after the batch's end."""
        found = super().facts(allowed, heard)
        with self.plant.database.read() as session:
            item = session.get_one(TransferItem, (UUID(self.task), self.number))
        status, detail = item.status, item.error_detail
        return replace(found, status=status, code=item.error_code, detail=detail, told=found.status)


@dataclass
class BatchTrial(Trial):
    """Small files that are copied, or moved, as one batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = self.chance.choice([TransferKind.COPY, TransferKind.MOVE])
        self.folder += "-batch"
        paths = [f"{self.folder}/{number}.bin" for number in range(ITEMS)]
        self.cells = [
            Item(self.plant, kind, path, self.fault.machine, SIZE, number=number) for number, path in enumerate(paths)
        ]
        self.struck = list(self.cells)

    def outcomes(self, found: Sequence[tuple[Cell, Facts]]) -> str:
        """Return how it ended: as its items, or in which ways these did."""
        return " and ".join(sorted({facts.outcome for _, facts in found}))

    def _begin(self) -> None:
        body = {
            "machine": self.fault.machine,
            "items": [{"uuid": cell.uuid, "dest": cell.path} for cell in self.cells],
        }
        answer = self.plant.site.ask("POST", f"async/{self.cells[0].kind}", json=body)
        assert answer.status_code == 200, answer.text
        for cell in self.cells:
            cell.task = answer.text
