"""Extraction of the files of an archive from outside, as chunks of a batch: small files together, others one by one. A
damaged file fails alone.

Files that an earlier attempt may have published are settled first: that needs no archive, which may have changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from datamanager.domain.location import Place
from datamanager.domain.requests import GetExternalRequest
from datamanager.domain.states import Verified
from datamanager.engine.attempt import Found, Intent, Proof
from datamanager.engine.bulk.bulk_chunk import BulkEndpoints, BulkRules, Outcome
from datamanager.engine.extracting import member_staging
from datamanager.engine.extracting.archive_listing import Packaging, members_of
from datamanager.engine.extracting.archive_member import Packed
from datamanager.engine.extracting.member_staging import ExtractItem, StoredArchive
from datamanager.engine.path_confinement import confined
from datamanager.engine.single.probe import published_before
from datamanager.engine.single.staged_file import ReadyFile, Share
from datamanager.errors import InternalError
from datamanager.machines import VerifyPolicy
from datamanager.sources.download_terms import parse_terms
from datamanager.sources.terms.urls import public_url
from datamanager.transports.port import Session
from flows.archive.recalling import MembersChunk
from flows.runtime.acting import acted_as
from flows.runtime.transfer_run import TransferRun
from models.batches import results as batch_results
from models.external import extracted
from models.objects.bulk_claims import chunks
from models.objects.catalogue import Facts
from models.tables import TransferItem

AT_ONCE = 2000
"""Files of one step."""


def enter(work: TransferRun, request: GetExternalRequest, found: Found, proof: Proof) -> None:
    """List the archive, which is in its partial file, and make its files the transfer's items, once. Blocks.

    Raises: what `members_of` raises; SourceChanged when an earlier attempt listed another archive.
    """
    identity, known = proof.sha256, work.row.notes.get(extracted.ARCHIVE)
    if identity is None:
        raise InternalError(f"the archive of transfer {work.transfer} was not hashed")
    if known is not None:
        extracted.require_same(known, identity)
        return
    terms = parse_terms(request)
    target, limit = work.attempt().target, terms.limit(work.parts.settings.max_download)
    packaging: Packaging | None = terms.options.extract
    if packaging is None:
        raise InternalError(f"transfer {work.transfer} extracts nothing")
    with target.storage.session() as session:
        listing = members_of(session, found.part, packaging, target.machine, request.path, limit, work.control.check)
    files = [
        extracted.ArchivedFile(one.name, one.size, Place.of(target.machine, request.path, one.name), asdict(one))
        for one in listing.members
    ]
    refused = [(one.printable, one.error) for one in listing.refused]
    work.write_now(extracted.enter, identity, files, refused)
    work.log.info("the archive contains %d files, %d bytes", len(files), sum(one.size for one in files))
    if refused:
        work.log.warning("%d of its members are not extracted, first: %s", len(refused), refused[0][1].detail)


def plan(work: TransferRun) -> list[Sequence[int]]:
    """Return which files are extracted together, by number, in the order of the archive."""
    rows = work.items_to_do()
    control = work.control
    control.bytes_total = control.bytes_done + sum(row.size or 0 for row in rows)
    ordered = sorted(rows, key=lambda row: int(row.notes["member"]["offset"]))
    return list(chunks([row.number for row in ordered], AT_ONCE))


def settle(work: TransferRun) -> None:
    """Complete the files that an earlier attempt published without committing them; no file is in doubt then. Blocks.
    Raises: what breaks a connection; LeaseLost.
    """
    rows = [row for row in work.items_to_do() if row.notes.get("intent")]
    for some in chunks(rows, AT_ONCE):
        Doubtful(work, some).settle()


class FilesChunk(MembersChunk):
    """Files that become objects."""

    def _tell(self, results: Sequence[tuple[int, Facts]]) -> None:
        originator = public_url(str(getattr(self._run.request, "url", "")))
        for some in chunks(results, batch_results.CHUNK):
            self._run.write_now(extracted.complete, some, originator)


class Doubtful(FilesChunk):
    """Files whose intents were recorded: they may be published."""

    def settle(self) -> None:
        """Complete those that are; lay the others' intents aside."""
        for number in self._rows:
            self._trying(number, self._describe)
        there: dict[int, Intent] = {}

        def look(number: int) -> None:
            attempt = self._attempts[number]
            with attempt.target.storage.session() as session:
                final = confined(session, attempt.target.machine, attempt.target.place.path, follow=False)
                if (intent := published_before(session, attempt, final, None)) is not None:
                    there[number] = intent

        self._each(list(self._attempts), look)
        for error in self.errors.values():
            if error.retryable:
                raise error
        self._tell([(number, self._facts(number, intent)) for number, intent in there.items()])
        self._run.write_all(extracted.lay_aside, [number for number in self._rows if number not in there])

    def _facts(self, number: int, intent: Intent) -> Facts:
        login = acted_as(self._attempts[number].target.storage)
        return Facts(intent.size, f"sha256:{intent.sha256}", Verified.SHA256, acted_as=login)


class ExtractChunk(FilesChunk):
    """Extracts files of one archive."""

    def __init__(self, work: TransferRun, rows: Sequence[TransferItem], archive: StoredArchive) -> None:
        super().__init__(work, rows)
        self._archive = archive
        self._members = {row.number: Packed(**row.notes["member"]) for row in rows}

    def _describe(self, number: int) -> None:
        super()._describe(number)
        looked_for = self._rows[number].notes.get(extracted.LOOKED_FOR)
        if looked_for is not None and self._attempts[number].intent is None:
            self._attempts[number] = replace(self._attempts[number], intent=Intent(**looked_for))

    def _stage_together(self, ends: BulkEndpoints[Session], group: Sequence[int], rules: BulkRules) -> list[Outcome]:
        attempts = self._attempts
        items = [ExtractItem(n, self._members[n], attempts[n].origin.place, attempts[n].target.place) for n in group]
        rules = replace(rules, verify=VerifyPolicy.SHA256)
        return member_staging.stage_small(ends, self._archive, items, rules, self._run.control)

    def _stage_one(self, number: int) -> ReadyFile:
        attempt, control = self._attempts[number], Share(self._run.control)
        return member_staging.stage_large(
            attempt, self._archive, self._members[number], control, self._remembering(number)
        )
