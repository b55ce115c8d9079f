"""Members out of their bundle, into partial files beside their destinations, by the publish protocol: a large one
(`engine.single`), or many small ones at once, with few round trips (`engine.bulk`).

    ready = recall.stage_large(attempt, bundle, member, control, remember)
    # the caller records ready.intent
    staged_file.publish(ready, control)                                         # as for a file

    outcomes = recall.stage_small(ends, bundle, items, rules, control)          # Staged, Failed, Deferred
    bulk_publish.publish(target, staged, overwrite=...)                         # as for files

Only the members' bytes are read from the archive, or of a compressed bundle the frames that hold them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from datamanager.domain.bundle_model import Member, Pack, SealedBundle
from datamanager.domain.location import Place
from datamanager.engine.attempt import Attempt, Proof
from datamanager.engine.bulk import bulk_staging
from datamanager.engine.bulk.bulk_chunk import BulkEndpoints, BulkRules, Outcome, SmallItem
from datamanager.engine.bundles.layout import header_of
from datamanager.engine.bundles.stored_bundle import BundleMemberContent, StoredBundle, require_header, require_there
from datamanager.engine.control import Control
from datamanager.engine.single.staged_file import ReadyFile, stage_content
from datamanager.engine.single.transfer import Remember, forget
from datamanager.engine.virtual_files import BulkContainerMembers, ContainerMember, ContainerMembers
from datamanager.errors import ChecksumMismatch
from datamanager.machines import Machine
from datamanager.transports.port import Session
from datamanager.transports.values import FileKind, FileStat, SmallFile


@dataclass(frozen=True, slots=True)
class RecallItem:
    """A member to bring back; `number` is the caller's, unique within the transfer."""

    number: int
    member: Member
    destination: Place


def stage_large(
    job: Attempt, bundle: SealedBundle, member: Member, control: Control, remember: Remember = forget
) -> ReadyFile:
    """Do all that comes before the name is given: probe, transfer, verify. `job.source` is the bundle's place,
    `job.destination` the file's. An interrupted transfer is resumed, as that of a file. An error leaves the partial
    file (retry, or `staged_file.discard`/`transfer.discard`).

    The bytes are compared with the member's sha256, whatever `job.verify` says; the tar header before them with its
    name, type and size.

    Raises: ChecksumMismatch (the bundle is damaged there: nothing is published), SourceMissing (no such bundle),
    SourceChanged (the bundle has another size), DestinationExists, NoSpace, what the transports raise.
    """
    with job.origin.storage.session() as session:
        stored = StoredBundle.find(session, job.origin.machine, bundle)

    def judge(proof: Proof) -> None:
        if proof.sha256 != member.sha256:
            raise ChecksumMismatch(f"{bundle.place}: {member.name} has sha256 {proof.sha256}, not {member.sha256}")

    return stage_content(job, BundleMemberContent(stored, member), stored.path, judge, control, remember)


def stage_small(
    ends: BulkEndpoints[Session], bundle: SealedBundle, items: Sequence[RecallItem], rules: BulkRules, control: Control
) -> list[Outcome]:
    """Bring the items' bytes into partial files beside their destinations and verify them; see
    `bulk_staging.stage`. The source of `ends` is a session of the archive.

    One outcome per item, in their order: Staged, Failed (ChecksumMismatch where the bundle is damaged), or Deferred for
    a member larger than `rules.most` bytes: `stage_large` is for those. The sessions may be of one machine, but must
    be two.

    Raises: SourceMissing (no such bundle), SourceChanged (it has another size), what breaks a connection (retryable)
    and what `control` raises.
    """
    archive = ends.origin
    stored = StoredBundle.find(ends.source, archive, bundle)
    members = _members(ends.source, archive, stored, [item.member for item in items])
    small = [SmallItem(item.number, _place(bundle, item.member), item.destination) for item in items]
    return bulk_staging.stage(BulkEndpoints(members, ends.target, archive, ends.destination), small, rules, control)


def _members(session: Session, machine: Machine, stored: StoredBundle, members: Sequence[Member]) -> ContainerMembers:
    """Return the members of a stored bundle as small files of a machine."""
    bundle = stored.bundle
    pieces = {posixpath.join(machine.base_dir, _place(bundle, one).path): _piece(bundle, one) for one in members}
    there = partial(require_there, path=stored.path, bundle=bundle)
    return ContainerMembers(BulkContainerMembers(session, stored.open, there, pieces))


def _place(bundle: SealedBundle, member: Member) -> Place:
    """Return the place that stands for a member: below the bundle's, as if that were a directory."""
    return Place(bundle.place.machine, posixpath.join(bundle.place.path, member.name))


def _piece(bundle: SealedBundle, member: Member) -> ContainerMember:
    """Return where a member's header begins, the length of both, and how they are judged."""
    head = 0 if bundle.pack is Pack.NONE else len(header_of(member))
    stat = FileStat(FileKind.FILE, member.size, member.mtime, member.mode)

    def unfold(data: bytes) -> SmallFile | ChecksumMismatch:
        if head:
            try:
                require_header(member, data[:head])
            except ChecksumMismatch as other:
                return other
        if sha256(memoryview(data)[head:]).hexdigest() != member.sha256:
            return ChecksumMismatch(f"{bundle.place}: {member.name} has a different sha256 than the stored one")
        return SmallFile(stat, data[head:])

    return ContainerMember(member.offset - head, head + member.size, stat, unfold)
