"""The tasks that the flows of one file are made of. Each works on the run's transfer
(`flows.runtime.transfer_run.current`); blocking work is done in threads.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from prefect.tasks import Task

from datamanager.domain.requests import DeleteRequest, GetExternalRequest
from datamanager.domain.states import Phase, Route, TransferKind, Verified
from datamanager.engine.attempt import Attempt, Found, Intent, Moved, Proof
from datamanager.engine.fetching.download import download
from datamanager.engine.fetching.machine_curl import on_machine
from datamanager.engine.fetching.remote_download import fetch
from datamanager.engine.fetching.replica_fetch import ExpectedBytes, FetchContext
from datamanager.engine.single import probe as probing
from datamanager.engine.single import publish as publishing
from datamanager.engine.single import source_removal as removal
from datamanager.engine.single import transfer as stream
from datamanager.engine.single import verify as verifying
from datamanager.errors import ChecksumMismatch, DataManagerError, InternalError
from datamanager.sealing import Sealer
from datamanager.sources.download_terms import parse_terms
from datamanager.sources.network.source_context import SourceContext
from datamanager.sources.registry import typed_options
from datamanager.sources.source_port import Download
from datamanager.sources.terms.source_validators import Validators, as_note, identity_or_none, is_empty
from datamanager.sources.terms.urls import public_url
from flows.external.request import whole_request
from flows.runtime.acting import acted_as
from flows.runtime.one_file import late_arrivals, registered_files, require_object_place, require_settled
from flows.runtime.progress import human, summarise
from flows.runtime.tasks import step, threaded
from flows.runtime.transfer_run import TransferRun, current
from models.objects.catalogue import Facts
from models.transfers import outcomes, queue


@dataclass(frozen=True, slots=True)
class Delivered:
    """What a transfer has done: what it recorded of the file, what is proved of its bytes, the result for a client."""

    intent: Intent
    verified: Verified
    result: str


@step("probe")
async def probe() -> Found:
    """Look at both ends, and whether what lies at the destination is another object's file."""
    run = current()
    run.control.enter(Phase.PROBE)
    if TransferKind(run.row.kind) is TransferKind.MOVE:
        await threaded(require_settled, run)
    size = run.request.size if isinstance(run.request, GetExternalRequest) else None
    found = await threaded(probing.probe, run.attempt(), size=size)
    if found.published is None:
        run.control.unshield()
    attempt = run.attempt()
    from_where = attempt.source.place if attempt.source else public_url(str(getattr(run.request, "url", "")))
    run.log.info("%s → %s, %s, by %s", from_where, attempt.target.place, human(found.size), found.route)
    await threaded(require_object_place, attempt.target, found.canonical)
    for error in (await threaded(registered_files, run, {0: attempt} if found.taken else {})).values():
        raise error
    if found.canonical != run.row.destination_place:
        await run.write(outcomes.claim_also, found.canonical)  # the same file by another way through links
    return found


@step("transfer")
async def transfer(found: Found) -> Moved | Proof:
    """Move the bytes into the partial file. A small one is verified too: a further try of both costs less than a step
    of its own does each time.
    """
    run = current()
    attempt, control = run.attempt(), run.control
    run.leaves_partial = True
    if found.route is Route.DOWNLOAD:
        request, said = await whole_request(run), list[Validators]()
        moved = await threaded(_download, run, attempt, found, request, said)
        where = await threaded(identity_or_none, request, Sealer.of(run.parts.settings))
        if where is not None and said and not is_empty(note := as_note(where, said[-1])):
            await run.write(queue.remember, origin=note)
    else:
        moved = await threaded(stream.send, attempt, found, control, run.remember)
    run.log.info("transferred %s, %.1f s since the run began", human(moved.size), run.seconds)
    return await _verified(run, found, moved) if moved.size <= verifying.READ_BACK else moved


@step("verify")
async def verify(found: Found, moved: Moved) -> Proof:
    """Compare both ends."""
    return await _verified(current(), found, moved)


@step("publish")
async def publish(found: Found, proof: Proof, originator: str = "") -> Delivered:
    """Give the file its name, and commit to the catalogue. Once it has the name, a further try only commits."""
    run = current()
    run.named = run.named or await _named(run, found, proof)
    return await _committed(run, run.named, proof.verified, originator)


