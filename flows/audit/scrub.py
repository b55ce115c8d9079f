"""The scrub of an audit: a share of the files is hashed again, those first that were not for longest.

What was hashed is noted page by page, so that an interrupted audit has not hashed in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from datamanager.domain.audit_rules import Expected, FindingKind, Sight, judge, scrub_count
from flows.audit.context import PAGE, Examination
from models.audit import scan_queries
from models.audit.scan_queries import Turn
from models.database import now

AT_ONCE = 64 * 2**20
"""Bytes of small files that are hashed in one go, and then noted."""

Turns = Callable[[Session, str, datetime, Turn | None, int], list[Turn]]


def scrub(exam: Examination) -> None:
    """Hash the share of objects, and of bundles, that the audit's terms say; of the bytes each gets half where there
    are both.
    """
    objects, bundles = exam.reading(scan_queries.count_scrubbable, exam.name)
    most = exam.terms.scrub_bytes // 2 if objects and bundles else exam.terms.scrub_bytes
    before = exam.reading(now)
    for count, turns in (
        (objects, scan_queries.longest_unchecked),
        (bundles, scan_queries.longest_unchecked_bundles),
    ):
        _hash_some(exam, turns, before, scrub_count(count, exam.terms.scrub_share), most)


def _hash_some(exam: Examination, turns: Turns, before: datetime, left: int, most: int) -> None:
    spent, after = 0, None
    while left > 0 and spent < most:
        page: list[Turn] = exam.reading(turns, exam.name, before, after, min(left, PAGE))
        batch = within([turn.row for turn in page], most - spent, first=spent == 0)
        if not batch:
            return
        after = page[len(batch) - 1]
        hashed, size = _hash(exam, batch)
        left, spent = left - hashed, spent + size


def within(rows: Sequence[Expected], most: int, *, first: bool) -> list[Expected]:
    """Return the first rows that have at most `most` bytes, and about AT_ONCE; the `first` one of all in any case:
    what is larger than a whole audit may hash would never be hashed.
    """
    batch, size = list[Expected](), 0
    for row in rows:
        size += row.size or 0
        if batch and size > AT_ONCE:
            break
        if size > most and (batch or not first):
            break
        batch.append(row)
    return batch


def _hash(exam: Examination, rows: Sequence[Expected]) -> tuple[int, int]:
    """Hash what has the size that it should have; return how many files and bytes that were."""
    free = exam.unclaimed(rows)
    pairs = [
        (row, look)
        for row, look in zip(free, exam.look_at(free), strict=True)
        if look.sight is Sight.FILE and row.sha256 is not None and row.size in (None, look.size)
    ]
    hashed = exam.hashes([look for _, look in pairs])
    done = [(row, look) for (row, _), look in zip(pairs, hashed, strict=True) if look.sha256 is not None]
    found = [judge(row, look) for row, look in done]
    exam.add([one for one in found if one is not None and one.kind is FindingKind.CHANGED])
    size = sum(look.size or 0 for _, look in done)
    exam.writing(scan_queries.note_checked, [row for row, _ in done], size)
    return len(done), size
