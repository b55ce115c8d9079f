"""One large member out of its archive, into its partial file, by the publish protocol."""

from __future__ import annotations

from datamanager.engine.attempt import Attempt, Proof
from datamanager.engine.control import Control
from datamanager.engine.extracting.archive_member import Packed
from datamanager.engine.extracting.member_content import Lying, MemberContent
from datamanager.engine.single.staged_file import ReadyFile, stage_content
from datamanager.engine.single.transfer import Remember


def stage(job: Attempt, archive: Lying, member: Packed, control: Control, remember: Remember) -> ReadyFile:
    """Do all that comes before the name is given; the bytes are hashed at both ends, whatever `job.verify` says.

    Raises: ChecksumMismatch (the archive is damaged there), SourceChanged, DestinationExists, NoSpace, what the
    transports raise. An error leaves the partial file: retry, or `stream.discard`.
    """
    content = MemberContent(archive, member)

    def judge(_: Proof) -> None:
        content.require_sound()

    return stage_content(job, content, archive.path, judge, control, remember)
