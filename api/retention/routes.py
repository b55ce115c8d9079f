"""Retention: what the rules would do, runs of them, and what people say of single objects: hold, lifetime, restore."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

from anyio.to_thread import run_sync
from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.context import Context, In
from api.http import openapi
from api.http.bodies import read_request
from api.http.idempotency import Slot, once
from api.http.ids import object_id_of, retention_run_of
from api.http.query import read_filters
from api.http.responses import json_response
from api.retention.views import plan_view, run_detail_view, run_view
from api.views import object_view
from datamanager import errors
from datamanager.domain.requests import DeleteRequest, validated
from datamanager.domain.requests import Request as OurRequest
from datamanager.domain.retention.requests import HoldRequest, LifetimeRequest, RestoreRequest, RetentionRunRequest
from datamanager.domain.retention.rules import load_rules
from datamanager.errors import InvalidRequest
from datamanager.messaging.wake import ring
from models.database import now
from models.retention import holds, runs
from models.retention.report import make_decider, plan
from models.retention.runs import RetentionTerms
from models.tables import DataObject

LIMIT_DEFAULT, LIMIT_MAX = 50, 1000

router = APIRouter(prefix="/DM", tags=["retention"])

_HELD = openapi.json_answer(
    "ObjectView", "The object.", *openapi.BODY, errors.ObjectNotFound, errors.ObjectDeleted, errors.ObjectBusy
)
_PLAN_QUERY = {
    "rule": "Only this rule.",
    "max_objects": "As if a run might act on so many objects only.",
    "max_bytes": "As if a run might act on so many bytes only.",
}
_PAGE_QUERY = {
    "limit": f"Runs in a page, 1 to {LIMIT_MAX}; default {LIMIT_DEFAULT}.",
    "cursor": "Where the page before ended; taken from its `Link` header.",
}


def _query(known: dict[str, str]) -> dict[str, object]:
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "description": text, "schema": {"type": "string"}}
            for name, text in known.items()
        ]
    }


def _given(request: Request, known: dict[str, str]) -> dict[str, str]:
    """Return the query's parameters. Raises: InvalidRequest for those that are unknown or given twice."""
    return read_filters(request.query_params.multi_items(), known, {})


@router.put(
    "/objects/{uuid}/hold",
    summary="Hold an object",
    response_class=Response,
    responses=_HELD,
    openapi_extra=openapi.body(HoldRequest, prefers=False),
)
async def hold_object(uuid: str, request: Request, context: In) -> Response:
    """Keep an object from being deleted, by retention and by clients alike, until the hold is released.

    A mark of retention on it is void. One that is held already keeps its `since` and gets the new reason.
    """
    object_id, fields = object_id_of(uuid), await read_request(request, HoldRequest)
    return await _change(
        context, request, fields, lambda session: holds.hold(session, object_id, fields.reason, fields.by)
    )


@router.delete(
    "/objects/{uuid}/hold",
    summary="Release an object",
    response_class=Response,
    responses=openapi.json_answer(
        "ObjectView", "The object.", errors.ObjectNotFound, errors.InvalidRequest, errors.IdempotencyMismatch
    ),
    openapi_extra=openapi.body(None, prefers=False),
)
async def release_object(uuid: str, request: Request, context: In) -> Response:
    """End an object's hold; fine when it has none. A rule that selects it marks it anew, with its whole grace."""
    object_id = object_id_of(uuid)
    return await _change(context, request, DeleteRequest(), lambda session: holds.release(session, object_id))


@router.put(
    "/objects/{uuid}/lifetime",
    summary="Say until when an object is wanted",
    response_class=Response,
    responses=_HELD,
    openapi_extra=openapi.body(LifetimeRequest, prefers=False),
)
async def set_lifetime(uuid: str, request: Request, context: In) -> Response:
    """Set `expires_at`, or a `lifetime` from now on; null takes the end away.

    Nothing happens at that time by itself: a rule with `expired = true` may ask for it. Refused (409 `object_busy`)
    while a delete of the object is under way.
    """
    object_id, fields = object_id_of(uuid), await read_request(request, LifetimeRequest)
    return await _change(
        context, request, fields, lambda session: holds.set_expiry(session, object_id, fields.ends(now(session)))
    )


@router.get(
    "/retention/plan",
    summary="Show what retention would do",
    response_class=Response,
    responses=openapi.json_answer(
        "RetentionPlanView", "What a run would do now.", errors.InvalidRequest, errors.InvalidRules
    ),
    openapi_extra=_query(_PLAN_QUERY),
)
async def show_plan(request: Request, context: In) -> Response:
    """Show what a run would do now, with which objects, and why; nothing is changed.

    It is found by the same lines of code as a run. Only the files are not read in storage, as a run does before it
    deletes a copy: that of the copy that remains, and the one that goes.
    """
    asked = validated(_given(request, _PLAN_QUERY), RetentionRunRequest)
    terms = RetentionTerms(True, asked.rule, asked.max_objects, asked.max_bytes)

    def work() -> Response:
        rules = load_rules(context.settings.retention_file)
        return json_response(plan_view(*plan(context.database, rules, context.machines, terms)))

    return await run_sync(work, limiter=context.limits.readers)


