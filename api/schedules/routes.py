"""Schedules of recurring downloads. A mover brings them to Prefect; nothing here talks to it.

A moment that is named needs no Prefect either: its transfer is submitted at once, like that of any request.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.access.asking import requires
from api.context import Context, In
from api.http import openapi
from api.http.idempotency import Slot, mutate
from api.http.query import Cursor, Query, number, page_response, page_size, read_query, rendered
from api.http.request_parts import read_request, schedule_id_of
from api.http.responses import json_response
from api.schedules.views import RemovedView, ScheduleView, schedule_view
from datamanager import errors
from datamanager.domain.location import Place
from datamanager.domain.recurring import ScheduleRequest, ScheduleRunRequest
from datamanager.errors import InvalidRequest
from datamanager.identity.grant import Grant
from datamanager.sealing import Sealer
from datamanager.sources.terms.request_secrets import secret_names, secret_parameters
from datamanager.sources.terms.source_options import refuse_unknown
from models.access.visibility import ALL, seen
from models.external import schedules
from models.submission import source_check

router = APIRouter(prefix="/DM/schedules", tags=["schedules"], default_response_class=Response)

ACTION = "schedules"
MaySchedule = Annotated[Grant, requires(ACTION)]

LIMIT_MAX = 1000
TOPIC = "schedules"
"""What the movers are notified of: they bring schedules to Prefect."""
_ONE: openapi.Errors = (errors.ScheduleNotFound, *openapi.BODY)


class ScheduleQuery(Query):
    """Which schedules."""

    limit: Annotated[int, number(1, LIMIT_MAX)] = page_size("Schedules", LIMIT_MAX, LIMIT_MAX)
    cursor: Cursor = None


@router.post(
    "",
    summary="Schedule a recurring download",
    status_code=201,
    responses=openapi.json_answer(
        ScheduleView,
        "The schedule.",
        *openapi.BODY,
        errors.UnknownMachine,
        errors.PathNotAllowed,
        *openapi.URL,
        errors.ScheduleNotFound,  # the one that was made with the same Idempotency-Key was deleted since
        status=201,
    ),
    openapi_extra=openapi.body(ScheduleRequest),
)
async def add(request: Request, context: In, asked: MaySchedule) -> Response:
    """Fetch `url` every `interval` or by `cron` (UTC). `url`, `path` and `filename` are templates of the scheduled
    time: `{date:%Y%m%d}`, `{date-6h:%H}`. Secrets are accepted as a stored `credential` only. With `keep`, older
    versions beyond that number are deleted; with `skip_unchanged` an unchanged source is not downloaded again.
    """
    fields = await read_request(request, ScheduleRequest)
    await context.resolving(lambda: _check(context, fields))

    def change(session: Session, slot: Slot) -> Response:
        if slot.subject is not None:  # made by a request that did not end
            row = schedules.get_schedule(session, slot.subject, ALL)
        else:
            row = schedules.add_schedule(session, fields, asked)
            slot.attach(session, row.id)
        return json_response(schedule_view(row, []), 201, {"Location": f"/DM/schedules/{row.id}"})

    return await mutate(context, request, change, fields, notify=TOPIC)


@router.get(
    "",
    summary="List schedules",
    responses=openapi.json_answer(
        ScheduleView, "One page of schedules, oldest first; without their runs.", errors.InvalidRequest, many=True
    ),
    openapi_extra=openapi.query(ScheduleQuery),
)
async def list_all(request: Request, context: In, asked: MaySchedule) -> Response:
    """List the recurring downloads, oldest first, with a `Link` header with `rel="next"` while there is more."""
    given = request.query_params.multi_items()
    query, shown, visible = read_query(given, ScheduleQuery), rendered(schedule_view), seen(asked, ACTION)
    texts, cursor = await context.reading(
        lambda session: schedules.select_schedules(session, visible, query.limit, query.cursor, shown)
    )
    return page_response("/DM/schedules", given, texts, cursor)


@router.get(
    "/{schedule}",
    summary="Show a schedule",
    responses=openapi.json_answer(ScheduleView, "The schedule and its last runs.", errors.ScheduleNotFound),
)
async def show(schedule: str, context: In, asked: MaySchedule) -> Response:
    """Show a schedule and the results of its latest runs, newest first."""
    wanted, visible = schedule_id_of(schedule), seen(asked, ACTION)

    def look(session: Session) -> ScheduleView:
        return schedule_view(schedules.get_schedule(session, wanted, visible), schedules.last_runs(session, wanted))

    return json_response(await context.reading(look))


@router.delete(
    "/{schedule}",
    summary="Delete a schedule",
    responses=openapi.json_answer(RemovedView, "The schedule was removed.", *_ONE),
    openapi_extra=openapi.body(),
)
async def remove(schedule: str, request: Request, context: In, asked: MaySchedule) -> Response:
    """Remove a schedule. Its versions stay, and a transfer under way is not stopped."""
    wanted, visible = schedule_id_of(schedule), seen(asked, ACTION)

    def change(session: Session, _: Slot) -> Response:
        schedules.remove_schedule(session, wanted, visible)
        return json_response({"removed": wanted})

    return await mutate(context, request, change)


@router.post(
    "/{schedule}/pause",
    summary="Pause a schedule",
    responses=openapi.json_answer(ScheduleView, "The schedule.", *_ONE),
    openapi_extra=openapi.body(),
)
async def pause(schedule: str, request: Request, context: In, asked: MaySchedule) -> Response:
    """Pause a schedule; fine when it is paused. A transfer under way is not stopped."""
    return await _pause(schedule, request, context, asked, paused=True)


@router.post(
    "/{schedule}/resume",
    summary="Resume a schedule",
    responses=openapi.json_answer(ScheduleView, "The schedule.", *_ONE),
    openapi_extra=openapi.body(),
)
async def resume(schedule: str, request: Request, context: In, asked: MaySchedule) -> Response:
    """Resume a schedule; fine when it is not paused. Times missed meanwhile are not fetched."""
    return await _pause(schedule, request, context, asked, paused=False)


@router.post(
    "/{schedule}/run",
    summary="Run a schedule now",
    status_code=202,
    responses=openapi.json_answer(
        ScheduleView,
        "The schedule; `wanted_at` is the requested time, or `runs` contains the named one.",
        errors.ScheduleNotFound,
        *openapi.BODY,
        status=202,
    ),
    openapi_extra=openapi.body(ScheduleRunRequest),
)
async def run(schedule: str, request: Request, context: In, asked: MaySchedule) -> Response:
    """Run a schedule once, also while it is paused: for the current time, or for a `moment` in the past. A time
    that was downloaded is not downloaded again; a failed one is. `runs` contains the result.
    """
    wanted, visible = schedule_id_of(schedule), seen(asked, ACTION)
    fields = await read_request(request, ScheduleRunRequest)

    def change(session: Session, _: Slot) -> Response:
        if fields.moment is None:
            row, shown = schedules.want_run(session, wanted, visible), schedules.last_runs(session, wanted)
        else:
            row = schedules.get_schedule(session, wanted, visible)
            sealer = Sealer.of(context.settings)
            shown = [schedules.run_moment(session, context.machines, sealer, wanted, fields.moment, context.quotas)]
        return json_response(schedule_view(row, shown), 202)

    return await mutate(context, request, change, fields, notify=TOPIC)


async def _pause(schedule: str, request: Request, context: Context, asked: Grant, *, paused: bool) -> Response:
    wanted, visible = schedule_id_of(schedule), seen(asked, ACTION)

    def change(session: Session, _: Slot) -> Response:
        row = schedules.pause_schedule(session, wanted, visible, paused=paused)
        return json_response(schedule_view(row, schedules.last_runs(session, wanted)))

    return await mutate(context, request, change, notify=TOPIC)


def _check(context: Context, fields: ScheduleRequest) -> None:
    """Refuse what no moment could be fetched with. Blocks: it resolves hosts.

    Raises: InvalidRequest, UnknownMachine, PathNotAllowed, UrlNotAllowed, NotSupported.
    """
    refuse_unknown(fields.options)
    why = "secrets are not stored for a schedule; give the name of a stored credential"
    wrong: dict[str, Any] = {f"options.{name}": why for name in secret_names(fields.options)}
    if parameters := secret_parameters(fields.url):
        wrong["url"] = f"{why} instead of {', '.join(parameters)}"
    if wrong:
        raise InvalidRequest.of(wrong)
    try:
        example = fields.at(datetime.now(UTC))
    except ValidationError:
        wanted = "must result in a valid URL, path and file name"
        raise InvalidRequest.of({"filename": wanted}) from None
    Place.of(context.machines[example.machine], example.path, example.filename)
    source_check(context.guard, context.settings)(example)
