"""Retention: plans and runs of the rules; hold, lifetime and restore of single objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter
from pydantic import Field
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.context import Context, In
from api.http import openapi
from api.http.idempotency import Slot, mutate, once
from api.http.query import Cursor, Query, number, page_response, page_size, read_query, rendered
from api.http.request_parts import object_id_of, read_request, retention_run_id_of
from api.http.responses import json_response, view_of
from api.objects.views import ObjectView, object_view
from api.retention.views import RestoredView, RetentionPlanView, RetentionRunDetailView, RetentionRunView
from datamanager import errors
from datamanager.domain.requests import Request as OurRequest
from datamanager.domain.retention_requests import (
    HoldRequest,
    LifetimeRequest,
    Number,
    RestoreRequest,
    RetentionRunRequest,
    ShortText,
    Size,
)
from datamanager.domain.retention_rules import load_rules
from models.access.visibility import ALL
from models.database import now
from models.retention import holds, runs
from models.retention.report import make_decider, plan
from models.retention.runs import RetentionTerms
from models.tables import DataObject

LIMIT_MAX = 1000

router = APIRouter(prefix="/DM", tags=["retention"], default_response_class=Response)

_HELD = openapi.json_answer(
    ObjectView, "The object.", *openapi.BODY, errors.ObjectNotFound, errors.ObjectDeleted, errors.ObjectBusy
)


class PlanQuery(Query):
    """What a plan is limited to."""

    rule: ShortText = Field("", description="Only this rule.")
    max_objects: Number = Field(None, description="Maximum number of objects of the run.")
    max_bytes: Size = Field(None, description="Maximum number of bytes of the run.")


class RunQuery(Query):
    """Which runs."""

    limit: Annotated[int, number(1, LIMIT_MAX)] = page_size("Runs", 50, LIMIT_MAX)
    cursor: Cursor = None


@router.put(
    "/objects/{uuid}/hold",
    summary="Hold an object",
    responses=_HELD,
    openapi_extra=openapi.body(HoldRequest),
)
async def hold_object(uuid: str, request: Request, context: In) -> Response:
    """Protect an object from deletion by retention rules and by clients, until the hold is released.

    Its retention mark is removed. A held object keeps its `since` and gets the new reason.
    """
    object_id, fields = object_id_of(uuid), await read_request(request, HoldRequest)
    return await _change(
        context, request, fields, lambda session: holds.hold(session, object_id, ALL, fields.reason, fields.by)
    )


@router.delete(
    "/objects/{uuid}/hold",
    summary="Release an object",
    responses=openapi.json_answer(ObjectView, "The object.", errors.ObjectNotFound, *openapi.BODY),
    openapi_extra=openapi.body(),
)
async def release_object(uuid: str, request: Request, context: In) -> Response:
    """Remove the hold of an object. Idempotent. A rule that selects it marks it again, with the full grace period."""
    object_id = object_id_of(uuid)
    return await _change(context, request, None, lambda session: holds.release(session, object_id, ALL))


@router.put(
    "/objects/{uuid}/lifetime",
    summary="Set an object's lifetime",
    responses=_HELD,
    openapi_extra=openapi.body(LifetimeRequest),
)
async def set_lifetime(uuid: str, request: Request, context: In) -> Response:
    """Set `expires_at`, or a `lifetime` from now on; null removes the end.

    Nothing happens at that time by itself: a rule with `expired = true` may ask for it. Refused (409 `object_busy`)
    while the object is being deleted.
    """
    object_id, fields = object_id_of(uuid), await read_request(request, LifetimeRequest)
    return await _change(
        context, request, fields, lambda session: holds.set_expiry(session, object_id, ALL, fields.ends(now(session)))
    )


@router.get(
    "/retention/plan",
    summary="Plan a retention run",
    responses=openapi.json_answer(
        RetentionPlanView, "What a run would do now.", errors.InvalidRequest, errors.InvalidRules
    ),
    openapi_extra=openapi.query(PlanQuery),
)
async def show_plan(request: Request, context: In) -> Response:
    """Show what a run would do now, with which objects, and why; nothing is changed.

    It is decided by the same code as in a run. Only storage is not read: a run reads both copies before it deletes one.
    """
    query = read_query(request.query_params.multi_items(), PlanQuery)
    terms = RetentionTerms(True, query.rule, query.max_objects, query.max_bytes)

    def work() -> Response:
        rules = load_rules(context.settings.retention_file)
        decider, report = plan(context.database, rules, context.machines, terms, None)
        sentences = [rule.sentence() for rule in decider.rules.rule]
        return json_response(view_of(RetentionPlanView, report, time=decider.now, rules=sentences))

    return await run_sync(work, limiter=context.limits.readers)


@router.post(
    "/retention/run",
    summary="Run retention now",
    status_code=202,
    responses=openapi.json_answer(
        RetentionRunView, "The accepted run.", *openapi.BODY, errors.InvalidRules, status=202
    ),
    openapi_extra=openapi.body(RetentionRunRequest),
)
async def start_run(request: Request, context: In) -> Response:
    """Submit a run; a mover makes its flow run. `Location` says where its report will be."""
    fields = await read_request(request, RetentionRunRequest)
    terms = RetentionTerms(fields.dry_run, fields.rule, fields.max_objects, fields.max_bytes)

    async def work(slot: Slot) -> Response:
        rules = await run_sync(load_rules, context.settings.retention_file, limiter=context.limits.readers)

        def enter(session: Session) -> Response:
            run = slot.subject
            if run is None:
                make_decider(session, rules, context.machines, terms)  # raises what is wrong with the terms
                run = runs.ask_for_run(session, terms, None)
                slot.attach(session, run)
            view = view_of(RetentionRunView, runs.get_run(session, run, ALL), run=run)
            return json_response(view, 202, {"Location": f"/DM/retention/runs/{run}"})

        response = await context.writing(enter)
        context.notify_movers("queued")
        return response

    return await once(context, request, fields, work)


@router.post(
    "/retention/restore/{uuid}",
    summary="Restore an object",
    responses=openapi.json_answer(
        RestoredView,
        "The object, and the task that activates it.",
        *openapi.BODY,
        *openapi.PLACE,
        errors.ObjectNotFound,
        errors.ObjectDeleted,
        errors.ObjectBusy,
        errors.NotMarked,
    ),
    openapi_extra=openapi.body(RestoreRequest),
)
async def restore_object(uuid: str, request: Request, context: In) -> Response:
    """Remove the mark of an object: its rule skips it for `spare_for` (30 days). An object that a rule archived is
    activated. A deleted object cannot be restored: the grace period precedes the deletion.
    """
    object_id, fields = object_id_of(uuid), await read_request(request, RestoreRequest)

    def change(session: Session, _: Slot) -> Response:
        obj, task = holds.restore(session, context.machines, object_id, ALL, fields.spare_for, None)
        session.flush()
        return json_response({"object": object_view(obj), "task": task})

    return await mutate(context, request, change, fields, notify="queued")


@router.get(
    "/retention/runs",
    summary="List runs of retention",
    responses=openapi.json_answer(RetentionRunView, "Runs, the newest first.", errors.InvalidRequest, many=True),
    openapi_extra=openapi.query(RunQuery),
)
async def list_runs(request: Request, context: In) -> Response:
    """List the stored runs, newest first; a `Link` header with `rel="next"` while there is more."""
    query = read_query(request.query_params.multi_items(), RunQuery)
    shown = rendered(lambda row: view_of(RetentionRunView, row, run=row.id))
    texts, cursor = await context.reading(
        lambda session: runs.list_runs(session, ALL, query.limit, query.cursor, shown)
    )
    return page_response("/DM/retention/runs", [("limit", str(query.limit))], texts, cursor)


@router.get(
    "/retention/runs/{run}",
    summary="Show a run of retention",
    responses=openapi.json_answer(RetentionRunDetailView, "The run.", errors.RetentionRunNotFound),
)
async def show_run(run: str, context: In) -> Response:
    """Show the report of a run, with its first objects."""
    run_id = retention_run_id_of(run)
    row = await context.reading(lambda session: runs.get_run(session, run_id, ALL))
    return json_response(view_of(RetentionRunDetailView, row, run=run_id))


async def _change(
    context: Context, request: Request, fields: OurRequest | None, change: Callable[[Session], DataObject]
) -> Response:
    def inside(session: Session, _: Slot) -> Response:
        obj = change(session)
        session.flush()
        return json_response(object_view(obj))

    return await mutate(context, request, inside, fields)