@router.post(
    "/retention/run",
    summary="Run retention now",
    status_code=202,
    response_class=Response,
    responses=openapi.json_answer(
        "RetentionRunView", "The run that was entered.", *openapi.BODY, errors.InvalidRules, status=202
    ),
    openapi_extra=openapi.body(RetentionRunRequest, prefers=False),
)
async def start_run(request: Request, context: In) -> Response:
    """Ask for a run; a mover makes its flow run. `Location` says where its report will be."""
    fields = await read_request(request, RetentionRunRequest)
    terms = RetentionTerms(fields.dry_run, fields.rule, fields.max_objects, fields.max_bytes)

    async def work(slot: Slot) -> Response:
        rules = await run_sync(load_rules, context.settings.retention_file, limiter=context.limits.readers)

        def enter(session: Session) -> Response:
            run = slot.subject
            if run is None:
                make_decider(session, rules, context.machines, terms)  # what is wrong with it is said now
                run = runs.ask_for_run(session, terms)
                slot.attach(session, run)
            where = f"/DM/retention/runs/{run}"
            return json_response(run_view(runs.get_run(session, run)), 202, {"Location": where})

        answer = await context.writing(enter)
        await run_sync(ring, context.run_directory, "mover", "queued")
        return answer

    return await once(context, request, fields, work)


@router.post(
    "/retention/restore/{uuid}",
    summary="Take an object back from a rule",
    response_class=Response,
    responses=openapi.json_answer(
        "RestoredView",
        "The object, and the task that activates it.",
        *openapi.BODY,
        *openapi.PLACE,
        errors.ObjectNotFound,
        errors.ObjectDeleted,
        errors.ObjectBusy,
        errors.NotMarked,
    ),
    openapi_extra=openapi.body(RestoreRequest, prefers=False),
)
async def restore_object(uuid: str, request: Request, context: In) -> Response:
    """Take a marked object back: its rule leaves it alone for `spare_for` (30 days). One that a rule archived is
    activated, too. What was deleted can't come back: the grace time is before the deletion.
    """
    object_id, fields = object_id_of(uuid), await read_request(request, RestoreRequest)

    async def work(_: Slot) -> Response:
        def change(session: Session) -> Response:
            obj, task = holds.restore(session, context.machines, object_id, fields.spare_for)
            session.flush()
            return json_response({"object": object_view(obj), "task": None if task is None else str(task)})

        answer = await context.writing(change)
        context.posted()
        await run_sync(ring, context.run_directory, "mover", "queued")
        return answer

    return await once(context, request, fields, work)


@router.get(
    "/retention/runs",
    summary="List runs of retention",
    response_class=Response,
    responses=openapi.json_answer("RetentionRunView", "Runs, the newest first.", errors.InvalidRequest, many=True),
    openapi_extra=_query(_PAGE_QUERY),
)
async def list_runs(request: Request, context: In) -> Response:
    """List the runs that are kept, the newest first; a `Link` header with `rel="next"` while there is more."""
    given = _given(request, _PAGE_QUERY)
    text = given.get("limit", str(LIMIT_DEFAULT))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= LIMIT_MAX):
        wanted = f"1 to {LIMIT_MAX}"
        raise InvalidRequest(f"limit: must be {wanted}", {"limit": wanted})
    rows, cursor = await context.reading(lambda session: runs.list_runs(session, int(text), given.get("cursor")))
    headers = {}
    if cursor is not None:
        headers["Link"] = f'</DM/retention/runs?{urlencode({"limit": text, "cursor": cursor})}>; rel="next"'
    return json_response([run_view(row) for row in rows], headers=headers)


@router.get(
    "/retention/runs/{run}",
    summary="Show a run of retention",
    response_class=Response,
    responses=openapi.json_answer("RetentionRunDetailView", "The run.", errors.RetentionRunNotFound),
)
async def show_run(run: str, context: In) -> Response:
    """Show what a run did, and what it spared and why, with the first objects one by one."""
    run_id = retention_run_of(run)
    row = await context.reading(lambda session: runs.get_run(session, run_id))
    return json_response(run_detail_view(row))


async def _change(
    context: Context, request: Request, fields: OurRequest, change: Callable[[Session], DataObject]
) -> Response:
    async def work(_: Slot) -> Response:
        def inside(session: Session) -> Response:
            obj = change(session)
            session.flush()
            return json_response(object_view(obj))

        answer = await context.writing(inside)
        context.posted()
        return answer

    return await once(context, request, fields, work)
