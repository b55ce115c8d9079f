"""The flow that removes partial files that nobody owns any more, and forgets what is too old. It is no transfer."""

from __future__ import annotations

import time

from prefect import flow
from prefect.logging import get_run_logger

from datamanager.errors import DataManagerError, DutyTaken, InvalidRequest
from flows.audit.report import show_table
from flows.cleanup.leftovers import clear_up
from flows.cleanup.sweeping import Sweeper, Swept
from flows.runtime.maintenance import sole_run, threaded
from flows.runtime.progress import human
from flows.runtime.services import Services, services
from models.database import LET_OTHERS
from models.housekeeping import tidy
from models.machines import health
from models.transfers import queue


@flow(name="sweep", persist_result=False)
async def sweep(machine: str = "", older_than: float = 24 * 3600.0, dry_run: bool = False) -> str:
    """Remove partial files of ended transfers, and delete expired rows and leases.

    Args:
        machine: The machine; empty means all, one after the other.
        older_than: Seconds since a partial file was last written, by its machine's clock; at least 300.
        dry_run: Remove nothing; report what would be removed.
    """
    if older_than < 0:
        raise InvalidRequest("older_than: must not be negative", {"older_than": "seconds, 300 or more"})
    parts, log = services(), get_run_logger()
    machines = [parts.machines[machine]] if machine else list(parts.machines.values())
    lines, said, failed = list[dict[str, object]](), list[str](), list[DataManagerError]()
    try:
        async with sole_run(parts, "sweep") as control:
            for one in machines:
                sweeper = Sweeper(parts, one, older_than, control, dry_run=dry_run)
                try:
                    swept = await threaded(control, _sweep, parts, sweeper, one.name)
                except DataManagerError as error:
                    control.check()
                    log.warning("%s: %s: %s", one.name, error.code, error.detail)
                    failed.append(error)
                    swept = sweeper.swept
                lines += swept.lines
                said.append(_in_words(swept, dry_run=dry_run))
            if not dry_run:
                said.append(await threaded(control, _tidy, parts))
    except DutyTaken as taken:
        return f"nothing was done: {taken.detail}"
    text = "; ".join(said)
    await show_table("sweep", lines, text)
    if failed:
        raise failed[0]
    return text


def _sweep(parts: Services, sweeper: Sweeper, name: str) -> Swept:
    with parts.database.read() as session:
        health.require_open(session, [name])
    return sweeper.sweep()


def _tidy(parts: Services) -> str:
    """Do what movers do anyway now and then: what is due is done when a sweep has ended."""
    with parts.database.write() as session:
        reaped = len(queue.reap(session))
    rows, more = 0, True
    while more:  # a bounded batch each, so that nobody waits for it
        with parts.database.write() as session:
            tidied = tidy(session, parts.settings, broker=parts.settings.amqp_url is not None)
        more = tidied.more
        if more:
            time.sleep(LET_OTHERS)
        rows += tidied.transfers + tidied.items + tidied.messages + tidied.keys + tidied.leases + tidied.findings
    cleared = 0
    while done := clear_up(parts):
        cleared += done
    return f"{rows} expired rows deleted, {cleared} ended transfers cleaned up, {reaped} transfers requeued"


def _in_words(swept: Swept, *, dry_run: bool) -> str:
    verb = "would be removed" if dry_run else "removed"
    text = f"{swept.machine}: {swept.removed} partial files {verb} ({human(swept.freed)}), {swept.spared} spared"
    return f"{text}, {swept.unlisted} directories could not be read" if swept.unlisted else text
