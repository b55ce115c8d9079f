"""One file of a batch by the one-file engine, in two halves: what is before its intent is recorded, and what is after.

For files that `engine.bulk` does not take: large ones, links, those of one machine, and those that an earlier attempt
may have published.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from datamanager.domain.states import Phase, Route, Verified
from datamanager.engine.attempt import Attempt, Content, Found, Intent, Proof
from datamanager.engine.control import Control
from datamanager.engine.single import publish as publishing
from datamanager.engine.single import transfer
from datamanager.engine.single.probe import Read, probe, probe_destination
from datamanager.engine.single.transfer import Remember
from datamanager.engine.single.verify import verify
from datamanager.errors import ChecksumMismatch, DataManagerError
from datamanager.machines import VerifyPolicy
from datamanager.transports.values import FileStat

log = logging.getLogger(__name__)

T = TypeVar("T")


class KnownContent(Content, Protocol):
    """A content that is known before it is read: a member of a bundle or an archive."""

    @property
    def stat(self) -> FileStat:
        """What it will be as a file."""


class Share(Control):
    """The control of one file of a batch: its bytes count for the whole, whose stop is its stop."""

    def __init__(self, whole: Control) -> None:
        super().__init__()
        self._whole = whole
        self._counted = 0

    def enter(self, phase: Phase, total: int | None = None) -> None:
        """Note the phase; with `total` it begins anew: what was counted for the whole is taken back."""
        super().enter(phase, total)
        if total is not None:
            self._whole.count(-self._counted)
            self._counted = 0

    def advance(self, count: int) -> None:
        """Count bytes here and for the whole, whose limits apply."""
        super().skip(count)
        self._counted += count
        self._whole.advance(count)

    def skip(self, count: int) -> None:
        """Count bytes that no limit is for, here and for the whole."""
        super().skip(count)
        self._counted += count
        self._whole.skip(count)

    def check(self) -> None:
        """Raise the reason to stop, if the whole has one."""
        self._whole.check()


@dataclass(frozen=True, slots=True)
class ReadyFile:
    """A file that waits for its name: in its partial file and verified, or where a rename will take it from."""

    job: Attempt
    found: Found
    intent: Intent
    verified: Verified


def stage(job: Attempt, whole: Control) -> ReadyFile:
    """Do all that comes before the name is given. A failure leaves nothing.

    Raises: what probe, stream and verify raise.
    """
    found = probe(job)
    if found.published is not None:
        return ReadyFile(job, found, found.published, job.proof_level)
    source = found.source_stat
    if found.route is Route.RENAME:
        return ReadyFile(job, found, found.intent(job, source.size), Verified.NONE)
    return _sent(job, found, whole)


def stage_content(
    job: Attempt,
    content: KnownContent,
    path: str,
    judge: Callable[[Proof], None],
    control: Control,
    remember: Remember,
) -> ReadyFile:
    """Do all that comes before the name is given, for a file that lies in a larger one at `path`; hashed at both ends,
    whatever `job.verify` says. What was damaged on the way is sent once more.

    `judge` raises ChecksumMismatch when the proof is that of other bytes than were to come; what was written is
    removed then. Another error leaves the partial file. Resumes an earlier attempt that was interrupted.
    """
    control.enter(Phase.PROBE)
    job = replace(job, verify=VerifyPolicy.SHA256)

    def send() -> ReadyFile:
        stat = content.stat
        found = probe_destination(job, Read(path, stat, content=content), size=stat.size)
        if found.published is not None:
            return ReadyFile(job, found, found.published, Verified.SHA256)
        try:
            proof = verify(job, found, transfer.relay(job, found, control, remember), control)
            judge(proof)
            intent = publishing.set_attributes(job, found, found.intent(job, proof.size, proof.sha256))
        except ChecksumMismatch:
            _discard(job, found)
            raise
        control.enter(Phase.PUBLISH)
        return ReadyFile(job, found, intent, proof.verified)

    return again_if_damaged(send)


def again_if_damaged(send: Callable[[], T], discard: Callable[[], None] = lambda: None) -> T:
    """Send and verify; what was damaged on the way is discarded and sent once more."""
    try:
        return send()
    except ChecksumMismatch as damaged:
        log.warning("%s; sending again", damaged.detail)
        discard()
        return send()


def publish(ready: ReadyFile, whole: Control) -> ReadyFile:
    """Give the file its name; the intent was recorded. Returns what is true then (a move may have become a copy).

    Raises: what publish and, across file systems, stream and verify raise.
    """
    job, found = ready.job, ready.found
    if found.published is not None:
        return ready
    if found.route is Route.RENAME:
        if publishing.rename(job, found):
            return ready
        ready = _sent(job, replace(found, route=Route.WITHIN), whole)
    try:
        publishing.publish(job, ready.found, ready.intent)
    except Exception:
        discard(ready)
        raise
    return ready


def discard(ready: ReadyFile) -> None:
    """Remove the partial file of a file that is not to be published; on a machine that is away it stays for now."""
    if ready.found.route is not Route.RENAME and ready.found.published is None:
        _discard(ready.job, ready.found)


def _sent(job: Attempt, found: Found, whole: Control) -> ReadyFile:
    """Send and verify; what was damaged on the way is sent once more."""
    share = Share(whole)
    try:
        proof = again_if_damaged(
            lambda: verify(job, found, transfer.send(job, found, share), share), lambda: transfer.discard(job, found)
        )
        intent = publishing.set_attributes(job, found, found.intent(job, proof.size, proof.sha256))
    except Exception:
        _discard(job, found)
        raise
    share.enter(Phase.PUBLISH)
    return ReadyFile(job, found, intent, proof.verified)


def _discard(job: Attempt, found: Found) -> None:
    try:
        transfer.discard(job, found)
    except DataManagerError as exc:
        log.warning("%s: a partial file could not be removed yet: %s", job.target.place, exc.detail)
