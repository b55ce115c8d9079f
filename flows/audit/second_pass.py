"""The second look of an audit, at its candidates only, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from datamanager.domain.audit_rules import (
    Expected,
    Finding,
    FindingKind,
    Look,
    Sight,
    is_suspicious,
    judge,
    may_be_dark,
)
from datamanager.errors import AuditSuspicious
from flows.audit.context import PAGE, Examination
from models.audit import findings, scan_queries
from models.tables import AuditFinding

CHANGES: tuple[tuple[FindingKind, str, Callable[..., int]], ...] = (
    (FindingKind.LOST, "became_unknown", findings.apply_lost),
    (FindingKind.CHANGED, "unverified", findings.apply_changed),
    (FindingKind.FOUND, "restored", findings.apply_found),
)
"""What each kind of finding does to objects, and the word under which it is counted."""


def second_look(exam: Examination) -> None:
    """Look at the candidates again; keep what is found again while its row is the same.

    Raises: RemoteFailure when the base directory is missing, or empty by now.
    """
    if exam.counts["objects"] or exam.counts["bundles"]:
        exam.require_mounted()
    proving = Proving(exam.terms.scrub_bytes)
    for page in _pages(exam, confirmed=False):
        found = _objects(exam, page, proving) | _bundles(exam, page, proving) | _dark(exam, page)
        exam.writing(findings.settle, [row.number for row in page], found)


def conclude(exam: Examination) -> None:
    """Change objects as the findings say. Raises: AuditSuspicious, and then none is changed."""
    exam.note(**exam.reading(findings.count, exam.audit))
    looked, most = exam.seen, exam.terms.most_lost
    lost = exam.counts["lost"] - exam.counts["lost_bundles"] + exam.lost_not_kept
    if is_suspicious(lost, looked, most) and not exam.terms.accept_losses:
        exam.writing(scan_queries.note_suspicion)
        raise AuditSuspicious(
            f"{lost} of {looked} objects of {exam.name} have no file: more than {most:.0%}, so nothing was changed; "
            "if the losses are real, audit again with accept_losses"
        )
    for kind, word, change in CHANGES:
        changed = 0
        for page in _pages(exam, kind=kind):
            mine = [row for row in page if row.object_id is not None and not _is_of_bundle(row)]
            changed += exam.writing(change, mine)
        exam.note(**{word: changed})


class Proving:
    """How many bytes may still be hashed to prove that files which were found are the right ones."""

    def __init__(self, most: int) -> None:
        self._left = most

    def allows(self, size: int) -> bool:
        """Take `size` bytes if they are left."""
        if size > self._left:
            return False
        self._left -= size
        return True


def _pages(exam: Examination, **which: Any) -> Iterator[list[AuditFinding]]:
    after = -1
    while page := exam.reading(findings.page, exam.audit, after=after, limit=PAGE, **which):
        yield page
        after = page[-1].number


def _objects(exam: Examination, page: Sequence[AuditFinding], proving: Proving) -> dict[int, Finding]:
    mine = {row.number: row.object_id for row in page if row.object_id is not None and not _is_of_bundle(row)}
    rows = exam.reading(scan_queries.objects_at, exam.name, list(mine.values()))
    return _again(exam, [row for row in page if row.number in mine], mine, rows, proving)


def _bundles(exam: Examination, page: Sequence[AuditFinding], proving: Proving) -> dict[int, Finding]:
    mine = [row for row in page if _is_of_bundle(row)]
    bundles = exam.reading(scan_queries.bundles_at, exam.name, [row.object_id for row in mine if row.object_id])
    manifests = [scan_queries.manifest_of(row, exam.name) for row in bundles.values()]
    rows = {row.place: row for row in [*bundles.values(), *manifests]}
    return _again(exam, mine, {row.number: row.place for row in mine}, rows, proving)


def _again(
    exam: Examination,
    candidates: Sequence[AuditFinding],
    keys: Mapping[int, Hashable],
    rows: Mapping[Any, Expected],
    proving: Proving,
) -> dict[int, Finding]:
    """Look again at rows that are what they were; hash where the first look did, or where one must be sure."""
    pairs = [(one, rows[keys[one.number]]) for one in candidates if keys[one.number] in rows]
    same = [(one, row) for one, row in pairs if _is_same(row, one)]
    free = {(row.object_id, row.place) for row in exam.unclaimed([row for _, row in same])}
    same = [(one, row) for one, row in same if (row.object_id, row.place) in free]
    looks = exam.look_at([row for _, row in same])
    wanted = [index for index, (one, row) in enumerate(same) if _must_hash(one, row, looks[index], proving)]
    for index, look in zip(wanted, exam.hashes([looks[index] for index in wanted]), strict=True):
        looks[index] = look
    found = dict[int, Finding]()
    for (one, row), look in zip(same, looks, strict=True):
        again = judge(row, look)
        # a file that came back may be another one: that is no FOUND, and no reason to forget it
        if again is not None and (again.kind.value == one.kind or one.kind == FindingKind.FOUND.value):
            found[one.number] = _with_canonical(again, look)
    return found


def _dark(exam: Examination, page: Sequence[AuditFinding]) -> dict[int, Finding]:
    mine = [row for row in page if row.kind == FindingKind.DARK.value]
    paths = [findings.path_of(row) for row in mine]
    looks = exam.look_at_paths(paths)
    known = exam.known(paths)
    return {
        row.number: Finding(FindingKind.DARK, path, found=look.facts)
        for row, path, look in zip(mine, paths, looks, strict=True)
        if look.sight is Sight.FILE and path not in known and may_be_dark(path, look.mtime or 0, exam.begun)
    }


def _must_hash(one: AuditFinding, row: Expected, look: Look, proving: Proving) -> bool:
    if look.sight is not Sight.FILE or row.sha256 is None or look.size != row.size:
        return False
    if one.kind == FindingKind.CHANGED.value:
        return "sha256" in one.found
    return one.kind == FindingKind.FOUND.value and proving.allows(look.size or 0)


def _with_canonical(finding: Finding, look: Look) -> Finding:
    if not look.canonical or look.canonical == finding.place:
        return finding
    found = {**finding.found, "canonical": look.canonical}
    return Finding(finding.kind, finding.place, finding.object_id, finding.expected, found)


def _is_same(row: Expected, finding: AuditFinding) -> bool:
    return (row.status, row.modified.isoformat()) == (finding.expected["status"], finding.expected["modified"])


def _is_of_bundle(row: AuditFinding) -> bool:
    return "members" in row.expected
