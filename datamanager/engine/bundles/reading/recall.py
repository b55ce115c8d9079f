"""One member out of its bundle, into its partial file at the destination, by the publish protocol.

    ready = recall.stage(job, bundle, member, control, remember)
    # the caller records ready.intent
    single.publish(ready, control)                      # engine.single's, as for a file

`job.source` is the bundle's place, `job.destination` the file's. Only the member's bytes are read from the archive, or
of a compressed bundle the frames that hold them. Goes on where an earlier attempt was cut off, as a file does.
"""

from __future__ import annotations

from datamanager.domain.bundle_model import Member, SealedBundle
from datamanager.engine.attempt import Attempt, Proof
from datamanager.engine.bundles.reading.stored_bundle import BundleMemberContent, StoredBundle
from datamanager.engine.control import Control
from datamanager.engine.path_confinement import confined
from datamanager.engine.single.staged_file import ReadyFile, stage_content
from datamanager.engine.single.transfer import Remember, forget
from datamanager.errors import ChecksumMismatch, PathMissing, SourceMissing


def stage(
    job: Attempt, bundle: SealedBundle, member: Member, control: Control, remember: Remember = forget
) -> ReadyFile:
    """Do all that comes before the name is given: probe, transfer, verify. An error leaves the partial file (retry, or
    `single.discard`/`stream.discard`).

    The bytes are compared with the member's sha256, whatever `job.verify` says; the tar header before them with its
    name, type and size.

    Raises: ChecksumMismatch (the bundle is damaged there: nothing is published), SourceMissing (no such bundle),
    SourceChanged (the bundle has another size), DestinationExists, NoSpace, what the transports raise.
    """
    content, path = _content(job, bundle, member)

    def judge(proof: Proof) -> None:
        if proof.sha256 != member.sha256:
            raise ChecksumMismatch(f"{job.origin.place}: {member.name} has sha256 {proof.sha256}, not {member.sha256}")

    return stage_content(job, content, path, judge, control, remember)


def _content(job: Attempt, bundle: SealedBundle, member: Member) -> tuple[BundleMemberContent, str]:
    """Return the member, and the real path of its bundle."""
    with job.origin.storage.session() as session:
        try:
            path = confined(session, job.origin.machine, job.origin.place.path)
        except PathMissing:
            raise SourceMissing(f"{job.origin.place}: no such bundle") from None
        return BundleMemberContent(StoredBundle.find(session, path, bundle), member), path