@step("rename")
async def rename(found: Found) -> Delivered | None:
    """Move on one machine by rename, and commit; None when the names turn out to be on different file systems."""
    run = current()
    run.named = run.named or await _renamed(run, found)
    return await _committed(run, run.named, Verified.NONE, written=False) if run.named else None


@step("commit")
async def commit(intent: Intent, verified: Verified, originator: str = "") -> Delivered:
    """Commit to the catalogue what an attempt before this one published, but could not record."""
    return await _committed(current(), intent, verified, originator)


async def _verified(run: TransferRun, found: Found, moved: Moved) -> Proof:
    run.control.enter(Phase.VERIFY)
    proof = await threaded(verifying.verify, run.attempt(), found, moved, run.control)
    run.log.info("verified by %s%s", proof.verified, f": {proof.sha256} at both ends" if proof.sha256 else "")
    return proof


async def _named(run: TransferRun, found: Found, proof: Proof) -> Intent:
    """Record the intent, then give the file its name. The record is fenced: a mover that lost its lease publishes
    nothing.
    """
    run.control.enter(Phase.PUBLISH)
    await _require_own(run, found)
    run.control.shield()
    intent = run.stored  # by an earlier try of this step, which may have given the name before its answer was lost
    if intent is None:
        if found.source is None:
            intent = Intent(proof.size, proof.sha256, int(run.row.created.timestamp()))
        else:
            intent = found.intent(run.attempt(), proof.size, proof.sha256)
        intent = await threaded(publishing.set_attributes, run.attempt(), found, intent)
    await _record(run, intent)
    run.stored = intent
    await threaded(publishing.publish, run.attempt(), found, intent)
    kept = f", without {', '.join(intent.not_kept)}" if intent.not_kept else ""
    run.log.info("published %s%s", found.final, kept)
    return intent


async def _renamed(run: TransferRun, found: Found) -> Intent | None:
    run.control.enter(Phase.PUBLISH)
    await _require_own(run, found)
    run.control.shield()
    intent = found.intent(run.attempt(), found.source_stat.size)
    await _record(run, intent)
    if await threaded(publishing.rename, run.attempt(), found):
        return intent
    run.control.unshield()
    return None


async def _committed(
    run: TransferRun, intent: Intent, verified: Verified, originator: str = "", *, written: bool = True
) -> Delivered:
    run.control.enter(Phase.COMMIT)
    checksum = f"sha256:{intent.sha256}" if intent.sha256 else None
    login = acted_as(run.attempt().target.storage) if written else None
    facts = Facts(intent.size, checksum, verified, intent.not_kept, login)
    match TransferKind(run.row.kind):
        case TransferKind.COPY:
            result = str(await run.write(outcomes.complete_copy, facts))
        case TransferKind.GETEXTERNAL:
            result = str(await run.write(outcomes.complete_getexternal, facts, originator))
        case TransferKind.MOVE:
            await run.write(outcomes.commit_move, facts)
            run.control.enter(Phase.CLEANUP)
            result = outcomes.MOVED
        case kind:
            raise InternalError(f"{kind} is not committed here")
    return Delivered(intent, verified, result)


@step("remove source")
async def remove_source() -> str:
    """End a move: its source goes, if it still is what was read (after a rename it has gone already)."""
    run = current()
    run.control.enter(Phase.CLEANUP)
    row = await asyncio.to_thread(run.read, queue.held, run.hold)
    attempt, intent = run.attempt(), Intent(**row.notes["intent"])
    run.leaves_partial = True  # it may be aside
    await threaded(removal.remove_source, attempt.origin, intent, attempt.target, run.transfer, run.control.watch)
    await run.write(outcomes.finish_move)
    return outcomes.MOVED


@step("remove file")
async def remove_file() -> str:
    """Remove an object's file and record it. Of an archived object there is none: its part of a bundle is free
    then.
    """
    run = current()
    run.control.enter(Phase.CLEANUP)
    if run.row.source_machine is not None and isinstance(run.request, DeleteRequest):
        await threaded(require_settled, run)
        run.leaves_partial = True  # it may be aside
        await threaded(_remove_file, run, force=run.request.force)
    run.control.enter(Phase.COMMIT)
    return await run.write(outcomes.complete_delete)


