"""The endpoints that wait: copy, move, delete, getexternal; archive and activate, which are not there yet."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api import documents
from api.bodies import read_request
from api.context import Context, In
from api.identifiers import object_id_of
from api.orders import wait_for
from datamanager import errors
from datamanager.domain.requests import CopyRequest, DeleteRequest, GetExternalRequest, MoveRequest
from datamanager.domain.states import TransferKind
from datamanager.errors import NotSupported
from models.objects import get_object
from models.transfers import Order

router = APIRouter(prefix="/DM", tags=["transfers"])

# archive and activate: the README says POST, the original server listened on PUT
NOT_YET: dict[str, Any] = {
    "response_class": Response,
    "responses": documents.problems(errors.ObjectNotFound, errors.NotSupported),
    "status_code": 501,
}


@router.post(
    "/copy/{uuid}",
    summary="Copy an object",
    status_code=201,
    response_class=Response,
    responses={
        **documents.object_created(
            *documents.OBJECT,
            *documents.BODY,
            *documents.PLACE,
            *documents.WAITING,
            *documents.BYTES,
            errors.SourceMissing,
        ),
        **documents.task(status=202),
    },
    openapi_extra=documents.body(CopyRequest, waits=True),
)
async def copy(uuid: str, request: Request, context: In) -> Response:
    """Copy an object's file to `dest` (directory and name in one) on `machine`.

    The copy is a new object with the same originator and group.
    Nothing is overwritten unless `overwrite` is true, and never a registered object.
    """
    object_id = object_id_of(uuid)
    fields = await read_request(request, CopyRequest)
    return await wait_for(context, request, Order(TransferKind.COPY, fields, object_id))


@router.post(
    "/move/{uuid}",
    summary="Move an object",
    response_class=Response,
    responses={
        **documents.message(
            "Move successful",
            *documents.OBJECT,
            *documents.BODY,
            *documents.PLACE,
            *documents.WAITING,
            *documents.BYTES,
            errors.SourceMissing,
            errors.SourceNotRemoved,
        ),
        **documents.task(status=202),
    },
    openapi_extra=documents.body(MoveRequest, waits=True),
)
async def move(uuid: str, request: Request, context: In) -> Response:
    """Move an object's file to `dest` (directory and name in one) on `machine`; the object keeps its identifier."""
    object_id = object_id_of(uuid)
    fields = await read_request(request, MoveRequest)
    return await wait_for(context, request, Order(TransferKind.MOVE, fields, object_id))


@router.delete(
    "/delete/{uuid}",
    summary="Delete an object's file",
    response_class=Response,
    responses={
        **documents.message(
            "archer2:weather/june.nc deleted",
            errors.ObjectNotFound,
            errors.ObjectDeleted,
            errors.ObjectArchived,
            errors.ObjectBusy,
            errors.DestinationExists,
            errors.UnknownMachine,
            errors.IdempotencyMismatch,
            *documents.WAITING,
        ),
        **documents.task(status=202),
    },
    openapi_extra=documents.body(DeleteRequest, waits=True),
)
async def delete(uuid: str, request: Request, context: In) -> Response:
    """Delete an object's file. The object stays listed as DELETED; a file that is already gone is no error."""
    object_id = object_id_of(uuid)
    fields = await read_request(request, DeleteRequest)
    return await wait_for(context, request, Order(TransferKind.DELETE, fields, object_id))


@router.put(
    "/getexternal",
    summary="Fetch a URL to a new object",
    status_code=201,
    response_class=Response,
    responses={
        **documents.object_created(
            *documents.BODY,
            *documents.PLACE,
            *documents.URL,
            *documents.WAITING,
            *documents.BYTES,
            errors.DownloadFailed,
        ),
        **documents.task(status=202),
    },
    openapi_extra=documents.body(GetExternalRequest, waits=True),
)
@router.put("/getexternal/", include_in_schema=False)
async def getexternal(request: Request, context: In) -> Response:
    """Download `url` to a machine. A `size` that is given (not 0) must be what arrives, or nothing is published."""
    fields = await read_request(request, GetExternalRequest)
    return await wait_for(context, request, Order(TransferKind.GETEXTERNAL, fields))


@router.post("/archive/{uuid}", summary="Archive an object (not there yet)", **NOT_YET)
@router.put("/archive/{uuid}", include_in_schema=False)
async def archive(uuid: str, context: In) -> Response:
    """Move an object's file to long-term storage."""
    return await refuse(context, uuid, "archive")


@router.post("/activate/{uuid}", summary="Bring an object back (not there yet)", **NOT_YET)
@router.put("/activate/{uuid}", include_in_schema=False)
async def activate(uuid: str, context: In) -> Response:
    """Bring an archived object's file back onto a machine."""
    return await refuse(context, uuid, "activate")


async def refuse(context: Context, uuid: str, what: str) -> Response:
    """Say that this is not there yet. Raises: ObjectNotFound, NotSupported."""
    object_id = object_id_of(uuid)
    await context.reading(lambda session: get_object(session, object_id))
    raise NotSupported(f"{what} is not supported yet")
