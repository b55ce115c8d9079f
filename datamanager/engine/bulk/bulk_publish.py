"""Many small files get their names, all of a chunk at once. (docs/transfer-protocol.md, the publish protocol, 5)"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from datamanager.engine.bulk.bulk_chunk import Staged
from datamanager.engine.path_confinement import acted_elsewhere
from datamanager.errors import (
    DataManagerError,
    DestinationExists,
    PathExists,
    PathMissing,
    TransportError,
)
from datamanager.transports.port import Session
from datamanager.transports.values import FileKind, own_file_gone


def publish(target: Session, staged: Sequence[Staged], *, overwrite: bool) -> list[DataManagerError | None]:
    """Give the staged files their names, each atomically; None for each that has it, in the order of `staged`.

    The caller has recorded each one's `intent`. A name that holds just those bytes is accepted: an earlier answer was
    lost. What was not published keeps its partial file (see `discard`). PathReplaced where the directory leads
    elsewhere now, and the file may have its name there, or where the partial file is gone.

    Raises: what breaks the connection (retryable: publish again).
    """
    results: list[DataManagerError | None] = [None] * len(staged)
    places = [place for place, one in enumerate(staged) if not one.published]
    doubtful = dict[int, TransportError]()
    for index, error in target.bulk.rename(
        [(staged[place].part, staged[place].final) for place in places], overwrite=overwrite
    ):
        if isinstance(error, PathExists | PathMissing):
            doubtful[places[index]] = error
        else:
            results[places[index]] = error
    away = acted_elsewhere(target, {posixpath.dirname(staged[place].final) for place in places})
    for place in places if away else ():
        results[place] = results[place] or away.get(posixpath.dirname(staged[place].final))
    held = _holding(target, [staged[place] for place in doubtful])
    for place, error in doubtful.items():
        one = staged[place]
        if one.number in held or results[place] is not None:
            continue
        elif isinstance(error, PathExists):
            results[place] = DestinationExists(f"{one.canonical}: another file was created there")
        else:
            results[place] = own_file_gone(one.part)
    discard(target, [staged[place] for place in doubtful if staged[place].number in held])
    return results


def discard(target: Session, staged: Sequence[Staged]) -> None:
    """Remove the partial files of what is not to be published. Raises: what breaks the connection."""
    for _ in target.bulk.remove([one.part for one in staged if not one.published]):
        pass  # gone already, or left to the sweep of partial files


def _holding(target: Session, staged: Sequence[Staged]) -> set[int]:
    """Return the numbers of those whose final name holds their bytes; without a checksum, their size and mtime."""
    alike = list[Staged]()
    for place, found in target.bulk.lstat([one.final for one in staged]):
        one = staged[place]
        if isinstance(found, TransportError) or (found.kind, found.size) != (FileKind.FILE, one.size):
            continue
        if one.sha256 is not None or found.mtime == one.mtime:
            alike.append(one)
    held = {one.number for one in alike if one.sha256 is None}
    hashed = [one for one in alike if one.sha256 is not None]
    for place, digest in target.bulk.digest(
        [one.final for one in hashed], max((one.size for one in hashed), default=0)
    ):
        if digest == hashed[place].sha256:
            held.add(hashed[place].number)
    return held
