"""Files that lie in a larger one on their way out of it, as a chunk of a batch: what recall and extraction share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from datamanager.engine.attempt import Restart
from datamanager.engine.single.transfer import Remember
from flows.batch.chunk import ItemsChunk
from flows.runtime.transfer_run import TransferRun
from models.archive import items as archive_items
from models.tables import TransferItem


class MembersChunk(ItemsChunk):
    """See `ItemsChunk`. A damaged member costs itself, and no other."""

    within_one_machine = True
    resends = False

    def _remembering(self, number: int) -> Remember:
        """Return what records an item's restart marker."""

        def remember(marker: Restart) -> None:
            self._run.write_now(archive_items.note_restart, number, asdict(marker))

        return remember


def performing(
    run: TransferRun, numbers: Sequence[int], chunk: Callable[[TransferRun, Sequence[TransferItem]], MembersChunk]
) -> Callable[[], None]:
    """Return what brings out those of the items that are not done. It blocks."""

    def perform() -> None:
        rows = run.read(archive_items.items_among, run.hold, numbers)
        if rows:
            chunk(run, rows).perform()

    return perform
