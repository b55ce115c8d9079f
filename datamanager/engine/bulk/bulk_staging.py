"""Many small files from one machine to another, through the mover, by the publish protocol, some hundred at a time.

Each step is done for the whole chunk before the next begins, with many requests in flight: look at both ends, read and
write into partial files, verify what is stored, look at the sources again. `bulk_publish` then gives the names. One
item's failure is its own; what breaks a connection ends the chunk, which a later attempt does again.
(docs/transfer-protocol.md, the publish protocol)
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from contextlib import suppress

from datamanager.engine.bulk.bulk_chunk import (
    BulkEndpoints,
    BulkRules,
    Chunk,
    Outcome,
    SmallFileSource,
    SmallItem,
)
from datamanager.engine.bulk.bulk_probe import look, require_space, resolve
from datamanager.engine.bulk.bulk_transfer import carry, refuse_one_place, require_unchanged
from datamanager.engine.control import Control
from datamanager.errors import NotSupported, TransportError


def stage(
    ends: BulkEndpoints[SmallFileSource], items: Sequence[SmallItem], rules: BulkRules, control: Control
) -> list[Outcome]:
    """Bring the items' bytes into partial files beside their destinations and verify them.

    One outcome per item, in the items' order. The ends' sessions are two. `control` is advanced by the bytes of what is
    done. Where the machine can, what is staged is on stable storage.

    Raises: what breaks a connection (retryable) and what `control` raises; the partial files made here are removed
    first, if the machine can be reached.
    """
    chunk = Chunk(ends, rules, control)
    try:
        resolve(chunk, items)
        look(chunk)
        require_space(chunk)
        with ends.target.bulk.syncing() as sync:
            carry(chunk)
            refuse_one_place(chunk)
            require_unchanged(chunk)
            directories = sorted({posixpath.dirname(task.part) for task in chunk.left()})
            if directories:
                with suppress(NotSupported):  # some machines have no way to do it
                    sync(directories)
        control.check()
    except BaseException:
        with suppress(TransportError):  # what leads here matters more, and a later attempt removes these names, too
            chunk.remove_parts(list(chunk.made.values()))
        raise
    chunk.remove_parts([task for task in chunk.made.values() if task.number in chunk.outcomes])
    outcomes = chunk.outcomes | {task.number: task.staged() for task in chunk.left()}
    return [outcomes[item.number] for item in items]
