"""From objects to a bundle in an archive, by the publish protocol: `stage`, (record the intent,) `publish`, (commit,)
`remove_sources`.

    staged = bundle_upload.stage(job, control, remember)  # staged.failed: members left out, each with its error
    # the caller records staged.ready.intent, for the bundle's row
    bundle_upload.publish(staged.ready)
    # the caller commits: objects ARCHIVED, each with its Member; the bundle's row
    member_files.remove_sources(job, staged.ready.manifest)  # unless keep_source

A crash anywhere: do it again with the next epoch, the `intent` and the `restart` that were recorded. `stage` finds what
was published and reads its manifest back.
"""

from __future__ import annotations

import logging
import posixpath
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from datamanager.domain.bundle_model import (
    Frame,
    Manifest,
    Pack,
    SealedBundle,
    VerifyLevel,
)
from datamanager.domain.location import Place, temporary_name
from datamanager.domain.states import Phase, Route
from datamanager.engine.attempt import Endpoint, Found, Intent, Moved, SourceMark
from datamanager.engine.bundles import manifest as manifests
from datamanager.engine.bundles.bundle_content import ArchiveAttempt, BundleContent, BundleDigest, send_compressed
from datamanager.engine.bundles.layout import Layout
from datamanager.engine.bundles.member_files import look
from datamanager.engine.bundles.stored_bundle import StoredBundle
from datamanager.engine.control import Control, unwrapped
from datamanager.engine.path_confinement import confined
from datamanager.engine.single import publish as publishing
from datamanager.engine.single import transfer as stream
from datamanager.engine.single.probe import Read, probe_destination, published_before
from datamanager.engine.single.restart import part_paths
from datamanager.engine.single.source_removal import machine_time
from datamanager.engine.single.staged_file import again_if_damaged
from datamanager.engine.single.transfer import Remember, forget
from datamanager.engine.single.verify import source_sha256, verify
from datamanager.errors import (
    ChecksumMismatch,
    DataManagerError,
    PathMissing,
    RemoteFailure,
    SourceChanged,
)
from datamanager.machines import VerifyPolicy
from datamanager.transports.values import own_file

ROUNDS = 3
"""How often a bundle is begun anew because of members that fail."""
_MODE = 0o600  # of a bundle and its manifest: whoever reads it reads every member

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReadyBundle:
    """A bundle that waits for its name, verified; or one that an earlier attempt published (`published`)."""

    job: ArchiveAttempt
    found: Found
    manifest: Manifest
    intent: Intent
    published: bool = False


@dataclass(frozen=True, slots=True)
class StagedBundle:
    """What came of the members: a bundle of the good ones (None when there is none), and why the others are not in
    it."""

    ready: ReadyBundle | None
    failed: dict[UUID, DataManagerError] = field(default_factory=dict)


def stage(job: ArchiveAttempt, control: Control, remember: Remember = forget) -> StagedBundle:
    """Look at the members, send the bundle into its partial file, and verify it as `job.level` says.

    A member that is missing, can't be read or changes meanwhile fails alone: the bundle is built again without it. What
    an earlier attempt stored of an uncompressed bundle is resumed; `remember` is given the restart marker before
    the first byte. Phases: PROBE, TRANSFER, VERIFY. On an error the partial file is left for the next try (`discard`).

    Raises: DestinationExists, NoSpace, ChecksumMismatch, SizeMismatch, SourceChanged (members keep changing), what the
    transports raise and the reason that `control` was stopped with.
    """
    control.enter(Phase.PROBE)
    if (ready := _published(job)) is not None:
        there = {member.uuid for member in ready.manifest.members}
        left_out = [one for one in job.wanted if one.uuid not in there]
        return StagedBundle(ready, {one.uuid: SourceChanged(f"{one.source} is not in the bundle") for one in left_out})
    failed: dict[UUID, DataManagerError] = {}
    for _ in range(ROUNDS):
        control.enter(Phase.PROBE)
        entries = look(job.machine, job.storage, [one for one in job.wanted if one.uuid not in failed], failed)
        if not entries:
            discard(job)
            return StagedBundle(None, failed)
        content = BundleContent(Layout(entries, job.pack))
        try:
            ready = again_if_damaged(partial(_send, job, content, control, remember), partial(discard, job))
            return StagedBundle(ready, failed)
        except DataManagerError as exc:
            if exc.retryable or not content.blamed:
                raise
        with job.storage.session() as session:
            content.examine(session, control.check)
        for index, error in content.blamed.items():
            log.warning("%s; the bundle is built again without it", error.detail)
            failed[entries[index].uuid] = error
        discard(job)
    raise SourceChanged(f"{job.as_transfer.origin.place} keep changing")


def publish(ready: ReadyBundle) -> None:
    """Give the manifest and then the bundle their names, each atomically. Fine when that was done before.

    The caller has recorded `ready.intent`. A bundle that has its name has its manifest beside it.

    Raises: DestinationExists (another file has the bundle's name), and what the transports raise.
    """
    if ready.published:
        return
    _publish_manifest(ready)
    publishing.publish(ready.job.as_transfer, ready.found, ready.intent)


