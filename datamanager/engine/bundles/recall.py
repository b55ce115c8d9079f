"""One member out of its bundle, into its partial file at the destination, by the publish protocol.

    ready = recall.stage(job, bundle, member, control, remember)
    # the caller records ready.intent
    single.publish(ready, control)                      # engine.single's, as for a file

`job.source` is the bundle's place, `job.destination` the file's. Only the member's bytes are read from the archive, or
of a compressed bundle the frames that hold them. Goes on where an earlier attempt was cut off, as a file does.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from datamanager.domain.bundles import Bundle, Member
from datamanager.domain.states import Phase, Verified
from datamanager.engine import stream
from datamanager.engine.bundles.stored import MemberContent, Stored
from datamanager.engine.confine import confined
from datamanager.engine.control import Control
from datamanager.engine.job import Found, Intent, Job
from datamanager.engine.probe import Read, probe_content
from datamanager.engine.single import Ready
from datamanager.engine.stream import Remember, forget
from datamanager.engine.verify import verify
from datamanager.errors import ChecksumMismatch, DataManagerError, PathMissing, SourceMissing
from datamanager.machines import VerifyPolicy

log = logging.getLogger(__name__)


def stage(job: Job, bundle: Bundle, member: Member, control: Control, remember: Remember = forget) -> Ready:
    """Do all that comes before the name is given: probe, transfer, verify. An error leaves the partial file (retry, or
    `single.discard`/`stream.discard`).

    The bytes are compared with the member's sha256, whatever `job.verify` says; the tar header before them with its
    name, type and size.

    Raises: ChecksumMismatch (the bundle is damaged there: nothing is published), SourceMissing (no such bundle),
    SourceChanged (the bundle has another size), DestinationExists, NoSpace, what the transports raise.
    """
    control.enter(Phase.PROBE)
    job = replace(job, verify=VerifyPolicy.SHA256)
    try:
        return _sent(job, bundle, member, control, remember)
    except ChecksumMismatch as damaged:
        log.warning("%s; once more", damaged.detail)
        return _sent(job, bundle, member, control, remember)


def _sent(job: Job, bundle: Bundle, member: Member, control: Control, remember: Remember) -> Ready:
    content, path = _content(job, bundle, member)
    found = probe_content(job, Read(path, content.stat, content=content), size=member.size)
    if found.published is not None:
        return Ready(job, found, found.published, Verified.SHA256)
    try:
        proof = verify(job, found, stream.relay(job, found, control, remember), control)
        if proof.sha256 != member.sha256:
            raise ChecksumMismatch(f"{job.origin.place}: {member.name} has sha256 {proof.sha256}, not {member.sha256}")
    except ChecksumMismatch:
        _discard(job, found)
        raise
    control.enter(Phase.PUBLISH)
    return Ready(job, found, Intent(proof.size, proof.sha256, member.mtime), proof.verified)


def _content(job: Job, bundle: Bundle, member: Member) -> tuple[MemberContent, str]:
    """Return the member, and the real path of its bundle."""
    with job.origin.storage.session() as session:
        try:
            path = confined(session, job.origin.machine, job.origin.place.path)
        except PathMissing:
            raise SourceMissing(f"{job.origin.place}: no such bundle") from None
        return MemberContent(Stored.find(session, path, bundle), member), path


def _discard(job: Job, found: Found) -> None:
    try:
        stream.discard(job, found)
    except DataManagerError as exc:
        log.warning("%s: a partial file stays for now: %s", job.target.place, exc.detail)
