"""Archives: objects go into bundles on an archive machine, and come back. One or many, waiting or as a task.

The README says POST and the original server listened on PUT: both do. Old clients send nothing, or a form.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.context import In
from api.http import openapi
from api.http.bodies import read_large_request, read_request
from api.http.ids import object_id_of
from api.transfers.submit import enqueue, wait_for
from datamanager import errors
from datamanager.domain.archive_requests import (
    ActivateManyRequest,
    ActivateRequest,
    ArchiveManyRequest,
    ArchiveRequest,
)
from datamanager.domain.states import TransferKind
from models.transfers.submission import Order

router = APIRouter(prefix="/DM", tags=["archives"])

_NOT_ARCHIVED: openapi.Errors = (
    errors.ObjectNotFound,
    errors.ObjectDeleted,
    errors.ObjectActive,
    errors.ObjectUnknown,
    errors.ObjectBusy,
)
_WAITED_FOR: openapi.Errors = (*openapi.WAITING, *openapi.BYTES, errors.SourceMissing, errors.DestinationExists)


def _task(*classes: type[errors.DataManagerError]) -> dict[str, Any]:
    responses = {
        **openapi.task(status=200),
        **openapi.task(status=202),
        **openapi.problems(*openapi.BODY, errors.UnknownMachine, *classes),
    }
    return {"response_class": Response, "responses": responses}


def _message(text: str, *classes: type[errors.DataManagerError]) -> dict[str, Any]:
    responses = {
        **openapi.message(text, *openapi.BODY, errors.UnknownMachine, *_WAITED_FOR, *classes),
        **openapi.task(status=202),
    }
    return {"response_class": Response, "responses": responses}


@router.post(
    "/archive/{uuid}",
    summary="Archive an object",
    openapi_extra=openapi.body(ArchiveRequest, waits=True),
    **_message("Archive successful", *openapi.OBJECT, errors.SourceNotRemoved),
)
@router.put("/archive/{uuid}", include_in_schema=False)
async def archive(uuid: str, request: Request, context: In) -> Response:
    """Put an object's file into a bundle on an archive machine; `archived_in` of the object says which.

    The bundle is verified before the file is removed. The object's machine and path stay as they were, its place is
    free. With `keep_source` the file stays where it is, as one that no object holds.
    """
    object_id = object_id_of(uuid)
    fields = await read_request(request, ArchiveRequest)
    return await wait_for(context, request, Order(TransferKind.ARCHIVE, fields, object_id))


@router.post(
    "/activate/{uuid}",
    summary="Bring an archived object back",
    openapi_extra=openapi.body(ActivateRequest, waits=True),
    **_message("Activate successful", *_NOT_ARCHIVED, errors.PathNotAllowed),
)
@router.put("/activate/{uuid}", include_in_schema=False)
async def activate(uuid: str, request: Request, context: In) -> Response:
    """Bring an archived object's file back to where it was, or to `dest` on `machine`.

    Its checksum is verified before it gets its name. Fine for an object that is ACTIVE there already.
    """
    object_id = object_id_of(uuid)
    fields = await read_request(request, ActivateRequest)
    return await wait_for(context, request, Order(TransferKind.ACTIVATE, fields, object_id))


@router.post(
    "/async/archive/{uuid}",
    summary="Archive an object as a task",
    openapi_extra=openapi.body(ArchiveRequest),
    **_task(*openapi.OBJECT),
)
@router.put("/async/archive/{uuid}", include_in_schema=False)
async def archive_as_task(uuid: str, request: Request, context: In) -> Response:
    """Accept the archiving of an object; the task's `result` will be a message."""
    object_id = object_id_of(uuid)
    fields = await read_request(request, ArchiveRequest)
    return await enqueue(context, request, Order(TransferKind.ARCHIVE, fields, object_id))


@router.post(
    "/async/activate/{uuid}",
    summary="Bring an archived object back as a task",
    openapi_extra=openapi.body(ActivateRequest),
    **_task(*_NOT_ARCHIVED, errors.PathNotAllowed, errors.DestinationExists),
)
@router.put("/async/activate/{uuid}", include_in_schema=False)
async def activate_as_task(uuid: str, request: Request, context: In) -> Response:
    """Accept the return of an archived object; the task's `result` will be a message."""
    object_id = object_id_of(uuid)
    fields = await read_request(request, ActivateRequest)
    return await enqueue(context, request, Order(TransferKind.ACTIVATE, fields, object_id))


@router.post(
    "/async/archive",
    summary="Archive many objects as one task",
    openapi_extra=openapi.body(ArchiveManyRequest, forms=False),
    **_task(errors.ObjectNotFound, errors.PathNotAllowed),
)
async def archive_many(request: Request, context: In) -> Response:
    """Accept the archiving of many objects: up to 10,000 `items` (or just identifiers), or all below a `directory`.

    They become bundles, one machine's objects each. A failing item fails alone: see the task's items. What is archived
    already is skipped, so a batch may be repeated.
    """
    fields = await read_large_request(request, ArchiveManyRequest)
    return await enqueue(context, request, Order(TransferKind.ARCHIVE_MANY, fields))


@router.post(
    "/async/activate",
    summary="Bring many archived objects back as one task",
    openapi_extra=openapi.body(ActivateManyRequest, forms=False),
    **_task(errors.ObjectNotFound, errors.PathNotAllowed),
)
async def activate_many(request: Request, context: In) -> Response:
    """Accept the return of many objects: up to 10,000 `items` (or just identifiers), or all that were below a
    `directory`. Each goes to where it was, unless it has a `machine` or `dest` of its own.

    Those of one bundle are read together, in the order in which they lie there. A failing item fails alone: see the
    task's items. What is ACTIVE already is skipped, so a batch may be repeated.
    """
    fields = await read_large_request(request, ActivateManyRequest)
    return await enqueue(context, request, Order(TransferKind.ACTIVATE_MANY, fields))