def discard(job: ArchiveAttempt) -> None:
    """Remove the partial files of an attempt that is given up; also after a stop. Touches only this attempt's names."""
    end = job.destination
    with unwrapped(end.storage).session() as session:
        directory = posixpath.dirname(confined(session, end.machine, end.place.path, follow=False))
        for place in (end.place, job.manifest):
            try:
                session.remove(posixpath.join(directory, _part_name(job, place)))
            except PathMissing:
                continue


def _published(job: ArchiveAttempt) -> ReadyBundle | None:
    """Return what an earlier attempt, which recorded its intent, has published."""
    end, intent = job.destination, job.intent
    if intent is None:
        return None
    with end.storage.session() as session:
        final = confined(session, end.machine, end.place.path, follow=False)
        if published_before(session, job.as_transfer, final, None) is None:
            return None
        directory = posixpath.dirname(final)
        manifest = manifests.read(session, posixpath.join(directory, job.manifest.name))
    bundle = manifest.bundle
    if (bundle.uuid, bundle.size, bundle.sha256) != (job.bundle, intent.size, intent.sha256):
        raise RemoteFailure(f"{job.manifest} is not the manifest of its bundle")
    found = Found(Route.RELAY, directory, final, posixpath.join(directory, _part_name(job, end.place)))
    return ReadyBundle(job, found, manifest, intent, published=True)


def _send(job: ArchiveAttempt, content: BundleContent, control: Control, remember: Remember) -> ReadyBundle:
    layout, transfer = content.layout, job.as_transfer
    compress = job.pack is Pack.TAR_ZST
    read = Read("", layout.stat, content=content)
    found = probe_destination(transfer, read, size=None if compress else layout.size)
    with job.storage.session() as session:
        began = machine_time(session, posixpath.dirname(layout.entries[0].path))
    moved: Moved
    frames: tuple[Frame, ...] = ()
    if compress:
        moved, frames = send_compressed(transfer, found, content, control)
    else:
        moved = stream.relay(transfer, found, control, remember)
    control.enter(Phase.VERIFY)
    if moved.sha256 is None and transfer.verify is VerifyPolicy.SIZE:  # resumed, so not hashed as it passed
        source_sha256(transfer, found, control)
    verify(transfer, found, moved, control)
    digest = content.hashed
    sha256 = moved.sha256 if compress and moved.sha256 is not None else digest.hexdigest()
    made_at = datetime.now(UTC).replace(microsecond=0)
    manifest = Manifest(
        bundle=SealedBundle(job.bundle, job.pack, job.destination.place, moved.size, sha256),
        made_at=made_at,
        made_by=job.made_by,
        transfer=job.transfer,
        level=job.level,
        stream_size=layout.size,
        members=layout.members(digest.sums),
        frames=frames,
    )
    if job.level is VerifyLevel.PARANOID:
        _require_members(job.destination, found.part, manifest, layout, control)
    mtime = int(made_at.timestamp())
    intent = publishing.set_attributes(transfer, found, Intent(moved.size, sha256, mtime, SourceMark(mtime, began)))
    return ReadyBundle(job, found, manifest, intent)


def _require_members(end: Endpoint, path: str, manifest: Manifest, layout: Layout, control: Control) -> None:
    """Give the last proof (htar's `-Hverify=paranoid`): read the bundle at `path` back and compare every member.

    Raises: ChecksumMismatch.
    """
    stored = StoredBundle(path, manifest.bundle, manifest.frames)
    digest = BundleDigest(layout)
    with end.storage.session() as session, stored.open(session) as reader:
        for block in reader.blocks(0, layout.size):
            digest.update(block)
            control.check()
    if not digest.complete:
        raise ChecksumMismatch(f"{end.place}: shorter than when it was stored")
    for member, sha256 in zip(manifest.members, digest.sums, strict=True):
        if sha256 != member.sha256:
            raise ChecksumMismatch(f"{end.place}: {member.name}: sha256 {sha256} is stored, {member.sha256} was read")


def _publish_manifest(ready: ReadyBundle) -> None:
    """Write the manifest beside the bundle, over one that an earlier attempt may have left."""
    job, data = ready.job, manifests.dump(ready.manifest)
    as_transfer = replace(job.as_transfer, destination=replace(job.destination, place=job.manifest))
    parts = part_paths(as_transfer, ready.found.directory)
    part = parts[0]
    final = posixpath.join(ready.found.directory, job.manifest.name)
    with job.destination.storage.session() as session:
        for _ in session.bulk.remove(parts):
            pass  # mostly there is none
        with session.create(part) as writer:
            writer.write(0, data)
            writer.flush()
        with own_file(part):
            with session.open_read(part) as reader:
                if b"".join(bytes(block) for block in reader.blocks()) != data:
                    raise ChecksumMismatch(f"{job.manifest}: the stored bytes differ from those sent")
            session.set_attributes(part, mode=_MODE, mtime=ready.intent.mtime)
            session.rename(part, final, overwrite=True)


def _part_name(job: ArchiveAttempt, place: Place) -> str:
    return temporary_name(place.name, job.transfer, job.epoch)
