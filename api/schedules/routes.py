"""Schedules: what is fetched again and again. A mover brings them to Prefect; nothing here talks to it.

A moment that is asked for by name needs no Prefect either: its transfer is made at once, like that of any request.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import APIRouter
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.context import Context, In
from api.http import openapi
from api.http.bodies import read_request
from api.http.idempotency import Slot, once
from api.http.responses import json_response
from api.schedules.views import ScheduleView, schedule_view
from datamanager import errors
from datamanager.domain.location import Place
from datamanager.domain.recurring import ScheduleRequest, ScheduleRunRequest
from datamanager.domain.requests import Request as Nothing
from datamanager.errors import InvalidRequest, ScheduleNotFound
from datamanager.messaging.wake import ring
from datamanager.sealing import Sealer
from datamanager.sources.download_terms import parse_terms
from datamanager.sources.network.source_context import SourceContext
from datamanager.sources.terms.request_secrets import secret_names, secret_parameters
from models.external import schedules
from models.tables import Schedule

router = APIRouter(prefix="/DM/schedules", tags=["schedules"])

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ONE = (errors.ScheduleNotFound, errors.IdempotencyMismatch, errors.InvalidRequest)


@router.post(
    "",
    summary="Fetch a URL again and again",
    status_code=201,
    response_class=Response,
    responses=openapi.json_answer(
        "ScheduleView",
        "The schedule.",
        *openapi.BODY,
        errors.UnknownMachine,
        errors.PathNotAllowed,
        *openapi.URL,
        status=201,
    ),
    openapi_extra=openapi.body(ScheduleRequest, prefers=False),
)
async def add(request: Request, context: In) -> Response:
    """Fetch `url` every `interval` or by `cron` (UTC). `url`, `path` and `filename` are templates of the scheduled
    time: `{date:%Y%m%d}`, `{date-6h:%H}`. Secrets are accepted as a stored `credential` only. With `keep` the versions
    beyond so many are deleted; with `skip_unchanged` nothing is fetched while the source still has the last version.
    """
    fields = await read_request(request, ScheduleRequest)
    await context.remotely(lambda: _check(context, fields))

    async def work(slot: Slot) -> Response:
        def inside(session: Session) -> ScheduleView:
            if slot.subject is not None:  # made by a request that died
                row = schedules.get_schedule(session, slot.subject)
            else:
                row = schedules.add_schedule(session, fields)
                slot.attach(session, row.id)
            return schedule_view(row, [])

        view = await context.writing(inside)
        await _tell_movers(context)
        return json_response(view, 201, {"Location": f"/DM/schedules/{view['id']}"})

    return await once(context, request, fields, work)


@router.get(
    "",
    summary="List schedules",
    response_class=Response,
    responses=openapi.json_answer("ScheduleView", "All schedules, oldest first; without their runs.", many=True),
)
async def list_all(context: In) -> Response:
    """List what is fetched again and again."""
    views = await context.reading(lambda session: [schedule_view(row) for row in schedules.all_schedules(session)])
    return json_response(views)


@router.get(
    "/{schedule}",
    summary="Look at a schedule",
    response_class=Response,
    responses=openapi.json_answer("ScheduleView", "The schedule and its last runs.", errors.ScheduleNotFound),
)
async def show(schedule: str, context: In) -> Response:
    """Show a schedule and what came of its last moments, the newest first."""
    wanted = schedule_id_of(schedule)

    def look(session: Session) -> ScheduleView:
        return schedule_view(schedules.get_schedule(session, wanted), schedules.last_runs(session, wanted))

    return json_response(await context.reading(look))


@router.delete(
    "/{schedule}",
    summary="Remove a schedule",
    response_class=Response,
    responses=openapi.json_answer("RemovedView", "It is no more.", *_ONE),
    openapi_extra=openapi.body(None, prefers=False),
)
async def remove(schedule: str, request: Request, context: In) -> Response:
    """Remove a schedule. Its versions stay, and a transfer under way goes on."""
    wanted = schedule_id_of(schedule)

    async def work(_: Slot) -> Response:
        await context.writing(lambda session: schedules.remove_schedule(session, wanted))
        return json_response({"removed": str(wanted)})

    return await once(context, request, Nothing(), work)


@router.post(
    "/{schedule}/pause",
    summary="Pause a schedule",
    response_class=Response,
    responses=openapi.json_answer("ScheduleView", "The schedule.", *_ONE),
    openapi_extra=openapi.body(None, prefers=False),
)
async def pause(schedule: str, request: Request, context: In) -> Response:
    """Let a schedule rest; fine when it does. A transfer under way goes on."""
    return await _changed(schedule, request, context, partial(schedules.pause_schedule, paused=True))


@router.post(
    "/{schedule}/resume",
    summary="Resume a schedule",
    response_class=Response,
    responses=openapi.json_answer("ScheduleView", "The schedule.", *_ONE),
    openapi_extra=openapi.body(None, prefers=False),
)
async def resume(schedule: str, request: Request, context: In) -> Response:
    """Let a schedule go on; fine when it does. What was missed meanwhile is not made up for."""
    return await _changed(schedule, request, context, partial(schedules.pause_schedule, paused=False))


@router.post(
    "/{schedule}/run",
    summary="Run a schedule now",
    status_code=202,
    response_class=Response,
    responses=openapi.json_answer(
        "ScheduleView",
        "The schedule; `wanted_at` is the moment, or its `runs` are the one that was named.",
        errors.ScheduleNotFound,
        *openapi.BODY,
        status=202,
    ),
    openapi_extra=openapi.body(ScheduleRunRequest, prefers=False),
)
async def run(schedule: str, request: Request, context: In) -> Response:
    """Fetch besides the ordinary times, also while it is paused: once now, or a `moment` that is over. What was fetched
    is not fetched again; what failed is. See its `runs` for what came of it.
    """
    wanted = schedule_id_of(schedule)
    fields = await read_request(request, ScheduleRunRequest)

    def inside(session: Session) -> ScheduleView:
        if fields.moment is None:
            return schedule_view(schedules.want_run(session, wanted), schedules.last_runs(session, wanted))
        sealer = Sealer.of(context.settings)
        begun = schedules.run_moment(session, context.machines, sealer, wanted, fields.moment)
        return schedule_view(schedules.get_schedule(session, wanted), [begun])

    async def work(_: Slot) -> Response:
        view = await context.writing(inside)
        context.posted()
        await _tell_movers(context)
        return json_response(view, 202)

    return await once(context, request, fields, work)


Change = Callable[[Session, UUID], Schedule]


async def _changed(schedule: str, request: Request, context: Context, change: Change) -> Response:
    wanted = schedule_id_of(schedule)

    async def work(_: Slot) -> Response:
        def inside(session: Session) -> ScheduleView:
            row = change(session, wanted)
            return schedule_view(row, schedules.last_runs(session, wanted))

        view = await context.writing(inside)
        await _tell_movers(context)
        return json_response(view)

    return await once(context, request, Nothing(), work)


def schedule_id_of(text: str) -> UUID:
    """Read a schedule's identifier. Raises: ScheduleNotFound."""
    if not _UUID.fullmatch(text):
        raise ScheduleNotFound(f"no schedule has the identifier {text[:64]!r}")
    return UUID(text)


def _check(context: Context, fields: ScheduleRequest) -> None:
    """Refuse what no moment could be fetched with. Blocks: it resolves hosts.

    Raises: InvalidRequest, UnknownMachine, PathNotAllowed, UrlNotAllowed, NotSupported.
    """
    why = "secrets are not kept for a schedule; give the name of a stored credential"
    wrong: dict[str, Any] = {f"options.{name}": why for name in secret_names(fields.options)}
    if parameters := secret_parameters(fields.url):
        wrong["url"] = f"{why} instead of {', '.join(parameters)}"
    if wrong:
        raise InvalidRequest("; ".join(f"{name}: {what}" for name, what in wrong.items()), wrong)
    try:
        example = fields.at(datetime.now(UTC))
    except ValidationError:
        wanted = "must make a URL, a path and a file's name when the time is filled in"
        raise InvalidRequest(f"filename: {wanted}", {"filename": wanted}) from None
    Place.of(context.machines[example.machine], example.path, example.filename)
    parse_terms(example).check(SourceContext.of(context.guard, context.settings))


async def _tell_movers(context: Context) -> None:
    await run_sync(ring, context.run_directory, "mover", "schedules")
