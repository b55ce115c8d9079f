"""The last step of an archive: its members' files go, those that still are what was read."""

from __future__ import annotations

from uuid import UUID

from datamanager.domain.bundle_model import Manifest, Member
from datamanager.engine.attempt import Endpoint, Intent
from datamanager.engine.bulk.bulk_chunk import Staged
from datamanager.engine.bulk.bulk_publish import remove_sources as remove_files
from datamanager.engine.bundles.writing.bundle_upload import ArchiveAttempt
from datamanager.engine.bundles.writing.member_probe import real_paths
from datamanager.engine.single import publish as publishing
from datamanager.errors import DataManagerError, PathMissing, SourceNotRemoved
from datamanager.transports.values import FileKind, FileStat


def remove_sources(job: ArchiveAttempt, manifest: Manifest) -> dict[UUID, DataManagerError]:
    """Remove the members' files, those that still are what was read; return those that are left, and why. The bundle is
    never removed. A link goes, too, if what it leads to is what was read.

    Fine where one is gone already. SourceNotRemoved for one that changed or can't be removed. Raises: what breaks the
    connection (retryable: do it again).
    """
    machine, storage = job.machine, job.storage
    left: dict[UUID, DataManagerError] = {}
    files, links = list[Staged](), list[Member]()
    with storage.session() as session:
        members, to = manifest.members, str(manifest.bundle.place)
        there = list[Staged]()
        for index, path in enumerate(real_paths(session, machine, [one.source for one in members])):
            one = members[index]
            if isinstance(path, str):
                there.append(Staged(index, path, "", "", to, one.size, one.mtime, one.mode, one.sha256))
            elif not isinstance(path, PathMissing):
                left[one.uuid] = SourceNotRemoved(f"{one.source} was not removed: {path.detail}")
        for place, stat in session.bulk.lstat([one.source_path for one in there]):
            if isinstance(stat, FileStat) and stat.kind is FileKind.SYMLINK:
                links.append(members[there[place].number])
            else:
                files.append(there[place])
    for one in links:  # before what they lead to
        try:
            intent = Intent(one.size, one.sha256, one.mtime)
            publishing.remove_source(Endpoint(one.source, machine, storage), intent, job.destination)
        except SourceNotRemoved as exc:
            left[one.uuid] = exc
    with storage.session() as session:
        for file, error in zip(files, remove_files(session, files), strict=True):
            if error is not None:
                left[members[file.number].uuid] = error
    return left
