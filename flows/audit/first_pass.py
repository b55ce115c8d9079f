"""The first look of an audit: what every row says against what is there, and files that no row knows.

Rows come in the order of their places, entries of directories as the machine tells them; what is held does not grow
with either. What is found is a candidate: `flows.audit.second_pass` looks at it a second time.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from uuid import UUID

from datamanager.domain.audit_rules import Expected, Finding, FindingKind, Sight, below_any, judge, may_be_dark
from datamanager.domain.states import ObjectStatus
from datamanager.engine.inspection import storage_scan
from datamanager.engine.inspection.directory_walk import DEPTH_MAX
from datamanager.errors import PathNotAllowed, PathReplaced, PermissionDenied, RemoteFailure
from datamanager.transports.port import Session
from datamanager.transports.values import shown
from flows.audit.context import PAGE, Examination
from models.access.visibility import ALL
from models.audit import findings, scan_queries
from models.audit.runs import get_audit

log = logging.getLogger(__name__)


def first_look(exam: Examination) -> None:
    """Look at all objects and bundles, and into directories for files that nobody knows.

    Raises: RemoteFailure when the base directory is missing, or empty although objects are there; what breaks the
    connection for good.
    """
    exam.look_at_base()
    holders, looked = Holders(), False
    prefixes = exam.machine.audit_prefixes
    for rows in _objects(exam):
        active = [row.place for row in rows if row.status == ObjectStatus.ACTIVE.value]
        if active and not looked:
            exam.require_mounted()
            looked = True
        _compare(exam, rows)
        if not prefixes:
            for directory in holders.new(active):
                _look_into(exam, directory)
    for rows in _bundles(exam):
        if not looked:
            exam.require_mounted()
            looked = True
        _compare(exam, rows)
    for prefix in dict.fromkeys(prefixes):
        if not below_any(prefix, [other for other in prefixes if other != prefix]):
            pending = [prefix]
            while pending:
                _look_into(exam, pending.pop(), pending)
    exam.note()


def _objects(exam: Examination) -> Iterator[list[Expected]]:
    after: tuple[str, UUID] | None = None
    while rows := exam.reading(scan_queries.objects_by_place, exam.name, after, PAGE):
        yield rows
        after = rows[-1].place, rows[-1].object_id


def _bundles(exam: Examination) -> Iterator[list[Expected]]:
    after: UUID | None = None
    while rows := exam.reading(scan_queries.bundles_after, exam.name, after, PAGE // 2):
        yield [one for row in rows for one in (row, scan_queries.manifest_of(row, exam.name))]
        after = rows[-1].object_id


def _compare(exam: Examination, rows: Sequence[Expected]) -> None:
    free = exam.unclaimed(rows)
    looks = exam.look_at(free)
    counts = exam.counts
    exam.seen += sum(
        row.status == ObjectStatus.ACTIVE.value and look.sight is not Sight.UNSEEN
        for row, look in zip(free, looks, strict=True)
    )
    counts["objects"] += sum(row.status == ObjectStatus.ACTIVE.value for row in free)
    counts["bundles"] += sum(row.is_bundle and row.sha256 is not None for row in free)
    counts["left_out"] += len(rows) - len(free)
    counts["unseen"] += sum(look.sight is Sight.UNSEEN for look in looks)
    exam.add([judge(row, look) for row, look in zip(free, looks, strict=True)])


def _look_into(exam: Examination, directory: str, pending: list[str] | None = None) -> None:
    """Look for files of a directory that nobody knows; `pending` takes the directories below it."""
    exam.check()
    try:
        canonical = exam.patiently(lambda session: storage_scan.canonical_directory(session, exam.machine, directory))
        if canonical is None:
            return
        if (
            canonical != directory
            and pending is None
            and exam.reading(scan_queries.holds_objects, exam.name, canonical)
        ):
            return  # that one has a turn of its own
        exam.counts["directories"] += 1
        _list(exam, canonical, pending)
    except (PermissionDenied, PathNotAllowed, PathReplaced, RemoteFailure) as exc:
        exam.check()
        exam.look_at_base()  # unless all of it is gone
        exam.counts["unlisted"] += 1
        log.info("%s:%s can't be listed: %s", exam.name, shown(directory), exc.detail)


def _list(exam: Examination, directory: str, pending: list[str] | None) -> None:
    """List a directory; when its connection breaks, from the beginning: what was noted of it is taken back."""
    before = exam.reading(get_audit, exam.audit, ALL).counts
    names, begun = list[str](), False

    def list_all(session: Session) -> None:
        nonlocal begun
        if begun:
            exam.writing(findings.take_back, before)
            names.clear()
        begun = True
        files = storage_scan.files_of(session, exam.machine, directory, None if pending is None else names.append)
        old = (one for one in files if may_be_dark(one.name, one.mtime, exam.begun))
        while some := list(islice(old, PAGE)):
            exam.check()
            _note_dark(exam, directory, some)

    try:
        exam.patiently(list_all)
    finally:
        if pending is not None and directory.count("/") < DEPTH_MAX:
            pending += [posixpath.join(directory, name) for name in names]
        else:
            exam.counts["unlisted"] += len(names)


def _note_dark(exam: Examination, directory: str, entries: Sequence[storage_scan.ScannedFile]) -> None:
    paths = [posixpath.join(directory, one.name) for one in entries]
    known = exam.known(paths)
    exam.add(
        [
            Finding(FindingKind.DARK, path, found={"size": one.size, "mtime": one.mtime})
            for path, one in zip(paths, entries, strict=True)
            if path not in known
        ]
    )


class Holders:
    """The directories that hold the places that come by, in their order, each once.

    All places below a directory come together, so only those above the last one need to be remembered.
    """

    def __init__(self) -> None:
        self._above: list[str] = []

    def new(self, places: Iterable[str]) -> Iterator[str]:
        """Yield the directories that are new."""
        for place in places:
            directory = posixpath.dirname(place)
            while self._above and not below_any(directory, self._above[-1:]):
                self._above.pop()
            if not self._above or self._above[-1] != directory:
                self._above.append(directory)
                yield directory