async def deliver(found: Found, originator: str = "") -> str:
    """Bring the file to its place, commit and leave a summary; return the result for the client."""
    run, done = current(), None
    if found.published is not None:
        proved = Verified.NONE if found.route is Route.RENAME else run.attempt().proof_level
        done = await commit(found.published, proved, originator)
    elif found.route is Route.RENAME:
        done = await rename(found)
        if done is None:
            found = dataclasses.replace(found, route=Route.WITHIN)  # copied there, then removed
    if done is None:
        done = await _carry(run, found, originator)
    await summarise(run, found, done.intent, done.verified)
    return done.result


async def arrive(found: Found) -> Proof:
    """Move and verify; bytes that were damaged on the way are sent once more, from the start."""
    run = current()
    try:
        return await _arrive(run, found)
    except ChecksumMismatch as damaged:
        if not damaged.retryable:  # the source itself has other bytes than were expected
            raise
        run.log.warning("transfer %s: %s; sending again", run.transfer, damaged.detail)
        await discard(run, found)  # not to be resumed
        return await _arrive(run, found)


async def _carry(run: TransferRun, found: Found, originator: str) -> Delivered:
    try:
        return await publish(found, await arrive(found), originator)
    except BaseException as error:
        if await run.is_ended_by(error):
            await discard(run, found)
        raise


async def _arrive(run: TransferRun, found: Found) -> Proof:
    moved = await _transferring(run)(found)
    return moved if isinstance(moved, Proof) else await verify(found, moved)


def _transferring(run: TransferRun) -> Task[[Found], Coroutine[Any, Any, Moved | Proof]]:
    """Return the step that moves the bytes, with the retries that the request of a download names."""
    request = run.request
    if not isinstance(request, GetExternalRequest):
        return transfer
    retries = typed_options(request.url, request.protocol, request.options).retries
    return transfer if retries is None else transfer.with_options(retries=retries)


async def discard(run: TransferRun, found: Found) -> None:
    """Remove what a failed transfer left beside the destination; on a machine that is away it stays for now: see
    `flows.cleanup.leftovers`."""
    try:
        await asyncio.to_thread(stream.discard, run.attempt(), found)
        run.leaves_partial = False
    except DataManagerError as error:
        run.log.warning("transfer %s: partial file %s not removed yet: %s", run.transfer, found.part, error.detail)


async def _require_own(run: TransferRun, found: Found) -> None:
    for error in (await threaded(late_arrivals, run, {0: run.attempt()}, {0: found})).values():
        raise error


async def _record(run: TransferRun, intent: Intent) -> None:
    await run.write(queue.remember, intent=dataclasses.asdict(intent))


def _remove_file(run: TransferRun, *, force: bool) -> None:
    """Users may stop it until something is changed: a large file takes long to compare."""
    control, committed = run.control, False

    def progress(count: int) -> None:  # only called while the file is there, so an earlier attempt did not remove it
        if not committed:
            control.unshield()
        control.watch(count)

    def commit() -> None:
        nonlocal committed
        control.shield()
        committed = True

    attempt = run.attempt()
    removal.remove_file(attempt.origin, attempt.known, run.transfer, progress, commit, force=force)


def _download(
    run: TransferRun, attempt: Attempt, found: Found, request: GetExternalRequest, said: list[Validators]
) -> Moved:
    """Fetch; `said` gets the validators of the URL itself, and nothing when the bytes came from a mirror."""
    program = on_machine(attempt.target, run.control.watch)
    terms = parse_terms(request)
    opened = terms.open(SourceContext.of(run.parts.guard, run.parts.settings, program, run.parts.hosts))
    limit = terms.limit(run.parts.settings.max_download)
    expected = ExpectedBytes(limit, terms.size, opened.checksum(), terms.options.decompress)
    own = next(iter(opened.sources))

    def answered(replica: str, answer: Download) -> None:
        said[:] = [Validators.of(answer)] if replica == own else []

    context = FetchContext(attempt, found, run.control, expected, run.remember, answered)
    return fetch(context, remote) if (remote := opened.remote) else download(context, opened.sources)
