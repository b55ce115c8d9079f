"""The endpoints that wait: copy, move, delete, getexternal."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.context import In
from api.http import openapi
from api.http.bodies import read_request
from api.http.ids import object_id_of
from api.transfers.submit import wait_for
from datamanager import errors
from datamanager.domain.requests import CopyRequest, DeleteRequest, GetExternalRequest, MoveRequest
from datamanager.domain.states import TransferKind
from models.transfers.submission import Order

router = APIRouter(prefix="/DM", tags=["transfers"])


@router.post(
    "/copy/{uuid}",
    summary="Copy an object",
    status_code=201,
    response_class=Response,
    responses={
        **openapi.object_created(
            *openapi.OBJECT,
            *openapi.BODY,
            *openapi.PLACE,
            *openapi.WAITING,
            *openapi.BYTES,
            errors.SourceMissing,
        ),
        **openapi.task(status=202),
    },
    openapi_extra=openapi.body(CopyRequest, waits=True),
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
        **openapi.message(
            "Move successful",
            *openapi.OBJECT,
            *openapi.BODY,
            *openapi.PLACE,
            *openapi.WAITING,
            *openapi.BYTES,
            errors.SourceMissing,
            errors.SourceNotRemoved,
        ),
        **openapi.task(status=202),
    },
    openapi_extra=openapi.body(MoveRequest, waits=True),
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
        **openapi.message(
            "archer2:weather/june.nc deleted",
            errors.ObjectNotFound,
            errors.ObjectDeleted,
            errors.ObjectBusy,
            errors.ObjectHeld,
            errors.DestinationExists,
            errors.UnknownMachine,
            errors.IdempotencyMismatch,
            *openapi.WAITING,
        ),
        **openapi.task(status=202),
    },
    openapi_extra=openapi.body(DeleteRequest, waits=True),
)
async def delete(uuid: str, request: Request, context: In) -> Response:
    """Delete an object's file. The object stays listed as DELETED; a file that is already gone is no error.

    Of an archived object its part of a bundle is freed; no machine needs to be there for that.
    """
    object_id = object_id_of(uuid)
    fields = await read_request(request, DeleteRequest)
    return await wait_for(context, request, Order(TransferKind.DELETE, fields, object_id))


@router.put(
    "/getexternal",
    summary="Fetch a URL to a new object",
    status_code=201,
    response_class=Response,
    responses={
        **openapi.object_created(
            *openapi.BODY,
            *openapi.PLACE,
            *openapi.URL,
            *openapi.WAITING,
            *openapi.BYTES,
            errors.DownloadFailed,
        ),
        **openapi.task(status=202),
    },
    openapi_extra=openapi.body(GetExternalRequest, waits=True),
)
@router.put("/getexternal/", include_in_schema=False)
async def getexternal(request: Request, context: In) -> Response:
    """Download `url` to a machine. A `size` that is given (not 0) must be what arrives, or nothing is published."""
    fields = await read_request(request, GetExternalRequest)
    return await wait_for(context, request, Order(TransferKind.GETEXTERNAL, fields))
