"""`if_newer_than`: a download whose source still has what was fetched before ends without a second copy."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID

from datamanager.engine.fetching.machine_curl import on_machine
from datamanager.errors import DataManagerError
from datamanager.sealing import Sealer
from datamanager.sources.download_terms import DownloadSources, parse_terms
from datamanager.sources.network.source_context import SourceContext
from datamanager.sources.terms.source_validators import OPTION, Validators, ask, identity_or_none
from flows.external.request import whole_request
from flows.runtime.transfer_run import TransferRun
from models.objects.catalogue import comparable
from models.transfers import outcomes


async def unchanged(work: TransferRun) -> str | None:
    """Complete the transfer with the object that the source still has, and return it; None when the source changed, or
    when that can't be told.
    """
    given = getattr(work.request, "options", {}).get(OPTION)
    if not given:
        return None
    known = UUID(str(given))
    if not await asyncio.to_thread(_is_the_same, work, known, await _ask_source(work)):
        return None
    if not await work.write(outcomes.complete_unchanged, known):
        return None  # deleted in this moment
    work.log.info("the source is unchanged since object %s was fetched; there is no second copy", known)
    return str(known)


async def _ask_source(work: TransferRun) -> tuple[tuple[str, str | None], Validators] | None:
    """Return the source's validators now; None when it can't be asked. Its errors are the download's to raise, but for
    that it is to be asked again later. Raises: DownloadFailed, ServerBusy.
    """
    whole = await whole_request(work)
    where = await asyncio.to_thread(identity_or_none, whole, Sealer.of(work.parts.settings))
    if where is None:
        return None
    run = on_machine(work.attempt().target, work.control.watch)
    parts = work.parts
    opened = parse_terms(whole).open(SourceContext.of(parts.guard, parts.settings, run, parts.hosts))
    try:
        return where, await asyncio.to_thread(_ask, opened)
    except DataManagerError as error:
        if error.again is not None:
            raise  # it is not to be asked at once for the whole file
        work.log.info("the source could not be compared with the object: %s", error.detail)
        return None


def _is_the_same(work: TransferRun, known: UUID, found_now: tuple[tuple[str, str | None], Validators] | None) -> bool:
    if found_now is None:
        return False
    where, now = found_now
    found = work.read(comparable, known, where)
    if found is None:
        return False
    origin, obj = found
    return Validators(origin.etag, origin.last_modified, origin.version, obj.size, obj.checksum).same_as(now)


def _ask(opened: DownloadSources) -> Validators:
    """Return the source's validators, and the sha256 that the request or its file of checksums expects."""
    said, expected = ask(next(iter(opened.sources.values()))), opened.checksum()
    if expected is None or expected[0] != "sha256" or opened.terms.options.decompress:
        return said
    return replace(said, checksum=":".join(expected))
