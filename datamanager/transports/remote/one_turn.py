"""Steps on many small files that a machine's program does in one turn: a round trip is paid once for them all.

It walks to each directory without following a link, so what it was asked for is done there or not at all, and nobody
need look again where that was.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from datamanager.errors import PathExists, TransportError
from datamanager.transports.bulk_port import MachineSurvey, Results, Stored, SurveyedDirectory
from datamanager.transports.remote.many_files import (
    ManyFiles,
    Order,
    entries_of,
    error_at,
    frames,
    joined,
    require_synced,
    stat_of,
    sync_order,
    written,
)
from datamanager.transports.values import KeptAttributes, NewFile, error_of, shown


class ProgramInOneTurn:
    """See the port's InOneTurn; `many` is the running program."""

    def __init__(self, many: ManyFiles) -> None:
        self._many = many

    def survey(self, base: str, places: Mapping[str, Sequence[str]], *, make: bool) -> MachineSurvey:
        """See the port."""
        order: dict[str, Any] = {"do": "survey", "in": "/", "base": base, "make": make}
        order |= {"places": list(places), "names": [list(names) for names in places.values()]}
        [(answer, _)] = self._many.answers([(order, ())])
        if isinstance(answer, int):
            raise error_of(answer, base)
        real, found = answer
        told = zip(places.items(), entries_of(found, len(places)), strict=True)
        return MachineSurvey(
            real, {place: _directory(real, place, names, one, make=make) for (place, names), one in told}
        )

    def store(self, files: Iterable[NewFile], *, hashed: bool) -> Results[Stored | TransportError]:
        """See the port."""
        asked = deque[tuple[dict[str, Any], int]]()  # orders, and the index of each one's first file

        def orders() -> Iterator[Order]:
            writes, first = list[tuple[dict[str, Any], int]](), 0
            for order, data in frames(files):
                writes.append((order, first))
                asked.append(writes[-1])
                first += len(order["names"])
                yield order, data
            for order, first in writes:
                largest = max(size for _, _, size in order["files"])
                look = {"do": "digest", "likely": largest + 1} if hashed else {"do": "look"}
                asked.append((look | {"in": order["in"], "names": order["names"]}, first))
                yield asked[-1][0], ()
            if writes:
                asked.append((sync_order(sorted({order["in"] for order, _ in writes})), 0))
                yield asked[-1][0], ()

        there = set[int]()
        for answer, _ in self._many.answers(orders()):
            order, first = asked.popleft()
            if order["do"] == "sync":
                require_synced(answer)
            elif order["do"] == "write":
                for index, kept in enumerate(written(order, answer), first):
                    if isinstance(kept, KeptAttributes):
                        there.add(index)
                    yield index, kept
            else:
                for index, found in enumerate(_looked_at(order, answer), first):
                    if index in there:
                        yield index, found


def _looked_at(order: dict[str, Any], answer: int | list[Any]) -> Iterator[Stored | TransportError]:
    """Yield what the look at each file of an order found."""
    for name, found in zip(order["names"], entries_of(answer, len(order["names"])), strict=True):
        if isinstance(found, int):
            yield error_at(found, joined(order["in"], name), walked=not isinstance(answer, int))
        else:
            yield found if isinstance(found, str) else stat_of(found)


def _directory(base: str, place: str, names: Sequence[str], told: Sequence[Any], *, make: bool) -> SurveyedDirectory:
    """Return what the program reported of a place below the base directory."""
    existing, missing, fault, entries, free = told
    whole = joined(existing, missing) if missing else existing
    found = SurveyedDirectory(existing, missing, outside=fault == "out", dangling=fault == "dangling", free=free)
    if fault in ("out", "dangling"):
        return found
    if fault and not make and fault in (errno.ENOENT, errno.ENOTDIR):
        entries, fault = [fault] * len(names), 0  # nothing can be below a file
    if fault in (errno.EEXIST, errno.ENOTDIR):
        found.error = PathExists(f"{shown(whole)}: a file exists there")
    elif fault:
        found.error = error_at(fault, whole or joined(base, place), walked=False)
    else:
        for name, entry in zip(names, entries_of(entries, len(names)), strict=True):
            path = joined(whole, name)
            found.entries[name] = error_at(entry, path, walked=True) if isinstance(entry, int) else stat_of(entry)
    return found
